"""Finding what a segment of the spool holds: its whole frames by kind, whatever was torn or damaged between them."""

import zlib
from dataclasses import dataclass

import numpy as np

from mlflow_deploy_plugin.runtime import Array
from mlflow_deploy_plugin.server.capture import FEEDBACK_KIND, FRAME, MAGIC, REQUEST_KIND, payload_at


@dataclass(frozen=True, eq=False)
class Frames:
    """The whole frames of a segment, by where they begin.

    Attributes:
        requests, feedback: [N] int64, ascending.
        end: where the last whole frame ends.
        lost_bytes: bytes between whole frames that are none.
        senseless: frames that are too short for what they say they are.
    """

    requests: Array
    feedback: Array
    end: int
    lost_bytes: int
    senseless: int


def find_frames(content: bytes, least_request: int) -> Frames:
    """The frames of a segment's bytes; a request's payload has at least so many bytes."""
    begins, lengths, end, lost_bytes = _whole_frames(content)
    is_some = lengths > 0
    kinds = np.zeros(len(begins), dtype=np.uint8)
    kinds[is_some] = np.frombuffer(content, np.uint8)[begins[is_some] + FRAME.size]
    is_request = kinds == ord(REQUEST_KIND)
    is_short = ~is_some | (is_request & (lengths < least_request))
    feedback = begins[kinds == ord(FEEDBACK_KIND)]
    return Frames(begins[is_request & ~is_short], feedback, end, lost_bytes, int(is_short.sum()))


def _whole_frames(content: bytes) -> tuple[Array, Array, int, int]:
    """[N] int64 twice: where the whole frames begin and how long their payloads are; where the last one ends, and the
    bytes between them that are none.

    A frame that is not whole is being written, or was torn, where it is the last; another one has been damaged since.
    """
    begins, lengths = [], []
    lost_bytes = 0
    length, last = len(content), len(content) - FRAME.size
    unpack, size, checksum_of = FRAME.unpack_from, FRAME.size, zlib.crc32
    offset = 0
    while offset <= last:
        magic, payload_length, checksum = unpack(content, offset)
        stop = offset + size + payload_length
        # of a copy of the bytes: that is made faster than a view of them
        if magic != MAGIC or stop > length or checksum_of(content[offset + size : stop]) != checksum:
            next_one = _next_frame(content, offset + 1)
            if next_one < 0:
                break
            lost_bytes += next_one - offset
            offset = next_one
            continue
        begins.append(offset)
        lengths.append(payload_length)
        offset = stop
    return np.array(begins, dtype=np.int64), np.array(lengths, dtype=np.int64), offset, lost_bytes


def _next_frame(content: bytes, offset: int) -> int:
    """Where the first whole frame from there on begins; -1: there is none."""
    while (offset := content.find(MAGIC, offset)) >= 0 and payload_at(content, offset) is None:
        offset += 1
    return offset
