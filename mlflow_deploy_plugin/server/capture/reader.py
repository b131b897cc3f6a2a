"""Reading the spool by the batch: what the agent ships, without a Python object for each request.

Requests of one layout lie in a segment as frames whose parts have the same order and mostly the same size, so numpy
takes each part of all of them in one call: a million requests of 30 floats cost a second instead of fifteen. The
figures are in benchmarks/RESULTS.md; tests/support/spool.py reads the same one by one, and a test holds both equal.
"""

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
import orjson

from mlflow_deploy_plugin.runtime import Array
from mlflow_deploy_plugin.server.capture.captured_model import CapturedModel
from mlflow_deploy_plugin.server.capture.codec import decode_layout
from mlflow_deploy_plugin.server.capture.feedback import FeedbackFrame, decode_feedback
from mlflow_deploy_plugin.server.capture.frames import FEEDBACK_KIND, FRAME, Frames, find_frames, payload_at

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
    ]
)
"""The beginning of a request's payload: `REFERRING`, then what `packing.Packer` puts before the ids."""
_MICROSECONDS_AN_HOUR = 3600 * 1_000_000
_LOOKS = 3
"""At a segment that looks damaged."""
_NO_SENSE = (ValueError, LookupError, TypeError, AttributeError, struct.error)
"""What reading may raise of a frame that is whole and holds something else than it should."""


@dataclass(frozen=True, eq=False)
class Utf8Array:
    """[N] strings in UTF-8: the bytes of all, and [N + 1] int32 where each begins, as Arrow has them."""

    content: Array
    bounds: Array


