"""What is done about a Redis that may be away, and that serving must not wait for."""

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from mlflow_deploy_plugin.errors import InvalidConfig

logger = logging.getLogger(__name__)

_PAUSE_SECONDS = 5.0
_LOG_SECONDS = 60.0

CONNECT_SECONDS, ANSWER_SECONDS = 0.25, 0.25
"""What Redis may take, once per pause, before the request goes on without it."""

_SCHEMES = ("redis://", "rediss://", "unix://")


def import_redis(url: str) -> Any:
    """The client's module, for a URL that it can read.

    Raises:
        InvalidConfig: it is not installed, or `url` is none.
    """
    try:
        import redis  # optional, and only where it is wanted: it costs memory and time at the start
    except ImportError:
        raise InvalidConfig(
            "ONNXSERVE_REDIS_URL is set, but Redis' client is not installed: pip install 'mlflow-onnxserve[redis]'"
        ) from None
    try:
        redis.connection.parse_url(url)
        is_readable = url.startswith(_SCHEMES)
    except ValueError:
        is_readable = False
    if not is_readable:  # without the URL: it may hold a password
        raise InvalidConfig("ONNXSERVE_REDIS_URL is no URL of a Redis; redis://HOST:6379/0 is expected")
    return redis


class CircuitBreaker:
    """Whether Redis is asked at present: after a failure it is not for some seconds.

    Args:
        consequence: what happens meanwhile, for the log's one line a minute.
        clock: seconds, monotonic.
    """

    def __init__(self, consequence: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._consequence = consequence
        self._clock = clock
        self._lock = threading.Lock()
        self._until = float("-inf")
        self._silent_until = float("-inf")

    @property
    def is_open(self) -> bool:
        return self._clock() < self._until

    def record_failure(self, error: Exception) -> None:
        """Redis has just failed."""
        now = self._clock()
        with self._lock:
            self._until = now + _PAUSE_SECONDS
            is_silent, self._silent_until = now < self._silent_until, max(self._silent_until, now)
            if not is_silent:
                self._silent_until = now + _LOG_SECONDS
        if not is_silent:
            # not the message: it may hold the address with its password
            logger.error("Redis does not answer (%s): %s", type(error).__name__, self._consequence)
