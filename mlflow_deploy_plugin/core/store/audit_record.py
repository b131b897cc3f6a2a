"""The record of the audit trail beside the key of MLflow's server: the last event of
each chain, and the events that could not be stored yet. People who may write to the
store may not write here, so a trail that was replaced or shortened is found.
"""

import hashlib
import logging
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from pydantic import ValidationError
from sqlalchemy import URL

from mlflow_deploy_plugin.core.errors import InvalidConfig, StoreUnavailable
from mlflow_deploy_plugin.core.statedir.files import StateT, locked, write_atomically
from mlflow_deploy_plugin.core.statedir.models import State
from mlflow_deploy_plugin.core.store.audit import AuditEvent

_log = logging.getLogger(__name__)


class Head(State):
    """The last event of the chain of a model: its id and its hash."""

    model: str
    event: int
    digest: str


class _Spooled(State):
    event: AuditEvent


def chain_id(model: str) -> str:
    """Return the name of a model's chain in files and checkpoints, which people may
    read who may not know the model.
    """
    return hashlib.sha256(model.encode()).hexdigest()[:32]


class Seal(State):
    """The first start of a server with a store.

    Attributes:
        adopted: the ids of unknown keys whose signatures an administrator has accepted.
    """

    key_id: str
    at: datetime
    adopted: tuple[str, ...] = ()


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

    def join(self, store_id: str) -> None:
        """Use the folder of the store with this id: that of the URL which was the first
        to join. Move the state of this URL there. Raises InvalidConfig or
        StoreUnavailable if the folder cannot be written.

        No folder is renamed, because other processes write to it.
        """
        if self._name_file.exists():
            return
        of_store = self._root / f"{store_id}.name"
        try:
            with locked(self._root / "names.lock"):
                if not of_store.exists():
                    name = self._folder_of_url.name.encode()
                    write_atomically(of_store, name, is_durable=True)
                spool = self._root / of_store.read_text() / "spool"
                spool.mkdir(parents=True, exist_ok=True)
                for file in self.folder.glob("spool/*.json"):
                    file.rename(spool / file.name)
                heads = self.heads()
                write_atomically(self._name_file, of_store.read_bytes(), is_durable=True)
        except OSError as error:
            raise InvalidConfig(self._fault(error)) from None
        with self.recording(heads, is_required=True):
            pass

    def seal(self) -> Seal | None:
        """Return None before the first start of a server."""
        return _read(self.folder / "seal.json", Seal)

    def heads(self) -> list[Head]:
        heads = [_read(file, Head) for file in sorted(self.folder.glob("heads/*.json"))]
        return [head for head in heads if head is not None]

    def head(self, model: str) -> Head | None:
        """Return None for a chain without a recorded event."""
        return _read(self._head_file(model), Head)

    @contextmanager
    def recording(self, heads: Iterable[Head], is_required: bool) -> Iterator[None]:
        """Record the heads that are newer than the recorded ones after the block, which
        commits their events. They are written before the block, and only renamed after
        it, so that a full disk is found before the commit.

        Raises StoreUnavailable if `is_required` and a head cannot be recorded.
        Otherwise, the fault is logged, and the next event of the chain has its hash.
        """
        prepared = {
            self._head_file(head.model).with_suffix(f".{head.event}"): head for head in heads
        }
        try:
            with self._reporting(is_required):
                for file, head in prepared.items():
                    _write(file, head)
            yield
            with self._reporting(is_required), locked(self.folder / "record.lock"):
                for file, head in prepared.items():
                    recorded = self.head(head.model)
                    if recorded is None or recorded.event < head.event:
                        file.replace(self._head_file(head.model))
        finally:
            for file in prepared:
                with suppress(OSError):
                    file.unlink(missing_ok=True)

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
            write_atomically(self.folder / "heads" / "probe", b"onnxserve")
        except OSError as error:
            return self._fault(error)
        return ""

    def _fault(self, error: OSError) -> str:
        return (
            f"the record of the audit trail in {self.folder} cannot be written: {error.strerror}; "
            "the key file needs a folder with free space that MLflow's server may write"
        )

    def replace(self, seal: Seal, heads: Iterable[Head]) -> None:
        """Record the seal, and only these heads. Raises InvalidConfig if a file cannot
        be written.
        """
        if self.seal() is None and any(self._root.glob("*/seal.json")):
            _log.warning(
                "%s is a new record, although this key has the record of another store; if this "
                "store has been in use before, its audit trail was removed",
                self.folder,
            )
        try:
            with locked(self.folder / "record.lock"):
                for file in self.folder.glob("heads/*.json"):  # Other files are being recorded.
                    file.unlink()
                for head in heads:
                    _write(self._head_file(head.model), head)
                _write(self.folder / "seal.json", seal)
        except OSError as error:
            raise InvalidConfig(self._fault(error)) from None

    def spool(self, event: AuditEvent) -> bool:
        """Keep the event until the store is back. Return False if it cannot be kept."""
        name = f"{time.time_ns()}-{os.urandom(4).hex()}.json"
        try:
            _write(self.folder / "spool" / name, _Spooled(event=event))
        except OSError as error:
            _log.error("the spool of the audit trail cannot be written: %s", error)
            return False
        return True

    def is_spool_empty(self) -> bool:
        return not any(self.folder.glob("spool/*.json"))

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

    def _head_file(self, model: str) -> Path:
        return self.folder / "heads" / f"{chain_id(model)}.json"


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
        raise InvalidConfig(f"the record of the audit trail in {path} cannot be read") from None
