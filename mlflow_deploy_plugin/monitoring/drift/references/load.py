"""The reference of a monitor: loaded as its spec names it, and cut into bins, windows and steps.

The pieces of rows that are at hand (training rows, a dataset) are cached on this disk, so that an hourly monitor does
not count them each time. The pieces of the log come from the profiles of hours that are kept beside it.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mlflow_deploy_plugin.errors import InvalidConfig
from mlflow_deploy_plugin.monitoring.drift.references.dataset import load_dataset
from mlflow_deploy_plugin.monitoring.drift.references.log_reference import LogReference, pinned_window, rolling_windows
from mlflow_deploy_plugin.monitoring.drift.references.rows import ReferenceRows, event_times
from mlflow_deploy_plugin.monitoring.drift.references.training import load_training_rows
from mlflow_deploy_plugin.monitoring.drift.references.windows import DriftReference, ReferencePieces, cut_pieces
from mlflow_deploy_plugin.monitoring.drift.sketches.bins import Bins, bins_digest, freeze_bins
from mlflow_deploy_plugin.monitoring.drift.sketches.columns import read_columns
from mlflow_deploy_plugin.monitoring.drift.sketches.parquet import SCHEMA, profiles_to_table, table_to_profiles
from mlflow_deploy_plugin.monitoring.request import WindowRequest
from mlflow_deploy_plugin.monitoring.segments import is_segment
from mlflow_deploy_plugin.runtime import EVENT_TIME
from mlflow_deploy_plugin.statedir import FileCache

CACHE = "references"
_LOG_REFERENCES: Mapping[str, Callable[[WindowRequest, str, str], tuple[LogReference, list[str]]]] = {
    "window": pinned_window,
    "rolling": rolling_windows,
}
_META = b"onnxserve"
_FORMAT = 1
_KEPT = 200  # of a few MB at most


def load_reference(request: WindowRequest, model: str, version: str) -> DriftReference:
    """Return the reference that the monitor names, cut into windows like the judged one.

    A reference without event times has a total and no windows; a note says so, as it does of each missing column.

    Args:
        request: its window gives the length and the phase of the reference's windows, its spec the reference and the
            columns (empty: all).
        model, version: who answered the window's rows.

    Raises:
        NotFound: neither the server nor the registry has the version, or there is no such dataset, or no rows.
        InvalidArtifact: the model has no reference, or it cannot be read.
        InvalidConfig: the reference has none of the columns, or is a dataset that cannot be read.
        RegistryUnavailable: MLflow does not answer.
    """
    spec, window = request.spec, request.window
    cache = request.settings.cache_path / CACHE
    kind, _, rest = spec.reference.partition(":")
    if kind in _LOG_REFERENCES:
        log_reference, log_notes = _LOG_REFERENCES[kind](request, model, version)
        sample = log_reference.sample()
        bins, notes = freeze_table(sample, spec.columns, log_reference.shown)
        key = bins_digest(bins)
        pieces = log_reference.pieces(bins, key, sample, window)
        return DriftReference(bins, key, pieces, sample, notes=(*log_notes, *notes))
    is_dataset = kind == "dataset"
    rows = load_dataset(rest) if is_dataset else load_training_rows(request.state_dir, model, version, cache)
    bins, notes = freeze_table(rows.table, spec.columns, rows.shown)
    key = bins_digest(bins)
    pieces = _cached_pieces(cache, bins, key, rows, window.start_us, window.end_us - window.start_us)
    return DriftReference(bins, key, pieces, rows.table, rows.model_id, (*rows.notes, *notes))


def load_segment_references(
    request: WindowRequest, model: str, version: str, whole: DriftReference, column: str, values: Sequence[str]
) -> list[DriftReference]:
    """Return the part of a reference for each value, as text, of a column; over the bins of the whole.

    For a reference in the log all of its rows count, by the profiles of hours, which are kept for each value; for
    others the rows of the reference's sample.

    Raises:
        InvalidConfig, NotFound: as `load_reference`.
    """
    kind = request.spec.reference.partition(":")[0]
    log_reference = _LOG_REFERENCES[kind](request, model, version)[0] if kind in _LOG_REFERENCES else None
    times = event_times(whole.sample) if EVENT_TIME in whole.sample.column_names else None
    window = request.window
    length_us = window.end_us - window.start_us
    key = bins_digest(whole.bins)  # they may lack columns that are excluded
    parts = []
    for value in values:
        rows = is_segment(whole.sample, column, value)
        sample = whole.sample.filter(rows)
        if log_reference is None:
            own = None if times is None else times[np.asarray(rows)]
            pieces = cut_pieces(whole.bins, sample, own, window.start_us % length_us, length_us)
        else:
            pieces = log_reference.pieces(whole.bins, key, sample, window, (column, value))
        parts.append(replace(whole, pieces=pieces, sample=sample, notes=()))
    return parts


def freeze_table(table: pa.Table, columns: Sequence[str], shown: str) -> tuple[dict[str, Bins], list[str]]:
    """Return the bins of a table's columns, and a note on each column that has none.

    Args:
        columns: only these; empty: all.
        shown: the table, for messages.

    Raises:
        InvalidConfig: the table has none of `columns`.
    """
    features, notes = read_columns(table)
    missing = [name for name in columns if name not in features]
    if columns and len(missing) == len(columns):
        raise InvalidConfig(f"{shown} has no column {missing[0]!r} to judge; it has {', '.join(features) or 'none'}")
    notes += [f"{name}: {shown} has no such column" for name in missing]
    types = {name: str(table.schema.field(name).type) for name in table.column_names}
    return {
        name: freeze_bins(feature, types.get(name, "double"))  # a component of a list is a double
        for name, feature in features.items()
        if not columns or name in columns
    }, notes


def _cached_pieces(
    cache: Path, bins: Mapping[str, Bins], bins_key: str, rows: ReferenceRows, start_us: int, length_us: int
) -> ReferencePieces:
    """Return `cut_pieces` of the rows, from the folder `cache` if the same rows were cut in this way before.

    A file that makes no sense is made anew; a disk that takes no file costs only time.
    """
    phase = start_us % length_us
    digest = hashlib.sha256(f"{_FORMAT} {bins_key} {length_us} {phase} {rows.table.schema}".encode())
    digest.update(b"" if rows.times is None else np.ascontiguousarray(rows.times).tobytes())
    for column in rows.table.columns:
        for buffer in (buffer for chunk in column.chunks for buffer in chunk.buffers() if buffer):
            digest.update(buffer)
    files = FileCache(cache, ".parquet", _KEPT)
    path = files.path(digest.hexdigest()[:32])
    pieces = _load(path)
    if pieces is None:
        pieces = cut_pieces(bins, rows.table, rows.times, phase, length_us)
        with files.writing(path) as temporary:
            _store(temporary, pieces)
    return pieces


def _load(path: Path) -> ReferencePieces | None:
    try:
        table = pq.read_table(path)
        meta = json.loads(table.schema.metadata[_META])
        profiles = table_to_profiles(table)
        windows, steps = meta.pop("blocks"), meta.pop("steps")
        return ReferencePieces(
            total=profiles[0],
            windows=tuple(profiles[1 : 1 + windows]),
            steps=tuple(profiles[1 + windows : 1 + windows + steps]),
            window_starts_us=tuple(meta.pop("block_starts_us")),
            **meta,
        )
    except (OSError, pa.ArrowException, ValueError, LookupError, TypeError):
        return None


def _store(path: Path, pieces: ReferencePieces) -> None:
    meta = {
        "blocks": len(pieces.windows),
        "steps": len(pieces.steps),
        "block_starts_us": pieces.window_starts_us,
        "steps_start_us": pieces.steps_start_us,
        "step_seconds": pieces.step_seconds,
        "window_steps": pieces.window_steps,
    }
    table = profiles_to_table([pieces.total, *pieces.windows, *pieces.steps])
    pq.write_table(table.cast(SCHEMA.with_metadata({_META: json.dumps(meta)})), path, compression="zstd")
