"""Segments: the rows of a window grouped by the values of a column. Each segment is
judged separately.
"""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mlflow_deploy_plugin.core.spec.monitors import MonitorSpec
from mlflow_deploy_plugin.serve.runtime.feeds import Array

MAX_SEGMENTS = 20
_LONGEST_VALUE = 60


def find_segments(
    table: pa.Table,
    spec: MonitorSpec,
    countable: Array,
) -> tuple[list[tuple[str, Array]], list[str]]:
    """Return the largest segments of each column of `segment_by`, with at least
    `min_rows` of the `countable` rows, [N] bool, and notes on skipped values. A segment
    has a name, such as `carrier=AA`, and a row mask, [N] bool.
    """
    segments: list[tuple[str, Array]] = []
    notes: list[str] = []
    for column in spec.segment_by:
        if column not in table.column_names:
            notes.append(f"segments: the rows have no column {column!r}")
            continue
        texts = texts_of(table, column)
        if texts is None:
            notes.append(
                f"segments: a column of type {table.column(column).type} cannot define segments",
            )
            continue
        values, left_out = largest_values(
            count_texts(texts.filter(pa.array(countable))),
            column,
            spec.min_rows,
        )
        notes += left_out
        for value in values:
            rows = np.asarray(pc.fill_null(pc.equal(texts, value), False))
            segments.append((segment_name(column, value), rows))
    return segments, notes


def largest_values(
    counts: Mapping[str, int],
    column: str,
    min_rows: int,
) -> tuple[list[str], list[str]]:
    """Return the most frequent values of a column, each of which becomes a segment, and
    notes on skipped values.
    """
    order = sorted(counts, key=lambda value: (-counts[value], value))
    large = [value for value in order if counts[value] >= min_rows]
    notes = []
    if len(large) > MAX_SEGMENTS:
        notes.append(
            f"segments: only the {MAX_SEGMENTS} largest of {len(large):,} values of {column} are "
            "judged",
        )
    small = order[len(large) :]
    if small:
        rows = sum(counts[value] for value in small)
        notes.append(
            f"segments: {len(small):,} values of {column} with fewer than {min_rows} rows each, "
            f"{rows:,} rows in total, are not judged",
        )
    return large[:MAX_SEGMENTS], notes


def count_texts(texts: pa.Array) -> dict[str, int]:
    return {
        entry["values"]: entry["counts"] for entry in pc.value_counts(texts.drop_null()).to_pylist()
    }


def segment_name(column: str, value: str) -> str:
    """Return the segment's name, such as `carrier=AA`. A long value is cut."""
    if len(value) > _LONGEST_VALUE:
        value = f"{value[: _LONGEST_VALUE - 1]}…"
    return f"{column}={value}"


def is_segment(table: pa.Table, column: str, value: str) -> pa.Array:
    """Return a mask, [N] bool: True if the row's value is this text. If the column is
    missing, every row is False.
    """
    texts = texts_of(table, column)
    if texts is None:
        return pa.array(np.zeros(len(table), dtype=bool))
    return pc.fill_null(pc.equal(texts, value), False)


def texts_of(table: pa.Table, name: str) -> pa.Array | None:
    """Return the column as text, [N], with null for missing values; None if the table
    does not have the column or its type has no text form.

    A number has the same text in every numeric type. Booleans become 0 and 1, because a
    reference may store them as numbers.
    """
    if name not in table.column_names:
        return None
    column = table.column(name)
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind = column.type
    if pa.types.is_boolean(kind):
        column = column.cast(pa.int8())
    if pa.types.is_floating(kind):
        column = pc.if_else(pc.is_nan(column), None, column)
    try:
        return pc.cast(column, pa.string()).combine_chunks()
    except pa.ArrowException:
        return None
