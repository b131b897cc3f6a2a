"""The audit trail of MLflow's server, and the notice to the agents of this machine.

A request to MLflow never waits for them and never fails by them.
"""

import logging
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotInTime
from typing import Any

from mlflow_deploy_plugin.deployments import Deployments
from mlflow_deploy_plugin.errors import OnnxserveError
from mlflow_deploy_plugin.settings import load_settings
from mlflow_deploy_plugin.store import Store, open_store

_log = logging.getLogger(__name__)

_WAIT_SECONDS = 2.0
"""The time that an answer waits for its event in the trail; a slow database writes it later."""


class AuditTrail:
    """The audit events of the store at `store_url`, which the first event opens.

    One thread writes, in the order of the calls. An event that cannot be written is logged whole.
    """

    def __init__(self, store_url: str) -> None:
        self._url = store_url
        self._store: Store | None = None
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="onnxserve-audit")
        self._lock = threading.Lock()

    def record(self, action: str, actor: str, **event: Any) -> None:
        """Write one event (`Store.record`); return when it is written, or after a short while."""
        written: Future[None] = self._writer.submit(self._write, action, actor, event)
        try:
            written.result(_WAIT_SECONDS)
        except NotInTime:
            _log.warning("the audit trail is slow: %s by %s is written later", action, actor)

    def notify_agents(self, model: str) -> None:
        """Make the servers here that follow the model ask the registry at once, not at their next poll."""
        self._writer.submit(self._tell_agents, model)

    def store(self) -> Store:
        """Return the open store; raise StoreUnavailable if it cannot be opened."""
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

    def _tell_agents(self, model: str) -> None:
        try:
            Deployments(self.store(), load_settings(), lambda line: None).poll_registry(model)
        except OnnxserveError as error:  # they ask by themselves in a moment
            _log.warning("the agents are not told of %s: %s", model, error.message)
        except Exception:  # noqa: BLE001  # a boundary, as above
            _log.exception("the agents are not told of %s", model)
