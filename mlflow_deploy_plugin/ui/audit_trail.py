"""The audit trail of MLflow's server: writes the events of changes in the registry, one
store per MLflow workspace.

Before a change of a place that a policy gates, its intention must be stored
(`record_now`), so that no such change is without an event. Other events are kept
beside the key while the store is away (`record`). Each model has its own queue, which
keeps the order of its events. All queues wait for the lock of the tree.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotInTime
from contextvars import copy_context
from dataclasses import replace
from datetime import UTC, datetime

from mlflow_deploy_plugin.core import mlflow_private
from mlflow_deploy_plugin.core.errors import OnnxserveError, StoreUnavailable
from mlflow_deploy_plugin.core.settings import active_workspace, load_settings
from mlflow_deploy_plugin.core.store.audit import FAILED, INTEND, AuditEvent, Login
from mlflow_deploy_plugin.core.store.audit_seal import seal, store_spooled
from mlflow_deploy_plugin.core.store.database import open_server_store, server_record
from mlflow_deploy_plugin.core.store.store import Store

_log = logging.getLogger(__name__)

NO_KEY = (
    "this server has no key and cannot make one in ONNXSERVE_HOME; make one with `openssl "
    "genpkey -algorithm ed25519 -out audit.pem`, and set ONNXSERVE_AUDIT_KEY_FILE to the file"
)
_NOW_SECONDS = 5.0
"""The maximum time in which an event must be stored before its change."""
_WAIT_SECONDS = 2.0
"""The maximum time that a response waits until the event of its change is stored."""
_RETRY_SECONDS = 5.0

_Work = Callable[[], object]
_Queue = deque[tuple[Future[None], _Work]]


def registry_name() -> str:
    """Return the name of this server's registry in audit events: the time at which
    MLflow has created its database, which remains after a move of server or database.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.tracking.default_experiment import DEFAULT_EXPERIMENT_ID

    try:
        tracking = mlflow_private._get_tracking_store()
        created = tracking.get_experiment(DEFAULT_EXPERIMENT_ID).creation_time
    except MlflowException:  # A workspace may have no such experiment.
        return ""
    return datetime.fromtimestamp((created or 0) / 1000, UTC).isoformat(timespec="milliseconds")


class AuditTrail:
    """The audit trail in the stores, one per MLflow workspace. A store is opened at its
    first event.

    The events of a model are written in the order of the calls, and signed with the key
    of this server.

    Args:
        opened: is called with each store when it is opened.
    """

    def __init__(self, opened: Callable[[Store], object] = lambda store: None) -> None:
        self._opened = opened
        self._stores: dict[str, Store] = {}
        self._opening = threading.Lock()
        self._queues: dict[tuple[str, str, str], _Queue] = {}
        self._lock = threading.Lock()
        self._retrying: set[str] = set()

    def record_now(self, event: AuditEvent) -> None:
        """Store the event. Raises StoreUnavailable if it is not stored within 5 s; if
        an intention is stored later, it is recorded as failed.
        """
        stored = self._submit("events", event.model, lambda: self.store().record_event(event))
        try:
            stored.result(_NOW_SECONDS)
            return
        except NotInTime:
            reason = f"the audit trail did not answer within {_NOW_SECONDS:.0f} s"
            if not stored.cancel() and event.action == INTEND:
                failed = replace(event, action=FAILED, why=reason)

                def record_failure() -> None:
                    if stored.exception() is None:
                        self._keep(failed)

                self._submit("events", event.model, record_failure)
        except OnnxserveError as error:
            reason = error.message
        except Exception:  # noqa: BLE001 - The request is refused.
            _log.exception("not in the audit trail: %s", event)
            reason = "its audit event cannot be written (see the log of MLflow's server)"
        raise StoreUnavailable(reason)

    def record(self, event: AuditEvent) -> None:
        """Store the event or, while the store is away, keep it beside the key of this
        server. Wait at most 2 s. The agents that follow the model are notified of its
        change.
        """
        kept = self._submit("events", event.model, lambda: self._keep(event))
        try:
            kept.result(_WAIT_SECONDS)
        except NotInTime:
            _log.warning("the audit trail is slow: %s is written later", event)

    def notify_agents(self, model: str) -> None:
        """Send the change of a model to the agents that follow it, from all workers
        (`change_feed.py`).
        """

        def count() -> None:
            try:
                self.store().count_change(model)
            except OnnxserveError as error:
                _log.warning("the agents are not notified of %s (%s)", model, error.message)

        self._submit("changes", model, count)

    def store(self) -> Store:
        """Return the store of the request's workspace. Raises StoreUnavailable, or
        InvalidConfig if no store is set.
        """
        settings = load_settings()
        url = settings.store_url
        with self._opening:
            if url not in self._stores:
                store = open_server_store(settings, lambda: Login(registry=registry_name()))
                if store.keys is not None:
                    seal(store)
                    self.open_in_background()
                else:
                    _log.warning("events are not signed: %s", NO_KEY)
                self._opened(store)
                self._stores[url] = store
            return self._stores[url]

    def _keep(self, event: AuditEvent) -> None:
        """Store the event, or keep it beside the key. MLflow's response must not depend
        on this, so an event that cannot be kept either is logged.
        """
        try:
            self.store().count_change(event.model, event)
        except Exception as error:  # noqa: BLE001
            reason = error.message if isinstance(error, OnnxserveError) else repr(error)
            record = server_record(load_settings())
            if record is None or not record.spool(event):
                _log.error("not in the audit trail: %s (%s)", event, reason)
                return
            what = f"{event.action} by {event.actor}"
            _log.warning("%s is kept for the audit trail (%s)", what, reason)
            self.open_in_background()

    def open_in_background(self) -> None:
        """Open the store of the workspace, and store its kept events, as soon as it is
        available. Without this, checkpoints would wait for the first request.
        """
        workspace = active_workspace()
        with self._lock:
            if workspace in self._retrying:
                return
            self._retrying.add(workspace)

        def repeat() -> None:
            while True:
                try:
                    store = self.store()
                    record = store.trail_record
                    if record is not None:
                        store_spooled(store)
                    with self._lock:
                        if record is None or not record.count_spooled():
                            self._retrying.discard(workspace)
                            return
                except Exception as error:  # noqa: BLE001 - The next attempt may succeed.
                    _log.warning("kept events are not in the audit trail yet (%s)", error)
                time.sleep(_RETRY_SECONDS)

        threading.Thread(
            target=copy_context().run,  # The context contains the workspace.
            args=(repeat,),
            name="onnxserve-spool",
            daemon=True,
        ).start()

    def _submit(self, kind: str, model: str, work: _Work) -> Future[None]:
        """Run `work` after earlier work of this kind for the model, in a thread of its
        own.
        """
        place = (active_workspace(), kind, model)
        context = copy_context()  # It contains the workspace.
        future: Future[None] = Future()

        def run_queue(queue: _Queue) -> None:
            """Run the work of the queue until it is empty."""
            while queue:
                first, run = queue[0]
                if first.set_running_or_notify_cancel():
                    try:
                        run()
                        first.set_result(None)
                    except Exception as error:  # noqa: BLE001 - The caller of the future has it.
                        first.set_exception(error)
                with self._lock:
                    queue.popleft()
                    if not queue:
                        del self._queues[place]

        with self._lock:
            queue = self._queues.setdefault(place, deque())
            queue.append((future, lambda: context.run(work)))
            if len(queue) == 1:
                name = f"onnxserve-audit-{kind}"
                threading.Thread(target=run_queue, args=(queue,), name=name).start()
        return future
