"""Files of one log differ in their columns: versions of a model do, and versions of this package. Here they join."""

import json
from collections.abc import Iterable, Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from mlflow_deploy_plugin.inference_log.labels import as_text


def unify(schemas: Iterable[pa.Schema]) -> pa.Schema:
    """Every column that one of them has. Numbers of two types take the wider one, and booleans beside numbers are 1 and
    0; what else differs becomes text.

    Whole numbers beside fractions are float64, in which they are exact up to 2**53.
    """
    types: dict[str, pa.DataType] = {}
    for schema in schemas:
        for field in schema:
            kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
            known = types.get(field.name)
            types[field.name] = kind if known is None or known == kind else _joined(known, kind)
    return pa.schema(types.items())


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The same rows with the columns of `schema`, in its types; null where the table lacks one."""
    names = set(table.column_names)
    columns = [
        _as_type(table.column(field.name), field.type) if field.name in names else pa.nulls(len(table), field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


def stack(tables: Sequence[pa.Table]) -> pa.Table:
    """The rows of all of them."""
    if all(table.schema == tables[0].schema for table in tables):
        return pa.concat_tables(tables)
    schema = unify(table.schema for table in tables)
    return pa.concat_tables([conform(table, schema) for table in tables])


def gathered(tables: Iterable[pa.Table], rows: int, size: int) -> Iterator[list[pa.Table]]:
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


def _joined(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    one, other = _beside(one, other), _beside(other, one)
    try:
        unified = pa.unify_schemas([pa.schema([("c", one)]), pa.schema([("c", other)])], promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return pa.large_string() if pa.types.is_large_string(one) or pa.types.is_large_string(other) else pa.string()
    return unified.field("c").type


def _beside(kind: pa.DataType, other: pa.DataType) -> pa.DataType:
    """A boolean has room in any number."""
    if pa.types.is_list(kind) and pa.types.is_list(other):
        return pa.list_(_beside(kind.value_type, other.value_type))
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
