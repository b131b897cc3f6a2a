"""Following the change feed of MLflow's server in a thread, so that references are
rarely polled.
"""

import logging
import random
import threading
import time
from collections import deque

from mlflow_deploy_plugin.core.errors import NotFound, OnnxserveError
from mlflow_deploy_plugin.core.processes.child import backoff_seconds
from mlflow_deploy_plugin.core.registry.change_feed import MAX_URIS, Selected, read_changes

_LONGEST_PAUSE_SECONDS = 10.0
_WITHOUT_FEED_SECONDS = 300.0
_PAUSE_SECONDS = 1.0
"""The pauses between two connections: the longest pause after failures, the pause if
MLflow's server has no feed, and the normal pause.
"""

_log = logging.getLogger(__name__)


class FeedFollower(threading.Thread):
    """A thread that follows the feed for `uris`, which another thread may replace at
    any time.

    Attributes:
        covered: the URIs that the feed has sent in the current connection.
        messages: the number of received events and comments.
        arrived: set when a message arrives, or when the connection ends.
    """

    def __init__(self, stop: threading.Event) -> None:
        super().__init__(name="feed", daemon=True)
        self.uris: frozenset[str] = frozenset()
        self.covered: frozenset[str] = frozenset()
        self.messages = 0
        self.arrived = threading.Event()
        self._events: deque[Selected] = deque()
        self._ended = stop

    def take(self) -> Selected:
        """Return the versions that have arrived since the last call."""
        self.arrived.clear()
        selected: Selected = {}
        while self._events:
            selected = {**selected, **self._events.popleft()}
        return selected

    def run(self) -> None:
        """Follow the feed until the agent ends. After a failure, connect again after a
        pause.
        """
        failures = 0
        logged_reason = ""
        while not self._ended.is_set():
            begun_at = time.monotonic()
            messages_before = self.messages
            pause = _PAUSE_SECONDS
            try:
                uris = self.uris
                changes = read_changes(sorted(uris)[:MAX_URIS]) if uris else ()
                for selected in changes:
                    self.covered = self.covered.union(selected)
                    self.messages = self.messages + 1
                    self._events.append(selected)
                    self.arrived.set()
                    if self.uris != uris or self._ended.is_set():
                        break
            except NotFound:
                pause = _WITHOUT_FEED_SECONDS
            except Exception as error:  # noqa: BLE001 - A proxy may send anything, and the connection may end anywhere.
                failures = 1 if self.messages > messages_before else failures + 1
                # A replica that hangs takes some seconds to fail, after which the next
                # replica is tried at once.
                spent_seconds = time.monotonic() - begun_at
                pause = max(
                    backoff_seconds(failures, _LONGEST_PAUSE_SECONDS) - spent_seconds,
                    _PAUSE_SECONDS,
                )
                reason = f"it ends with {type(error).__name__}"
                if isinstance(error, OnnxserveError):
                    reason = error.message
                if reason != logged_reason:
                    _log.warning(
                        "the change feed cannot be followed, and MLflow is polled: %s",
                        reason,
                    )
                logged_reason = reason
            self.covered = frozenset()
            self.arrived.set()
            # Many agents lose their connections at the same time.
            self._ended.wait(pause * random.uniform(0.2, 1))
