"""Finds the reference that a monitor names, and gives it as bins, blocks and steps."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from mlflow_deploy_plugin.errors import InvalidConfig
from mlflow_deploy_plugin.monitoring.bins import Bins, bins_digest, freeze_bins
from mlflow_deploy_plugin.monitoring.features import read_features
from mlflow_deploy_plugin.monitoring.kinds.segments import is_segment
from mlflow_deploy_plugin.monitoring.question import Question
from mlflow_deploy_plugin.monitoring.references.blocks import Reference, cut
from mlflow_deploy_plugin.monitoring.references.cache import kept_pieces
from mlflow_deploy_plugin.monitoring.references.dataset import load_dataset
from mlflow_deploy_plugin.monitoring.references.past import Past, pinned, rolling
from mlflow_deploy_plugin.monitoring.references.rows import ReferenceRows, times_of
from mlflow_deploy_plugin.monitoring.references.training import load_reference
from mlflow_deploy_plugin.runtime import EVENT_TIME

CACHE = "references"
_PASTS: Mapping[str, Callable[[Question, str, str], tuple[Past, list[str]]]] = {"window": pinned, "rolling": rolling}


def load_blocks(question: Question, model: str, version: str, columns: Sequence[str] | None = None) -> Reference:
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
    columns = question.spec.columns if columns is None else columns
    kind, _, rest = question.spec.reference.partition(":")
    cache = question.settings.cache_path / CACHE
    match kind:
        case "window" | "rolling":
            return _of_past(*_PASTS[kind](question, model, version), question, columns)
        case "dataset":
            return _of_rows(load_dataset(rest), question, columns, cache)
        case _:
            return _of_rows(load_reference(question.state_dir, model, version, cache), question, columns, cache)


def load_segments(
    question: Question, model: str, version: str, whole: Reference, column: str, values: Sequence[str]
) -> list[Reference]:
    """The parts of a reference that have each of these values, as text, in a column; over the bins of the whole.

    Those of the log come of all of its rows, by the profiles of hours, which are kept for each value; others of the
    reference's sample.

    Raises:
        InvalidConfig, NotFound: as `load_blocks`.
    """
    kind = question.spec.reference.partition(":")[0]
    past = _PASTS[kind](question, model, version)[0] if kind in _PASTS else None
    times = times_of(whole.sample) if EVENT_TIME in whole.sample.column_names else None
    window = question.window
    length_us = window.end_us - window.start_us
    key = bins_digest(whole.bins)  # they may lack columns that the log withholds
    parts = []
    for value in values:
        rows = is_segment(whole.sample, column, value)
        sample = whole.sample.filter(rows)
        if past is None:
            own = None if times is None else times[np.asarray(rows)]
            pieces = cut(whole.bins, sample, own, window.start_us % length_us, length_us)
        else:
            pieces = past.pieces(whole.bins, key, sample, window, (column, value))
        parts.append(replace(whole, pieces=pieces, sample=sample, notes=()))
    return parts


def _of_rows(rows: ReferenceRows, question: Question, columns: Sequence[str], cache: Path) -> Reference:
    bins, notes = freeze(rows.table, columns, rows.shown)
    key = bins_digest(bins)
    window = question.window
    pieces = kept_pieces(cache, bins, key, rows, window.start_us, window.end_us - window.start_us)
    all_notes = (*rows.notes, *notes)
    return Reference(bins, key, pieces, rows.table, rows.model_id, all_notes)


def _of_past(past: Past, past_notes: list[str], question: Question, columns: Sequence[str]) -> Reference:
    sample = past.sample()
    bins, notes = freeze(sample, columns, past.shown)
    key = bins_digest(bins)
    pieces = past.pieces(bins, key, sample, question.window)
    return Reference(bins, key, pieces, sample, notes=(*past_notes, *notes))


def freeze(table: pa.Table, columns: Sequence[str], shown: str) -> tuple[dict[str, Bins], list[str]]:
    """The bins of a table's columns, and a note on each column that has none.

    Args:
        columns: only these; empty: all.

    Raises:
        InvalidConfig: the table has none of `columns`.
    """
    features, notes = read_features(table)
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
