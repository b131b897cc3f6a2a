"""Hourly checkpoints of the audit trail by MLflow's server: each is the artifact of a
run in MLflow and, with ONNXSERVE_AUDIT_CHECKPOINTS, a file at another place.
"""

import logging
import tempfile
import threading
import time
from contextvars import copy_context
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow_deploy_plugin.core.registry.runs import get_or_create_experiment
from mlflow_deploy_plugin.core.settings import load_settings
from mlflow_deploy_plugin.core.store.audit import current_actor
from mlflow_deploy_plugin.core.store.checkpoints import make_checkpoint
from mlflow_deploy_plugin.core.store.store import Store
from mlflow_deploy_plugin.serve.inference_log.storage import locate_log, write_file
from mlflow_deploy_plugin.ui import guard

if TYPE_CHECKING:
    from mlflow.entities import Run

_log = logging.getLogger(__name__)

EXPERIMENT = "onnxserve-audit-trail"
CHECKPOINT_FILE = "checkpoint.json"
_EVERY_SECONDS = 3600
_FIRST_SECONDS = 300
_LEASE_SECONDS = 60
_SETTING = "ONNXSERVE_AUDIT_CHECKPOINTS"


def log_checkpoints(store: Store) -> None:
    """Log checkpoints of a store in the background, if this server signs its events."""
    if store.keys is not None:
        threading.Thread(
            target=copy_context().run,  # The context contains the workspace.
            args=(_repeat, store),
            name="onnxserve-checkpoints",
            daemon=True,
        ).start()


def _repeat(store: Store) -> None:
    wait = _FIRST_SECONDS
    while True:
        time.sleep(wait)
        wait = _EVERY_SECONDS
        try:
            log_checkpoint(store)
        except Exception:  # noqa: BLE001 - The next attempt may succeed.
            _log.exception("no checkpoint of the audit trail was logged")


def log_checkpoint(store: Store, every_seconds: float = _EVERY_SECONDS) -> bool:
    """Log a checkpoint, unless a worker of a server has logged one shortly before.
    Return True if it was logged.
    """
    if store.keys is None:
        return False
    lease = store.acquire_lease("audit checkpoint", current_actor(), _LEASE_SECONDS)
    if lease is None:
        return False
    try:
        newest = _newest_run()
        age = time.time() - newest.info.start_time / 1000 if newest else every_seconds
        if age < every_seconds * 0.9:
            return False
        checkpoint = make_checkpoint(store, store.keys)
        name = f"{checkpoint.at:%Y-%m-%dT%H%M%S.%f}.json"
        content = checkpoint.model_dump_json(indent=1)
        _log_run(name, content)
        if place := load_settings().audit_checkpoints:
            location = locate_log(place, _SETTING)
            write_file(location, name, content.encode(), is_new=True)
        return True
    finally:
        store.release_lease(lease)


def newest_checkpoint() -> str:
    """Return the newest checkpoint in MLflow as JSON; empty if there is none. Raises
    NotFound if it cannot be read.
    """
    run = _newest_run()
    if run is None:
        return ""
    with tempfile.TemporaryDirectory(prefix="onnxserve-checkpoint-") as folder:
        file = guard.fetch_file(run.info.artifact_uri, Path(folder), CHECKPOINT_FILE)
        return file.read_text()


def _newest_run() -> "Run | None":
    from mlflow.entities import ViewType
    from mlflow.server import handlers

    tracking = handlers._get_tracking_store()
    experiment = tracking.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        return None
    runs = tracking.search_runs(
        [experiment.experiment_id],
        "attributes.status = 'FINISHED'",
        ViewType.ACTIVE_ONLY,
        max_results=1,
        order_by=["attributes.start_time DESC"],
    )
    return next(iter(runs), None)


def _log_run(name: str, content: str) -> None:
    """Log the checkpoint as the artifact of a new run."""
    from mlflow.entities import RunStatus
    from mlflow.server import handlers
    from mlflow.utils.time import get_current_time_millis

    tracking = handlers._get_tracking_store()
    number = get_or_create_experiment(tracking, EXPERIMENT)
    now = get_current_time_millis()
    run = tracking.create_run(number, "onnxserve", now, tags=[], run_name=name)
    repository, root = guard.artifact_store(run.info.artifact_uri)
    with tempfile.TemporaryDirectory(prefix="onnxserve-checkpoint-") as folder:
        file = Path(folder) / CHECKPOINT_FILE
        file.write_text(content)
        repository.log_artifact(str(file), root or None)
    tracking.update_run_info(
        run.info.run_id,
        RunStatus.FINISHED,
        get_current_time_millis(),
        run_name=None,
    )
