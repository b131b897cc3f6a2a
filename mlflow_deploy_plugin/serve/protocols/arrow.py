"""Decode tables from Arrow IPC streams and files, and encode predictions as tables.

Columns go from the body's buffers into the graph's input without Python objects.
pyarrow is imported on the first Arrow request (75 ms, 33 MB), and pandas is never
imported.

Arrow's reader is safe against truncated and hostile bodies, but it trusts the declared
size of a compressed buffer and allocates that much memory. Therefore
`check_stream_size` checks the sizes in the headers first.

https://arrow.apache.org/docs/format/Columnar.html (Message.fbs),
https://www.iana.org/assignments/media-types
"""

import struct
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from mlflow_deploy_plugin.core.column_names import PREDICTION
from mlflow_deploy_plugin.core.errors import BodyTooLarge, InvalidRequest, SchemaMismatch
from mlflow_deploy_plugin.core.mlmodel import COLUMN_TYPES
from mlflow_deploy_plugin.core.tabular.row_files import first_line
from mlflow_deploy_plugin.serve.protocols import arrow_columns
from mlflow_deploy_plugin.serve.protocols.arrow_columns import (
    StringBudget,
    UnsupportedColumn,
    to_numpy,
)
from mlflow_deploy_plugin.serve.protocols.content import check_row_aligned, dump_json
from mlflow_deploy_plugin.serve.protocols.mlflow import MOST_COLUMNS
from mlflow_deploy_plugin.serve.runtime.artifact import INTEGERS
from mlflow_deploy_plugin.serve.runtime.feeds import Array, Feeds, object_array
from mlflow_deploy_plugin.serve.runtime.schemas.schema import Schema
from mlflow_deploy_plugin.serve.runtime.values import NO_ROWS

if TYPE_CHECKING:
    import pyarrow as pa

STREAM = "application/vnd.apache.arrow.stream"
FILE = "application/vnd.apache.arrow.file"
MEDIA_TYPES = (STREAM, FILE)

_FILE_MAGIC = b"ARROW1\0\0"
_MOST_MESSAGES = 10_000
_UNNAMED = [""]
_EXACT_TYPES = frozenset({"bool", *INTEGERS})
_RECORD_BATCH = 3
_DICTIONARY_BATCH = 2
_I32 = struct.Struct("<i")
_U32 = struct.Struct("<I")
_U16 = struct.Struct("<H")
_I64 = struct.Struct("<q")


def decode(body: bytes, schema: Schema, limit: int) -> Feeds:
    """Return the feeds in an Arrow stream or file. Columns that the model does not need
    are not read.

    A null is NaN in a floating-point column and a missing string in a string column.
    Strings may be dictionary-encoded. A tensor is a column of lists of equal length; a
    tensor of rank 2 may also be sent as one numeric column per value. If the table has
    a single column without a name, each list in it is a row in the signature's order.

    Args:
        limit: the maximum number of decompressed bytes, and of values.

    Raises:
        InvalidRequest: the body is not an Arrow stream or file.
        BodyTooLarge: the body exceeds `limit`.
        SchemaMismatch: the table does not fit the signature.
    """
    import pyarrow as pa

    stream = pa.py_buffer(body)
    if body.startswith(_FILE_MAGIC):  # A file is a stream between this magic number and a footer.
        stream = stream.slice(len(_FILE_MAGIC))
    try:
        check_stream_size(pa.ipc.MessageReader.open_stream(stream), limit)
        reader = pa.ipc.open_stream(
            stream,
            options=pa.ipc.IpcReadOptions(use_threads=False),
        )
        names = select_columns(reader.schema, schema)
        table = reader.read_all()
        table.validate()
        return table_feeds(table, schema, limit, names)
    except MemoryError:  # It is also an ArrowException, but no fault of the body.
        raise
    except (
        pa.ArrowException,
        OSError,
        ValueError,
        TypeError,
        KeyError,
        NotImplementedError,
    ) as error:
        raise InvalidRequest(f"the body is not a valid Arrow stream: {first_line(error)}") from None


