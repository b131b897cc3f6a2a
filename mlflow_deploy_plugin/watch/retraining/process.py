"""The training process, which runs `mlflow run` in its own session and outlives the
controller, and the MLflow run.

All processes of a training have the run's id in their environment, so the next
controller on this machine can find and end them. The MLflow run is created before the
processes start. The run's id leads to the registered version, and the run's status is
the outcome.

The training process is this module, run as `python -m … RUN_ID PROJECT -e train …`. It
starts `mlflow run` and writes heartbeats to the MLflow run, because MLflow reports the
run as running even if its machine has failed, and a controller on another machine
cannot check the process. If a controller ends the run in MLflow, the training process
ends too.
"""

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from mlflow_deploy_plugin.core.errors import OnnxserveError
from mlflow_deploy_plugin.core.processes.child import Child, read_log_tail, signal_process
from mlflow_deploy_plugin.core.registry.connection import (
    child_environment,
    no_request_timeout,
    own_process,
    redact_credentials,
    registry_client,
    registry_errors,
    set_service_timeouts,
)
from mlflow_deploy_plugin.core.registry.model_files import fetch_mlmodel
from mlflow_deploy_plugin.core.registry.resolution import all_versions
from mlflow_deploy_plugin.core.registry.runs import get_or_create_experiment
from mlflow_deploy_plugin.core.registry.tags import (
    CAUSE_TAG,
    DATA_DIGEST_TAG,
    MAX_TAG_LENGTH,
    PARENT_TAG,
    TRAINING_TAG,
    tag_version,
)
from mlflow_deploy_plugin.core.store.database import utc_now
from mlflow_deploy_plugin.core.store.retrainings import Retraining

if TYPE_CHECKING:
    from mlflow_deploy_plugin.watch.retraining.plan import RetrainPlan

_log = logging.getLogger(__name__)

RETRAINING_TAG = "onnxserve.retraining"
HEARTBEAT_TAG = "onnxserve.heartbeat"
_PARENT_RUN = "mlflow.parentRunId"
_FOLDER = "retraining"
MARK = "ONNXSERVE_RETRAINING_RUN"
"""The environment variable that contains the run's id in all processes of a training.
"""
LOG = "log.txt"
BEAT_SECONDS = 15.0
_MODULE = "mlflow_deploy_plugin.watch.retraining.process"
_BOOT = Path("/proc/sys/kernel/random/boot_id")
_GRACE_SECONDS = 10.0
_POLL_SECONDS = 0.1
_MAX_LINE = 300
_MAX_PARAMETER = 5000
_started: dict[str, Child] = {}


@dataclass(frozen=True)
class TrainingRun:
    """A run of MLflow.

    Attributes:
        status: RUNNING, FINISHED, FAILED, KILLED or SCHEDULED.
        alive_at: the time of the last heartbeat.
    """

    status: str
    alive_at: datetime | None
    has_logged_a_model: bool


def column_types(model_uri: str) -> dict[str, str]:
    """Return the column types of the signature, such as `long`; empty if none.

    Raises NotFound if the model does not exist, and RegistryUnavailable if MLflow does
    not answer.
    """
    signature = fetch_mlmodel(model_uri).signature
    if signature is None or signature.inputs is None or signature.inputs.is_tensor_spec():
        return {}
    return {
        str(column.name): getattr(column.type, "name", "") for column in signature.inputs.inputs
    }


def ensure_run(
    retraining: Retraining,
    plan: "RetrainPlan",
    attempt: int,
    parameters: Mapping[str, str],
) -> str:
    """Return the id of the MLflow run for this attempt at the retraining. Create the
    run if it does not exist.
    """
    from mlflow.entities import Param

    key = f"{retraining.id}.{attempt} {retraining.created_at.isoformat()}"
    with registry_errors(f"retraining {retraining.id}"):
        client = registry_client()
        experiment = get_or_create_experiment(client, f"onnxserve/{plan.endpoint}")
        runs = client.search_runs([experiment], f"tags.`{RETRAINING_TAG}` = '{key}'", max_results=1)
        if runs:
            return str(runs[0].info.run_id)
        tags = {
            RETRAINING_TAG: key,
            CAUSE_TAG: str(retraining.cause["why"])[:MAX_TAG_LENGTH],
            "onnxserve.endpoint": plan.endpoint,
            "mlflow.source.type": "PROJECT",
            "mlflow.source.name": redact_credentials(plan.project),
            "mlflow.project.entryPoint": plan.entry_point,
            "mlflow.user": plan.actor,
        }
        if retraining.cause.get("run_id"):
            tags["onnxserve.cause.run_id"] = retraining.cause["run_id"]
        run = client.create_run(
            experiment,
            run_name=f"retraining {retraining.id}",
            tags=tags,
        )
        run_id = str(run.info.run_id)
        client.log_batch(
            run_id,
            params=[Param(name, value[:_MAX_PARAMETER]) for name, value in parameters.items()],
        )
    return run_id


