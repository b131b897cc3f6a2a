"""The messages between a worker and a side process: JSON, then arrays and bytes as they lie in memory.

A frame is a magic number, the length of the JSON, the length of what follows it, and both. The JSON names the message,
its plain fields and its arrays in order. Nothing in it is code: unlike a pickle, a side process's message cannot make a
worker run anything. Lengths are checked before anything is read.
"""

import json
import math
import socket
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mlflow_deploy_plugin.runtime import Array

MAX_JSON_BYTES = 16 * 1024 * 1024
MAX_BYTES = 1024 * 1024 * 1024

_FRAME = struct.Struct("<4sIQ")  # magic, length of the JSON, length of what follows it
_MAGIC = b"OXP1"
_CHUNK = 1024 * 1024


class MalformedMessage(Exception):
    """The bytes are no message, or the other side has gone in the middle of one."""


@dataclass(frozen=True, slots=True)
class SideMessage:
    """One message.

    Attributes:
        fields: values that JSON has.
        arrays: by group and name; numbers, booleans, or strings in object arrays.
    """

    kind: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    arrays: Mapping[str, Mapping[str, Array]] = field(default_factory=dict)
    body: bytes = b""


def send_message(connection: socket.socket, message: SideMessage, deadline: float | None = None) -> None:
    """Send the whole message; `deadline` in monotonic seconds.

    Raises:
        TimeoutError: the deadline has passed.
        OSError: the other side has gone.
        ValueError: the message is too large.
    """
    head, blobs = _encode(message)
    following = sum(map(len, blobs))
    if len(head) > MAX_JSON_BYTES or following > MAX_BYTES:
        raise ValueError(f"a message of {len(head) + following} bytes is too large")
    _set_timeout(connection, deadline)
    connection.sendall(_FRAME.pack(_MAGIC, len(head), following) + head)  # the timeout is that of the whole call
    for blob in blobs:
        _set_timeout(connection, deadline)
        connection.sendall(blob)


def receive_message(connection: socket.socket, deadline: float | None = None) -> SideMessage | None:
    """Receive the next message, or None if the other side has gone; `deadline` in monotonic seconds.

    Raises:
        TimeoutError: the deadline has passed.
        BrokenFrame: no message, or half of one.
        OSError: the connection cannot be read.
    """
    prefix = _read(connection, _FRAME.size, deadline)
    if not prefix:
        return None
    if len(prefix) < _FRAME.size:
        raise MalformedMessage("half a message")
    magic, length, following = _FRAME.unpack(prefix)
    if magic != _MAGIC or length > MAX_JSON_BYTES or following > MAX_BYTES:
        raise MalformedMessage("no message")
    head, rest = _read(connection, length, deadline), _read(connection, following, deadline)
    if len(head) < length or len(rest) < following:
        raise MalformedMessage("half a message")
    try:
        return _decode(json.loads(head), memoryview(rest))
    except (ValueError, KeyError, TypeError) as error:
        raise MalformedMessage(f"no message: {error}") from None


def _set_timeout(connection: socket.socket, deadline: float | None) -> None:
    if deadline is None:
        connection.settimeout(None)
        return
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    connection.settimeout(left)


def _read(connection: socket.socket, size: int, deadline: float | None) -> bytes:
    """Read `size` bytes, or fewer if the other side has gone."""
    parts, left = [], size
    while left:
        _set_timeout(connection, deadline)
        part = connection.recv(min(left, _CHUNK))
        if not part:
            break
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def _encode(message: SideMessage) -> tuple[bytes, list[bytes]]:
    layout: dict[str, list[tuple[str, str, tuple[int, ...], int]]] = {}
    blobs: list[bytes] = []
    for group, arrays in message.arrays.items():
        layout[group] = []
        for name, array in arrays.items():
            is_text = array.dtype.kind == "O"
            # not orjson: a text that came as JSON may hold a lone surrogate
            blobs.append(json.dumps(array.reshape(-1).tolist()).encode() if is_text else array.tobytes())
            layout[group].append((name, "str" if is_text else array.dtype.str, array.shape, len(blobs[-1])))
    blobs.append(message.body)
    return json.dumps({"kind": message.kind, "fields": message.fields, "arrays": layout}).encode(), blobs


def _decode(head: Any, blobs: memoryview) -> SideMessage:
    arrays: dict[str, dict[str, Array]] = {}
    position = 0
    for group, entries in head["arrays"].items():
        arrays[group] = {}
        for name, dtype, shape, length in entries:
            arrays[group][name] = _decode_array(dtype, tuple(shape), blobs[position : position + length])
            position += length
    return SideMessage(head["kind"], head["fields"], arrays, bytes(blobs[position:]))


def _decode_array(dtype: str, shape: tuple[int, ...], blob: memoryview) -> Array:
    if dtype != "str":
        kind = np.dtype(dtype)
        if kind.hasobject:
            raise ValueError(f"an array of {dtype}")
        return np.frombuffer(blob, dtype=kind).reshape(shape)
    texts = np.empty(math.prod(shape), dtype=object)
    texts[:] = json.loads(bytes(blob))
    return texts.reshape(shape)
