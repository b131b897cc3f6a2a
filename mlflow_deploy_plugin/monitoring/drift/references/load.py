"""Finds the reference that a monitor names, and gives it as bins, blocks and steps."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from mlflow_deploy_plugin.errors import InvalidConfig
from mlflow_deploy_plugin.monitoring.drift.references.cache import cached_pieces
from mlflow_deploy_plugin.monitoring.drift.references.dataset import load_dataset
from mlflow_deploy_plugin.monitoring.drift.references.log_reference import (
    LogReference,
    pinned_window,
    rolling_windows,
)
from mlflow_deploy_plugin.monitoring.drift.references.rows import ReferenceRows, event_times
from mlflow_deploy_plugin.monitoring.drift.references.training import load_training_rows
from mlflow_deploy_plugin.monitoring.drift.references.windows import DriftReference, cut_pieces
from mlflow_deploy_plugin.monitoring.drift.sketches.bins import Bins, bins_digest, freeze_bins
from mlflow_deploy_plugin.monitoring.drift.sketches.columns import read_columns
from mlflow_deploy_plugin.monitoring.request import WindowRequest
from mlflow_deploy_plugin.monitoring.segments import is_segment
from mlflow_deploy_plugin.runtime import EVENT_TIME

CACHE = "references"
_PASTS: Mapping[str, Callable[[WindowRequest, str, str], tuple[LogReference, list[str]]]] = {
    "window": pinned_window,
    "rolling": rolling_windows,
}


def load_reference(
    request: WindowRequest, model: str, version: str, columns: Sequence[str] | None = None
) -> DriftReference:
    """The reference that the monitor names, cut into windows like the one that is judged.

    A reference without event times has a total and no blocks, and says so in its notes.

    Args:
        question: its window gives the length and the phase of the blocks, its spec the reference.
        model, version: who answered the window's rows.
        columns: only these, empty: all; None: those of the spec. One that the reference lacks is noted.

    Raises:
        NotFound: neither the server nor the registry has the version, or there is no such dataset, or no rows.
        InvalidArtifact: the model has no reference, or it cannot be read.
        InvalidConfig: the reference has none of the columns, or is a dataset that cannot be read.
        RegistryUnavailable: MLflow does not answer.
    """
    columns = request.spec.columns if columns is None else columns
    kind, _, rest = request.spec.reference.partition(":")
    cache = request.settings.cache_path / CACHE
    match kind:
        case "window" | "rolling":
            return _of_past(*_PASTS[kind](request, model, version), request, columns)
        case "dataset":
            return _of_rows(load_dataset(rest), request, columns, cache)
        case _:
            return _of_rows(load_training_rows(request.state_dir, model, version, cache), request, columns, cache)


def load_segment_references(
    request: WindowRequest, model: str, version: str, whole: DriftReference, column: str, values: Sequence[str]
) -> list[DriftReference]:
    """The parts of a reference that have each of these values, as text, in a column; over the bins of the whole.

    Those of the log come of all of its rows, by the profiles of hours, which are kept for each value; others of the
    reference's sample.

    Raises:
        InvalidConfig, NotFound: as `load_blocks`.
    """
    kind = request.spec.reference.partition(":")[0]
    past = _PASTS[kind](request, model, version)[0] if kind in _PASTS else None
    times = event_times(whole.sample) if EVENT_TIME in whole.sample.column_names else None
    window = request.window
    length_us = window.end_us - window.start_us
    key = bins_digest(whole.bins)  # they may lack columns that the log withholds
    parts = []
    for value in values:
        rows = is_segment(whole.sample, column, value)
        sample = whole.sample.filter(rows)
        if past is None:
            own = None if times is None else times[np.asarray(rows)]
            pieces = cut_pieces(whole.bins, sample, own, window.start_us % length_us, length_us)
        else:
            pieces = past.pieces(whole.bins, key, sample, window, (column, value))
        parts.append(replace(whole, pieces=pieces, sample=sample, notes=()))
    return parts


def _of_rows(rows: ReferenceRows, request: WindowRequest, columns: Sequence[str], cache: Path) -> DriftReference:
    bins, notes = freeze_table(rows.table, columns, rows.shown)
    key = bins_digest(bins)
    window = request.window
    pieces = cached_pieces(cache, bins, key, rows, window.start_us, window.end_us - window.start_us)
    all_notes = (*rows.notes, *notes)
    return DriftReference(bins, key, pieces, rows.table, rows.model_id, all_notes)


def _of_past(
    past: LogReference, past_notes: list[str], request: WindowRequest, columns: Sequence[str]
) -> DriftReference:
    sample = past.sample()
    bins, notes = freeze_table(sample, columns, past.shown)
    key = bins_digest(bins)
    pieces = past.pieces(bins, key, sample, request.window)
    return DriftReference(bins, key, pieces, sample, notes=(*past_notes, *notes))


def freeze_table(table: pa.Table, columns: Sequence[str], shown: str) -> tuple[dict[str, Bins], list[str]]:
    """The bins of a table's columns, and a note on each column that has none.

    Args:
        columns: only these; empty: all.

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