def log_file(run_id: str, file: Path) -> str:
    """Log the file to the run and return the file's URI. Raises RegistryUnavailable if
    MLflow does not answer.
    """
    with registry_errors(f"run {run_id}"), no_request_timeout:
        registry_client().log_artifact(run_id, str(file), _FOLDER)
    return f"runs:/{run_id}/{_FOLDER}/{file.name}"


def get_run(run_id: str) -> TrainingRun:
    """Return the current state of the run. Raises NotFound if it does not exist, and
    RegistryUnavailable if MLflow does not answer.
    """
    with registry_errors(f"run {run_id}"):
        run = registry_client().get_run(run_id)
    heartbeat = run.data.tags.get(HEARTBEAT_TAG)
    alive_at = datetime.fromisoformat(heartbeat) if heartbeat else None
    has_logged = bool(run.outputs and run.outputs.model_outputs)
    return TrainingRun(str(run.info.status), alive_at, has_logged)


def write_heartbeat(run_id: str, now: datetime) -> None:
    with registry_errors(f"run {run_id}"):
        registry_client().set_tag(run_id, HEARTBEAT_TAG, now.isoformat())


def end_run(run_id: str, state: str) -> None:
    """End the run with this status if it has not ended. Raises NotFound if it does not
    exist, and RegistryUnavailable if MLflow does not answer.
    """
    if get_run(run_id).status in ("RUNNING", "SCHEDULED"):
        with registry_errors(f"run {run_id}"):
            registry_client().set_terminated(run_id, state)


def registered_version(model: str, run_id: str) -> str:
    """Return the newest version that the run or a nested run registered; empty if none.
    Raises NotFound if the run does not exist, and RegistryUnavailable if MLflow does
    not answer.
    """
    with registry_errors(f"model {model}"):
        client = registry_client()
        versions = [
            row for row in client.search_model_versions(f"run_id = '{run_id}'") if row.name == model
        ]
        if not versions:
            experiment = client.get_run(run_id).info.experiment_id
            nested_runs = client.search_runs([experiment], f"tags.{_PARENT_RUN} = '{run_id}'")
            nested_ids = {run.info.run_id for run in nested_runs}
            if nested_ids:
                versions = [row for row in all_versions(client, model) if row.run_id in nested_ids]
    return max(
        (str(row.version) for row in versions),
        key=int,
        default="",
    )


def tag_provenance(retraining: Retraining, plan: "RetrainPlan", version: str) -> None:
    """Tag the version with its provenance, but keep tags that the project has set.
    Raises NotFound if the version does not exist, and RegistryUnavailable if MLflow
    does not answer.
    """
    with registry_errors(f"model {plan.model} version {version}"):
        existing = registry_client().get_model_version(plan.model, version).tags
    tags = {
        CAUSE_TAG: str(retraining.cause["why"]),
        PARENT_TAG: plan.base_uri,
        TRAINING_TAG: plan.mode,
        DATA_DIGEST_TAG: retraining.figures.data_digest,
    }
    for key, value in tags.items():
        if value and key not in existing:
            tag_version(plan.model, version, key, value)


