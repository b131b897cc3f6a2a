"""The log of the audit trail as files that other people's verifiers read
(https://c2sp.org/tlog-tiles), and the events beside them.
"""

from collections.abc import Iterator
from pathlib import Path

from sqlalchemy import select

from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.core.statedir.files import write_atomically
from mlflow_deploy_plugin.core.store.audit import event_json
from mlflow_deploy_plugin.core.store.audit_keys import Keys
from mlflow_deploy_plugin.core.store.audit_tree import STREAMED
from mlflow_deploy_plugin.core.store.checkpoints import Checkpoint, parse_checkpoint
from mlflow_deploy_plugin.core.store.store import Store
from mlflow_deploy_plugin.core.store.tables import AuditLeafRow, AuditRow

_WIDTH = 256
"""The number of hashes in a full tile."""


def write_tiles(
    store: Store, keys: Keys, checkpoint: Checkpoint | None, folder: Path
) -> Checkpoint:
    """Write the tiles, the entries and the events of the log until the checkpoint, by
    default the newest one of the store. Return the checkpoint.

    Raises InvalidConfig if the trail has no signed checkpoint, does not contain the
    checkpoint in the folder, or cannot be written; and StoreUnavailable.
    """
    with store.reading() as session:
        view = store.trail_view.read(session, keys)
        if view.head is None:
            reason = view.fault or "the audit trail has no checkpoint: no server signs it"
            raise InvalidConfig(reason)
        checkpoint = checkpoint or view.head.checkpoint
        earlier = _checkpoint_in(folder / "checkpoint")
        for known in filter(None, (checkpoint, earlier)):
            if not view.begins_with(known):
                raise InvalidConfig(
                    f"the audit trail does not contain the {known.size:,} events of the "
                    f"checkpoint of {known.origin}: keep {folder} as evidence, and export into "
                    "another folder"
                )
        size = checkpoint.size
        entries = select(AuditLeafRow.entry).where(AuditLeafRow.place.between(0, size - 1))
        stored = session.scalars(entries.order_by(AuditLeafRow.place), execution_options=STREAMED)
        rows = session.scalars(select(AuditRow), execution_options=STREAMED)
        # Somebody may have inserted another event at the same place.
        events = {row.place: event_json(row) for row in rows if view.has(row)}
        try:
            sized = (len(entry).to_bytes(2, "big") + entry.encode() for entry in stored)
            _write_level(folder / "tile/entries", sized, size)
            for level in range(8):
                count = size >> 8 * level
                hashes = (view.tree.subtree(8 * level, place) for place in range(count))
                _write_level(folder / f"tile/{level}", hashes, count)
            lines = "".join(f"{events.get(place, '')}\n" for place in range(size))
            write_atomically(folder / "events.jsonl", lines.encode())
            write_atomically(folder / "checkpoint", checkpoint.text.encode())
        except OSError as error:
            raise InvalidConfig(f"{folder} cannot be written: {error.strerror}") from None
    return checkpoint


def _checkpoint_in(file: Path) -> Checkpoint | None:
    try:
        return parse_checkpoint(file.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        raise InvalidConfig(f"{file} is not a checkpoint") from None


def _write_level(folder: Path, items: Iterator[bytes], count: int) -> None:
    """Write the items in files of 256, and the rest in a partial file."""
    for number in range(-(-count // _WIDTH)):
        width = min(_WIDTH, count - number * _WIDTH)
        path = _path(number) if width == _WIDTH else f"{_path(number)}.p/{width}"
        content = b"".join(next(items) for _ in range(width))
        write_atomically(folder / path, content)


def _path(number: int) -> str:
    """Return the path of a tile: 1234067 is `x001/x234/067`."""
    text = f"{number:03}"
    text = text.zfill(-(-len(text) // 3) * 3)
    parts = [text[start : start + 3] for start in range(0, len(text), 3)]
    return "/".join([*(f"x{part}" for part in parts[:-1]), parts[-1]])
