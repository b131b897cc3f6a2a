"""Columns of the log's tables: the union of different schemas, and lists reduced to numbers.

The files of one log differ in their columns, since versions of a model do, and versions of this package.
"""

import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mlflow_deploy_plugin.runtime import as_text

Array = npt.NDArray[Any]

_COMPONENTS = 8


def unify_schemas(schemas: Iterable[pa.Schema]) -> pa.Schema:
    """Return every column that one of the schemas has.

    Numbers of two types take the wider one, and a boolean beside a number becomes 1 or 0. Other differing types become
    text. Whole numbers beside fractions are float64, in which they are exact up to 2**53.
    """
    types: dict[str, pa.DataType] = {}
    for schema in schemas:
        for field in schema:
            kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
            known = types.get(field.name)
            types[field.name] = kind if known is None or known == kind else _wider_type(known, kind)
    return pa.schema(types.items())


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return the same rows with the columns of `schema`, in its types; null for a column that the table lacks."""
    names = set(table.column_names)
    columns = [
        _as_type(table.column(field.name), field.type) if field.name in names else pa.nulls(len(table), field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


def concat_tables(tables: Sequence[pa.Table]) -> pa.Table:
    """Return the rows of all tables, whose schemas may differ."""
    if all(table.schema == tables[0].schema for table in tables):
        return pa.concat_tables(tables)
    schema = unify_schemas(table.schema for table in tables)
    return pa.concat_tables([conform(table, schema) for table in tables])


def group_tables(tables: Iterable[pa.Table], rows: int, size: int) -> Iterator[list[pa.Table]]:
    """Group the tables, so that each group has at least so many rows, or bytes."""
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


def summarise_lists(table: pa.Table, known: Collection[str] = ()) -> pa.Table:
    """Replace each column of lists of numbers by a few columns of numbers. Other lists stay.

    A short vector (a list in Parquet) becomes its components: `probabilities.0`, `probabilities.1`. A long one or a
    tensor becomes the mean and the spread of each row: `image.mean`, `image.std`. The rows of a tensor are large; a log
    is reduced by this while it is read.

    Args:
        known: columns that are expected, so that the result does not depend on which rows the table has. `x.mean` asks
            for mean and spread, `x.0`, `x.1` for at least these components.
    """
    for name in table.column_names:
        column = table.column(name)
        if not _is_list(column.type):
            continue
        components = next((count for count in range(_COMPONENTS) if f"{name}.{count}" not in known), _COMPONENTS)
        parts = _summarise_list(column, f"{name}.mean" in known, components)
        if not parts:
            continue
        table = table.remove_column(table.column_names.index(name))
        for suffix, values in parts.items():
            table = table.append_column(f"{name}.{suffix}", pa.array(values))
    return table


def _wider_type(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    one, other = _boolean_as(one, other), _boolean_as(other, one)
    try:
        unified = pa.unify_schemas([pa.schema([("c", one)]), pa.schema([("c", other)])], promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return pa.large_string() if pa.types.is_large_string(one) or pa.types.is_large_string(other) else pa.string()
    return unified.field("c").type


def _boolean_as(kind: pa.DataType, other: pa.DataType) -> pa.DataType:
    """Return the other type for a boolean beside a number, which has room for it; else the type itself."""
    if pa.types.is_list(kind) and pa.types.is_list(other):
        return pa.list_(_boolean_as(kind.value_type, other.value_type))
    is_number = pa.types.is_integer(other) or pa.types.is_floating(other)
    return other if pa.types.is_boolean(kind) and is_number else kind


def _as_type(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    types = pa.types
    if column.type == kind:
        return column
    if not (types.is_string(kind) or types.is_large_string(kind)):
        return pc.cast(column, kind, safe=False)
    if types.is_dictionary(column.type) or types.is_large_string(column.type) or types.is_string(column.type):
        return pc.cast(column, kind)
    if types.is_nested(column.type):
        texts = [None if value is None else json.dumps(value, default=str) for value in column.to_pylist()]
    else:
        texts = [as_text(value) for value in column.to_pylist()]
    return pa.chunked_array([pa.array(texts, kind)])


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _summarise_list(column: pa.ChunkedArray, is_tensor: bool, components: int) -> dict[str, Array]:
    """Return [N] float64 by suffix, NaN for a row without such a value; no columns if the values are not numbers."""
    rows = np.arange(len(column))
    flat = column.combine_chunks()
    depth = 0
    while _is_list(flat.type):
        rows = rows[np.asarray(pc.list_parent_indices(flat))]
        flat = pc.list_flatten(flat)
        depth += 1
    is_number = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_null)
    if not any(test(flat.type) for test in is_number):  # the values of lists that are all empty are of type null
        return {}
    values = np.asarray(flat.cast(pa.float64(), safe=False).fill_null(float("nan")))
    count = len(column)
    lengths = np.bincount(rows, minlength=count)
    longest = max(int(lengths.max(initial=0)), components)
    if depth == 1 and longest <= _COMPONENTS and not is_tensor:
        table = np.full((count, longest), np.nan)
        table[rows, np.arange(len(rows)) - (np.cumsum(lengths) - lengths)[rows]] = values
        return {str(position): table[:, position] for position in range(longest)}
    is_finite = np.isfinite(values)
    rows, values = rows[is_finite], values[is_finite]
    with np.errstate(invalid="ignore"):
        lengths = np.bincount(rows, minlength=count)
        mean = np.bincount(rows, values, minlength=count) / lengths
        deviation = np.bincount(rows, (values - mean[rows]) ** 2, minlength=count) / lengths
    return {"mean": mean, "std": np.sqrt(deviation)}
