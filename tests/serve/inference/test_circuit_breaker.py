"""Requests pause for a Redis that is down, and no message contains its URL."""

import logging
import queue
import threading

import pytest

from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.serve.inference.circuit_breaker import CircuitBreaker
from mlflow_deploy_plugin.serve.inference.limits import RedisRates
from mlflow_deploy_plugin.serve.inference.response_cache import open_cache
from tests.support.waiting import wait_until


@pytest.mark.parametrize("url", ["http://h:secret", "redis://:secret@h:port/0", "h:6379:secret"])
def test_invalid_url_is_refused_and_not_repeated(url):
    for opening in (lambda: RedisRates(url), lambda: open_cache(1000, 60, url)):
        with pytest.raises(InvalidConfig, match="ONNXSERVE_REDIS_URL") as error:
            opening()
        assert "secret" not in error.value.message


def test_outage_is_probed_by_a_thread(caplog):
    thread_names = queue.SimpleQueue[str]()
    answers = queue.SimpleQueue[bool]()
    counted = list[int]()

    def ping():
        thread_names.put(threading.current_thread().name)
        if not answers.get():
            raise OSError("away, redis://:secret@h")

    circuit = CircuitBreaker(
        "nothing happens", ping, lambda: counted.append(1), pause_seconds=0.001
    )
    for _ in range(2):  # The second request began before the first failed.
        circuit.record_failure(OSError("away, redis://:secret@h"))
    for answer in (False, False, True):
        assert thread_names.get() == "onnxserve-redis"
        assert circuit.is_open
        answers.put(answer)
    wait_until(lambda: not circuit.is_open, 10, "the circuit closes once Redis answers")

    assert thread_names.empty()
    assert len(counted) == 3
    # The log drops repeats.
    errors = {record.message for record in caplog.records if record.levelno == logging.ERROR}
    assert errors == {"Redis does not answer (OSError): nothing happens"}


def test_repeated_failure_keeps_the_circuit_open():
    probes = queue.SimpleQueue[None]()
    circuit = CircuitBreaker(
        "nothing happens", lambda: probes.put(None), lambda: None, pause_seconds=60
    )
    circuit.record_failure(OSError("slow"))
    probes.get(timeout=10)
    wait_until(lambda: not circuit.is_open, 10, "the circuit closes once Redis answers")

    circuit.record_failure(OSError("slow again"))
    assert circuit.is_open
    with pytest.raises(queue.Empty):
        probes.get(timeout=0.05)


def test_circuit_stays_closed_without_a_thread(monkeypatch):
    def refuse(thread):
        raise RuntimeError("can't start new thread")

    circuit = CircuitBreaker("nothing happens", lambda: None, lambda: None)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    circuit.record_failure(OSError())
    assert not circuit.is_open
