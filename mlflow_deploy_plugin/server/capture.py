"""The spool: every worker appends the requests it has answered to a segment file, the agent ships it as Parquet.

A segment `spool/<uuid>.seg` is a row of frames: magic, length of the payload, its CRC32, the payload. The payload
begins with its kind. A model frame holds, as JSON, what binds a version's arrays to its signature. A layout frame names
its model frame by offset, and says what its requests hold (`server/packing.py`). Both are written before the first
request that needs them in the segment. A request frame names its layout frame by offset and holds ids, times and arrays
as they lie in memory, so that writing costs microseconds. A feedback frame holds what a caller has said of earlier
predictions (`server/feedback.py`).

The worker holds an flock on its open segment; the kernel lets go of it however the worker ends, so that the agent knows
(`is_released`) when a segment will not grow any more. A frame that was torn by a crash ends the segment for its reader.
"""

import contextlib
import fcntl
import logging
import os
import struct
import threading
import time
import uuid
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from mlflow_deploy_plugin.runtime import Array, sent_arrays
from mlflow_deploy_plugin.server.captured_model import CapturedModel as CapturedModel
from mlflow_deploy_plugin.server.captured_model import described_model, read_model
from mlflow_deploy_plugin.server.feedback import Feedback, pack_feedback
from mlflow_deploy_plugin.server.mask import MASK_KEY, Mask
from mlflow_deploy_plugin.server.packing import Packer, packed_failure
from mlflow_deploy_plugin.server.packing import RequestRecord as RequestRecord
from mlflow_deploy_plugin.server.state import SPOOL as SPOOL

logger = logging.getLogger(__name__)

SUFFIX = ".seg"
SHIPPED = ".shipped"  # beside a segment: how many of its bytes are in the inference log
MAX_SEGMENT_BYTES = 16 * 1024 * 1024
"""Beyond it another one is begun; what is larger by itself may come on top."""

FRAME = struct.Struct("<4sII")  # magic, payload length, CRC32 of the payload
REFERRING = struct.Struct("<cI")  # kind, offset of the frame that this one needs
MAGIC = b"OXS4"
MODEL_KIND, LAYOUT_KIND, REQUEST_KIND, FEEDBACK_KIND = b"M", b"L", b"R", b"F"
_LOG_SECONDS = 60.0
_LOOK_SECONDS = 1.0


