"""Writes the audit trail from within MLflow's server, which must never wait for it or fail by it."""

import logging
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotInTime
from typing import Any

from mlflow_deploy_plugin.errors import OnnxserveError
from mlflow_deploy_plugin.store import Store, open_store

_log = logging.getLogger(__name__)

_PATIENCE_SECONDS = 2.0
"""For so long an answer waits for its line in the trail; a slow database writes it later."""


class Trail:
    """The audit events of the store at `store_url`, which is opened by the first of them.

    One thread writes, in the order of the calls. What cannot be written is logged, with everything it says.
    """

    def __init__(self, store_url: str) -> None:
        self._url = store_url
        self._store: Store | None = None
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="onnxserve-audit")
        self._lock = threading.Lock()

    def record(self, action: str, actor: str, **event: Any) -> None:
        """Writes one event (`Store.record`); returns when it is written, or after a short while."""
        written: Future[None] = self._writer.submit(self._write, action, actor, event)
        try:
            written.result(_PATIENCE_SECONDS)
        except NotInTime:
            _log.warning("the audit trail is slow: %s by %s is written later", action, actor)

    def store(self) -> Store:
        """Raises StoreUnavailable."""
        with self._lock:
            if self._store is None:
                self._store = open_store(self._url)
            return self._store

    def _write(self, action: str, actor: str, event: dict[str, Any]) -> None:
        try:
            self.store().record(action, actor=actor, **event)
        except OnnxserveError as error:
            _log.error("not in the audit trail: %s by %s, %s (%s)", action, actor, event, error.message)
        except Exception:  # noqa: BLE001  # a boundary: MLflow's answer does not depend on our trail
            _log.exception("not in the audit trail: %s by %s, %s", action, actor, event)
