"""Tables as Arrow IPC streams and files, and as Parquet: bodies ↔ feeds and predictions.

Columns go from the body's buffers into the graph's input without a Python object a value. pyarrow is imported on the
first such request (75 ms, 33 MB) and by no other; it works in the thread that asks, and never reaches pandas.

https://arrow.apache.org/docs/format/Columnar.html#ipc-streaming-format, https://www.iana.org/assignments/media-types
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mlflow_deploy_plugin.errors import BodyTooLarge, InvalidRequest, SchemaMismatch
from mlflow_deploy_plugin.runtime.artifact import COLUMN_TYPES
from mlflow_deploy_plugin.runtime.rows import PREDICTION
from mlflow_deploy_plugin.runtime.schema import Array, Feeds, Schema
from mlflow_deploy_plugin.server.protocols.arrow_columns import Unreadable, Words, address, packed_strings, to_numpy
from mlflow_deploy_plugin.server.protocols.arrow_limits import check_messages
from mlflow_deploy_plugin.server.protocols.parquet_limits import check_pages, count_rows, read_row_groups
from mlflow_deploy_plugin.server.protocols.records import check_rows

STREAM = "application/vnd.apache.arrow.stream"
FILE = "application/vnd.apache.arrow.file"
PARQUET = "application/vnd.apache.parquet"
X_PARQUET = "application/x-parquet"
MEDIA_TYPES = (STREAM, FILE, PARQUET, X_PARQUET)

_FILE_MAGIC = b"ARROW1\0\0"
_MOST_LISTED = 100_000
"""Entries of a list in a Parquet footer (columns, row groups): each takes hundreds of bytes once it is counted."""
_NO_ROWS = "the data has no rows; at least one is needed"


def decode(media: str, body: bytes, schema: Schema, limit: int) -> Feeds:
    """The feeds in a body of one of `MEDIA_TYPES`; columns that the model does not take are not read.

    A null is NaN in a floating-point column and a missing string in a string column. Strings may be encoded as a
    dictionary. A tensor is a column of lists, of any one length, or, of rank 2, all columns as they come.

    Args:
        limit: bytes that the columns may take when decompressed, and values that they may have.

    Raises:
        InvalidRequest: the body is none of `media`.
        BodyTooLarge: it takes more than `limit`.
        SchemaMismatch: the table does not fit the signature.
    """
    import pyarrow as pa

    try:
        read = _read_parquet if media in (PARQUET, X_PARQUET) else _read_stream
        table = read(body, schema, limit)
        table.validate()
        return _feeds(table, schema, limit)
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError, MemoryError, NotImplementedError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InvalidRequest(f"the body is not a valid {_called(media)}: {reason[:200]}") from None


def encode(media: str, prediction: Array | dict[str, Array]) -> bytes:
    """The prediction as a table of N rows.

    One output is the column `prediction`, several are columns by their names, so are the fields of records. [N] and
    [N, 1] are plain columns, [N, k] a column of lists of k (`pyarrow.fixed_size_list`), and so on.

    Raises:
        SchemaMismatch: an output has not one value, or list of values, for each row.
    """
    import pyarrow as pa

    columns = _output_columns(prediction)
    check_rows(columns)
    table = pa.Table.from_arrays([_to_arrow(array) for array in columns.values()], names=list(columns))
    sink = pa.BufferOutputStream()
    _WRITERS[media](sink, table)
    encoded: bytes = sink.getvalue().to_pybytes()
    return encoded


def _called(media: str) -> str:
    return "Parquet file" if media in (PARQUET, X_PARQUET) else "Arrow stream"


def _read_stream(body: bytes, schema: Schema, limit: int) -> Any:
    """The table in an Arrow stream, or in a file, which is one between a magic word and a footer that is not needed."""
    import pyarrow as pa

    stream = pa.py_buffer(body)
    if body.startswith(_FILE_MAGIC):
        stream = stream.slice(len(_FILE_MAGIC))
    check_messages(pa.ipc.MessageReader.open_stream(stream), limit)
    return pa.ipc.open_stream(stream, options=pa.ipc.IpcReadOptions(use_threads=False)).read_all()


def _read_parquet(body: bytes, schema: Schema, limit: int) -> Any:
    """The columns that the model takes; strings stay in their dictionaries, where a few stand for many."""
    import pyarrow as pa
    from pyarrow import parquet

    groups = read_row_groups(body)
    rows = count_rows(groups)
    if rows == 0:
        raise SchemaMismatch(_NO_ROWS)
    file = parquet.ParquetFile(
        pa.BufferReader(body),
        read_dictionary=[name for name, dtype in schema.dtypes.items() if dtype == "str"],
        thrift_container_size_limit=_MOST_LISTED,
        pre_buffer=False,
    )
    given = file.schema_arrow.names
    names = [name for name in given if name in schema.names] if schema.columns else given
    if rows * max(1, len(names)) > limit:
        raise BodyTooLarge(_too_many(rows, len(names), limit))
    chosen = set(names)
    leaves = [leaf for leaf, column in enumerate(file.schema) if _is_read(column.path, chosen)]
    check_pages(body, groups, leaves, limit)
    return file.read(columns=names, use_threads=False)


def _is_read(path: str, names: set[str]) -> bool:
    """Whether a leaf of a Parquet file belongs to one of these columns, whose names may hold dots themselves."""
    steps = path.split(".")
    return any(".".join(steps[:depth]) in names for depth in range(1, len(steps) + 1))


def _feeds(table: Any, schema: Schema, limit: int) -> Feeds:
    names = table.column_names
    wanted = set(schema.names)
    chosen = [name for name in names if name in wanted] if schema.columns else names
    if doubled := next((name for name in chosen if names.count(name) > 1), None):
        raise SchemaMismatch(f"column {doubled[:100]!r} stands twice")
    if table.num_rows * max(1, len(chosen)) > limit:
        raise BodyTooLarge(_too_many(table.num_rows, len(chosen), limit))
    arrays = {name: _column(name, table.column(name), limit) for name in chosen}
    if table.num_rows == 0:
        raise SchemaMismatch(_NO_ROWS)
    return _from_columns(arrays, schema) if schema.columns else _from_tensors(arrays, schema)


def _column(name: str, chunks: Any, limit: int) -> Array:
    """One column of a table, whose chunks lie one after the other."""
    import pyarrow as pa

    is_joined = chunks.num_chunks > 1 and pa.types.is_primitive(chunks.type)  # thousands of batches of a few rows
    pieces = [chunks.combine_chunks()] if is_joined else chunks.chunks
    words: Words = {}
    cast: dict[tuple[int, ...], Any] = {}
    try:
        parts = [to_numpy(_plain(chunk, limit, cast), limit, words) for chunk in pieces]
    except Unreadable as error:
        raise SchemaMismatch(f"column {name[:100]!r} {error}") from None
    if len(parts) == 1:
        return parts[0]
    return np.concatenate(parts) if parts else np.empty(0, dtype=object)


def _plain(array: Any, limit: int, cast: dict[tuple[int, ...], Any]) -> Any:
    """Views of strings (polars writes them) as strings, once it is known that they do not overlap into terabytes.

    A dictionary of them is cast once for all batches that share it; `cast` keeps it, as `Words` are known by address.
    """
    import pyarrow as pa

    if pa.types.is_dictionary(array.type) and array.type.value_type == pa.string_view():
        place = address(array.dictionary)
        if place not in cast:
            cast[place] = _plain(array.dictionary, limit, cast)
        return pa.DictionaryArray.from_arrays(array.indices, cast[place])
    if array.type != pa.string_view():
        return array
    array.validate(full=True)
    views = np.frombuffer(array.buffers()[1], "<i4").reshape(-1, 4)[array.offset :][: len(array)]
    if int(views[:, 0].sum(dtype=np.int64)) > limit:
        raise BodyTooLarge(f"the strings of a column take more than this server's limit of {limit} bytes")
    return array.cast(pa.large_string())


def _from_columns(arrays: Mapping[str, Array], schema: Schema) -> Feeds:
    for column in schema.columns:
        array = arrays.get(column.name)
        if array is None:
            continue
        label = f"column {column.name!r} ({column.type})"
        if array.ndim > 1:
            raise SchemaMismatch(f"{label} holds lists; one value a row is expected")
        if COLUMN_TYPES[column.type] in ("int32", "int64") and array.dtype.kind == "f" and np.isnan(array).any():
            raise SchemaMismatch(f"{label}, row {int(np.argmax(np.isnan(array)))}: null; an integer is expected")
    return schema.from_columns(arrays)


def _from_tensors(arrays: Mapping[str, Array], schema: Schema) -> Feeds:
    """Columns as tensors: by name, the only column for the only tensor, or all columns as a matrix."""
    if len(schema.tensors) == 1 and len(arrays) == 1:
        arrays = {schema.tensors[0].name: next(iter(arrays.values()))}
    if all(tensor.name in arrays for tensor in schema.tensors):
        return schema.from_columns(
            {tensor.name: _shaped(arrays[tensor.name], tensor.shape[1:]) for tensor in schema.tensors}
        )
    if len(schema.tensors) == 1 and len(schema.tensors[0].shape) == 2 and arrays:
        if any(array.ndim > 1 for array in arrays.values()):
            raise SchemaMismatch("several columns make one tensor only where each has one value a row")
        return schema.from_columns({schema.tensors[0].name: np.column_stack(list(arrays.values()))})
    raise SchemaMismatch(f"a table does not fit this model; it takes the tensors {', '.join(schema.names)}")


def _shaped(array: Array, inner: tuple[int, ...]) -> Array:
    """A column in the shape of its tensor's rows where it has as many values; others are left to be refused."""
    if array.shape[1:] == inner or not len(array):
        return array
    values = array.size // len(array)
    if -1 in inner:
        return array.reshape(len(array), values) if len(inner) == 1 else array
    return array.reshape(len(array), *inner) if values == int(np.prod(inner)) else array


