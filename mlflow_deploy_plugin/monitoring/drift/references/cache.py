"""The pieces of a reference, kept on this disk, so that a monitor of each hour does not count them each time."""

import hashlib
import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mlflow_deploy_plugin.monitoring.drift.references.rows import ReferenceRows
from mlflow_deploy_plugin.monitoring.drift.references.windows import ReferencePieces, cut_pieces
from mlflow_deploy_plugin.monitoring.drift.sketches.bins import Bins
from mlflow_deploy_plugin.monitoring.drift.sketches.parquet import (
    SCHEMA,
    profiles_to_table,
    table_to_profiles,
)

_META = b"onnxserve"
_FORMAT = 1
_KEPT = 200  # of a few MB at most


def cached_pieces(
    cache: Path, bins: Mapping[str, Bins], bins_key: str, rows: ReferenceRows, start_us: int, length_us: int
) -> ReferencePieces:
    """As `blocks.cut`; from the folder `cache` where the same rows were cut so before.

    A file that makes no sense is made anew; a disk that takes none costs only time.
    """
    phase = start_us % length_us
    digest = hashlib.sha256(f"{_FORMAT} {bins_key} {length_us} {phase} {rows.table.schema}".encode())
    digest.update(b"" if rows.times is None else np.ascontiguousarray(rows.times).tobytes())
    for column in rows.table.columns:
        for buffer in (buffer for chunk in column.chunks for buffer in chunk.buffers() if buffer):
            digest.update(buffer)
    path = cache / f"{digest.hexdigest()[:32]}.parquet"
    pieces = _load(path)
    if pieces is None:
        pieces = cut_pieces(bins, rows.table, rows.times, phase, length_us)
        _store(path, pieces)
    return pieces


def _load(path: Path) -> ReferencePieces | None:
    try:
        table = pq.read_table(path)
        meta = json.loads(table.schema.metadata[_META])
        profiles = table_to_profiles(table)
        blocks, steps = meta.pop("blocks"), meta.pop("steps")
        return ReferencePieces(
            total=profiles[0],
            blocks=tuple(profiles[1 : 1 + blocks]),
            steps=tuple(profiles[1 + blocks : 1 + blocks + steps]),
            window_starts_us=tuple(meta.pop("block_starts_us")),
            **meta,
        )
    except (OSError, pa.ArrowException, ValueError, LookupError, TypeError):
        return None


def _store(path: Path, pieces: ReferencePieces) -> None:
    meta = {
        "blocks": len(pieces.blocks),
        "steps": len(pieces.steps),
        "block_starts_us": pieces.window_starts_us,
        "steps_start_us": pieces.steps_start_us,
        "step_seconds": pieces.step_seconds,
        "window_steps": pieces.window_steps,
    }
    table = profiles_to_table([pieces.total, *pieces.blocks, *pieces.steps])
    temporary = path.with_name(f".{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table.cast(SCHEMA.with_metadata({_META: json.dumps(meta)})), temporary, compression="zstd")
        os.replace(temporary, path)
        for old in sorted(path.parent.glob("*.parquet"), key=_changed, reverse=True)[_KEPT:]:
            old.unlink(missing_ok=True)
    except OSError:
        temporary.unlink(missing_ok=True)


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # another has deleted it
        return 0.0