def start(
    plan: "RetrainPlan",
    run_id: str,
    parameters: Mapping[str, str],
    folder: Path,
) -> int:
    """Start the training process and return its id. The process writes its output to
    `log.txt` in the folder.
    """
    command = [
        sys.executable,
        "-m",
        _MODULE,
        run_id,
        plan.project,
        "-e",
        plan.entry_point,
    ]
    command += ["--env-manager", plan.env_manager]
    for name, value in parameters.items():
        command += ["-P", f"{name}={value}"]
    environment = child_environment() | {MARK: run_id}
    # `--env-manager local` runs `python` from PATH, so this interpreter must be first
    # in PATH.
    environment["PATH"] = os.pathsep.join(
        [
            str(Path(sys.executable).parent),
            environment.get("PATH", ""),
        ],
    )
    with (folder / LOG).open("ab") as log:
        child = Child(
            command,
            stdout=log,
            stderr=log,
            environment=environment,
            own_session=True,
            kills_group=False,
        )
    _started[run_id] = child
    return child.pid


def host() -> str:
    """Return this machine's name and boot id: hostnames are not unique, and a reboot
    has ended earlier processes.
    """
    boot = _BOOT.read_text().strip() if _BOOT.is_file() else ""
    return f"{socket.gethostname()} {boot[:8]}".strip()


def has_failed(run_id: str) -> bool:
    """Return True if this process started the training and the training has exited with
    an error.
    """
    child = _started.get(run_id)
    return child is not None and (child.wait(0) or 0) > 0


def is_alive(run_id: str) -> bool:
    """Return True if the training process or its child `mlflow run` runs here: both
    have the run's id as argument.
    """
    child = _started.get(run_id)
    if child is not None and child.wait(0) is None:
        return True
    return any(_processes(run_id, are_named=True))


def end(run_id: str) -> None:
    """Ask the training's processes on this machine to end, and kill those that still
    run after `_GRACE_SECONDS`.
    """
    deadline = time.monotonic() + _GRACE_SECONDS
    for pid in _processes(run_id):
        signal_process(pid, signal.SIGTERM)
    while any(_processes(run_id)) and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
    for pid in _processes(run_id):
        signal_process(pid, signal.SIGKILL)
    child = _started.pop(run_id, None)
    if child is not None:
        child.wait()


def last_line(folder: Path) -> str:
    """Return the last line of the training's log that starts with "Error"; without such
    a line, the last line; empty if the log has none. Lines of MLflow itself are used
    only if there are no others.
    """
    lines = [line for line in read_log_tail(folder / LOG)[-50:] if " mlflow.cli: === " not in line]
    of_project = [line for line in lines if "mlflow.projects" not in line]
    lines = of_project or lines
    errors = [line for line in lines if line.startswith(("Error", "error"))]
    candidates = errors or lines or [""]
    return redact_credentials(candidates[-1])[:_MAX_LINE]


def _processes(run_id: str, are_named: bool = False) -> Iterator[int]:
    """Yield the ids of this user's processes of the run; if `are_named`, of processes
    with the run's id as argument.
    """
    for process in psutil.process_iter():
        # A process may have just ended, or belong to another user.
        with contextlib.suppress(psutil.Error):
            is_marked = process.pid != os.getpid() and process.environ().get(MARK) == run_id
            if is_marked and (not are_named or run_id in process.cmdline()):
                yield process.pid


def beat_until_ended(
    run_id: str,
    training: "subprocess.Popen[bytes]",
    seconds: float = BEAT_SECONDS,
) -> int:
    """Write heartbeats until the training has ended, and return its exit status, which
    is negative if it was killed.

    End the training if its run was ended in MLflow.
    """
    while training.poll() is None:
        try:
            write_heartbeat(run_id, utc_now())
            if get_run(run_id).status == "KILLED":
                end(run_id)
        except OnnxserveError as error:  # The next round writes a heartbeat again.
            _log.warning("no heartbeat: %s", error.message)
        with contextlib.suppress(subprocess.TimeoutExpired):
            training.wait(seconds)
    return training.wait()


def main(run_id: str, *arguments: str) -> None:
    """Run `mlflow run` with these arguments, and end with its exit status or signal."""
    training = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "run", *arguments, "--run-id", run_id],
    )
    # Limit MLflow's retries only in this process, because retries can delay a heartbeat
    # for minutes after an outage.
    own_process()
    set_service_timeouts()
    status = beat_until_ended(run_id, training)
    if status < 0:
        # End by the signal that killed the training, so that the controller restarts
        # the training.
        os.kill(os.getpid(), -status)
    sys.exit(status)


if __name__ == "__main__":
    main(*sys.argv[1:])