def _output_columns(prediction: Array | dict[str, Array]) -> dict[str, Array]:
    if isinstance(prediction, dict):
        return prediction
    if prediction.dtype.kind == "O" and len(prediction) and all(isinstance(row, dict) for row in prediction.flat):
        records = list(prediction.flat)
        return {str(name): np.array([record.get(name) for record in records]) for name in records[0]}
    return {PREDICTION: prediction}


def _to_arrow(array: Array) -> Any:
    """An array of [N, …] as an Arrow array of N, around the same memory where it is contiguous."""
    import pyarrow as pa

    if array.ndim == 2 and array.shape[1] == 1:
        array = array.reshape(-1)
    if array.ndim > 1:
        values = _to_arrow(array.reshape(-1, *array.shape[2:]))
        return pa.FixedSizeListArray.from_arrays(values, array.shape[1])
    if array.dtype.kind in "OU":
        offsets, data = packed_strings(array)
        kind, buffers = pa.large_string(), [None, pa.py_buffer(offsets), pa.py_buffer(data)]
    elif array.dtype.kind == "b":
        kind, buffers = pa.bool_(), [None, pa.py_buffer(np.packbits(array, bitorder="little"))]
    else:
        kind, buffers = pa.from_numpy_dtype(array.dtype), [None, pa.py_buffer(np.ascontiguousarray(array))]
    return pa.Array.from_buffers(kind, len(array), buffers)


def _write_stream(sink: Any, table: Any) -> None:
    import pyarrow as pa

    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)


def _write_file(sink: Any, table: Any) -> None:
    import pyarrow as pa

    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def _write_parquet(sink: Any, table: Any) -> None:
    from pyarrow import parquet

    parquet.write_table(table, sink)


_WRITERS: dict[str, Callable[[Any, Any], None]] = {
    STREAM: _write_stream,
    FILE: _write_file,
    PARQUET: _write_parquet,
    X_PARQUET: _write_parquet,
}


def _too_many(rows: int, columns: int, limit: int) -> str:
    return f"the table has {rows} rows of {columns} columns; this server's limit is {limit} values"