@dataclass(frozen=True, eq=False)
class CapturedBatch:
    """N requests of one layout with `rows` rows each, whose event times lie in one hour; the oldest first.

    Attributes:
        hour: hours since 1970 (UTC).
        offsets: [N] int64, with the segment's name what tells doubles.
        event_times / received_times: [N] int64, microseconds since 1970 (UTC).
        latencies: [N] int64, microseconds.
        statuses: [N] int16, HTTP's.
        is_shadow: the variant has answered nobody.
        is_failed: these requests got no answer: they are rows without columns.
        feeds / outputs: [N * rows, …] by ONNX input and output; outputs only those with one entry a row.
        masked: [N * rows] hashes by column.
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
    """What a segment holds from some offset on.

    Attributes:
        batches: its requests; those of one layout, number of rows and hour are one.
        feedback: what callers have said of earlier predictions.
        end: where to go on the next time.
        lost_bytes: bytes between whole frames that are none.
        malformed: requests and feedback whose frames are whole and hold something else than they should.
    """

    batches: list[CapturedBatch]
    feedback: list[FeedbackFrame]
    end: int
    lost_bytes: int = 0
    malformed: int = 0


def read_batches(segment: Path, start: int = 0) -> CapturedSegment:
    """What the whole frames of a segment hold. Takes the segment into memory.

    Raises:
        OSError: the segment cannot be read.
    """
    with segment.open("rb") as file:
        content, found = _read_frames(file, start)
        feedback, malformed = _feedback(content, found.feedback.tolist(), start)
        requests, heads = found.requests, _taken(content, found.requests + FRAME.size, _HEAD.itemsize).view(_HEAD)
        hours = heads["event_time"] // _MICROSECONDS_AN_HOUR
        models: dict[int, CapturedModel] = {}
        layouts: dict[int, tuple[CapturedModel, Any]] = {}

        def batch_of(group: Array) -> CapturedBatch:
            offset = int(heads["layout"][group[0]])
            if offset not in layouts:
                layouts[offset] = decode_layout(partial(_payload_in, file), offset, models)
            return _batch(content, requests[group], heads[group], int(hours[group[0]]), start, *layouts[offset])

        batches: list[CapturedBatch] = []
        for group in _groups(heads["layout"], heads["rows"], hours):
            malformed += _add(batches, batch_of, group)
    batches.sort(key=lambda batch: int(batch.offsets[0]))
    return CapturedSegment(batches, feedback, start + found.end, found.lost_bytes, found.malformed + malformed)


def _read_frames(file: IO[bytes], start: int) -> tuple[bytes, Frames]:
    """The segment's bytes from `start` on, and the frames in them.

    On a full disk a worker takes back the half of a frame that it could write, and writes another one there. Who reads
    meanwhile may see the one's beginning and the other's end, with whole frames behind them: damage that another look
    does not show.
    """
    for _ in range(_LOOKS):
        file.seek(start)
        content = file.read()
        found = find_frames(content, _HEAD.itemsize)
        if not found.lost_bytes:
            break
    return content, found


def _add(batches: list[CapturedBatch], batch_of: Callable[[Array], CapturedBatch], group: Array) -> int:
    """Adds the batch of a group, or of those of its requests that make sense; gives how many do not."""
    try:
        batches.append(batch_of(group))
    except _NO_SENSE:
        if len(group) == 1:
            return 1
        return sum(_add(batches, batch_of, half) for half in np.array_split(group, 2))
    return 0


def _payload_in(file: IO[bytes], offset: int) -> memoryview | None:
    """What a frame holds that may lie before where the reading began."""
    file.seek(offset)
    head = file.read(FRAME.size)
    if len(head) < FRAME.size:
        return None
    _, length, _ = FRAME.unpack(head)
    return payload_at(head + file.read(length), 0)


def _feedback(content: bytes, begins: Sequence[int], start: int) -> tuple[list[FeedbackFrame], int]:
    """The frames of feedback, and how many of them make no sense."""
    frames = []
    for begin in begins:
        payload = begin + FRAME.size
        stop = payload + FRAME.unpack_from(content, begin)[1]
        with suppress(*_NO_SENSE):
            frames.append(decode_feedback(content[payload + len(FEEDBACK_KIND) : stop], start + begin))
    return frames, len(begins) - len(frames)


def _groups(*keys: Array) -> Iterator[Array]:
    """[n] places at which all keys are equal, ascending, for each of their combinations."""
    if not len(keys[0]):
        return
    order = np.lexsort(keys)
    is_new = np.zeros(len(order) - 1, dtype=bool)
    for key in keys:
        ordered = key[order]
        is_new |= ordered[1:] != ordered[:-1]
    yield from np.split(order, np.flatnonzero(is_new) + 1)


def _batch(
    content: bytes, begins: Array, heads: Array, hour: int, start: int, model: CapturedModel, layout: Mapping[str, Any]
) -> CapturedBatch:
    rows = int(heads["rows"][0])
    position = begins + (FRAME.size + _HEAD.itemsize)
    ids = []
    for name in ("request_length", "prediction_length"):
        lengths = heads[name].astype(np.int64)
        ids.append(_texts(content, position, lengths))
        position = position + lengths
    sides: dict[str, dict[str, Array]] = {"feeds": {}, "outputs": {}, "masked": {}}
    for side, arrays in sides.items():
        for name, dtype, inner in layout.get(side, ()):
            shape = (len(begins) * rows, *inner)
            if dtype == "str":
                lengths = _taken(content, position, 4).view("<u4").astype(np.int64)
                arrays[name] = _strings(content, position + 4, lengths, 1 + len(inner)).reshape(shape)
                position = position + 4 + lengths
            else:
                length = rows * prod(inner) * np.dtype(dtype).itemsize
                arrays[name] = _taken(content, position, length).view(dtype).reshape(shape)
                position = position + length
    return CapturedBatch(
        model,
        layout["endpoint"],
        layout["variant"],
        layout["shadow"],
        layout["failed"],
        hour,
        rows,
        begins + start,
        np.ascontiguousarray(heads["event_time"]),
        np.ascontiguousarray(heads["received_time"]),
        heads["latency"].astype(np.int64),
        heads["status"].astype(np.int16),
        ids[0],
        ids[1],
        sides["feeds"],
        sides["outputs"],
        sides["masked"],
    )


def _taken(content: bytes, begins: Array, length: int) -> Array:
    """[N * length] uint8: `length` bytes from each of the places on.

    A view of every stretch of that length as one item lets numpy copy them without an index for each byte.
    """
    if not length or not len(begins):
        return np.empty(0, dtype=np.uint8)
    if begins[-1] + length > len(content):
        raise ValueError("an array ends beyond its frame")
    stretches: Array = np.ndarray((len(content) - length + 1,), f"V{length}", content, strides=(1,))
    return stretches[begins].view(np.uint8)


def _texts(content: bytes, begins: Array, lengths: Array) -> Utf8Array:
    bounds = np.zeros(len(begins) + 1, dtype=np.int32)
    np.cumsum(lengths, out=bounds[1:])
    if (lengths == lengths[0]).all():
        return Utf8Array(_taken(content, begins, int(lengths[0])), bounds)
    return Utf8Array(np.frombuffer(b"".join(_pieces(content, begins, lengths)), np.uint8), bounds)


def _strings(content: bytes, begins: Array, lengths: Array, depth: int) -> Array:
    """[values] objects: the strings of JSON lists that are nested `depth` deep. What is equal is parsed once."""
    pieces = _pieces(content, begins, lengths)
    parsed = {piece: _flat(orjson.loads(piece), depth) for piece in set(pieces)}
    return np.array(list(chain.from_iterable([parsed[piece] for piece in pieces])), dtype=object)


def _flat(values: list[Any], depth: int) -> list[Any]:
    for _ in range(depth - 1):
        values = list(chain.from_iterable(values))
    return values


def _pieces(content: bytes, begins: Array, lengths: Array) -> list[bytes]:
    return [content[begin:stop] for begin, stop in zip(begins.tolist(), (begins + lengths).tolist(), strict=True)]
