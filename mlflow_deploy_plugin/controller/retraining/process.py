"""The process that trains: `mlflow run` in a session of its own, which outlives its controller.

All processes of a training carry the run's id in their environment, so that the next controller of this machine finds
them again and can end them together. The MLflow run is made before they start: a registered version is found by the
run's id, and the outcome by the run's status, whichever controller looks.

The training process is this module, run as `python -m … RUN_ID PROJECT -e train …`. It starts `mlflow run` and writes
heartbeats to the MLflow run, because MLflow shows a run whose machine has gone as running for ever. A controller on
another machine cannot see the process, and knows by the heartbeat whether to wait for it. If a controller ends the run
in MLflow, the training ends itself.
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
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow_deploy_plugin.controller.retraining import tracking
from mlflow_deploy_plugin.errors import OnnxserveError
from mlflow_deploy_plugin.processes import Child, read_log_tail, signal_process
from mlflow_deploy_plugin.registry import child_environment, redact_credentials, set_service_timeouts
from mlflow_deploy_plugin.store import utc_now

if TYPE_CHECKING:
    from mlflow_deploy_plugin.controller.retraining.plan import RetrainPlan

MARK = "ONNXSERVE_RETRAINING_RUN"
LOG = "log.txt"
BEAT_SECONDS = 15.0
_MODULE = "mlflow_deploy_plugin.controller.retraining.process"
_BOOT = Path("/proc/sys/kernel/random/boot_id")
_GRACE_SECONDS = 10.0
_POLL_SECONDS = 0.1
_MAX_LINE = 300

_log = logging.getLogger(__name__)
_started: dict[str, Child] = {}


def start(plan: "RetrainPlan", run_id: str, parameters: Mapping[str, str], folder: Path) -> int:
    """Start the training and return its process id. It prints to `log.txt` in the folder."""
    command = [sys.executable, "-m", _MODULE, run_id, plan.project, "-e", plan.entry_point]
    command += ["--env-manager", plan.env_manager]
    for name, value in parameters.items():
        command += ["-P", f"{name}={value}"]
    environment = child_environment() | {MARK: run_id}
    # `--env-manager local` runs `python`, which is to be this one
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", "")])
    with (folder / LOG).open("ab") as log:
        child = Child(command, stdout=log, stderr=log, environment=environment, own_session=True, kills_group=False)
    _started[run_id] = child
    return child.pid


def host() -> str:
    """Return the name of this machine since its last start.

    Two machines may have one hostname, and after a restart no process of before runs.
    """
    boot = _BOOT.read_text().strip() if _BOOT.is_file() else ""
    return f"{socket.gethostname()} {boot[:8]}".strip()


def has_failed(run_id: str) -> bool:
    """Return True if the training was started by this process and has ended by itself with an error."""
    child = _started.get(run_id)
    return child is not None and (child.wait(0) or 0) > 0


def is_alive(run_id: str) -> bool:
    """Return True if any process of the training runs on this machine."""
    child = _started.get(run_id)
    if child is not None and child.wait(0) is None:
        return True
    return any(_processes(run_id))


def end(run_id: str) -> None:
    """End all processes of the training: by SIGTERM, and soon after by SIGKILL."""
    deadline = time.monotonic() + _GRACE_SECONDS
    for pid in _processes(run_id):
        signal_process(pid, signal.SIGTERM)
    while is_alive(run_id) and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
    for pid in _processes(run_id):
        signal_process(pid, signal.SIGKILL)
    if (child := _started.pop(run_id, None)) is not None:
        child.wait()


def last_line(folder: Path) -> str:
    """Return the last line of the training's log, or its last line that names an error."""
    lines = [line for line in read_log_tail(folder / LOG)[-50:] if " mlflow.cli: === " not in line]
    lines = [line for line in lines if "mlflow.projects" not in line] or lines
    errors = [line for line in lines if line.startswith(("Error", "error"))]
    return redact_credentials((errors or lines or [""])[-1])[:_MAX_LINE]


def _processes(run_id: str) -> Iterator[int]:
    """Yield the processes of this machine and user that carry the mark, without this one."""
    mark = f"{MARK}={run_id}".encode()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            if mark in (entry / "environ").read_bytes().split(b"\0"):
                yield int(entry.name)
        except OSError:  # ended just now, or somebody else's
            continue


def beat_until_ended(run_id: str, training: "subprocess.Popen[bytes]", seconds: float = BEAT_SECONDS) -> int:
    """Write heartbeats until the training has ended. End it if its run was ended in MLflow.

    Returns:
        Its exit status; negative if it was killed.
    """
    while training.poll() is None:
        try:
            tracking.write_heartbeat(run_id, utc_now())
            if tracking.get_run(run_id).status == "KILLED":
                end(run_id)
        except OnnxserveError as error:  # it is tried again; meanwhile nobody else can see the run either
            _log.warning("no heartbeat: %s", error.message)
        with contextlib.suppress(subprocess.TimeoutExpired):
            training.wait(seconds)
    return training.wait()


def main(run_id: str, *arguments: str) -> None:
    """Run the project, write heartbeats, and exit as the project did."""
    training = subprocess.Popen([sys.executable, "-m", "mlflow", "run", *arguments, "--run-id", run_id])
    # in this process alone: MLflow's own retries may hold a heartbeat back for minutes after a server is up again
    set_service_timeouts()
    status = beat_until_ended(run_id, training)
    if status < 0:  # end by the same signal: a training that was killed from outside is begun once more
        os.kill(os.getpid(), -status)
    sys.exit(status)


if __name__ == "__main__":
    main(*sys.argv[1:])
