"""Columns of lists, as tensors and probabilities are, reduced to a few columns of numbers.

A short vector (a list in Parquet) becomes its components: `probabilities.0`, `probabilities.1`; a long one or a tensor
the mean and the spread of each row: `image.mean`, `image.std`.
"""

from collections.abc import Collection
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Array = npt.NDArray[Any]

_COMPONENTS = 8


def summarise_lists(table: pa.Table, known: Collection[str] = ()) -> pa.Table:
    """Replaces each column of lists of numbers by a few columns of numbers; other lists stay.

    The rows of a tensor are large; what is read from a log is reduced by this while it is read.

    Args:
        known: columns that are expected, so that what a list becomes does not depend on which rows the table has:
            with `x.mean` among them mean and spread, with `x.0`, `x.1` these components at least.
    """
    for name in table.column_names:
        column = table.column(name)
        if not _is_list(column.type):
            continue
        parts = _parts(column, f"{name}.mean" in known, _expected(name, known))
        if not parts:
            continue
        table = table.remove_column(table.column_names.index(name))
        for suffix, values in parts.items():
            table = table.append_column(f"{name}.{suffix}", pa.array(values))
    return table


def _expected(name: str, known: Collection[str]) -> int:
    """How many components of the vector are expected."""
    return next((count for count in range(_COMPONENTS) if f"{name}.{count}" not in known), _COMPONENTS)


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _is_number(kind: pa.DataType) -> bool:
    """Of type null are the values of lists that are all empty."""
    types = pa.types
    return bool(types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind) or types.is_null(kind))


def _parts(column: pa.ChunkedArray, is_tensor: bool, components: int) -> dict[str, Array]:
    """What is kept of a column of lists: [N] float64 by suffix, NaN where a row has no such value; nothing of texts."""
    rows = np.arange(len(column))
    flat = column.combine_chunks()
    depth = 0
    while _is_list(flat.type):
        rows = rows[np.asarray(pc.list_parent_indices(flat))]
        flat = pc.list_flatten(flat)
        depth += 1
    if not _is_number(flat.type):
        return {}
    values = np.asarray(flat.cast(pa.float64(), safe=False).fill_null(float("nan")))
    lengths = np.bincount(rows, minlength=len(column))
    longest = max(int(lengths.max(initial=0)), components)
    if depth == 1 and longest <= _COMPONENTS and not is_tensor:
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