def table_feeds(
    table: "pa.Table",
    schema: Schema,
    limit: int,
    names_read: list[str] | None = None,
) -> Feeds:
    """Return the feeds in the columns `names_read` of a valid `pyarrow.Table`; by
    default, in those of `select_columns`. Raises BodyTooLarge if they have more than
    `limit` values, and SchemaMismatch if they do not fit the signature.
    """
    names_read = names_read or select_columns(table.schema, schema)
    if table.num_rows * max(1, len(names_read)) > limit:
        raise BodyTooLarge(
            f"the table has {table.num_rows} rows of {len(names_read)} columns; this server's "
            f"limit is {limit} values"
        )
    batches = table.to_batches()
    if len(batches) == 1:
        (batch,) = batches
        names = batch.schema.names  # Reading `table.column_names` would take 10 µs more.
        if schema.matrix_kinds and batch.num_rows and names == [*schema.names]:
            numbers = arrow_columns.to_matrix(batch)
            if numbers is not None and numbers.dtype.kind in schema.matrix_kinds:
                return schema.from_array(numbers)
        pieces = {name: [column] for name, column in zip(names, batch.columns, strict=True)}
    else:
        import pyarrow as pa

        # Numbers are joined, because a stream may have thousands of small batches.
        pieces = {}
        for name in names_read:
            column = table.column(name)
            if pa.types.is_primitive(column.type):
                pieces[name] = [column.combine_chunks()]
            else:
                pieces[name] = column.chunks
    budget = StringBudget(limit)
    arrays = {
        name: _read_column(name, pieces[name], limit, budget, name in schema.keys)
        for name in names_read
    }
    if table.num_rows == 0:
        raise SchemaMismatch(NO_ROWS)
    if not schema.columns:
        return schema.from_frame(arrays)
    if names_read == _UNNAMED:
        rows = arrays[""]
        if rows.ndim > 2 or rows.size != len(rows) * len(schema.names):
            raise SchemaMismatch(
                f"the array has the shape {list(rows.shape)}; [any, {len(schema.names)}] is "
                "expected, columns in the signature's order",
            )
        arrays = dict(zip(schema.names, rows.reshape(len(rows), -1).T, strict=True))
    try:
        return schema.from_columns(arrays)
    except SchemaMismatch:
        # A null in a column of integers has become NaN; the error is about the null.
        if null_error := _null_integer(arrays, schema):
            raise null_error from None
        raise


def encode(media: str, prediction: Array | dict[str, Array]) -> bytes:
    """Return the prediction as a table of N rows in the format of `media`. Raises
    SchemaMismatch if an output does not have one value, or list of values, per row.
    """
    import pyarrow as pa

    table = prediction_table(prediction)
    sink = pa.BufferOutputStream()
    open_writer = pa.ipc.new_stream if media == STREAM else pa.ipc.new_file
    with open_writer(sink, table.schema) as writer:
        writer.write_table(table)
    encoded: bytes = sink.getvalue().to_pybytes()
    return encoded


def prediction_table(prediction: Array | dict[str, Array]) -> "pa.Table":
    """Return the prediction as a `pyarrow.Table` of N rows.

    A single output is the column `prediction`; several outputs, and the fields of
    records, are columns by name. [N] and [N, 1] become plain columns, [N, k] a column
    of lists of k (`pyarrow.fixed_size_list`), and so on. Raises SchemaMismatch if an
    output does not have one value, or list of values, per row.
    """
    import pyarrow as pa

    if isinstance(prediction, dict):
        columns = prediction
    elif (
        prediction.dtype.kind == "O"
        and len(prediction)
        and all(isinstance(row, dict) for row in prediction.flat)
    ):
        records = list(prediction.flat)
        columns = {}
        for name in records[0]:
            columns[str(name)] = np.array([record.get(name) for record in records])
    else:
        columns = {PREDICTION: prediction}
    check_row_aligned(columns)
    return pa.Table.from_arrays(
        [_to_arrow(array) for array in columns.values()],
        names=list(columns),
    )


def select_columns(arrow_schema: "pa.Schema", schema: Schema) -> list[str]:
    """Return the names of the columns to read from a table with this Arrow schema,
    before reading any value.

    Raises BodyTooLarge for too many columns, and SchemaMismatch if a column is missing,
    repeated or of a wrong type.
    """
    if len(arrow_schema.names) > MOST_COLUMNS:
        raise BodyTooLarge(
            f"the table has {len(arrow_schema.names)} columns; at most {MOST_COLUMNS} are allowed",
        )
    arrow_names = arrow_schema.names
    dtypes = schema.dtypes
    if arrow_names == _UNNAMED and schema.columns:
        for expected in set(dtypes.values()):
            _check_column("", arrow_schema.types[0], expected, takes_lists=True)
        return _UNNAMED
    counts = Counter(arrow_names)
    if missing := schema.missing_columns(counts):
        raise missing
    if schema.columns:
        names = [name for name in arrow_names if name in dtypes or name in schema.keys]
    else:
        names = arrow_names
    if doubled := next(
        (name for name in names if counts[name] > 1),
        None,
    ):
        raise SchemaMismatch(f"column {doubled[:100]!r} is duplicated", column=doubled)
    # The columns of a tensor that is the only one may have any names.
    default = schema.tensors[0].dtype if len(schema.tensors) == 1 else None
    checked = set()
    for name, kind in zip(arrow_names, arrow_schema.types, strict=True):
        dtype = None if name in schema.keys else dtypes.get(name, default)
        if dtype is not None and (str(kind), dtype) not in checked:
            _check_column(name, kind, dtype, takes_lists=not schema.columns)
            checked.add((str(kind), dtype))
    return names