class CaptureWriter:
    """Appends to this worker's own segment. A request that cannot be written is counted and logged, and never fails.

    Args:
        count: called for each answer with its endpoint, its rows, how many of them were to be written, and whether they
            were; None: nothing of it was to be.
        clock: monotonic seconds, for the log's one line a minute and the one look at the spool a second.
        max_bytes: of the spool, with what other workers have written; above it nothing is captured until the agent has
            shipped something. What is written between two looks may come on top.
    """

    def __init__(
        self,
        spool: Path,
        count: Callable[[str, int, int, bool | None], None] = lambda *answered: None,
        clock: Callable[[], float] = time.monotonic,
        max_bytes: int = 1024**3,
    ) -> None:
        self._spool = spool
        self._max_bytes = max_bytes
        self._is_full = False
        self._look_at = float("-inf")
        self._count = count
        self._clock = clock
        self._lock = threading.Lock()
        self._file = -1
        self._size = 0
        self._models: dict[CapturedModel, int] = {}
        self._layouts: dict[tuple[CapturedModel, bytes], int] = {}
        self._mask = Mask(spool.parent / MASK_KEY)
        self._packer = Packer(self._mask)
        self._silent_until = float("-inf")

    def write(
        self,
        record: RequestRecord,
        model: CapturedModel,
        feeds: Mapping[str, Array],
        outputs: Mapping[str, Array],
        max_rows: int,
    ) -> bool:
        """Appends one request as it was sent, its first `max_rows` rows; whether it is in the file now."""
        feeds = sent_arrays(feeds)
        try:
            plan, pieces = self._packer.pack(record, model, feeds, outputs, max_rows)
            with self._lock:
                self._append(model, plan.layout, pieces)
        except Exception as error:  # noqa: BLE001 - whatever it is: the answer is right, and is sent; the log has it
            rows = model.schema.count_rows(feeds)
            self._count(record.endpoint, rows, min(rows, max_rows), False)
            self._complain(error)
            return False
        self._count(record.endpoint, plan.rows, plan.kept_rows, True)
        return True

    def write_failure(self, record: RequestRecord, model: CapturedModel) -> None:
        """Appends a request that `model` has not answered: when, for how long and why not. Counted nowhere here."""
        try:
            layout, pieces = packed_failure(record)
            with self._lock:
                self._append(model, layout, pieces)
        except Exception as error:  # noqa: BLE001 - as in `write`
            self._complain(error)

    def leave_out(self, endpoint: str, rows: int) -> None:
        """Counts an answer of so many rows, of which nothing is to be written."""
        self._count(endpoint, rows, 0, None)

    def write_feedback(
        self, endpoint: str, received_time: int, entries: Sequence[Feedback], mask: Sequence[str] = ()
    ) -> None:
        """Appends what was said of earlier predictions at `received_time` (microseconds since 1970).

        Args:
            mask: columns whose values are masked in keys, as they are in rows.

        Raises:
            OSError: the spool, or the disk, is full; its caller has to know.
            InvalidConfig: there is no key to mask with.
        """
        if mask:
            names = frozenset(mask)
            entries = [one._replace(key=self._mask.values(one.key, names)) if one.key else one for one in entries]
        payload = FEEDBACK_KIND + pack_feedback(endpoint, received_time, entries)
        with self._lock:
            self._make_room(len(payload))
            self._write_frame(payload)

    def close(self) -> None:
        """Lets go of the segment; the next write begins another."""
        with self._lock:
            self._close()

    def _append(self, model: CapturedModel, layout: bytes, pieces: list[bytes]) -> None:
        is_roomy = 2 * self._size < MAX_SEGMENT_BYTES  # how large the request is, is not asked
        if self._file < 0 or self._is_full or not is_roomy or self._clock() >= self._look_at:
            self._make_room(sum(map(len, pieces)))
        offset = self._layouts.get((model, layout))
        if offset is None:
            if model not in self._models:
                self._models[model] = self._write_frame(MODEL_KIND + described_model(model))
            offset = self._write_frame(REFERRING.pack(LAYOUT_KIND, self._models[model]) + layout)
            self._layouts[model, layout] = offset
        self._write_frame(b"".join((REFERRING.pack(REQUEST_KIND, offset), *pieces)))

    def _make_room(self, size: int) -> None:
        """A segment that takes `size` bytes more.

        Raises:
            OSError: the spool holds what it may, or no file can be made.
        """
        if (now := self._clock()) >= self._look_at:
            self._look_at = now + _LOOK_SECONDS
            self._is_full = spool_bytes(self._spool) >= self._max_bytes
        if self._is_full:
            self._close()  # the agent removes no segment that is held
            raise OSError(f"the spool holds the {self._max_bytes} bytes that it may; does the inference log take them?")
        if self._file < 0 or self._size + size > MAX_SEGMENT_BYTES:
            self._close()
            self._open()

    def _write_frame(self, payload: bytes) -> int:
        """Appends one frame in one write and gives its offset; a partial one is taken back."""
        offset = self._size
        frame = FRAME.pack(MAGIC, len(payload), zlib.crc32(payload)) + payload
        try:
            written = os.write(self._file, frame)
            if written != len(frame):
                raise OSError("no space left for the whole frame")
        except OSError:
            os.ftruncate(self._file, offset)
            raise
        self._size += len(frame)
        return offset

    def _open(self) -> None:
        """A new segment under its name only once it is locked: no reader can take it for one that was left."""
        self._spool.mkdir(parents=True, exist_ok=True)
        name = uuid.uuid4().hex
        temporary = self._spool / f".{name}"
        file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o640)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.rename(temporary, self._spool / (name + SUFFIX))
        except OSError:
            os.close(file)
            temporary.unlink(missing_ok=True)
            raise
        self._file, self._size = file, 0

    def _close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
        self._file, self._size = -1, 0
        self._models.clear()
        self._layouts.clear()

    def _complain(self, error: Exception) -> None:
        now = self._clock()
        if now >= self._silent_until:
            self._silent_until = now + _LOG_SECONDS
            logger.error("requests are not captured: %s", error, exc_info=not isinstance(error, OSError))


def segments(spool: Path) -> list[Path]:
    """The segments in the spool, the oldest first."""
    return sorted(spool.glob(f"*{SUFFIX}"), key=lambda path: path.stat().st_mtime_ns)


def spool_bytes(spool: Path) -> int:
    """What the files in the spool hold together, shipped or not; 0 where there is none."""
    held = 0
    try:
        with os.scandir(spool) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):  # the agent removes what it has shipped
                    held += entry.stat().st_size
    except FileNotFoundError:
        return 0
    return held


def shipped_bytes(segment: Path) -> int:
    """How much of the segment is in the inference log already; the agent writes it down."""
    try:
        return int(segment.with_suffix(SHIPPED).read_text())
    except (FileNotFoundError, ValueError):
        return 0


def is_released(segment: Path) -> bool:
    """Whether its worker has let go of it (rotated, ended or was killed): it will not grow any more."""
    with segment.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def payload_at(content: bytes, offset: int) -> memoryview | None:
    """What the frame at `offset` holds; None: there is no whole frame."""
    if offset + FRAME.size > len(content):
        return None
    magic, length, checksum = FRAME.unpack_from(content, offset)
    payload = memoryview(content)[offset + FRAME.size : offset + FRAME.size + length]
    if magic != MAGIC or len(payload) != length or zlib.crc32(payload) != checksum:
        return None
    return payload


def read_layout(
    payload_of: Callable[[int], memoryview | None], offset: int, models: dict[int, CapturedModel]
) -> tuple[CapturedModel, Any]:
    """The layout at `offset` and its model, which is one object however many layouts it has.

    Args:
        payload_of: what the frame at an offset of the segment holds.
        models: those that were read before, by offset; a new one is added.

    Raises:
        ValueError, KeyError, TypeError: there is no layout or model.
    """
    payload = _needed(payload_of(offset))
    _, model_offset = REFERRING.unpack_from(payload)
    if model_offset not in models:
        models[model_offset] = read_model(_needed(payload_of(model_offset))[1:])
    return models[model_offset], orjson.loads(payload[REFERRING.size :])


def _needed(payload: memoryview | None) -> memoryview:
    if payload is None:
        raise ValueError("a frame names another that is not there")
    return payload
