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
from mlflow_deploy_plugin.monitoring.kinds.segments import as_texts, counts_of, largest, segment_name
from mlflow_deploy_plugin.monitoring.kinds.versions import Version
from mlflow_deploy_plugin.monitoring.question import Question
from mlflow_deploy_plugin.monitoring.references import Reference, load_segments
from mlflow_deploy_plugin.monitoring.sketch import Profile, gathered, merge, sketch_groups
from mlflow_deploy_plugin.monitoring.verdict import Part


def parts_of(question: Question, version: Version, reference: Reference) -> tuple[dict[str, Part], list[str]]:
    """The largest segments by each column of `segment_by`, and what is left out, a line each."""
    parts: dict[str, Part] = {}
    notes: list[str] = []
    sample = reference.sample
    for column in question.spec.segment_by:
        if column not in sample.column_names or as_texts(sample.column(column)) is None:
            notes.append(f"segments: the reference has no column {column!r} to tell rows by")
            continue
        values, left_out = _values(question, version, column)
        notes += left_out
        profiles = _profiles(question, version, column, values, reference)
        theirs = load_segments(question, *version, reference, column, values)
        for value, own, profile in zip(values, theirs, profiles, strict=True):
            parts[segment_name(column, value)] = Part(own, profile)
    return parts, notes


def _values(question: Question, version: Version, column: str) -> tuple[list[str], list[str]]:
    """The values that have enough rows, the most frequent first, and what is left out."""
    counts = Counter[str]()
    for batch in _rows(question, version, (column, "_model", "_version")):
        texts = as_texts(batch.column(column)) if column in batch.column_names else None
        if texts is not None:
            counts.update(counts_of(texts))
    if not counts:
        return [], [f"segments: the window has no values of {column!r} to tell rows by"]
    return largest(counts, column, question.spec.min_rows)


def _profiles(
    question: Question, version: Version, column: str, values: Sequence[str], reference: Reference
) -> list[Profile]:
    """A profile of the window's rows of each value, all in one pass."""
    found: list[list[Profile]] = [[] for _ in values]
    wanted = pa.array(values, pa.string())
    for table in gathered(_rows(question, version, None)):
        texts = as_texts(table.column(column)) if column in table.column_names else None
        if texts is None or not values:
            continue
        places = np.asarray(pc.fill_null(pc.index_in(texts, value_set=wanted), -1)).astype(np.int64)
        inside = places >= 0
        profiles = sketch_groups(reference.bins, table.filter(pa.array(inside)), places[inside], len(values))
        for place, profile in enumerate(profiles):
            found[place].append(profile)
    return [merge(profiles) for profiles in found]


def _rows(question: Question, version: Version, columns: Sequence[str] | None) -> Iterator[pa.Table]:
    """What the version answered in the window."""
    for batch in question.log.batches(question.endpoint, question.window, columns):
        yield batch.filter(pa.array(is_answered_by(batch, *version)))
