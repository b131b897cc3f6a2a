"""What an Arrow or Parquet body will take when it is read, from its own headers, before anything of it is decompressed.

Arrow's readers are safe against torn and hostile bodies, but they believe sizes: a buffer of a record batch, or a page
of a Parquet file, says how large it is when decompressed, a run-length says how many values it stands for, and that
much memory is taken. So the headers are read here first, with the same framing as the readers', and what they say has
to fit the server's limit.

Formats: https://arrow.apache.org/docs/format/Columnar.html (Message.fbs), https://parquet.apache.org/docs/file-format/
(parquet.thrift, in Thrift's compact protocol).
"""

import struct
from collections.abc import Iterable
from typing import Any

from mlflow_deploy_plugin.errors import BodyTooLarge, InvalidRequest

_I32, _U32, _U16, _I64 = struct.Struct("<i"), struct.Struct("<I"), struct.Struct("<H"), struct.Struct("<q")

_RECORD_BATCH, _DICTIONARY_BATCH = 3, 2
_DELTA_BYTE_ARRAY = 7
_LARGEST_VARINT = 10
_MOST_NESTED = 4


def check_messages(messages: Iterable[Any], limit: int) -> None:
    """Whether the record batches of an Arrow stream fit `limit` bytes when decompressed.

    Args:
        messages: those of `pyarrow.ipc.MessageReader`.

    Raises:
        BodyTooLarge: they do not.
        InvalidRequest: a message is not what the format says.
    """
    left = limit
    for message in messages:
        body = memoryview(message.body) if message.body is not None and message.body.size else memoryview(b"")
        try:
            left -= _bytes_of(memoryview(message.metadata), body)
        except (struct.error, IndexError):
            raise InvalidRequest("the body is not a valid Arrow stream: a message is torn") from None
        if left < 0:
            raise BodyTooLarge(f"the table is larger than this server's limit of {limit} bytes when decompressed")


def check_pages(body: bytes, metadata: Any, columns: Iterable[int], limit: int) -> None:
    """Whether the pages of these columns of a Parquet file fit `limit` bytes, and as many values, when decompressed.

    Args:
        metadata: `pyarrow.parquet.FileMetaData`.

    Raises:
        BodyTooLarge: they do not.
        InvalidRequest: a page is torn, or in the encoding DELTA_BYTE_ARRAY, whose strings repeat without a bound.
    """
    view = memoryview(body)
    chosen = list(columns)
    left_bytes = left_values = limit
    for group in range(metadata.num_row_groups):
        row_group = metadata.row_group(group)
        for column in chosen:
            chunk = row_group.column(column)
            dictionary = chunk.dictionary_page_offset
            start = chunk.data_page_offset
            start = dictionary if dictionary is not None and 0 < dictionary < start else start
            for size, values in _pages(view, start, start + chunk.total_compressed_size):
                left_bytes -= size
                left_values -= values
                if min(left_bytes, left_values) < 0:
                    raise BodyTooLarge(
                        f"the table is larger than this server's limit of {limit} bytes when decompressed"
                    )


def _bytes_of(metadata: memoryview, body: memoryview) -> int:
    """What the buffers of one message will take: what lies there, or, where they are compressed, what they say.

    Message: header type (1), header (2). DictionaryBatch: data (1). RecordBatch: buffers (2), compression (3). The
    numbers are the positions of the fields in Message.fbs. A compressed buffer begins with its length in 8 bytes, -1 if
    it is not compressed after all.
    """
    message = _U32.unpack_from(metadata, 0)[0]
    kind = _field(metadata, message, 1)
    header = _table(metadata, message, 2)
    if not kind or not header or metadata[kind] not in (_RECORD_BATCH, _DICTIONARY_BATCH):
        return len(body)
    batch = header if metadata[kind] == _RECORD_BATCH else _table(metadata, header, 1)
    vector = _table(metadata, batch, 2) if batch and _field(metadata, batch, 3) else 0
    if not vector:
        return len(body)
    total = 0
    for entry in range(_U32.unpack_from(metadata, vector)[0]):
        offset, length = struct.unpack_from("<qq", metadata, vector + 4 + 16 * entry)
        if length > 0:
            said = _I64.unpack_from(body, max(0, offset))[0]
            total += said if said >= 0 else length
    return total


def _field(data: memoryview, table: int, position: int) -> int:
    """Where a field of a flatbuffers table lies; 0: it is not there."""
    vtable = table - _I32.unpack_from(data, table)[0]
    slot = 4 + 2 * position
    if vtable < 0 or slot >= _U16.unpack_from(data, vtable)[0]:
        return 0
    offset: int = _U16.unpack_from(data, vtable + slot)[0]
    return table + offset if offset else 0


def _table(data: memoryview, table: int, position: int) -> int:
    """Where the table or vector lies that a field points to; 0: there is none."""
    field = _field(data, table, position)
    return field + int(_U32.unpack_from(data, field)[0]) if field else 0


def _pages(view: memoryview, start: int, end: int) -> Iterable[tuple[int, int]]:
    """Of each page of a column chunk: its size when decompressed, and how many values it says it has.

    PageHeader: sizes decompressed (2) and compressed (3), data page (5: values 1, encoding 2), dictionary page
    (7: values 1), data page V2 (8: values 1, encoding 4).
    """
    if start < 0 or end > len(view):
        raise InvalidRequest("the body is not a valid Parquet file: a column lies outside of it")
    while start < end:
        try:
            header, start = _thrift_struct(view, start, 0)
        except IndexError:
            raise InvalidRequest("the body is not a valid Parquet file: a page is torn") from None
        size, compressed = header.get(2), header.get(3)
        if not isinstance(size, int) or not isinstance(compressed, int) or min(size, compressed) < 0:
            raise InvalidRequest("the body is not a valid Parquet file: a page does not say its size")
        start += compressed
        values = 0
        for kind, encoding in ((5, 2), (7, 2), (8, 4)):
            page = header.get(kind)
            if isinstance(page, dict):
                values += max(0, page.get(1, 0))
                if page.get(encoding) == _DELTA_BYTE_ARRAY:
                    raise InvalidRequest("this server does not read Parquet's encoding DELTA_BYTE_ARRAY")
        yield size, values


def _thrift_struct(view: memoryview, at: int, depth: int) -> tuple[dict[int, Any], int]:
    """The integers and structs of a struct by field, and where it ends. Page headers hold no lists or maps."""
    if depth > _MOST_NESTED:
        raise InvalidRequest("the body is not a valid Parquet file: a page's header is nested too deeply")
    fields: dict[int, Any] = {}
    number = 0
    while head := view[at]:
        at += 1
        kind, delta = head & 15, head >> 4
        if delta:
            number += delta
        else:
            number, at = _zigzag(view, at)
        if kind in (4, 5, 6):
            fields[number], at = _zigzag(view, at)
        elif kind == 12:
            fields[number], at = _thrift_struct(view, at, depth + 1)
        elif kind == 8:
            length, at = _varint(view, at)
            at += length
        elif kind not in (1, 2):
            at += {3: 1, 7: 8}.get(kind, len(view))
    return fields, at + 1


def _zigzag(view: memoryview, at: int) -> tuple[int, int]:
    value, at = _varint(view, at)
    return (value >> 1) ^ -(value & 1), at


def _varint(view: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for position in range(_LARGEST_VARINT):
        byte = view[at + position]
        value |= (byte & 127) << (7 * position)
        if byte < 128:
            return value, at + position + 1
    raise IndexError
