"""What is done about a service that may be away, and that serving must not wait for."""

import logging
import threading
import time
from collections.abc import Callable

logger = logging.getLogger(__name__)

_PAUSE_SECONDS = 5.0
_LOG_SECONDS = 60.0

CONNECT_SECONDS, ANSWER_SECONDS = 0.25, 0.25
"""What a service may take, once per pause, before the request goes on without it."""


class Outage:
    """Whether the service is asked at present: after a failure it is not for some seconds.

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
    def lasts(self) -> bool:
        return self._clock() < self._until

    def began(self, error: Exception) -> None:
        """The service has just failed."""
        now = self._clock()
        with self._lock:
            self._until = now + _PAUSE_SECONDS
            is_silent, self._silent_until = now < self._silent_until, max(self._silent_until, now)
            if not is_silent:
                self._silent_until = now + _LOG_SECONDS
        if not is_silent:
            # not the message: it may hold the address with its password
            logger.error("Redis does not answer (%s): %s", type(error).__name__, self._consequence)
