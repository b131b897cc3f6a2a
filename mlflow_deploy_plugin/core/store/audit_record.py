"""The record of the audit trail beside the key of MLflow's server: the newest
checkpoint, and the events that could not be stored yet. People who may write to the
store may not write here, so a trail that was replaced or shortened is found.
"""

import hashlib
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pydantic import ValidationError
from sqlalchemy import URL

from mlflow_deploy_plugin.core.errors import InvalidConfig, StoreUnavailable
from mlflow_deploy_plugin.core.statedir.files import StateT, locked, write_atomically
from mlflow_deploy_plugin.core.statedir.models import State
from mlflow_deploy_plugin.core.store.audit import AuditEvent
from mlflow_deploy_plugin.core.store.checkpoints import TreeHead, parse_head

_log = logging.getLogger(__name__)

_HEAD = "checkpoint.json"


class _Recorded(State):
    """A `TreeHead` as text."""

    checkpoint: str
    edge: str


class _Spooled(State):
    event: AuditEvent


class TrailRecord:
    """The record of one store. Workers of a server, and servers on this machine with
    the same key file, share it.

    Methods raise InvalidConfig if a file cannot be read.
    """

    def __init__(self, key_file: Path, store: URL) -> None:
        url = store.set(username=None, password=None, query={})
        name = hashlib.sha256(str(url).encode()).hexdigest()[:16]
        self._root = key_file.with_suffix(".record")
        self._folder_of_url = self._root / name
        self._name_file = self._root / f"{name}.name"

    @property
    def folder(self) -> Path:
        """The folder of the store once `join` has found it, also at another URL of the
        store.
        """
        try:
            return self._root / self._name_file.read_text()
        except FileNotFoundError:
            return self._folder_of_url

    def join(self, log: str) -> None:
        """Use the folder of this log, also at another URL of the store, unless this URL
        has the record of a log. Raises StoreUnavailable if a folder cannot be written.
        """
        with self._reporting(is_required=True):
            self._join(log)

    def _join(self, log: str) -> None:
        if not self._head_file.exists():
            self._use(self._folder_of(log))

    def _folder_of(self, log: str) -> Path:
        return self._root / log.rpartition("/")[2]

    def _use(self, folder: Path) -> None:
        """Use this folder. None is renamed, because other processes write to it."""
        with locked(self._root / "names.lock"):
            if self.folder == folder:
                return
            spool = folder / "spool"
            spool.mkdir(parents=True, exist_ok=True)
            for file in self.folder.glob("spool/*.json"):
                file.rename(spool / file.name)
            write_atomically(self._name_file, folder.name.encode(), is_durable=True)

    def newest(self) -> TreeHead | None:
        """Return the head that was recorded last; None before the first one."""
        recorded = _read(self._head_file, _Recorded)
        try:
            return parse_head(recorded.checkpoint, recorded.edge) if recorded else None
        except ValueError:
            raise _unreadable(self._head_file) from None

    @property
    def _head_file(self) -> Path:
        return self.folder / _HEAD

    @contextmanager
    def recording(self, head: TreeHead, is_required: bool) -> Iterator[None]:
        """Record the head after the block, which commits its events, unless a newer one
        is recorded. It is written before the block, and only renamed after it, so that
        a full disk is found before the commit.

        Raises StoreUnavailable if `is_required` and the head cannot be recorded.
        Otherwise, the fault is logged, and the next event records both.
        """
        prepared = self._head_file.with_suffix(f".{os.urandom(4).hex()}")
        try:
            with self._reporting(is_required):
                _write(prepared, _recorded(head))
            yield
            with self._reporting(is_required):
                self._join(head.log)
                with locked(self.folder / "record.lock"):
                    newest = self.newest()
                    if newest is None or newest.edge.size < head.edge.size:
                        prepared.replace(self._head_file)
        finally:
            with suppress(OSError):
                prepared.unlink(missing_ok=True)

    @contextmanager
    def _reporting(self, is_required: bool) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if is_required:
                raise StoreUnavailable(self._fault(error)) from None
            _log.error("%s", self._fault(error))

    def fault(self) -> str:
        """Return why no head can be recorded now; empty if it can."""
        try:
            write_atomically(self.folder / "probe", b"onnxserve")
        except OSError as error:
            return self._fault(error)
        return ""

    def _fault(self, error: OSError) -> str:
        return (
            f"the record of the audit trail in {self.folder} cannot be written: {error.strerror}; "
            "the key file needs a folder with free space that MLflow's server may write"
        )

    def replace(self, head: TreeHead) -> None:
        """Record this head in the place of all others. Raises StoreUnavailable if it
        cannot be written.
        """
        folder = self._folder_of(head.log)
        with self._reporting(is_required=True):
            with locked(folder / "record.lock"):
                _write(folder / _HEAD, _recorded(head))
            self._use(folder)

    @property
    def has_others(self) -> bool:
        """True if the key has the record of another store."""
        return any(self._root.glob(f"*/{_HEAD}"))

    def spool(self, event: AuditEvent) -> bool:
        """Keep the event until the store is back. Return False if it cannot be kept."""
        name = f"{time.time_ns()}-{os.urandom(4).hex()}.json"
        try:
            _write(self.folder / "spool" / name, _Spooled(event=event))
        except OSError as error:
            _log.error("the spool of the audit trail cannot be written: %s", error)
            return False
        return True

    def count_spooled(self) -> int:
        """Return the number of events that are not stored yet."""
        return sum(1 for _ in self.folder.glob("spool/*.json"))

    def spooled(self, model: str) -> list[AuditEvent]:
        """Return the events of a model that are not stored yet, oldest first."""
        return [event for event in self._read_spool().values() if event.model == model]

    @contextmanager
    def unspooled(self) -> Iterator[list[AuditEvent]]:
        """Yield all events that are not stored yet, oldest first. If the block
        succeeds, they are removed. Other processes wait.
        """
        with locked(self.folder / "spool.lock"):
            events = self._read_spool()
            yield [*events.values()]
            for file in events:
                file.unlink(missing_ok=True)

    def _read_spool(self) -> dict[Path, AuditEvent]:
        """Return the events in the order of their files. A file that another process
        has stored meanwhile is left out.
        """
        entries = {file: _read(file, _Spooled) for file in sorted(self.folder.glob("spool/*.json"))}
        return {file: entry.event for file, entry in entries.items() if entry is not None}


def _recorded(head: TreeHead) -> _Recorded:
    return _Recorded(checkpoint=head.checkpoint.text, edge=head.hashes)


def _write(path: Path, state: State) -> None:
    write_atomically(path, state.model_dump_json().encode(), is_durable=True)


def _read(path: Path, kind: type[StateT]) -> StateT | None:
    """Return None if the file does not exist. A file that cannot be read is an error,
    because without it a shorter trail would be accepted.
    """
    try:
        return kind.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError):
        raise _unreadable(path) from None


def _unreadable(path: Path) -> InvalidConfig:
    return InvalidConfig(f"the record of the audit trail in {path} cannot be read")
