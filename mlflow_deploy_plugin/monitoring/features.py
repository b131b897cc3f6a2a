"""Features: the columns of a table of rows, reduced to the two kinds that drift can be measured on.

A number is float64 with NaN where it is missing; a category is text with None where it is missing. Booleans are
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

Array = npt.NDArray[Any]
Kind = Literal["number", "category"]

OWN_PREFIX = "_"
_COMPONENTS = 8


@dataclass(frozen=True, eq=False)
class Feature:
    """One column of N rows.

    Attributes:
        values: [N] float64 (NaN: missing), or [N] object of str (None: missing).
    """

    name: str
    kind: Kind
    values: Array


def summarise_lists(table: pa.Table) -> pa.Table:
    """Replaces each column of lists by a few columns of numbers.

    The rows of a tensor are large; what is read from a log is reduced by this while it is read.
    """
    for name in table.column_names:
        column = table.column(name)
        if not _is_list(column.type):
            continue
        position = table.column_names.index(name)
        table = table.remove_column(position)
        for suffix, values in _parts(column).items():
            table = table.append_column(f"{name}.{suffix}", pa.array(values))
    return table


def read_features(table: pa.Table) -> tuple[dict[str, Feature], list[str]]:
    """The features of a table by name, and a note on each column that is none.

    Columns whose name begins with an underscore are the log's own and no features.
    """
    features: dict[str, Feature] = {}
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


def align(
    reference: Mapping[str, Feature], current: Mapping[str, Feature]
) -> tuple[list[tuple[Feature, Feature]], list[str]]:
    """The features that both sides have, as pairs of one kind, and a note on each that only one side has.

    A column without any value has no kind of its own and takes the other side's; if the kinds differ otherwise,
    both are read as text.
    """
    notes = [f"{name}: in the reference, not in the captured rows" for name in reference if name not in current]
    notes += [f"{name}: in the captured rows, not in the reference" for name in current if name not in reference]
    pairs = []
    for name, left in reference.items():
        if name not in current:
            continue
        right = current[name]
        if left.kind != right.kind:
            kind: Kind = right.kind if _is_empty(left) else left.kind if _is_empty(right) else "category"
            left, right = _as_kind(left, kind), _as_kind(right, kind)
        pairs.append((left, right))
    return pairs, notes


def _feature(name: str, column: pa.ChunkedArray) -> Feature | None:
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind = column.type
    if pa.types.is_null(kind):
        return Feature(name, "category", np.full(len(column), None, dtype=object))
    if pa.types.is_boolean(kind):
        return Feature(name, "category", _text(column))
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        values = pc.fill_null(pc.cast(column, pa.float64(), safe=False), float("nan"))
        return Feature(name, "number", values.to_numpy())
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return Feature(name, "category", _text(column))
    return None


def _text(column: pa.ChunkedArray) -> Array:
    return np.array(pc.cast(column, pa.large_string()).to_pylist(), dtype=object)


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _parts(column: pa.ChunkedArray) -> dict[str, Array]:
    """What is kept of a column of lists: [N] float64 by suffix, NaN where a row has no such value."""
    rows = np.arange(len(column))
    flat = column.combine_chunks()
    depth = 0
    while _is_list(flat.type):
        rows = rows[np.asarray(pc.list_parent_indices(flat))]
        flat = pc.list_flatten(flat)
        depth += 1
    if not (pa.types.is_integer(flat.type) or pa.types.is_floating(flat.type) or pa.types.is_boolean(flat.type)):
        return {}
    values = np.asarray(flat.cast(pa.float64(), safe=False).fill_null(float("nan")))
    lengths = np.bincount(rows, minlength=len(column))
    longest = int(lengths.max(initial=0))
    if depth == 1 and longest <= _COMPONENTS:
        table = np.full((len(column), longest), np.nan)
        table[rows, np.arange(len(rows)) - (np.cumsum(lengths) - lengths)[rows]] = values
        return {str(position): table[:, position] for position in range(longest)}
    return _moments(rows, values, len(column))


def _moments(rows: Array, values: Array, count: int) -> dict[str, Array]:
    """Mean and standard deviation of each row's finite values; `rows` says which row a value is of."""
    is_known = np.isfinite(values)
    rows, values = rows[is_known], values[is_known]
    with np.errstate(invalid="ignore"):
        lengths = np.bincount(rows, minlength=count)
        mean = np.bincount(rows, values, minlength=count) / lengths
        deviation = np.bincount(rows, (values - mean[rows]) ** 2, minlength=count) / lengths
    return {"mean": mean, "std": np.sqrt(deviation)}


def _is_empty(feature: Feature) -> bool:
    if feature.kind == "number":
        return bool(np.isnan(feature.values).all())
    return all(value is None for value in feature.values)


def _as_kind(feature: Feature, kind: Kind) -> Feature:
    if feature.kind == kind:
        return feature
    if kind == "number":  # only what is empty is ever turned into numbers
        return Feature(feature.name, "number", np.full(len(feature.values), np.nan))
    texts = [None if np.isnan(value) else f"{value:g}" for value in feature.values]
    return Feature(feature.name, "category", np.array(texts, dtype=object))
