"""Columns of lists, as tensors and probabilities are, reduced to a few columns of numbers.

A short vector (a list in Parquet) becomes its components: `probabilities.0`, `probabilities.1`; a long one or a tensor
the mean and the spread of each row: `image.mean`, `image.std`.
"""

import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mlflow_deploy_plugin.inference_log.labels import as_text

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
        parts = _summary_columns(column, f"{name}.mean" in known, _expected_components(name, known))
        if not parts:
            continue
        table = table.remove_column(table.column_names.index(name))
        for suffix, values in parts.items():
            table = table.append_column(f"{name}.{suffix}", pa.array(values))
    return table


def _expected_components(name: str, known: Collection[str]) -> int:
    """How many components of the vector are expected."""
    return next((count for count in range(_COMPONENTS) if f"{name}.{count}" not in known), _COMPONENTS)


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _is_number(kind: pa.DataType) -> bool:
    """Of type null are the values of lists that are all empty."""
    types = pa.types
    return bool(types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind) or types.is_null(kind))


def _summary_columns(column: pa.ChunkedArray, is_tensor: bool, components: int) -> dict[str, Array]:
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


def unify_schemas(schemas: Iterable[pa.Schema]) -> pa.Schema:
    """Every column that one of them has. Numbers of two types take the wider one, and booleans beside numbers are 1 and
    0; what else differs becomes text.

    Whole numbers beside fractions are float64, in which they are exact up to 2**53.
    """
    types: dict[str, pa.DataType] = {}
    for schema in schemas:
        for field in schema:
            kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
            known = types.get(field.name)
            types[field.name] = kind if known is None or known == kind else _wider_type(known, kind)
    return pa.schema(types.items())


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The same rows with the columns of `schema`, in its types; null where the table lacks one."""
    names = set(table.column_names)
    columns = [
        _as_type(table.column(field.name), field.type) if field.name in names else pa.nulls(len(table), field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


def concat_tables(tables: Sequence[pa.Table]) -> pa.Table:
    """The rows of all of them."""
    if all(table.schema == tables[0].schema for table in tables):
        return pa.concat_tables(tables)
    schema = unify_schemas(table.schema for table in tables)
    return pa.concat_tables([conform(table, schema) for table in tables])


def group_tables(tables: Iterable[pa.Table], rows: int, size: int) -> Iterator[list[pa.Table]]:
    """The tables, as many together as make so many rows, or bytes."""
    held: list[pa.Table] = []
    held_rows = held_bytes = 0
    for table in tables:
        held.append(table)
        held_rows += len(table)
        held_bytes += table.nbytes
        if held_rows >= rows or held_bytes >= size:
            yield held
            held, held_rows, held_bytes = [], 0, 0
    if held:
        yield held


def _wider_type(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    one, other = _boolean_as(one, other), _boolean_as(other, one)
    try:
        unified = pa.unify_schemas([pa.schema([("c", one)]), pa.schema([("c", other)])], promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return pa.large_string() if pa.types.is_large_string(one) or pa.types.is_large_string(other) else pa.string()
    return unified.field("c").type


def _boolean_as(kind: pa.DataType, other: pa.DataType) -> pa.DataType:
    """A boolean has room in any number."""
    if pa.types.is_list(kind) and pa.types.is_list(other):
        return pa.list_(_boolean_as(kind.value_type, other.value_type))
    is_number = pa.types.is_integer(other) or pa.types.is_floating(other)
    return other if pa.types.is_boolean(kind) and is_number else kind


def _as_type(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    if column.type == kind:
        return column
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return _as_texts(column, kind)
    return pc.cast(column, kind, safe=False)


def _as_texts(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    if pa.types.is_dictionary(column.type) or pa.types.is_large_string(column.type) or pa.types.is_string(column.type):
        return pc.cast(column, kind)
    if pa.types.is_nested(column.type):
        texts = [None if value is None else json.dumps(value, default=str) for value in column.to_pylist()]
    else:
        texts = [as_text(value) for value in column.to_pylist()]
    return pa.chunked_array([pa.array(texts, kind)])