def _check_column(name: str, kind: "pa.DataType", dtype: str, takes_lists: bool) -> None:
    """Raise SchemaMismatch if a column of an Arrow type cannot become numpy's
    `dtype`.
    """
    try:
        arrow_columns.check_type(kind, dtype, takes_lists)
    except UnsupportedColumn as error:
        raise SchemaMismatch(f"column {name[:100]!r} {error}", column=name) from None


def _read_column(
    name: str,
    pieces: "Sequence[pa.Array]",
    limit: int,
    budget: StringBudget,
    is_key: bool,
) -> Array:
    """Return the values of a column that consists of Arrow arrays. Raises
    SchemaMismatch if they have a type, a null or lists that no model accepts.
    """
    has_gaps = is_key and any(
        piece.null_count and str(piece.type) in _EXACT_TYPES for piece in pieces
    )
    if has_gaps and sum(map(len, pieces)) <= limit:
        # A null remains None, so that ids keep all digits.
        return object_array(list(chain.from_iterable(piece.to_pylist() for piece in pieces)))
    converted: dict[tuple[int, ...], pa.Array] = {}
    try:
        parts = [
            to_numpy(_without_views(piece, budget, converted), limit, budget) for piece in pieces
        ]
    except UnsupportedColumn as error:
        raise SchemaMismatch(f"column {name[:100]!r} {error}", column=name) from None
    if len(parts) == 1:
        return parts[0]
    if parts:
        return np.concatenate(parts)
    return np.empty(0, dtype=object)


def _without_views(
    array: "pa.Array",
    budget: StringBudget,
    converted: "dict[tuple[int, ...], pa.Array]",
) -> "pa.Array":
    """Return an array with strings instead of string views, which polars writes.

    Overlapping views could take terabytes, so the budget is checked first. `converted`
    maps the addresses of dictionaries to their strings, and receives new ones.
    """
    if "string_view" not in str(array.type):
        return array
    import pyarrow as pa

    if pa.types.is_dictionary(array.type) and array.type.value_type == pa.string_view():
        key = arrow_columns.address(array.dictionary)
        if key not in converted:
            converted[key] = _without_views(array.dictionary, budget, converted)
        return pa.DictionaryArray.from_arrays(array.indices, converted[key])
    if array.type != pa.string_view():
        return array
    # A view has 16 bytes, and begins with the length of its text.
    views = np.frombuffer(array.buffers()[1], "<i4").reshape(-1, 4)[array.offset :][: len(array)]
    budget.take(int(views[:, 0].clip(0).sum(dtype=np.int64)))
    array.validate(full=True)  # This reads a text once per view, so the budget comes first.
    return array.cast(pa.large_string())


def _null_integer(arrays: Mapping[str, Array], schema: Schema) -> SchemaMismatch | None:
    """Return the error for the first NaN in a column of integers; None if there is
    none.
    """
    for column in schema.columns:
        array = arrays.get(column.name)
        if (
            array is None
            or array.dtype.kind != "f"
            or COLUMN_TYPES[column.type] not in ("int32", "int64")
        ):
            continue
        is_null = np.isnan(array)
        if is_null.any():
            label = f"column {column.name!r} ({column.type}), row {int(np.argmax(is_null))}"
            return SchemaMismatch(f"{label}: null; an integer is expected", column=column.name)
    return None


