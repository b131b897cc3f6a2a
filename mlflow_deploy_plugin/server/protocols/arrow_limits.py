"""What an Arrow stream will take when it is read, from its own headers, before anything of it is decompressed.

Arrow's reader is safe against torn and hostile bodies, but it believes sizes: a compressed buffer of a record batch
says how large it is, and that much memory is taken. So the headers are read here first, with the reader's own framing,
and what they say has to fit the server's limit.

https://arrow.apache.org/docs/format/Columnar.html, Message.fbs.
"""

import struct
from collections.abc import Iterable
from typing import Any

from mlflow_deploy_plugin.errors import BodyTooLarge, InvalidRequest

_I32, _U32, _U16, _I64 = struct.Struct("<i"), struct.Struct("<I"), struct.Struct("<H"), struct.Struct("<q")

_RECORD_BATCH, _DICTIONARY_BATCH = 3, 2
_MOST_MESSAGES = 10_000


def check_messages(messages: Iterable[Any], limit: int) -> None:
    """Whether the record batches of an Arrow stream fit `limit` bytes when decompressed.

    Args:
        messages: those of `pyarrow.ipc.MessageReader`.

    Raises:
        BodyTooLarge: they do not.
        InvalidRequest: a message is not what the format says.
    """
    left = limit
    for number, message in enumerate(messages):
        if number > _MOST_MESSAGES:
            raise BodyTooLarge(f"the Arrow stream has more than {_MOST_MESSAGES} batches; write larger ones")
        body = memoryview(message.body) if message.body is not None and message.body.size else memoryview(b"")
        try:
            left -= _bytes_of(memoryview(message.metadata), body)
        except (struct.error, IndexError):
            raise InvalidRequest("the body is not a valid Arrow stream: a message is torn") from None
        if left < 0:
            raise BodyTooLarge(f"the table is larger than this server's limit of {limit} bytes when decompressed")


def _bytes_of(metadata: memoryview, body: memoryview) -> int:
    """What the buffers of one message will take: what lies there, or, where they are compressed, what they say.

    Message: header type (1), header (2). DictionaryBatch: data (1), is a delta (2; the pieces are joined anew for every
    batch). RecordBatch: buffers (2), compression (3). The numbers are the positions of the fields in Message.fbs. A
    compressed buffer begins with its length in 8 bytes, -1 if it is not compressed after all.
    """
    message = _U32.unpack_from(metadata, 0)[0]
    kind = _field(metadata, message, 1)
    header = _table(metadata, message, 2)
    if not kind or not header or metadata[kind] not in (_RECORD_BATCH, _DICTIONARY_BATCH):
        return len(body)
    delta = _field(metadata, header, 2) if metadata[kind] == _DICTIONARY_BATCH else 0
    if delta and metadata[delta]:
        raise InvalidRequest("this server does not read dictionaries that come in pieces (deltas)")
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
