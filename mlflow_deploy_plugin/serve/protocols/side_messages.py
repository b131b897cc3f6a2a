"""The messages between a worker and its side process, and the passing of connections to
that process.

A message consists of a magic number, two lengths, JSON (the name, plain fields, and the
layout of arrays), and then the memory of the arrays and bytes. Unlike a pickle, a
message cannot make a worker run code. Lengths are checked first.
"""

import json
import math
import socket
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mlflow_deploy_plugin.serve.runtime.feeds import Array, pack_arrays, unpack_arrays

READY_MESSAGE = "ready"
FAILED_MESSAGE = "failed"
PART_MESSAGE = "part"
"""The kind of a message that contains a part of a response; another message follows."""
MAX_JSON_BYTES = 16 * 1024 * 1024
MAX_BYTES = 1024 * 1024 * 1024

_FRAME = struct.Struct("<4sIQ")  # magic number, length of the JSON, length of the rest
_MAGIC = b"OXP1"
_CHUNK = 1024 * 1024


class MalformedMessage(Exception):
    """The bytes are not a message, or the other side closed the connection within a
    message.
    """


@dataclass(frozen=True, slots=True)
class SideMessage:
    """A message with JSON `fields`.

    `arrays` are stored by group and name; an array has numbers, booleans, or strings as
    objects.
    """

    kind: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    arrays: Mapping[str, Mapping[str, Array]] = field(default_factory=dict)
    body: bytes = b""


def send_message(
    connection: socket.socket,
    message: SideMessage,
    deadline: float = math.inf,
) -> None:
    """Send the complete message; `deadline` is in monotonic seconds.

    Raises TimeoutError after the deadline, OSError if the other side has closed the
    connection, and ValueError before sending anything if the message is too large.
    """
    layout: dict[str, list[tuple[Any, ...]]] = {}
    blobs: list[Any] = []
    for group, arrays in message.arrays.items():
        # json instead of orjson, because a string from JSON may contain a lone
        # surrogate.
        layout[group], contents = pack_arrays(
            arrays,
            lambda texts: json.dumps(texts).encode(),
        )
        blobs += contents
    blobs.append(message.body)
    document = {"kind": message.kind, "fields": message.fields, "arrays": layout}
    head = json.dumps(document).encode()
    following = sum(memoryview(blob).nbytes for blob in blobs)
    for byte_count, most_bytes in ((len(head), MAX_JSON_BYTES), (following, MAX_BYTES)):
        if byte_count > most_bytes:
            raise ValueError(f"{byte_count:,} bytes; at most {most_bytes:,} are allowed")
    _set_timeout(connection, deadline)
    # The timeout applies to the complete call.
    connection.sendall(_FRAME.pack(_MAGIC, len(head), following) + head)
    # Skip empty blobs: the receiver may have closed.
    for blob in blobs:
        if memoryview(blob).nbytes:
            _set_timeout(connection, deadline)
            connection.sendall(blob)


def receive_message(connection: socket.socket, deadline: float = math.inf) -> SideMessage | None:
    """Receive the next message, or None if the connection is closed; `deadline` is in
    monotonic seconds.

    Raises TimeoutError after the deadline, MalformedMessage for an invalid or partial
    message, and OSError.
    """
    prefix = _read(connection, _FRAME.size, deadline)
    if not prefix:
        return None
    if len(prefix) < _FRAME.size:
        raise MalformedMessage("a truncated message")
    magic, json_bytes, following_bytes = _FRAME.unpack(prefix)
    if magic != _MAGIC or json_bytes > MAX_JSON_BYTES or following_bytes > MAX_BYTES:
        raise MalformedMessage("not a message")
    head = _read(connection, json_bytes, deadline)
    following = _read(connection, following_bytes, deadline)
    if len(head) < json_bytes or len(following) < following_bytes:
        raise MalformedMessage("a truncated message")
    try:
        document = json.loads(head)
        arrays = {}
        left = memoryview(following)
        for group, layout in document["arrays"].items():
            arrays[group], left = unpack_arrays(layout, left, json.loads)
        return SideMessage(document["kind"], document["fields"], arrays, bytes(left))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise MalformedMessage(f"not a message: {error}") from None


def receive_connection(control: socket.socket) -> socket.socket | None:
    """Receive a connection for requests, or None if the worker has exited."""
    _, descriptors, *_ = socket.recv_fds(control, 1, 1)
    if not descriptors:
        return None
    connection = socket.socket(fileno=descriptors[0])
    connection.set_inheritable(False)
    return connection


def _set_timeout(connection: socket.socket, deadline: float) -> None:
    left_seconds = deadline - time.monotonic()
    if left_seconds <= 0:
        raise TimeoutError
    timeout = None if left_seconds == math.inf else left_seconds
    connection.settimeout(timeout)


def _read(connection: socket.socket, size: int, deadline: float) -> bytes:
    """Read `size` bytes, or fewer if the other side has closed the connection."""
    parts = []
    left = size
    while left:
        _set_timeout(connection, deadline)
        part = connection.recv(min(left, _CHUNK))
        if not part:
            break
        parts.append(part)
        left -= len(part)
    return b"".join(parts)
