"""Following the change feed of MLflow's server in a thread, so that references are rarely polled."""

import logging
import random
import threading

from mlflow_deploy_plugin.errors import NotFound, OnnxserveError
from mlflow_deploy_plugin.processes import backoff_seconds
from mlflow_deploy_plugin.registry.change_feed import MAX_URIS, Selected, read_changes

_LONGEST_PAUSE_SECONDS, _WITHOUT_FEED_SECONDS = 30.0, 300.0
_PAUSE_SECONDS = 1.0

_log = logging.getLogger(__name__)


class FeedFollower(threading.Thread):
    """A thread that follows the feed for `uris`, which another thread may replace at any time.

    Attributes:
        covered: the URIs for which the feed is connected; empty without a connection.
        messages: the number of received events and comments.
        arrived: set when a message arrives, or when the connection ends.
    """

    def __init__(self, stop: threading.Event) -> None:
        super().__init__(name="feed", daemon=True)
        self.uris: frozenset[str] = frozenset()
        self.covered: frozenset[str] = frozenset()
        self.messages = 0
        self.arrived = threading.Event()
        self._lock = threading.Lock()
        self._selected: Selected = {}
        self._ended = stop

    def take(self) -> Selected:
        """Return the versions that have arrived since the last call."""
        self.arrived.clear()
        with self._lock:
            selected, self._selected = self._selected, {}
            return selected

    def run(self) -> None:
        failures, logged = 0, ""
        while not self._ended.is_set():
            before = self.messages
            try:
                if uris := self.uris:
                    self._follow(uris)
                pause = 0.0 if self.messages > before else _PAUSE_SECONDS
            except NotFound:
                pause = _WITHOUT_FEED_SECONDS
            except Exception as error:  # noqa: BLE001 - A proxy may send anything, and the connection may end anywhere.
                self.covered = frozenset()
                self.arrived.set()
                failures = 1 if self.messages > before else failures + 1
                pause = backoff_seconds(failures, _LONGEST_PAUSE_SECONDS) * random.uniform(0.5, 1)
                reason = error.message if isinstance(error, OnnxserveError) else f"it ends with {type(error).__name__}"
                if reason != logged:
                    _log.warning("the change feed cannot be followed, and MLflow is polled: %s", reason)
                logged = reason
            self._ended.wait(pause)

    def _follow(self, uris: frozenset[str]) -> None:
        """Follow the feed until it ends or `uris` are replaced. The URIs are covered after the first event."""
        has_versions = False
        for selected in read_changes(sorted(uris)[:MAX_URIS]):
            has_versions = has_versions or bool(selected)
            with self._lock:
                self._selected = {**self._selected, **selected}
            self.covered, self.messages = uris if has_versions else self.covered, self.messages + 1
            self.arrived.set()
            if self.uris != uris or self._ended.is_set():
                return
        if not has_versions:
            self.covered = frozenset()
