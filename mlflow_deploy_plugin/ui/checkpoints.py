"""Hourly checkpoints of the audit trail by MLflow's server: each is the artifact of a
run in MLflow and, with ONNXSERVE_AUDIT_CHECKPOINTS, a file at another place.

The server finds its runs by a tag that it has signed. Callers may not change the
experiment or its runs.
"""

import logging
import tempfile
import threading
import time
from contextlib import suppress
from contextvars import copy_context
from functools import lru_cache
from pathlib import Path
from typing import Any

from flask import Response, request
from mlflow.entities import RunStatus, RunTag, ViewType
from mlflow.exceptions import MlflowException
from mlflow.utils.time import get_current_time_millis

from mlflow_deploy_plugin.core import mlflow_private
from mlflow_deploy_plugin.core.registry.runs import get_or_create_experiment
from mlflow_deploy_plugin.core.settings import load_settings
from mlflow_deploy_plugin.core.store.audit import current_actor
from mlflow_deploy_plugin.core.store.audit_keys import Keys
from mlflow_deploy_plugin.core.store.checkpoints import make_checkpoint
from mlflow_deploy_plugin.core.store.store import Store
from mlflow_deploy_plugin.serve.inference_log.storage import locate_log, write_file
from mlflow_deploy_plugin.ui import access
from mlflow_deploy_plugin.ui.guard import mlflow_stores

_log = logging.getLogger(__name__)

EXPERIMENT = "onnxserve-audit-trail"
CHECKPOINT_FILE = "checkpoint.json"
_EVERY_SECONDS = 3600
_FIRST_SECONDS = 30
_PAUSE_SECONDS = 300
_SETTING = "ONNXSERVE_AUDIT_CHECKPOINTS"
_TAG = "onnxserve.signed_run_id"
"""The tag with the id of the key and the signature of the run's id."""
_PURPOSE = "checkpoint run"
_UPLOAD = "serve_upload_artifact"
_CHANGES = (
    *("_create_run", "_update_run", "_delete_run", "_restore_run", "_log_metric", "_log_param"),
    *("_set_tag", "_delete_tag", "_log_batch", "_log_model", "_log_inputs", "_log_outputs"),
    *("_update_experiment", "_delete_experiment", "serve_create_promptlab_run", _UPLOAD),
)
_FIELDS = ("experiment_id", "experimentId", "run_id", "runId", "run_uuid", "runUuid")
"""The views of MLflow that change an experiment or a run, and the fields of their
requests.
"""


def log_checkpoints(store: Store) -> threading.Event:
    """Log checkpoints of a store in the background, if this server signs its events,
    until the returned event is set.
    """
    ended = threading.Event()

    def repeat() -> None:
        """Log a checkpoint per hour while this worker has the lease. After a failure,
        the next attempt follows after a pause.
        """
        lease = None
        due = 0.0
        wait = _FIRST_SECONDS
        while not ended.wait(wait):
            wait = _PAUSE_SECONDS
            try:
                lease = lease and store.renew_lease(lease)
                lease = lease or store.acquire_lease(
                    "audit checkpoint", current_actor(), 2 * _PAUSE_SECONDS
                )
                if lease and time.monotonic() >= due:
                    log_checkpoint(store)
                    due = time.monotonic() + _EVERY_SECONDS
            except Exception:  # noqa: BLE001 - The next attempt may succeed.
                _log.exception("no checkpoint of the audit trail was logged")

    if store.keys is not None:
        threading.Thread(
            target=copy_context().run,  # The context contains the workspace.
            args=(repeat,),
            name="onnxserve-checkpoints",
            daemon=True,
        ).start()
    return ended


def log_checkpoint(store: Store) -> None:
    """Log a checkpoint at the place of the setting, and then to MLflow. Callers see the
    checkpoint in MLflow, so that a failure of the place becomes visible.
    """
    assert store.keys is not None
    checkpoint = make_checkpoint(store, store.keys)
    name = f"{checkpoint.at:%Y-%m-%dT%H%M%S.%f}.json"
    content = checkpoint.model_dump_json(indent=1)
    place = load_settings().audit_checkpoints
    if place:
        write_file(locate_log(place, _SETTING), name, content.encode(), is_new=True)
    tracking = mlflow_private._get_tracking_store()
    number = get_or_create_experiment(tracking, EXPERIMENT)
    run = tracking.create_run(
        number, "onnxserve", get_current_time_millis(), tags=[], run_name=name
    )
    signature = store.keys.sign(_PURPOSE, run.info.run_id)
    tracking.set_tag(run.info.run_id, RunTag(_TAG, f"{store.keys.key_id} {signature}"))
    repository, root = mlflow_stores.artifact_store(run.info.artifact_uri)
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


def refuse_changes() -> Response | None:
    """Refuse the current request if it changes the experiment of the checkpoints, or
    one of its runs.
    """
    document: Any = request.args
    if request.endpoint not in _CHANGES:
        return None
    if request.endpoint != _UPLOAD:
        with suppress(MlflowException, ValueError):  # MLflow's view refuses the request.
            document = mlflow_private._get_normalized_request_json()
    for field in _FIELDS:
        with suppress(MlflowException):
            if document.get(field) and _experiment_name(field, str(document[field])) == EXPERIMENT:
                message = f"only this server changes the experiment {EXPERIMENT} and its runs"
                return access.refusal("PERMISSION_DENIED", message, 403)
    return None


@lru_cache(maxsize=10_000)
def _experiment_name(field: str, id: str) -> str:
    """Return the name of the experiment of a run or an experiment."""
    tracking = mlflow_private._get_tracking_store()
    if field.startswith("run"):
        id = tracking.get_run(id).info.experiment_id
    return str(tracking.get_experiment(id).name)


def newest_checkpoint(keys: Keys) -> str:
    """Return the newest checkpoint in MLflow as JSON; empty if there is none. It is of
    the newest of the runs whose ids one of the keys has signed. Raises NotFound if it
    cannot be read.
    """
    tracking = mlflow_private._get_tracking_store()
    experiment = tracking.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        return ""
    for run in tracking.search_runs(
        [experiment.experiment_id],
        f"attributes.status = 'FINISHED' AND attributes.start_time <= {get_current_time_millis()}",
        ViewType.ACTIVE_ONLY,
        max_results=100,
        order_by=["attributes.start_time DESC"],
    ):
        key_id, _, signature = run.data.tags.get(_TAG, "").partition(" ")
        if keys.is_signed(_PURPOSE, run.info.run_id, key_id, signature):
            address = run.info.artifact_uri
            with tempfile.TemporaryDirectory(prefix="onnxserve-checkpoint-") as folder:
                return mlflow_stores.fetch_file(address, Path(folder), CHECKPOINT_FILE).read_text()
    return ""
