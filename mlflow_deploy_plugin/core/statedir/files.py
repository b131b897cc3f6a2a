"""Files that processes share: files that are replaced atomically, caches with digests
as names, and lock files.
"""

import hashlib
import math
import os
import secrets
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeVar

from pydantic import ValidationError

from mlflow_deploy_plugin.core.errors import AlreadyExists, InvalidConfig
from mlflow_deploy_plugin.core.statedir.models import LoadingState, State, WorkerState

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

LOADING = "loading"
WANTED = "wanted.json"
AGENT = "agent.json"
SERVER = "server.json"
SPEC = "spec.yaml"
LOG = "server.log"
SEE_LOG = "; the log says why"
"""The end of a server's error in LOG; the command that started the server replaces it
with the logged reason.
"""
FOLLOWED = "followed.json"
COMMANDS = "commands"
ANSWERS = "answers"
CONTROL = "control.json"
SERVED = "served"
LOOK = "look"
METRICS = "metrics"
SPOOL = "spool"
SINKS = "sinks"
KEYS = "keys.json"
JWKS = "jwks.json"
LOCAL_KEY = "local.key"
_ABANDONED_SECONDS = 3600.0
_LOCK_POLL_SECONDS = 0.1
SERVER_LOCK = "server.lock"
_MOST_SERVERS_OF_A_NAME = 100

StateT = TypeVar("StateT", bound=State)


def write_state(path: Path, state: State) -> None:
    """Replace the file atomically, so that readers see either the old or the new
    content.
    """
    write_atomically(path, state.model_dump_json().encode())


def write_atomically(
    path: Path, content: bytes, *, is_durable: bool = False, mode: int = 0o666
) -> None:
    """Replace the file atomically, and create its folder if needed. On failure, keep
    the old file and raise OSError. A durable file is on the disk afterwards. The umask
    of the process limits `mode`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # A process id would not be unique: containers that share a volume have the same
    # process ids.
    temporary = path.with_name(f".{path.name}.{os.urandom(8).hex()}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with open(descriptor, "wb") as file:
            file.write(content)
            if is_durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
        if is_durable:
            _sync_folder(path.parent)
    except OSError:
        # Callers retry on a full disk: temporary files must not accumulate.
        temporary.unlink(missing_ok=True)
        raise


def _sync_folder(folder: Path) -> None:
    """Bring the names of the folder to the disk. Windows cannot, nor can some network
    file systems.
    """
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def assert_state(path: Path, state: State) -> bool:
    return assert_content(path, state.model_dump_json().encode())


def assert_content(path: Path, content: bytes) -> bool:
    """Write the content unless the file already has this content, and return True if
    the file was written. The owner of a file calls this function repeatedly to restore
    a lost or damaged file. Raises OSError as `write_atomically`.
    """
    with suppress(FileNotFoundError, PermissionError):
        if path.read_bytes() == content:
            return False
    write_atomically(path, content)
    return True


def read_state(path: Path, kind: type[StateT]) -> StateT | None:
    """Return the content of the file, or None if the file does not exist or cannot be
    read.
    """
    try:
        return kind.model_validate_json(path.read_bytes())
    except (FileNotFoundError, PermissionError, ValidationError):
        return None


def file_identity(path: Path) -> tuple[int, int, int] | None:
    """Return a value that changes when the file is replaced; None if the file does not
    exist.
    """
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def make_local_key(state_dir: Path) -> None:
    """Write a new API key for processes of the server's user on this machine. Other
    users cannot read the file.
    """
    path = state_dir / LOCAL_KEY
    path.unlink(missing_ok=True)
    read_or_make_secret(path, secrets.token_urlsafe(32).encode())


def read_or_make_secret(path: Path, content: bytes) -> bytes:
    """Return the secret in the file, which only this user can read. If the file does
    not exist, create it with `content`, in a folder that only this user can open.
    Concurrent calls create one file. Raises OSError if the file cannot be read or
    written.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with locked(path.with_name(f".{path.name}.lock")):
            if not path.exists():
                write_atomically(path, content, is_durable=True, mode=0o600)
    return path.read_bytes()


def served_file(state_dir: Path, model: str) -> Path:
    """Return the file of a `ServedModel`. A name may have any characters."""
    digest = hashlib.sha256(model.encode(errors="surrogatepass")).hexdigest()
    return state_dir / SERVED / f"{digest}.json"


