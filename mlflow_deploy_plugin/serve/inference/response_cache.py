"""The response cache: outputs that a version has already computed for the same feeds.

The cache is in the worker's memory (evicting the least recently used outputs) or in a
shared Redis. Only graphs without random nodes are cached (`models/loading.py`). Arrays
are stored instead of bodies, for all protocols.
"""

import hashlib
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence

import orjson

from mlflow_deploy_plugin.serve.inference.circuit_breaker import (
    TIMEOUTS,
    CircuitBreaker,
    import_redis,
)
from mlflow_deploy_plugin.serve.runtime.feeds import (
    Array,
    Feeds,
    array_bytes,
    pack_arrays,
    unpack_arrays,
)

logger = logging.getLogger(__name__)

_LENGTH_BYTES = 4

_ENTRY_BYTES = 1024
"""The memory of an entry in addition to its arrays: the key, Python objects, and the
position in the order of use.
"""
_PREFIX = b"onnxserve:answer:"

Outputs = dict[str, Array]


def request_digest(version: Sequence[str], feeds: Feeds) -> bytes | None:
    """Return a digest of `LoadedVersion.identity` and the feeds; None if a feed has
    objects other than strings.
    """
    packed = _pack({name: feeds[name] for name in sorted(feeds)})
    if packed is None:
        return None
    layout, contents = packed
    layout = orjson.dumps(version) + layout
    digest = hashlib.sha256(len(layout).to_bytes(8, "little") + layout)
    for content in contents:
        digest.update(content)
    return digest.digest()


class MemoryCache:
    """A cache of at most `max_bytes` of outputs; an entry expires after `seconds`."""

    def __init__(
        self, max_bytes: int, seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._max_bytes = max_bytes
        self._seconds = seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._entries: OrderedDict[bytes, tuple[float, int, Outputs]] = OrderedDict()
        """(time of expiry, size in bytes, outputs) by key."""
        self._bytes = 0

    def get(self, key: bytes) -> Outputs | None:
        """Return the outputs; None if they are not stored or have expired."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None and entry[0] <= self._clock():
                self._drop(key)
                entry = None
            if entry is None:
                return None
            self._entries.move_to_end(key)
        return dict(entry[2])

    def put(self, key: bytes, outputs: Outputs) -> None:
        """Store copies, because outputs may be views of a batch's arrays. Objects other
        than strings are not stored.
        """
        if not _are_plain(outputs):
            return
        size = _ENTRY_BYTES + array_bytes(outputs)
        if size > self._max_bytes:
            return
        copies = {name: array.copy() for name, array in outputs.items()}
        for array in copies.values():
            array.flags.writeable = False  # Several requests will receive this array.
        with self._lock:
            if key in self._entries:
                self._drop(key)
            self._entries[key] = self._clock() + self._seconds, size, copies
            self._bytes += size
            while self._bytes > self._max_bytes:
                self._drop(next(iter(self._entries)))

    def _drop(self, key: bytes) -> None:
        self._bytes -= self._entries.pop(key)[1]


class RedisCache:
    """A cache in Redis of outputs of up to `max_bytes` for `seconds`. Without Redis,
    all outputs are computed.

    Redis itself bounds its memory (`maxmemory`, `maxmemory-policy allkeys-lru`).
    """

    def __init__(
        self, url: str, max_bytes: int, seconds: int, count_failure: Callable[[], None]
    ) -> None:
        redis = import_redis(url)
        self._failures: tuple[type[Exception], ...] = (redis.RedisError, OSError)
        self._client = redis.Redis.from_url(url, **TIMEOUTS)
        self._max_bytes = max_bytes
        self._seconds = seconds
        self._circuit = CircuitBreaker(
            "responses are computed and not cached", self._client.ping, count_failure
        )

    def get(self, key: bytes) -> Outputs | None:
        """Return the outputs; None if they are not stored, or Redis does not answer."""
        if self._circuit.is_open:
            return None
        try:
            content = self._client.get(_PREFIX + key)
        except self._failures as error:
            self._circuit.record_failure(error)
            return None
        return None if content is None else decode_outputs(content)

    def put(self, key: bytes, outputs: Outputs) -> None:
        """Store the outputs, unless they are too large, have objects other than
        strings, or Redis does not answer.
        """
        content = None if self._circuit.is_open else encode_outputs(outputs)
        if content is None or len(content) > self._max_bytes:
            return
        try:
            self._client.set(_PREFIX + key, content, ex=self._seconds)
        except self._failures as error:
            self._circuit.record_failure(error)


ResponseCache = MemoryCache | RedisCache


def open_cache(
    max_bytes: int, seconds: int, redis_url: str, count_failure: Callable[[], None] = lambda: None
) -> ResponseCache | None:
    """Return the cache in Redis, or in this worker without `redis_url`; None if
    `max_bytes` is 0.
    """
    if not max_bytes:
        return None
    if redis_url:
        return RedisCache(redis_url, max_bytes, seconds, count_failure)
    return MemoryCache(max_bytes, seconds)


def encode_outputs(outputs: Mapping[str, Array]) -> bytes | None:
    """Return the outputs as bytes: the length of a JSON header with the layouts, the
    header, and the arrays.

    Return None if an output contains objects other than strings.
    """
    packed = _pack(outputs)
    if packed is None:
        return None
    header, arrays = packed
    return b"".join([len(header).to_bytes(_LENGTH_BYTES, "little"), header, *arrays])


def decode_outputs(content: bytes) -> Outputs | None:
    """Return the outputs that `encode_outputs` has encoded, or None if the bytes are
    malformed.
    """
    try:
        header_end = _LENGTH_BYTES + int.from_bytes(content[:_LENGTH_BYTES], "little")
        layouts = orjson.loads(content[_LENGTH_BYTES:header_end])
        outputs, _ = unpack_arrays(layouts, memoryview(content)[header_end:], orjson.loads)
        return outputs
    except (ValueError, TypeError) as error:
        logger.warning("a response from Redis is malformed: %s", type(error).__name__)
        return None


def _pack(arrays: Mapping[str, Array]) -> tuple[bytes, list[memoryview]] | None:
    """Return the layout of the arrays as JSON, and their contents; None if an array has
    objects other than strings.
    """
    if not _are_plain(arrays):
        return None
    try:
        layout, contents = pack_arrays(arrays, orjson.dumps)
    except orjson.JSONEncodeError:  # orjson cannot encode a lone surrogate.
        return None
    return orjson.dumps(layout), contents


def _are_plain(arrays: Mapping[str, Array]) -> bool:
    for array in arrays.values():
        if array.dtype.kind == "O" and not all(isinstance(value, str) for value in array.flat):
            return False
    return True
