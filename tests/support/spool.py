"""A reader of the spool that reads one request at a time. Tests compare the batch
reader with it.
"""

import struct
from dataclasses import dataclass
from functools import partial
from itertools import chain
from math import prod

import numpy as np
import orjson

from mlflow_deploy_plugin.serve.runtime.feeds import Array
from mlflow_deploy_plugin.serve.spool.captured_model import CapturedModel
from mlflow_deploy_plugin.serve.spool.codec import RequestRecord, decode_layout
from mlflow_deploy_plugin.serve.spool.frames import (
    FRAME,
    REFERRING,
    REQUEST_KIND,
    payload_at,
    segments,
)

# rows, event time, received time, latency, status, lengths of both ids
_HEAD = struct.Struct("<IqqIHHH")
_TEXT = struct.Struct("<I")


@dataclass(frozen=True)
class CapturedRequest:
    """A captured request; (segment, offset) identifies duplicates.

    Attributes:
        feeds: arrays by ONNX input, with the rows as the first axis (strings: object
            arrays).
        outputs: arrays by ONNX output, only outputs with one entry per row.
        masked: hashes by column.
    """

    segment: str
    offset: int
    record: RequestRecord
    model: CapturedModel
    feeds: dict[str, Array]
    outputs: dict[str, Array]
    masked: dict[str, Array]


def read_spool(spool):
    """Return the requests of all segments."""
    return list(chain.from_iterable(read_segment(path)[0] for path in segments(spool)))


def read_segment(segment, start=0):
    """Return the requests from offset `start` on (0, or the offset from an earlier
    call), and the next offset.

    Stop without an error at a torn or incomplete frame.
    """
    content = segment.read_bytes()
    models = {}
    layouts = {}
    requests = []
    offset = start
    while (payload := payload_at(content, offset)) is not None:
        if payload[:1] == REQUEST_KIND:
            _, layout_offset = REFERRING.unpack_from(payload)
            if layout_offset not in layouts:
                layouts[layout_offset] = decode_layout(
                    partial(payload_at, content), layout_offset, models
                )
            model, layout = layouts[layout_offset]
            record, sides = _unpack(layout, payload[REFERRING.size :])
            requests.append(CapturedRequest(segment.stem, offset, record, model, **sides))
        offset += FRAME.size + len(payload)
    return requests, offset


def _unpack(layout, packed):
    """Return the record and the arrays of a request that was packed with this (parsed)
    layout.
    """
    rows, event_time, received_time, latency, status, request_length, prediction_length = (
        _HEAD.unpack_from(packed)
    )
    position = _HEAD.size
    ids = []
    for length in (request_length, prediction_length):
        ids.append(str(packed[position : position + length], "utf-8"))
        position += length
    sides = {"feeds": {}, "outputs": {}, "masked": {}}
    for side, arrays in sides.items():
        for name, dtype, inner in layout.get(side, ()):
            shape = (rows, *inner)
            if dtype == "str":
                (length,) = _TEXT.unpack_from(packed, position)
                position += _TEXT.size
                arrays[name] = np.empty(shape, dtype=object)
                values = orjson.loads(packed[position : position + length])
                arrays[name][...] = np.array(values, dtype=object).reshape(shape)
            else:
                length = prod(shape) * np.dtype(dtype).itemsize
                arrays[name] = np.frombuffer(
                    packed[position : position + length], dtype=dtype
                ).reshape(shape)
            position += length
    request_id, prediction_id = ids
    record = RequestRecord(
        layout["endpoint"],
        layout["variant"],
        request_id,
        prediction_id,
        event_time,
        received_time,
        latency,
        status,
        layout["shadow"],
    )
    return record, sides
