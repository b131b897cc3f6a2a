"""The reader of the spool. It reads requests in batches, without a Python object per
request.

numpy reads each field of all requests of a layout in one call: a million requests of 30
floats take one second instead of fifteen. A test compares this reader with the simple
reader in tests/support/spool.py.
"""

import struct
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
import orjson

from mlflow_deploy_plugin.serve.runtime.feeds import Array
from mlflow_deploy_plugin.serve.spool.captured_model import CapturedModel
from mlflow_deploy_plugin.serve.spool.codec import (
    FeedbackFrame,
    Layout,
    LayoutField,
    decode_feedback,
    decode_layout,
)
from mlflow_deploy_plugin.serve.spool.frames import (
    FEEDBACK_KIND,
    FRAME,
    MAGIC,
    find_frames,
    payload_at,
)

_HEAD = np.dtype(
    [
        ("kind", "S1"),
        ("layout", "<u4"),
        ("rows", "<u4"),
        ("event_time", "<i8"),
        ("received_time", "<i8"),
        ("latency", "<u4"),
        ("status", "<u2"),
        ("request_length", "<u2"),
        ("prediction_length", "<u2"),
    ],
)
"""The first bytes of a request's payload: `REFERRING`, followed by the head that
`codec.RequestEncoder` writes.
"""
_MICROSECONDS_AN_HOUR = 3600 * 1_000_000
_READS = 3
"""The number of attempts to read a segment that looks damaged."""
_MALFORMED = (ValueError, LookupError, TypeError, AttributeError, struct.error)
"""The errors that decoding a complete but malformed frame raises."""


@dataclass(frozen=True, eq=False)
class Utf8Array:
    """N strings in Arrow's format: the UTF-8 bytes of all strings, and the int32
    offsets of their bounds, [N + 1].
    """

    content: Array
    bounds: Array


@dataclass(frozen=True, eq=False)
class CapturedBatch:
    """N requests of one layout, with `rows` rows each and event times in the same hour;
    oldest first.

    Attributes:
        hour: hours since 1970 (UTC).
        offsets: [N] int64; together with the segment's name, they identify duplicates.
        event_times / received_times: [N] int64, microseconds since 1970 (UTC).
        latencies: [N] int64, microseconds.
        statuses: [N] int16, HTTP status codes.
        is_shadow: True if the outputs were not sent.
        is_failed: True if the requests got no predictions; their outputs are texts with
            the reasons.
        feeds / outputs: arrays by ONNX input and output, [N * rows, …]; only outputs
            with one entry per row.
        masked: the hashes by column, [N * rows].
    """

    model: CapturedModel
    endpoint: str
    variant: str
    is_shadow: bool
    is_failed: bool
    hour: int
    rows: int
    offsets: Array
    event_times: Array
    received_times: Array
    latencies: Array
    statuses: Array
    request_ids: Utf8Array
    prediction_ids: Utf8Array
    feeds: dict[str, Array]
    outputs: dict[str, Array]
    masked: dict[str, Array]


@dataclass(frozen=True, eq=False)
class CapturedSegment:
    """The content of a segment from an offset to its end.

    Attributes:
        batches: one batch per layout, number of rows and hour.
        end: the offset at which the next read continues.
        lost_bytes: the number of bytes between complete frames that do not belong to a
            frame.
        malformed: the number of complete frames that cannot be decoded.
    """

    batches: list[CapturedBatch]
    feedback: list[FeedbackFrame]
    end: int
    lost_bytes: int = 0
    malformed: int = 0


