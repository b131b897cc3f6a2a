"""Redis as an optional dependency: a request never waits long for a Redis that is
down.
"""

import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mlflow_deploy_plugin.core.errors import InvalidConfig

logger = logging.getLogger(__name__)

_PAUSE_SECONDS = 5.0

TIMEOUTS = {"socket_connect_timeout": 0.25, "socket_timeout": 0.25}


def import_redis(url: str) -> Any:
    """Import Redis' client and check the URL. Raises InvalidConfig if the client is
    missing or `url` is malformed.
    """
    try:
        # Import the client here, because it is optional and costs memory and time at
        # the start.
        import redis
    except ImportError:
        raise InvalidConfig(
            "ONNXSERVE_REDIS_URL is set, but Redis' client is not installed: pip install "
            "'mlflow-onnxserve[redis]'"
        ) from None
    try:
        redis.connection.parse_url(url)
    except ValueError:  # The message omits the URL, which may contain a password.
        raise InvalidConfig(
            "ONNXSERVE_REDIS_URL is not a URL of Redis; redis://HOST:6379/0 is expected"
        ) from None
    return redis


@dataclass(eq=False)
class CircuitBreaker:
    """A circuit breaker that stops requests to Redis after a failure, until the ping of
    a background thread succeeds.

    The thread pings at once, so that a slow response costs only milliseconds, but after
    a second failure in `pause_seconds` it pauses first. Requests do not ping: resolving
    a host name may exceed any client timeout.

    Attributes:
        consequence: the effect on requests, for the log.
        ping: a function that sends a ping to Redis, and raises if Redis does not
            respond.
        count_failure: called at each failure of Redis, including failed pings.
    """

    consequence: str
    ping: Callable[[], object]
    count_failure: Callable[[], None]
    pause_seconds: float = _PAUSE_SECONDS

    def __post_init__(self) -> None:
        self.is_open = False
        self._failed_at = -math.inf
        self._lock = threading.Lock()

    def record_failure(self, error: Exception) -> None:
        """Count and log a failure, and stop requests to Redis until it answers a
        ping.
        """
        with self._lock:
            if self.is_open:
                return  # This request began before another request opened the circuit.
            self._report(error)
            self.is_open = True
            failed_before = self._failed_at
            self._failed_at = time.monotonic()
            pause = 0.0
            if self._failed_at < failed_before + self.pause_seconds:
                pause = self.pause_seconds
            try:
                threading.Thread(
                    target=self._close_when_it_answers,
                    args=(pause,),
                    name="onnxserve-redis",
                    daemon=True,
                ).start()
            except RuntimeError:
                # The machine's limit of threads is reached; the next request tries
                # Redis.
                self.is_open = False

    def _close_when_it_answers(self, pause: float) -> None:
        """Ping Redis after each pause, the first of `pause` seconds, until it
        answers.
        """
        while True:
            time.sleep(pause)
            try:
                self.ping()
            except Exception as error:  # noqa: BLE001 - catch all, because only this thread closes the circuit
                self._report(error)
                pause = self.pause_seconds
            else:
                break
        logger.info("Redis answers again")
        self.is_open = False

    def _report(self, error: Exception) -> None:
        """Count a failure of Redis, and log it."""
        self.count_failure()
        # Do not log the client's own message, because it may contain the address with
        # its password.
        system = error.__cause__ or error.__context__
        reason = system.strerror if isinstance(system, OSError) else None
        logger.error(
            "Redis does not answer (%s): %s", reason or type(error).__name__, self.consequence
        )