def worker_file(state_dir: Path, pid: int) -> Path:
    return state_dir / "workers" / f"{pid}.json"


def read_workers(state_dir: Path) -> list[WorkerState]:
    """Return the states of all workers that have written a state, including workers
    that have died.
    """
    try:
        files = sorted((state_dir / "workers").glob("*.json"))
    except FileNotFoundError:  # A server that starts may remove the folder.
        return []
    states = [read_state(file, WorkerState) for file in files]
    return [state for state in states if state is not None]


@contextmanager
def mark_loading(state_dir: Path, folder: Path) -> Iterator[None]:
    """Record during the block that this worker loads the version in `folder`, or
    imports the steps with this digest, so that the agent detects its death.
    """
    # A worker loads several registered models at a time.
    file = state_dir / LOADING / f"{os.getpid()}-{threading.get_ident()}.json"
    with suppress(OSError):  # Load the version even if the disk is full.
        write_state(file, LoadingState(pid=os.getpid(), folder=folder))
    try:
        yield
    finally:
        with suppress(OSError):
            file.unlink(missing_ok=True)


def take_load_deaths(state_dir: Path) -> list[Path]:
    """Return the folder of each version during whose loading a worker has died since
    the last call.
    """
    folders = []
    for file in sorted((state_dir / LOADING).glob("[!.]*.json")):
        state = read_state(file, LoadingState)
        if state is not None and not is_alive(state.pid):
            file.unlink(missing_ok=True)
            folders.append(state.folder)
    return folders


def is_alive(pid: int) -> bool:
    """Return True if a process has this id. The id may have been reused by another
    process.
    """
    try:
        with suppress(PermissionError):  # The process belongs to another user.
            os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@dataclass(frozen=True)
class FileCache:
    """A folder of files. Each name is a digest of everything that the content depends
    on. A file is always complete. The least recently used files are deleted.
    """

    folder: Path
    suffix: str
    max_files: int = sys.maxsize
    max_bytes: int = sys.maxsize

    def path(self, digest: str) -> Path:
        return self.folder / f"{digest}{self.suffix}"

    @contextmanager
    def writing(self, path: Path) -> Iterator[Path]:
        """Yield a temporary path whose file replaces `path` after the block. If the
        disk is full, no file is kept.
        """
        temporary = self.folder / f".{os.urandom(8).hex()}{self.suffix}"
        with suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            os.replace(temporary, path)
            entries = [(entry, entry.stat()) for entry in self.folder.glob(f"*{self.suffix}")]
            entries.sort(key=lambda entry: entry[1].st_mtime_ns, reverse=True)
            size = 0
            for number, (old, state) in enumerate(entries):
                size += state.st_size
                is_abandoned = (
                    old.name.startswith(".") and state.st_mtime < time.time() - _ABANDONED_SECONDS
                )
                is_surplus = size > self.max_bytes or number >= self.max_files
                if old != path and (is_abandoned or is_surplus):
                    old.unlink(missing_ok=True)
        except OSError:
            pass
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


def lock_file(file: int | IO[bytes], *, waits: bool = False, is_shared: bool = False) -> None:
    """Lock an open file until it is closed. Raises BlockingIOError if another process
    has locked it. On Windows the lock is never shared, and the call does not wait.
    """
    if sys.platform == "win32":
        descriptor = file if isinstance(file, int) else file.fileno()
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except PermissionError as error:
            raise BlockingIOError(*error.args) from None
    else:
        operation = fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX
        fcntl.flock(file, operation if waits else operation | fcntl.LOCK_NB)


@contextmanager
def locked(path: Path, seconds: float | None = None) -> Iterator[None]:
    """Wait for a lock between processes of this machine (flock), and hold it during the
    block. Raises BlockingIOError if another process holds the lock for longer than
    `seconds` (None: wait without a limit).
    """
    # The folder is shared, such as `deployments/`.
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
    deadline = math.inf if seconds is None else time.monotonic() + seconds
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    while True:
        descriptor = os.open(path, flags, 0o600)
        try:
            lock_file(descriptor, waits=seconds is None)
        except BlockingIOError:
            os.close(descriptor)
            if time.monotonic() >= deadline:
                raise
            time.sleep(_LOCK_POLL_SECONDS)
            continue
        # If the lock's holder has removed the file, lock a new file.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                break
        os.close(descriptor)
    try:
        yield
    finally:
        if sys.platform == "win32":  # An open file cannot be removed there.
            os.close(descriptor)
        with suppress(OSError):  # The disk may have become read-only.
            # Remove the file before the lock is released, so that waiting processes
            # notice that it is gone.
            path.unlink(missing_ok=True)
        if sys.platform != "win32":
            os.close(descriptor)