def read_batches(segment: Path, start: int = 0) -> CapturedSegment:
    """Read the complete frames of a segment. Raises OSError if the segment cannot be
    read.
    """
    with segment.open("rb") as file:
        # On a full disk, a worker replaces a half-written frame. A mix of the old and
        # the new frame looks damaged, so read again.
        for _ in range(_READS):
            file.seek(start)
            content = file.read()
            frames = find_frames(content, _HEAD.itemsize)
            if not frames.lost_bytes:
                break
        feedback = []
        for begin in frames.feedback.tolist():
            if (payload := payload_at(content, begin)) is not None:
                with suppress(*_MALFORMED):
                    labels = payload[len(FEEDBACK_KIND) :]
                    feedback.append(decode_feedback(labels, start + begin))
        malformed = frames.malformed + len(frames.feedback) - len(feedback)
        decoder = _Decoder(file, content, frames.requests, start)
        batches: list[CapturedBatch] = []
        for group in _group_by(decoder.heads["layout"], decoder.heads["rows"], decoder.hours):
            malformed += _append_batch(batches, decoder.decode, group)
    batches.sort(key=lambda batch: int(batch.offsets[0]))
    return CapturedSegment(batches, feedback, start + frames.end, frames.lost_bytes, malformed)


def read_last_batches(segment: Path, most_bytes: int) -> list[CapturedBatch]:
    """Return the requests in about the last `most_bytes` of a segment, oldest first.
    Raises OSError if the segment cannot be read.
    """
    content = segment.read_bytes()
    start = 0
    # A caller's values may look like a frame: follow the frames' lengths.
    while len(content) - start > most_bytes:
        following = start + FRAME.size + FRAME.unpack_from(content, start)[1]
        if not content.startswith(MAGIC, following):
            break  # The frame at `start` is the last complete frame.
        start = following
    return read_batches(segment, start).batches


def _append_batch(
    batches: list[CapturedBatch],
    batch_of: Callable[[Array], CapturedBatch],
    group: Array,
) -> int:
    """Append the batch of a group of requests, except malformed requests. Return the
    number of malformed requests.
    """
    try:
        batches.append(batch_of(group))
    except _MALFORMED:
        if len(group) == 1:
            return 1
        # Halve the group to find the malformed requests.
        return sum(_append_batch(batches, batch_of, half) for half in np.array_split(group, 2))
    return 0


def _group_by(*keys: Array) -> list[Array]:
    """Return, for each combination of the keys' values, the ascending positions that
    have this combination.
    """
    if not len(keys[0]):
        return []
    order = np.lexsort(keys)
    is_new = np.zeros(len(order) - 1, dtype=bool)
    for key in keys:
        ordered = key[order]
        is_new |= ordered[1:] != ordered[:-1]
    return np.split(order, np.flatnonzero(is_new) + 1)


class _Decoder:
    """Decodes requests of a segment. The frames of the requests are at `begins` in
    `content`, the bytes of the file from `start` on.
    """

    def __init__(
        self,
        file: IO[bytes],
        content: bytes,
        begins: Array,
        start: int,
    ) -> None:
        self._file = file
        self._content = content
        self._begins = begins
        self._start = start
        self.heads = _gather(
            content,
            begins + FRAME.size,
            _HEAD.itemsize,
        ).view(_HEAD)
        self.hours = self.heads["event_time"] // _MICROSECONDS_AN_HOUR
        self._models: dict[int, CapturedModel] = {}
        self._layouts: dict[int, tuple[CapturedModel, Layout]] = {}

    def decode(self, group: Array) -> CapturedBatch:
        """Return the requests at the indices `group`, which have the same layout,
        number of rows and hour.
        """
        heads = self.heads[group]
        begins = self._begins[group]
        offset = int(heads["layout"][0])
        if offset not in self._layouts:
            self._layouts[offset] = decode_layout(self._payload_at, offset, self._models)
        model, layout = self._layouts[offset]
        rows = int(heads["rows"][0])
        fields = _Fields(self._content, begins + (FRAME.size + _HEAD.itemsize))
        return CapturedBatch(
            model=model,
            endpoint=layout["endpoint"],
            variant=layout["variant"],
            is_shadow=layout["shadow"],
            is_failed=layout["failed"],
            hour=int(self.hours[group[0]]),
            rows=rows,
            offsets=begins + self._start,
            event_times=np.ascontiguousarray(heads["event_time"]),
            received_times=np.ascontiguousarray(heads["received_time"]),
            latencies=heads["latency"].astype(np.int64),
            statuses=heads["status"].astype(np.int16),
            # The fields are read in the order of the payload.
            request_ids=fields.read_ids(heads["request_length"]),
            prediction_ids=fields.read_ids(heads["prediction_length"]),
            feeds=fields.read_arrays(layout.get("feeds", ()), rows),
            outputs=fields.read_arrays(layout.get("outputs", ()), rows),
            masked=fields.read_arrays(layout.get("masked", ()), rows),
        )

    def _payload_at(self, offset: int) -> memoryview | None:
        """Return the payload of a frame, which may be located before `start`; None if
        the frame is damaged.
        """
        self._file.seek(offset)
        head = self._file.read(FRAME.size)
        _, length, _ = FRAME.unpack(head)
        return payload_at(head + self._file.read(length), 0)


