"""Redis as an optional dependency: a request never waits long for a Redis that is down."""

import logging
import time
from collections.abc import Callable
from typing import Any

from mlflow_deploy_plugin.errors import InvalidConfig

logger = logging.getLogger(__name__)

_PAUSE_SECONDS = 5.0

CONNECT_SECONDS, ANSWER_SECONDS = 0.25, 0.25
"""The timeouts of Redis. A request waits for them once per pause, then goes on without Redis."""

_SCHEMES = ("redis://", "rediss://", "unix://")


def import_redis(url: str) -> Any:
    """Import Redis' client and check the URL.

    Raises:
        InvalidConfig: the client is not installed, or `url` is malformed.
    """
    try:
        import redis  # late: it is optional, and costs memory and time at the start
    except ImportError:
        raise InvalidConfig(
            "ONNXSERVE_REDIS_URL is set, but Redis' client is not installed: pip install 'mlflow-onnxserve[redis]'"
        ) from None
    try:
        redis.connection.parse_url(url)
        is_readable = url.startswith(_SCHEMES)
    except ValueError:
        is_readable = False
    if not is_readable:  # the message leaves the URL out: it may hold a password
        raise InvalidConfig("ONNXSERVE_REDIS_URL is no URL of a Redis; redis://HOST:6379/0 is expected")
    return redis


class CircuitBreaker:
    """Keeps requests from a Redis that has failed, for some seconds after each failure.

    Args:
        consequence: what happens meanwhile, for the log, which says the same once a minute (`logs.py`).
        clock: seconds, monotonic.
    """

    def __init__(self, consequence: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._consequence = consequence
        self._clock = clock
        self._until = float("-inf")

    @property
    def is_open(self) -> bool:
        return self._clock() < self._until

    def record_failure(self, error: Exception) -> None:
        """Open the circuit: Redis has just failed."""
        self._until = self._clock() + _PAUSE_SECONDS
        # not the message: it may hold the address with its password
        logger.error("Redis does not answer (%s): %s", type(error).__name__, self._consequence)
