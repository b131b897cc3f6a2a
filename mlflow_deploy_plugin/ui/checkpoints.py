"""Hourly checkpoints of the audit trail by MLflow's server: each is the artifact of a
run in MLflow and, with ONNXSERVE_AUDIT_CHECKPOINTS, a file at another place.

The server signs the id of each run with the digest of its file, so that a file that
was replaced is found. Callers may not change the experiment, its runs and their files.
"""

import hashlib
import logging
import os
import re
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from contextvars import ContextVar, copy_context
from functools import cache, lru_cache
from inspect import signature
from pathlib import Path
from typing import Any

from mlflow.entities import Run, RunStatus, RunTag, ViewType
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED
from mlflow.server import ARTIFACTS_ONLY_ENV_VAR
from mlflow.server.handlers import TrackingStoreRegistry
from mlflow.store.artifact.artifact_repository_registry import ArtifactRepositoryRegistry
from mlflow.utils.file_utils import local_file_uri_to_path
from mlflow.utils.time import get_current_time_millis

from mlflow_deploy_plugin.core import mlflow_private
from mlflow_deploy_plugin.core.errors import NotFound
from mlflow_deploy_plugin.core.registry.runs import get_or_create_experiment
from mlflow_deploy_plugin.core.settings import load_settings
from mlflow_deploy_plugin.core.store.audit import current_actor
from mlflow_deploy_plugin.core.store.audit_keys import Keys
from mlflow_deploy_plugin.core.store.checkpoints import make_checkpoint
from mlflow_deploy_plugin.core.store.store import Store
from mlflow_deploy_plugin.serve.inference_log.storage import locate_log, write_file
from mlflow_deploy_plugin.ui.guard import mlflow_stores

_log = logging.getLogger(__name__)

EXPERIMENT = "onnxserve-audit-trail"
CHECKPOINT_FILE = "checkpoint.json"
_EVERY_SECONDS = 3600
_FIRST_SECONDS = 30
_PAUSE_SECONDS = 300
_SETTING = "ONNXSERVE_AUDIT_CHECKPOINTS"
_TAG = "onnxserve.signed_checkpoint"
"""The tag with the id of the key and the signature of the run's id and the file's
digest.
"""
_PURPOSE = "checkpoint run"
_MOST_READ = 10
"""The maximum number of checkpoints that are read to find an intact one."""
_CHANGES = re.compile(
    "(abort|complete|create|delete|deprecated|link|log|record|register|rename|restore|set|unlink|"
    "update|upload|upsert)_"
)
"""The pattern of the methods of MLflow's tracking and artifact stores that change
something.
"""
_is_server = ContextVar("_is_server", default=False)
"""True in the context of the thread that writes checkpoints."""


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
    """Log a checkpoint at the place of the setting, and then to MLflow, in a context
    that ends afterwards. Callers see the checkpoint in MLflow, so that a failure of the
    place becomes visible.
    """
    assert store.keys is not None
    checkpoint = make_checkpoint(store, store.keys)
    name = f"{checkpoint.at:%Y-%m-%dT%H%M%S.%f}.json"
    content = checkpoint.model_dump_json(indent=1).encode()
    place = load_settings().audit_checkpoints
    if place:
        write_file(locate_log(place, _SETTING), name, content, is_new=True)
    tracking = mlflow_private._get_tracking_store()
    _is_server.set(True)
    number = get_or_create_experiment(tracking, EXPERIMENT)
    run = tracking.create_run(
        number, "onnxserve", get_current_time_millis(), tags=[], run_name=name
    )
    signature = store.keys.sign(_PURPOSE, _signed_text(run, content))
    tracking.set_tag(run.info.run_id, RunTag(_TAG, f"{store.keys.key_id} {signature}"))
    repository, root = mlflow_stores.artifact_store(run.info.artifact_uri)
    with tempfile.TemporaryDirectory(prefix="onnxserve-checkpoint-") as folder:
        file = Path(folder) / CHECKPOINT_FILE
        file.write_bytes(content)
        repository.log_artifact(str(file), root or None)
    tracking.update_run_info(
        run.info.run_id,
        RunStatus.FINISHED,
        get_current_time_millis(),
        run_name=None,
    )


@cache  # The cache ensures that several apps of a process replace MLflow's methods only once.
def refuse_changes() -> None:
    """Let the stores that MLflow opens in this process refuse changes of the experiment
    of the checkpoints, its runs and the files below its location.

    The stores check, because a change has several routes in MLflow's Flask and FastAPI
    apps, and only the stores know the place to which a path leads.
    """
    _protect(TrackingStoreRegistry, "get_store", _is_own_run)
    _protect(ArtifactRepositoryRegistry, "get_artifact_repository", _is_own_file)
    # MLflow opens stores again that it has opened before.
    mlflow_private.replace("_tracking_store", None)
    mlflow_private.replace("_artifact_repo", None)