class _Fields:
    """Reads the fields of N requests with the same layout one after the other.
    `positions` has the position of each request's next field.
    """

    def __init__(self, content: bytes, positions: Array) -> None:
        self._content = content
        self._positions = positions

    def read_ids(self, sizes: Array) -> Utf8Array:
        """Read an id of each request; `sizes` has the lengths in bytes, [N]."""
        lengths = sizes.astype(np.int64)
        bounds = np.zeros(len(lengths) + 1, dtype=np.int32)
        np.cumsum(lengths, out=bounds[1:])
        if (lengths == lengths[0]).all():
            return Utf8Array(self._read(int(lengths[0])), bounds)
        texts = b"".join(_pieces(self._content, self._positions, lengths))
        self._positions = self._positions + lengths
        return Utf8Array(np.frombuffer(texts, np.uint8), bounds)

    def read_arrays(
        self,
        layout: Iterable[LayoutField],
        rows: int,
    ) -> dict[str, Array]:
        """Read the arrays in `layout`, with `rows` rows per request: [N * rows, …]."""
        arrays = {}
        for name, dtype, inner in layout:
            if dtype == "str":
                # One JSON list of strings per request, preceded by its length.
                lengths = self._read(4).view("<u4").astype(np.int64)
                pieces = _pieces(self._content, self._positions, lengths)
                texts_of: dict[bytes, list[Any]] = {}
                for piece in set(pieces):  # Equal lists are parsed once.
                    texts_of[piece] = orjson.loads(piece)
                    for _ in inner:
                        texts_of[piece] = list(chain.from_iterable(texts_of[piece]))
                texts = chain.from_iterable([texts_of[piece] for piece in pieces])
                array = np.array(list(texts), dtype=object)
                self._positions = self._positions + lengths
            else:
                array = self._read(rows * prod(inner) * np.dtype(dtype).itemsize).view(dtype)
            arrays[name] = array.reshape(len(self._positions) * rows, *inner)
        return arrays

    def _read(self, length: int) -> Array:
        """Return `length` bytes per request, [N * length] uint8."""
        content = _gather(self._content, self._positions, length)
        self._positions = self._positions + length
        return content


def _gather(content: bytes, begins: Array, length: int) -> Array:
    """Return `length` bytes from each position, [N * length] uint8. numpy copies them
    without an index per byte.
    """
    if not length or not len(begins):
        return np.empty(0, dtype=np.uint8)
    if begins[-1] + length > len(content):
        raise ValueError("an array ends beyond its frame")
    stretches: Array = np.ndarray(
        (len(content) - length + 1,),
        f"V{length}",
        content,
        strides=(1,),
    )
    return stretches[begins].view(np.uint8)


def _pieces(content: bytes, begins: Array, lengths: Array) -> list[bytes]:
    return [
        content[begin:stop]
        for begin, stop in zip(begins.tolist(), (begins + lengths).tolist(), strict=True)
    ]
