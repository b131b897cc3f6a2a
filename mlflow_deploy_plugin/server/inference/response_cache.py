"""The response cache: outputs that a version has computed before for the very same feeds.

Kept in this worker's memory, the least recently used going first, or in a Redis that all workers and servers share.
Only answers of graphs without random nodes are kept (`models/loading.py`). Arrays are kept, not bodies, so that every
protocol finds what another has computed.
"""

import hashlib
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import orjson

from mlflow_deploy_plugin.runtime import Array, Feeds
from mlflow_deploy_plugin.server.inference.circuit_breaker import (
    ANSWER_SECONDS,
    CONNECT_SECONDS,
    CircuitBreaker,
    import_redis,
)

logger = logging.getLogger(__name__)

_ENTRY_BYTES = 1024
"""What an entry takes beside its arrays: key, objects of Python, its place in the order."""
_KINDS = "fiub"
_PREFIX = b"onnxserve:answer:"

Outputs = dict[str, Array]


class ResponseCache(Protocol):
    """Outputs by the digest of a question."""

    def get(self, key: bytes) -> Outputs | None: ...

    def put(self, key: bytes, outputs: Outputs) -> None: ...


def request_digest(version: Sequence[str], feeds: Feeds, outputs: Sequence[str] | None) -> bytes | None:
    """A digest of everything that an answer depends on; None: there is something in it that has no bytes.

    Args:
        version: what tells the version from any other: names, number, run.
    """
    digest = hashlib.blake2b(digest_size=32)
    head: list[Any] = [version, outputs]
    blobs: list[Any] = []
    for name in sorted(feeds):
        array = feeds[name]
        if array.dtype.kind in _KINDS:
            blobs.append(np.ascontiguousarray(array))
        elif (text := _text(array)) is not None:
            blobs.append(text)
        else:
            return None
        head.append((name, array.dtype.str, array.shape, memoryview(blobs[-1]).nbytes))
    layout = orjson.dumps(head)
    digest.update(len(layout).to_bytes(8, "little"))
    digest.update(layout)
    for blob in blobs:
        digest.update(blob)
    return digest.digest()


class MemoryCache:
    """At most `max_bytes` of outputs, each for `seconds`.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, max_bytes: int, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_bytes = max_bytes
        self._seconds = seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._entries: OrderedDict[bytes, tuple[float, int, Outputs]] = OrderedDict()
        self._bytes = 0

    def get(self, key: bytes) -> Outputs | None:
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                return None
            if entry[0] <= self._clock():
                self._drop(key)
                return None
            self._entries.move_to_end(key)
        return dict(entry[2])

    def put(self, key: bytes, outputs: Outputs) -> None:
        """Keeps copies: outputs may be views of a whole batch. Objects that are no text are not kept."""
        if not all(array.dtype.kind in _KINDS or _is_text(array) for array in outputs.values()):
            return
        size = _ENTRY_BYTES + sum(map(_size, outputs.values()))
        if size > self._max_bytes:
            return
        kept = {name: array.copy() for name, array in outputs.items()}
        for array in kept.values():
            array.flags.writeable = False  # many requests are handed the same array
        with self._lock:
            if key in self._entries:
                self._drop(key)
            self._entries[key] = self._clock() + self._seconds, size, kept
            self._bytes += size
            while self._bytes > self._max_bytes:
                self._drop(next(iter(self._entries)))

    def _drop(self, key: bytes) -> None:
        self._bytes -= self._entries.pop(key)[1]


class RedisCache:
    """Outputs in Redis, each for `seconds`; while Redis is away, everything is computed.

    Redis bounds its memory itself (`maxmemory`, `maxmemory-policy allkeys-lru`); one answer above `max_bytes` is not
    sent there.
    """

    def __init__(self, url: str, max_bytes: int, seconds: int) -> None:
        redis = import_redis(url)
        self._failures: tuple[type[Exception], ...] = (redis.RedisError, OSError)
        self._client: Any = redis.Redis.from_url(
            url, socket_connect_timeout=CONNECT_SECONDS, socket_timeout=ANSWER_SECONDS
        )
        self._max_bytes = max_bytes
        self._seconds = seconds
        self._circuit = CircuitBreaker("answers are computed and not cached")

    def get(self, key: bytes) -> Outputs | None:
        if self._circuit.is_open:
            return None
        try:
            content = self._client.get(_PREFIX + key)
        except self._failures as error:
            self._circuit.record_failure(error)
            return None
        return None if content is None else decode_outputs(content)

    def put(self, key: bytes, outputs: Outputs) -> None:
        content = None if self._circuit.is_open else encode_outputs(outputs)
        if content is None or len(content) > self._max_bytes:
            return
        try:
            self._client.set(_PREFIX + key, content, ex=self._seconds)
        except self._failures as error:
            self._circuit.record_failure(error)


def open_cache(max_bytes: int, seconds: int, redis_url: str) -> ResponseCache | None:
    """The cache that the spec asks for; None: none."""
    if not max_bytes:
        return None
    return RedisCache(redis_url, max_bytes, seconds) if redis_url else MemoryCache(max_bytes, seconds)


def encode_outputs(outputs: Mapping[str, Array]) -> bytes | None:
    """Outputs as bytes: the length of the JSON, the JSON that names each array's layout, the arrays; texts are JSON.

    None: an output holds objects that are no text.
    """
    head: list[Any] = []
    blobs: list[bytes] = []
    for name, array in outputs.items():
        if array.dtype.kind in _KINDS:
            blobs.append(array.tobytes())
            kind = array.dtype.str
        elif (text := _text(array)) is not None:
            blobs.append(text)
            kind = "str"
        else:
            return None
        head.append((name, kind, array.shape, len(blobs[-1])))
    layout = orjson.dumps(head)
    return b"".join([len(layout).to_bytes(4, "little"), layout, *blobs])


def decode_outputs(content: bytes) -> Outputs | None:
    """What `pack` was given; None: these bytes are not its."""
    try:
        length = int.from_bytes(content[:4], "little")
        position = 4 + length
        outputs: Outputs = {}
        for name, kind, shape, size in orjson.loads(content[4:position]):
            blob = content[position : position + size]
            outputs[name] = _array(kind, blob).reshape(shape)
            position += size
    except (ValueError, TypeError) as error:
        logger.warning("what Redis has for an answer is none: %s", type(error).__name__)
        return None
    return outputs


def _array(kind: str, blob: bytes) -> Array:
    if kind == "str":
        texts = orjson.loads(blob)
        array = np.empty(len(texts), dtype=object)
        array[:] = texts
        return array
    dtype = np.dtype(kind)
    if dtype.kind not in _KINDS:
        raise ValueError(kind)
    return np.frombuffer(blob, dtype=dtype)


def _text(array: Array) -> bytes | None:
    """Strings as a list of JSON; None: they are none, or hold half a surrogate pair, which has no bytes."""
    if not _is_text(array):
        return None
    try:
        return orjson.dumps(array.reshape(-1).tolist())
    except orjson.JSONEncodeError:
        return None


def _is_text(array: Array) -> bool:
    return array.dtype.kind == "O" and all(isinstance(value, str) for value in array.flat)


def _size(array: Array) -> int:
    """Bytes in memory; a text takes about 60 beside its characters."""
    return array.nbytes + (sum(60 + len(text) for text in array.flat) if array.dtype.kind == "O" else 0)