def build_once(folder: Path, file: str, build: Callable[[Path], None]) -> None:
    """Let `build` make a new folder, which is then renamed to `folder`, unless `folder`
    has the file. Processes take turns, and a failed build leaves no files.
    """
    with locked(folder.with_suffix(".lock")):
        if (folder / file).exists():
            return
        shutil.rmtree(folder, ignore_errors=True)
        # Killed processes left these folders.
        for abandoned in folder.parent.glob(f"{folder.name}.*.unfinished"):
            shutil.rmtree(abandoned, ignore_errors=True)
        unfinished = folder.with_suffix(f".{os.urandom(4).hex()}.unfinished")
        try:
            build(unfinished)
            os.replace(unfinished, folder)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise


@contextmanager
def temporary_folder(prefix: str) -> Iterator[Path]:
    """Yield an empty folder during the block. A lock file next to each folder shows
    that the folder's process is running. Unlike `tempfile.TemporaryDirectory`, this
    function also deletes the folders of killed processes.
    """
    root = Path(tempfile.gettempdir())
    for lock in root.glob(f"{prefix}*.lock"):
        # Skip folders that are in use or belong to another user.
        with suppress(OSError), locked(lock, 0):
            shutil.rmtree(lock.with_suffix(""))
    folder = root / f"{prefix}{os.urandom(8).hex()}"
    with locked(folder.with_suffix(".lock")):
        folder.mkdir(0o700)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def is_locked(path: Path) -> bool:
    with suppress(FileNotFoundError), path.open("r+b") as file:
        try:
            lock_file(file, is_shared=True)
        except BlockingIOError:
            return True
    return False


def refuse_windows() -> None:
    """Raise InvalidConfig on Windows, where a server cannot run."""
    if sys.platform == "win32":
        raise InvalidConfig(
            "a server runs on Linux or macOS, not on Windows: use WSL 2, or a container of "
            "`onnxserve build-docker`"
        )


@contextmanager
def claim_state_dir(state_dir: Path) -> Iterator[Path]:
    """Claim the state folder for one server, and yield the folder. The kernel releases
    the claim when the process ends. Raises AlreadyExists if another server uses the
    folder, and InvalidConfig if the folder cannot be written, or on Windows.
    """
    refuse_windows()
    try:
        state_dir.mkdir(0o700, parents=True, exist_ok=True)  # The folder contains captured rows.
        with ExitStack() as held:
            # Only the lock is in this block, because a failed fork also raises
            # BlockingIOError.
            try:
                # Wait out `is_locked`.
                held.enter_context(locked(state_dir / SERVER_LOCK, _LOCK_POLL_SECONDS / 2))
            except BlockingIOError:
                raise AlreadyExists(
                    f"a server is already running in the state folder {state_dir}",
                ) from None
            yield state_dir
    except OSError as error:
        if str(error.filename or state_dir) == str(state_dir):
            file = ""
        else:
            file = f"{error.filename}: "
        reason = error.strerror or str(error)
        raise InvalidConfig(
            f"no server can run in the state folder {state_dir}: {file}{reason}",
        ) from None


@contextmanager
def claim_free_state_dir(folder: Path) -> Iterator[Path]:
    """Claim this state folder for one server, or the first free folder of `FOLDER.2`,
    `FOLDER.3` and so on. Raises AlreadyExists if 100 servers of this name are running,
    and InvalidConfig for the reasons of `claim_state_dir`.
    """
    with ExitStack() as held:
        for number in range(1, _MOST_SERVERS_OF_A_NAME + 1):
            candidate = folder if number == 1 else folder.with_name(f"{folder.name}.{number}")
            with suppress(AlreadyExists):
                held.enter_context(claim_state_dir(candidate))
                break
        else:
            raise AlreadyExists(
                f"{_MOST_SERVERS_OF_A_NAME} servers named {folder.name} already run on this "
                "machine",
            )
        yield candidate
