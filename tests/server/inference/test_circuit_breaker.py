"""A Redis that is down is not asked for a while, and no message repeats its URL."""

from typing import Any

import pytest

from mlflow_deploy_plugin.errors import InvalidConfig
from mlflow_deploy_plugin.server.inference.circuit_breaker import CircuitBreaker
from mlflow_deploy_plugin.server.inference.limits import RedisRates
from mlflow_deploy_plugin.server.inference.response_cache import open_cache


@pytest.mark.parametrize("url", ["http://h:secret", "redis://:secret@h:port/0", "h:6379:secret"])
def test_a_url_that_is_none_is_refused_without_being_repeated(url: str) -> None:
    for opening in (lambda: RedisRates(url), lambda: open_cache(1000, 60, url)):
        with pytest.raises(InvalidConfig, match="ONNXSERVE_REDIS_URL is no URL of a Redis") as error:
            opening()
        assert "secret" not in error.value.message


def test_an_outage_is_logged_once_a_minute_and_asked_about_every_five_seconds(caplog: pytest.LogCaptureFixture) -> None:
    now = [1000.0]
    circuit = CircuitBreaker("nothing happens", lambda: now[0])
    asked: list[Any] = []
    for _ in range(1300):
        if not circuit.is_open:
            asked.append(now[0])
            circuit.record_failure(OSError("away"))
        now[0] += 0.1

    assert 25 <= len(asked) <= 27
    assert len(caplog.records) == 3
