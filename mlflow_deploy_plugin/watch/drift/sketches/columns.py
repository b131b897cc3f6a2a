"""Features: the columns of a table, as float64 with NaN for missing values, or as text
with None for missing values.

Booleans are categories. Lists become numeric columns (`summarise_lists`). Times, binary
values and structures have no distance and are skipped with a note.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mlflow_deploy_plugin.serve.inference_log.tables import summarise_lists
from mlflow_deploy_plugin.serve.runtime.feeds import Array

Kind = Literal["number", "category"]
Family = Literal["number", "category", "null", "other"]

OWN_PREFIX = "_"
TRUTH: Mapping[str | None, float] = {"false": 0.0, "true": 1.0}
"""The texts of booleans, and the equivalent numbers."""


@dataclass(frozen=True, eq=False)
class ColumnValues:
    """A column of N rows. `values` is [N] float64 (NaN: missing), or [N] object of str
    (None: missing).
    """

    name: str
    kind: Kind
    values: Array


def read_columns(table: pa.Table) -> tuple[dict[str, ColumnValues], list[str]]:
    """Return the columns by name, without the log's own columns, and a note for each
    column that cannot be compared.
    """
    features: dict[str, ColumnValues] = {}
    notes: list[str] = []
    for name, raw_column in feature_columns(table):
        column = decoded(raw_column)
        family = type_family(column.type)
        if family == "other":
            notes.append(f"{name}: a column of type {raw_column.type} is not judged")
        elif family == "number":
            features[name] = ColumnValues(name, "number", as_floats(column))
        else:
            texts = pc.cast(column, pa.large_string()).to_pylist()
            features[name] = ColumnValues(name, "category", np.array(texts, dtype=object))
    return features, notes


def feature_columns(
    table: pa.Table,
    names_in_reference: Collection[str] = (),
) -> Iterator[tuple[str, pa.ChunkedArray]]:
    """Yield the name and values of each column, with lists summarised, without the
    log's own columns.
    """
    summarised = summarise_lists(table, names_in_reference)
    for name in summarised.column_names:
        if not name.startswith(OWN_PREFIX):
            yield name, summarised.column(name)


def select_columns(
    columns: Iterable[str],
    chosen: Sequence[str],
) -> list[str]:
    """Return the chosen columns and their parts, such as `image.mean` for `image`. If
    `chosen` is empty, return all.
    """
    parts = tuple(f"{name}." for name in chosen)
    return [name for name in columns if not chosen or name in chosen or name.startswith(parts)]


def decoded(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if pa.types.is_dictionary(column.type):
        return column.cast(column.type.value_type)
    return column


def type_family(kind: pa.DataType) -> Family:
    """Return the family in which values of an Arrow type are compared; "null" is
    compatible with every family.
    """
    types = pa.types
    if types.is_null(kind):
        return "null"
    if types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind):
        return "number"
    if (
        types.is_boolean(kind)
        or types.is_string(kind)
        or types.is_large_string(kind)
        or types.is_string_view(kind)
    ):
        return "category"
    return "other"


def as_floats(column: pa.ChunkedArray) -> Array:
    """Return a numeric column as [N] float64, with NaN for null."""
    values: Array = pc.fill_null(
        pc.cast(column, pa.float64(), safe=False),
        float("nan"),
    ).to_numpy()
    return values


def pair_columns(
    reference: Mapping[str, ColumnValues],
    current: Mapping[str, ColumnValues],
) -> list[tuple[ColumnValues, ColumnValues]]:
    """Return the pairs of columns of the same name; booleans become 1 and 0 if the
    other column is numeric.
    """
    pairs = []
    for name, left in reference.items():
        if name not in current:
            continue
        right = current[name]
        if left.kind != right.kind:
            left = _truth_as_numbers(left)
            right = _truth_as_numbers(right)
        pairs.append((left, right))
    return pairs


def _truth_as_numbers(feature: ColumnValues) -> ColumnValues:
    if feature.kind == "number" or not {None, *TRUTH} >= set(feature.values):
        return feature
    return ColumnValues(
        feature.name,
        "number",
        np.array([TRUTH.get(value, np.nan) for value in feature.values]),
    )
