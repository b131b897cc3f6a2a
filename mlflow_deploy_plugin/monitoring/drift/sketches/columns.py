"""Features: the columns of a table of rows, reduced to the two kinds that drift can be measured on.

A number is float64 with NaN if it is missing; a category is text with None if it is missing. Booleans are
categories. A short vector (a list in Parquet), as probabilities are, becomes its components: `probabilities.0`,
`probabilities.1`; a long one or a tensor the mean and the spread of each row: `image.mean`, `image.std`. Times, binary
values and structures have no distance here and are left out, with a note.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mlflow_deploy_plugin.inference_log import summarise_lists

Array = npt.NDArray[Any]
Kind = Literal["number", "category"]

OWN_PREFIX = "_"
TRUTH: Mapping[str | None, float] = {"false": 0.0, "true": 1.0}
"""The texts of booleans, and the numbers that they are the same as."""


@dataclass(frozen=True, eq=False)
class ColumnValues:
    """One column of N rows.

    Attributes:
        values: [N] float64 (NaN: missing), or [N] object of str (None: missing).
    """

    name: str
    kind: Kind
    values: Array


def read_columns(table: pa.Table) -> tuple[dict[str, ColumnValues], list[str]]:
    """Return the columns of a table by name, and a note on each that cannot be compared.

    Columns whose name begins with an underscore are the log's own and no features.
    """
    features: dict[str, ColumnValues] = {}
    notes: list[str] = []
    summarised = summarise_lists(table)
    for name in summarised.column_names:
        if name.startswith(OWN_PREFIX):
            continue
        feature = _feature(name, summarised.column(name))
        if feature is None:
            notes.append(f"{name}: a column of type {summarised.column(name).type} is not judged")
        else:
            features[name] = feature
    return features, notes


def as_floats(column: pa.ChunkedArray) -> Array:
    """Return a column of numbers as [N] float64, NaN where it is null."""
    values: Array = pc.fill_null(pc.cast(column, pa.float64(), safe=False), float("nan")).to_numpy()
    return values


def pair_columns(
    reference: Mapping[str, ColumnValues], current: Mapping[str, ColumnValues]
) -> tuple[list[tuple[ColumnValues, ColumnValues]], list[str]]:
    """Return the columns that both sides have, as pairs of one kind, and a note on each that only one side has.

    A column without any value has no kind of its own and takes the other side's, and booleans are 1 and 0 beside
    numbers; if the kinds differ otherwise, both are read as text.
    """
    notes = [f"{name}: in the reference, not in the captured rows" for name in reference if name not in current]
    notes += [f"{name}: in the captured rows, not in the reference" for name in current if name not in reference]
    pairs = []
    for name, left in reference.items():
        if name not in current:
            continue
        right = current[name]
        if left.kind != right.kind:
            left, right = _truth_as_numbers(left), _truth_as_numbers(right)
        if left.kind != right.kind:
            kind: Kind = right.kind if _is_empty(left) else left.kind if _is_empty(right) else "category"
            left, right = _as_kind(left, kind), _as_kind(right, kind)
        pairs.append((left, right))
    return pairs, notes


def _feature(name: str, column: pa.ChunkedArray) -> ColumnValues | None:
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind = column.type
    if pa.types.is_null(kind):
        return ColumnValues(name, "category", np.full(len(column), None, dtype=object))
    if pa.types.is_boolean(kind):
        return ColumnValues(name, "category", _text(column))
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return ColumnValues(name, "number", as_floats(column))
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return ColumnValues(name, "category", _text(column))
    return None


def _text(column: pa.ChunkedArray) -> Array:
    return np.array(pc.cast(column, pa.large_string()).to_pylist(), dtype=object)


def _truth_as_numbers(feature: ColumnValues) -> ColumnValues:
    if feature.kind == "number" or not {None, *TRUTH} >= set(feature.values) or _is_empty(feature):
        return feature
    return ColumnValues(feature.name, "number", np.array([TRUTH.get(value, np.nan) for value in feature.values]))


def _is_empty(feature: ColumnValues) -> bool:
    if feature.kind == "number":
        return bool(np.isnan(feature.values).all())
    return all(value is None for value in feature.values)


def _as_kind(feature: ColumnValues, kind: Kind) -> ColumnValues:
    if feature.kind == kind:
        return feature
    if kind == "number":  # only what is empty is ever turned into numbers
        return ColumnValues(feature.name, "number", np.full(len(feature.values), np.nan))
    texts = [None if np.isnan(value) else f"{value:g}" for value in feature.values]
    return ColumnValues(feature.name, "category", np.array(texts, dtype=object))
