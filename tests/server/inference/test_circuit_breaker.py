"""A Redis that is down is not asked for a while, and no message repeats its URL."""

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


def test_an_outage_is_asked_about_every_five_seconds_and_logged_in_one_form(caplog: pytest.LogCaptureFixture) -> None:
    now = [1000.0]
    circuit = CircuitBreaker("nothing happens", lambda: now[0])
    asked = 0
    for _ in range(1300):
        if not circuit.is_open:
            asked += 1
            circuit.record_failure(OSError(f"away for {now[0]} s, redis://:secret@h"))
        now[0] += 0.1

    assert 25 <= asked <= 27
    assert set(caplog.messages) == {"Redis does not answer (OSError): nothing happens"}  # the log drops repeats
