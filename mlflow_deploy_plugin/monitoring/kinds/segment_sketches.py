"""Segments of a window beside the same segments of its reference, as sketches.

Their columns stand in one null distribution with those of all rows (`verdict.py`: the maximum over columns and
segments), so that the stated rate of false alarms is that of all of them together, however they depend on each other.
"""

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mlflow_deploy_plugin.inference_log.scan import is_answered_by
from mlflow_deploy_plugin.monitoring.drift.references import DriftReference, load_segment_references
from mlflow_deploy_plugin.monitoring.drift.sketches.sketch import (
    Profile,
    coalesce_batches,
    merge,
    sketch_groups,
)
from mlflow_deploy_plugin.monitoring.drift.verdict import SegmentProfiles
from mlflow_deploy_plugin.monitoring.kinds.versions import ModelVersion
from mlflow_deploy_plugin.monitoring.request import WindowRequest
from mlflow_deploy_plugin.monitoring.segments import as_texts, count_texts, largest_values, segment_name


def segment_profiles(
    request: WindowRequest, version: ModelVersion, reference: DriftReference
) -> tuple[dict[str, SegmentProfiles], list[str]]:
    """The largest segments by each column of `segment_by`, and what is left out, a line each."""
    parts: dict[str, SegmentProfiles] = {}
    notes: list[str] = []
    sample = reference.sample
    for column in request.spec.segment_by:
        if column not in sample.column_names or as_texts(sample.column(column)) is None:
            notes.append(f"segments: the reference has no column {column!r} to tell rows by")
            continue
        values, left_out = _values(request, version, column)
        notes += left_out
        profiles = _profiles(request, version, column, values, reference)
        theirs = load_segment_references(request, *version, reference, column, values)
        for value, own, profile in zip(values, theirs, profiles, strict=True):
            parts[segment_name(column, value)] = SegmentProfiles(own, profile)
    return parts, notes


def _values(request: WindowRequest, version: ModelVersion, column: str) -> tuple[list[str], list[str]]:
    """The values that have enough rows, the most frequent first, and what is left out."""
    counts = Counter[str]()
    for batch in _rows(request, version, (column, "_model", "_version")):
        texts = as_texts(batch.column(column)) if column in batch.column_names else None
        if texts is not None:
            counts.update(count_texts(texts))
    if not counts:
        return [], [f"segments: the window has no values of {column!r} to tell rows by"]
    return largest_values(counts, column, request.spec.min_rows)


def _profiles(
    request: WindowRequest, version: ModelVersion, column: str, values: Sequence[str], reference: DriftReference
) -> list[Profile]:
    """A profile of the window's rows of each value, all in one pass."""
    found: list[list[Profile]] = [[] for _ in values]
    wanted = pa.array(values, pa.string())
    for table in coalesce_batches(_rows(request, version, None)):
        texts = as_texts(table.column(column)) if column in table.column_names else None
        if texts is None or not values:
            continue
        places = np.asarray(pc.fill_null(pc.index_in(texts, value_set=wanted), -1)).astype(np.int64)
        inside = places >= 0
        profiles = sketch_groups(reference.bins, table.filter(pa.array(inside)), places[inside], len(values))
        for place, profile in enumerate(profiles):
            found[place].append(profile)
    return [merge(profiles) for profiles in found]


def _rows(request: WindowRequest, version: ModelVersion, columns: Sequence[str] | None) -> Iterator[pa.Table]:
    """What the version answered in the window."""
    for batch in request.log.batches(request.endpoint, request.window, columns):
        yield batch.filter(pa.array(is_answered_by(batch, *version)))