def _to_arrow(array: Array) -> "pa.Array":
    """Return an array [N, …] as an Arrow array of length N, without a copy if it is
    contiguous.
    """
    import pyarrow as pa

    if array.ndim == 2 and array.shape[1] == 1:
        array = array.reshape(-1)
    if array.ndim > 1:
        return pa.FixedSizeListArray.from_arrays(
            _to_arrow(array.reshape(-1, *array.shape[2:])),
            array.shape[1],
        )
    if array.dtype.kind in "OU":
        # ZipMap returns dicts, which become strings as in a CSV file.
        if len(array) and isinstance(array[0], dict):
            array = np.array([dump_json(mapping).decode() for mapping in array])
        offsets, data = arrow_columns.packed_strings(array)
        kind = pa.large_string()
        buffers = [None, pa.py_buffer(offsets), pa.py_buffer(data)]
    elif array.dtype.kind == "b":
        kind = pa.bool_()
        buffers = [None, pa.py_buffer(np.packbits(array, bitorder="little"))]
    else:
        kind = pa.from_numpy_dtype(array.dtype)
        buffers = [None, pa.py_buffer(np.ascontiguousarray(array))]
    return pa.Array.from_buffers(kind, len(array), buffers)


def check_stream_size(messages: "Iterable[pa.ipc.Message]", limit: int) -> None:
    """Raise BodyTooLarge if the record batches of an Arrow stream exceed `limit` bytes
    when decompressed.

    `messages` is a `pyarrow.ipc.MessageReader`. Raises InvalidRequest if a message is
    truncated.
    """
    left_bytes = limit
    for number, message in enumerate(messages):
        if number > _MOST_MESSAGES:
            raise BodyTooLarge(
                f"the Arrow stream has more than {_MOST_MESSAGES} batches; write larger batches",
            )
        body = message.body or b""
        metadata = memoryview(message.metadata)
        try:
            buffers = _find_compressed_buffers(metadata)
            if not buffers:
                left_bytes -= len(body)
                buffer_count = 0
            else:  # A vector begins with its length in 4 bytes.
                buffer_count = _U32.unpack_from(metadata, buffers)[0]
            for entry in range(buffer_count):
                offset, length = struct.unpack_from("<qq", metadata, buffers + 4 + 16 * entry)
                if length > 0:
                    # A compressed buffer begins with its decompressed length in 8
                    # bytes; -1 means that it is not compressed.
                    declared = _I64.unpack_from(body, max(0, offset))[0]
                    left_bytes -= length if declared < 0 else declared
        except (struct.error, IndexError):
            raise InvalidRequest(
                "the body is not a valid Arrow stream: a message is truncated",
            ) from None
        if left_bytes < 0:
            raise BodyTooLarge(
                f"the table is larger than this server's limit of {limit} bytes when decompressed",
            )


def _find_compressed_buffers(metadata: memoryview) -> int:
    """Return the position of the buffers of a compressed batch or dictionary in a
    message, or 0 if the message does not contain one.

    The field numbers are positions in Message.fbs. Message: header type (1), header
    (2). DictionaryBatch: data (1), is delta (2). RecordBatch: buffers (2), compression
    (3). Raises InvalidRequest for a delta dictionary: Arrow joins all pieces for every
    batch.
    """
    message = _U32.unpack_from(metadata, 0)[0]
    kind = _flatbuffers_field(metadata, message, 1)
    header = _flatbuffers_table(metadata, message, 2)
    if not kind or not header or metadata[kind] not in (_RECORD_BATCH, _DICTIONARY_BATCH):
        return 0
    batch = header
    if metadata[kind] == _DICTIONARY_BATCH:
        delta = _flatbuffers_field(metadata, header, 2)
        if delta and metadata[delta]:
            raise InvalidRequest("this server does not support dictionaries in pieces (deltas)")
        batch = _flatbuffers_table(metadata, header, 1)
    if batch and _flatbuffers_field(metadata, batch, 3):
        return _flatbuffers_table(metadata, batch, 2)
    return 0


def _flatbuffers_field(data: memoryview, table: int, position: int) -> int:
    """Return the position of a field in a flatbuffers table, or 0 if the field is
    missing.
    """
    vtable = table - _I32.unpack_from(data, table)[0]
    slot = 4 + 2 * position
    if vtable < 0 or slot >= _U16.unpack_from(data, vtable)[0]:
        return 0
    offset: int = _U16.unpack_from(data, vtable + slot)[0]
    return table + offset if offset else 0


def _flatbuffers_table(data: memoryview, table: int, position: int) -> int:
    """Return the position of the table or vector to which a field points, or 0 if the
    field is missing.
    """
    field = _flatbuffers_field(data, table, position)
    if field:
        return field + int(_U32.unpack_from(data, field)[0])
    return 0
