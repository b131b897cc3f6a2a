"""The supervisor's process: starting, identifying and ending it, its log and its
environment.

The supervisor leads a session, which outlives the starting command and has the
supervisor's process id. Processes of a killed supervisor are found by this id and the
state folder, their working directory, because ids are reused.
"""

import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import psutil

from mlflow_deploy_plugin.core.processes.child import Child, read_log_tail, signal_process
from mlflow_deploy_plugin.core.settings import Settings, workspace_environment
from mlflow_deploy_plugin.core.statedir.files import LOG, SEE_LOG, SPEC, write_atomically

EARLIER_LOG = "server.1.log"
ENVIRONMENT = "environment.json"
_SQLITE = "sqlite:///"
_POLL_SECONDS = 0.05
_KILL_SECONDS = 5.0
_EXEC_SECONDS = 0.2
_EXCEPTION = r"^\w+(\.\w+)*(Error|Exception)\b"
_ERRORS = (r"^Error: ", r"\b(ERROR|CRITICAL)\b", _EXCEPTION)
_OF_CHILDREN = (_EXCEPTION, r"^\w+: error: ", *_ERRORS)
_STAMP = re.compile(
    r"^((\[[^\]]*\]|\d{4}-\d\d-\d\d|\d\d:\d\d:\d\d[\d.,Z+]*|ERROR:?|CRITICAL:?|"
    r"\d+ mlflow_deploy_plugin[\w.]*:)\s*)+"
)


def start(state_dir: Path, environment: Mapping[str, str]) -> int:
    """Start the supervisor with the spec in `state_dir` and a new log. Return its
    process id.
    """
    with suppress(FileNotFoundError):
        (state_dir / LOG).replace(state_dir / EARLIER_LOG)
    # The append mode allows truncating the log while the server runs.
    with (state_dir / LOG).open("ab") as log:
        child = Child(
            command(state_dir),
            folder=state_dir,
            environment=environment,
            stdout=log,
            stderr=log,
            own_session=True,
        )
    return child.detach()


def command(state_dir: Path) -> list[str]:
    serve = [sys.executable, "-m", "mlflow_deploy_plugin.cli", "serve"]
    return [*serve, "--spec", str(state_dir / SPEC), "--state-dir", str(state_dir)]


def is_alive(state_dir: Path, pid: int) -> bool:
    """Return True if `pid` is the running supervisor of this state folder, and not
    another process with a reused id.

    During exec, a new process has no command line for a moment.
    """
    _reap(pid)
    try:
        process = psutil.Process(pid)
        _wait(
            lambda: process.status() == psutil.STATUS_ZOMBIE or bool(process.cmdline()),
            _EXEC_SECONDS,
        )
        return (
            process.status() != psutil.STATUS_ZOMBIE
            and process.cmdline()[-2:] == command(state_dir)[-2:]
        )
    except psutil.Error:
        return False


def find(state_dir: Path) -> int | None:
    """Return the process id of the running supervisor of this state folder, even if its
    id is not written yet.
    """
    # Forks have the same command line, but only the supervisor is the leader of its
    # session.
    last_arguments = command(state_dir)[-2:]
    return next(
        _processes(lambda p: p.cmdline()[-2:] == last_arguments and os.getsid(p.pid) == p.pid), None
    )


def stop(state_dir: Path, pid: int, patience_seconds: float) -> None:
    """Ask the supervisor to finish. Kill the rest of its session after
    `patience_seconds`.
    """
    if is_alive(state_dir, pid):
        signal_process(pid, signal.SIGTERM)
        _wait(lambda: not is_alive(state_dir, pid), patience_seconds)
    for remaining_pid in _session(state_dir, pid):
        signal_process(remaining_pid, signal.SIGKILL)
    _wait(lambda: not _session(state_dir, pid), _KILL_SECONDS)


def final_error(state_dir: Path) -> str:
    """Return the last line of the log if it is an error; otherwise an empty text, for
    example after a kill.
    """
    return _best_line(read_log_tail(state_dir / LOG)[-1:], _ERRORS)


def last_error(state_dir: Path) -> str:
    return error_line(read_log_tail(state_dir / LOG))


def error_line(lines: list[str]) -> str:
    """Return the line of a log that best explains why the server ended; empty if the
    log is empty.

    If the supervisor's error only refers to the log, which may be removed, its child's
    error replaces this reference.
    """
    error = _best_line(lines, (*_ERRORS, r"."))
    if error.endswith("exec format error"):  # The kernel has refused the image's program.
        return (
            "the image is for another processor: onnxserve build-docker --platform linux/amd64 (or "
            "linux/arm64)"
        )
    if error.endswith(SEE_LOG) and (
        why := _best_line([line for line in lines if error not in line], _OF_CHILDREN)
    ):
        return f"{error.removesuffix(SEE_LOG)}: {why}"
    return error


def server_environment(state_dir: Path, settings: Settings) -> dict[str, str]:
    """Return the environment of the server: this process's environment, with the
    registry of the first start.

    The registry's addresses are stored next to the spec, so that `onnxserve start` uses
    the same MLflow in any shell.
    """
    file = state_dir / ENVIRONMENT
    if not file.exists():
        import mlflow  # Import MLflow only if needed, because this takes a second.

        registry = {
            "MLFLOW_TRACKING_URI": _absolute_uri(mlflow.get_tracking_uri()),
            "MLFLOW_REGISTRY_URI": _absolute_uri(mlflow.get_registry_uri()),
        }
        # A URI may contain a password, but only the owner can read the folder.
        write_atomically(file, json.dumps(registry).encode())
    folders = {"ONNXSERVE_HOME": str(settings.root_path), "ONNXSERVE_LOG_URI": settings.log_root}
    return {
        **os.environ,
        **json.loads(file.read_text()),
        **workspace_environment(),
        **folders,
        "PYTHONUNBUFFERED": "1",
    }


def _absolute_uri(uri: str) -> str:
    """Return MLflow's URI with an absolute path, because the server runs in another
    folder.
    """
    if uri.startswith(_SQLITE) and not uri.startswith((_SQLITE + "/", _SQLITE + ":")):
        return _SQLITE + str(Path(uri.removeprefix(_SQLITE)).absolute())
    return uri if ":" in uri else str(Path(uri).absolute())


def _session(state_dir: Path, session_id: int) -> list[int]:
    """Return the session's processes whose working directory is the state folder,
    including ending processes.
    """
    _reap(session_id)
    folder = state_dir.resolve()

    def is_member(process: psutil.Process) -> bool:
        if os.getsid(process.pid) != session_id:
            return False
        try:
            return Path(process.cwd()) == folder
        except (FileNotFoundError, psutil.ZombieProcess):
            # Linux removes the working directory of an ending process before its
            # sockets are closed, and reports a zombie while threads are still ending,
            # so the port may still be in use.
            return bool(process.status() != psutil.STATUS_ZOMBIE or process.num_threads() > 1)

    return [*_processes(is_member)]


def _processes(is_match: Callable[[psutil.Process], bool]) -> Iterator[int]:
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):  # The process has ended, or belongs to another user.
            if is_match(process):
                yield process.pid


def _reap(pid: int) -> None:
    """Wait for a supervisor that was started by this process (in a notebook), because
    it is a zombie until then.
    """
    with suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def _wait(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)


def _best_line(lines: list[str], patterns: tuple[str, ...]) -> str:
    """Return the last line that matches the first possible pattern, without its time;
    empty if no line matches.
    """
    for pattern in patterns:
        if matching := [line for line in lines if re.search(pattern, line)]:
            return _STAMP.sub("", matching[-1]).removeprefix("Error: ")
    return ""
