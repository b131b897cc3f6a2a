"""The segment files of the spool, and the frames in a segment.

A segment `spool/<uuid>.seg` is a sequence of frames. A frame consists of magic bytes,
the length of the payload, its CRC32, and the payload. The first byte of a payload is
its kind, which is followed by:

- model: JSON that binds a version's arrays to its signature (`captured_model.py`)
- layout: the offset of its model frame, and JSON that describes its requests
  (`codec.py`)
- request: the offset of its layout frame, followed by ids, times and arrays in their
  memory format
- feedback: labels of earlier predictions (`codec.py`)

A worker has an flock on its open segment, which the kernel releases when the worker
ends (`is_released`). A reader stops at an incomplete last frame.
"""

import contextlib
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mlflow_deploy_plugin.core.statedir.files import lock_file
from mlflow_deploy_plugin.serve.runtime.feeds import Array

SUFFIX = ".seg"
SHIPPED = ".shipped"
"""The suffix of a file next to a segment. The file contains the number of the segment's
bytes in the inference log.
"""

FRAME = struct.Struct("<4sII")  # magic, payload length, CRC32 of the payload
REFERRING = struct.Struct("<cI")  # kind, offset of the referenced frame
MAGIC = b"OXS4"
MODEL_KIND = b"M"
LAYOUT_KIND = b"L"
REQUEST_KIND = b"R"
FEEDBACK_KIND = b"F"


def segments(spool: Path) -> list[Path]:
    """Return the segments in the spool, oldest first."""
    by_time: list[tuple[int, Path]] = []
    for path in spool.glob(f"*{SUFFIX}"):
        with contextlib.suppress(FileNotFoundError):  # The agent may just have removed the segment.
            by_time.append((path.stat().st_mtime_ns, path))
    return [path for _, path in sorted(by_time)]


def spool_bytes(spool: Path) -> int:
    """Return the size of all files in the spool, both shipped and unshipped; 0 if there
    is no spool.
    """
    total_bytes = 0
    with contextlib.suppress(FileNotFoundError), os.scandir(spool) as entries:
        for entry in entries:
            # The agent may just have removed the file.
            with contextlib.suppress(FileNotFoundError):
                total_bytes += entry.stat().st_size
    return total_bytes


def shipped_bytes(segment: Path) -> int:
    """Return the number of the segment's bytes that are in the inference log, as
    recorded by the agent.
    """
    try:
        return int(segment.with_suffix(SHIPPED).read_text())
    except (FileNotFoundError, ValueError):
        return 0


def remove_left_over(spool: Path) -> None:
    """Remove the recorded positions of segments that no longer exist."""
    for left_over in spool.glob(f"*{SHIPPED}"):
        if not left_over.with_suffix(SUFFIX).exists():
            left_over.unlink(missing_ok=True)


def is_released(segment: Path) -> bool:
    """Return True if the segment cannot grow any more: its worker has closed it or has
    ended.
    """
    with segment.open("rb") as file:
        try:
            lock_file(file)
        except BlockingIOError:
            return False
    return True


def payload_at(content: bytes, offset: int) -> memoryview | None:
    """Return the payload of the frame at `offset`, or None if the frame is incomplete
    or damaged.
    """
    if offset + FRAME.size > len(content):
        return None
    magic, length, checksum = FRAME.unpack_from(content, offset)
    payload = memoryview(content)[offset + FRAME.size : offset + FRAME.size + length]
    if magic != MAGIC or len(payload) != length or zlib.crc32(payload) != checksum:
        return None
    return payload


@dataclass(frozen=True, eq=False)
class Frames:
    """The offsets of the complete frames of a segment.

    Attributes:
        requests, feedback: [N] int64, ascending.
        end: the end of the last complete frame.
        lost_bytes: the number of bytes between complete frames that do not belong to a
            frame.
        malformed: the number of frames that are too short for their kind.
    """

    requests: Array
    feedback: Array
    end: int
    lost_bytes: int
    malformed: int


def find_frames(content: bytes, min_request_bytes: int) -> Frames:
    """Find the frames of a segment. The payload of a request has at least
    `min_request_bytes`.

    An incomplete last frame is still being written, or its worker crashed. An earlier
    incomplete frame is skipped.
    """
    starts, lengths = _complete_frames(content)
    kinds = np.zeros(len(starts), dtype=np.uint8)
    has_kind = lengths > 0
    kinds[has_kind] = np.frombuffer(content, np.uint8)[starts[has_kind] + FRAME.size]
    is_request = kinds == ord(REQUEST_KIND)
    is_short = ~has_kind | (is_request & (lengths < min_request_bytes))
    feedback = starts[kinds == ord(FEEDBACK_KIND)]
    complete_bytes = int(lengths.sum()) + FRAME.size * len(lengths)
    end = int(starts[-1] + lengths[-1]) + FRAME.size if len(starts) else 0
    return Frames(
        requests=starts[is_request & ~is_short],
        feedback=feedback,
        end=end,
        lost_bytes=end - complete_bytes,
        malformed=int(is_short.sum()),
    )


def _complete_frames(content: bytes) -> tuple[Array, Array]:
    """Return the offsets of the complete frames, and the lengths of their payloads."""
    begins = []
    lengths = []
    offset = 0
    unpack = FRAME.unpack_from
    size = FRAME.size
    while 0 <= offset <= len(content) - size:
        magic, length, checksum = unpack(content, offset)
        stop = offset + size + length
        # Copying a slice is faster than a view.
        if (
            magic == MAGIC
            and stop <= len(content)
            and zlib.crc32(content[offset + size : stop]) == checksum
        ):
            begins.append(offset)
            lengths.append(length)
            offset = stop
        else:
            offset = content.find(MAGIC, offset + 1)
    return np.array(begins, dtype=np.int64), np.array(lengths, dtype=np.int64)
