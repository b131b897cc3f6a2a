"""Reading and writing the files of a state folder. Every file is replaced by an atomic rename."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from mlflow_deploy_plugin.statedir.models import LoadingState, State, WorkerState

LOADING = "loading"
WANTED, AGENT, SERVER, SPEC, LOG = "wanted.json", "agent.json", "server.json", "spec.yaml", "server.log"
FOLLOWED = "followed.json"
COMMANDS, ANSWERS, CONTROL, LOOK = "commands", "answers", "control.json", "look"
METRICS, SPOOL = "metrics", "spool"

StateT = TypeVar("StateT", bound=State)


def write_state(path: Path, state: State) -> None:
    """Replace the file in one step; readers see the old content or the new."""
    write_atomically(path, state.model_dump_json().encode())


def write_atomically(path: Path, content: bytes) -> None:
    """Replace the file in one step, and make its folder if there is none.

    Raises:
        OSError: the disk is full, or the folder cannot be written; the old content stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # not the process id: containers that share a volume have the same ones
    temporary = path.with_name(f".{path.name}.{os.urandom(8).hex()}")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)  # on a full disk the writer tries again and again
        raise


def read_state(path: Path, kind: type[StateT]) -> StateT | None:
    """Return the content of the file, or None if there is no readable file yet."""
    try:
        return kind.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def worker_file(state_dir: Path, pid: int) -> Path:
    return state_dir / "workers" / f"{pid}.json"


def read_workers(state_dir: Path) -> list[WorkerState]:
    """Return the states of all workers that have written one; some of them may have died."""
    states = (read_state(path, WorkerState) for path in sorted((state_dir / "workers").glob("*.json")))
    return [state for state in states if state is not None]


@contextmanager
def mark_loading(state_dir: Path, folder: Path) -> Iterator[None]:
    """Note that this worker loads the version in `folder`, so that the agent knows what it died of."""
    file = state_dir / LOADING / f"{os.getpid()}.json"
    with suppress(OSError):  # a full disk
        write_state(file, LoadingState(pid=os.getpid(), folder=folder))
    try:
        yield
    finally:
        file.unlink(missing_ok=True)


def take_load_deaths(state_dir: Path) -> list[Path]:
    """Return the folders of versions that workers have died of loading since the last call."""
    folders = []
    for file in sorted((state_dir / LOADING).glob("[!.]*.json")):
        state = read_state(file, LoadingState)
        if state is not None and not is_alive(state.pid):
            file.unlink(missing_ok=True)
            folders.append(state.folder)
    return folders


def is_alive(pid: int) -> bool:
    """Return whether a process of this id lives; it may be another process than the file meant."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
