"""The open loop with a server of 20 ms per answer. See tests/benchmarks/test_load.py for the closed loop."""

import numpy as np
import pytest

from mlflow_deploy_plugin.sizing.load import open_loop, post, random_times
from tests.benchmarks.test_load import listening, slow

REQUEST = [post("/", b"body")]


def test_latency_counts_from_the_scheduled_time() -> None:
    with listening(*slow()) as port:
        sent = open_loop(port, REQUEST, np.arange(50) / 100, connections=1)
    assert len(sent.latencies) == 50
    assert sent.p99 > 0.2  # 50 answers per second for 100 requests: the last requests waited for half of it
    assert np.median(sent.latencies) > 0.1
    assert (sent.wrong, sent.wrong_answer) == (0, b"")


def test_a_load_stops_when_its_latency_is_decided() -> None:
    with listening(*slow()) as port:
        sent = open_loop(port, REQUEST, np.arange(500) / 100, connections=1, p99=0.1)
    assert len(sent.latencies) < 100
    assert sent.p99 > 0.1


def test_the_requests_are_sent_in_turn() -> None:
    with listening(*slow()) as port:
        sent = open_loop(port, [*REQUEST, b"GET / HTTP/1.1\r\n\r\n1234"], np.zeros(4), connections=1, expected=b"ok")
    assert (len(sent.latencies), sent.wrong) == (4, 0)


@pytest.mark.parametrize(("status", "expected"), [(503, b"ok"), (200, b"something else")])
def test_an_error_is_a_wrong_answer(status: int, expected: bytes) -> None:
    with listening(*slow(status)) as port:
        sent = open_loop(port, REQUEST, np.zeros(3), connections=3, expected=expected)
    assert sent.wrong == 3
    assert sent.wrong_answer.startswith(f"HTTP/1.1 {status}".encode())


def test_random_times_are_those_of_independent_callers() -> None:
    times = random_times(rate=1000, seconds=10, seed=0)
    assert len(times) == 10_000
    assert 0 <= times[0] <= times[-1] <= 10
    counts, _ = np.histogram(times, bins=1000, range=(0, 10))
    assert 0.8 < counts.var() / counts.mean() < 1.2  # The counts of a Poisson process have the variance of their mean.
    assert len(random_times(rate=0.001, seconds=1, seed=0)) == 1