def _protect(registry: type, opener: str, is_own: Callable[[Any, Mapping[str, Any]], bool]) -> None:
    """Let the stores that this method of a registry opens refuse a change if `is_own`
    is True for the store and the arguments.
    """
    open_store = getattr(registry, opener)

    def checked(store: Any, method: Callable[..., Any]) -> Callable[..., Any]:
        bind = signature(method).bind

        def call(*arguments: Any, **options: Any) -> Any:
            named = bind(*arguments, **options).arguments
            if not _is_server.get() and is_own(store, named):
                message = f"only this server changes the experiment {EXPERIMENT} and its files"
                raise MlflowException(message, PERMISSION_DENIED)
            return method(*arguments, **options)

        return call

    def opened(*arguments: Any, **options: Any) -> Any:
        store = open_store(*arguments, **options)
        # MLflow opens a tracking store only once.
        for name in filter(_CHANGES.match, set(dir(store)) - vars(store).keys()):
            setattr(store, name, checked(store, getattr(store, name)))
        return store

    setattr(registry, opener, opened)


def _is_own_run(tracking: Any, arguments: Mapping[str, Any]) -> bool:
    names = {arguments.get("name"), arguments.get("new_name")}
    for field in ("run_id", "experiment_id"):
        if arguments.get(field):
            names.add(_experiment_name(tracking, field, str(arguments[field])))
    return EXPERIMENT in names


@lru_cache(maxsize=10_000)
def _experiment_name(tracking: Any, field: str, id: str) -> str:
    """Return the name of the experiment of a run or an experiment."""
    if field == "run_id":
        id = tracking.get_run(id).info.experiment_id
    return str(tracking.get_experiment(id).name)


def _is_own_file(repository: Any, arguments: Mapping[str, Any]) -> bool:
    """Return True if a file or folder below the location of the experiment is changed,
    or a folder that contains the location is deleted.
    """
    if os.environ.get(ARTIFACTS_ONLY_ENV_VAR):
        return False
    tracking = mlflow_private._get_tracking_store()
    experiment = tracking.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        return False
    folder = _real_path(*mlflow_stores.artifact_store(experiment.artifact_location))
    changed = _real_path(repository, arguments.get("artifact_path") or "")
    is_deletion = arguments.keys() <= {"artifact_path"}
    return changed.is_relative_to(folder) or (is_deletion and folder.is_relative_to(changed))


def _real_path(repository: Any, name: str) -> Path:
    """Return the path in lower case, because a file system may ignore the case."""
    path = Path(local_file_uri_to_path(repository.artifact_uri), name)
    return Path(os.path.realpath(path).lower())


def newest_checkpoint(keys: Keys) -> tuple[str, str]:
    """Return the newest intact checkpoint in MLflow as JSON, and the fault of the
    newest one. Each is empty if there is none.

    The file of an intact checkpoint has the digest that one of the keys has signed
    together with the id of the run.
    """
    fault = ""
    try:
        tracking = mlflow_private._get_tracking_store()
        experiment = tracking.get_experiment_by_name(EXPERIMENT)
        runs = experiment and tracking.search_runs(
            [experiment.experiment_id],
            f"status = 'FINISHED' AND attributes.start_time <= {get_current_time_millis()}",
            ViewType.ACTIVE_ONLY,
            max_results=_MOST_READ,
            order_by=["attributes.start_time DESC"],
        )
        for run in runs or ():
            content = b""
            with suppress(NotFound), tempfile.TemporaryDirectory() as folder:
                address = run.info.artifact_uri
                file = mlflow_stores.fetch_file(address, Path(folder), CHECKPOINT_FILE)
                content = file.read_bytes()
            key_id, _, signed = run.data.tags.get(_TAG, "").partition(" ")
            if content and keys.is_signed(_PURPOSE, _signed_text(run, content), key_id, signed):
                return content.decode(), fault
            fault = fault or f"the checkpoint of run {run.info.run_id} was removed or replaced"
    except Exception:  # noqa: BLE001 - The keys are published without a checkpoint.
        _log.exception("MLflow cannot read the checkpoints of the audit trail")
        fault = "MLflow cannot read the checkpoints of the audit trail (see the server's log)"
    return "", fault


def _signed_text(run: Run, content: bytes) -> str:
    return f"{run.info.run_id} {hashlib.sha256(content).hexdigest()}"
