"""The spool's writer: each worker appends the requests that it has answered to a
segment file (`frames.py`).
"""

import logging
import os
import threading
import time
import uuid
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlflow_deploy_plugin.core.statedir.files import lock_file
from mlflow_deploy_plugin.serve.runtime.feeds import NarrowedFeeds
from mlflow_deploy_plugin.serve.spool.captured_model import (
    MASK_KEY,
    CapturedModel,
    ColumnMask,
    NamedArrays,
    encode_model,
)
from mlflow_deploy_plugin.serve.spool.codec import (
    Feedback,
    RequestEncoder,
    RequestRecord,
    encode_feedback,
)
from mlflow_deploy_plugin.serve.spool.frames import (
    FEEDBACK_KIND,
    FRAME,
    LAYOUT_KIND,
    MAGIC,
    MODEL_KIND,
    REFERRING,
    REQUEST_KIND,
    SUFFIX,
    spool_bytes,
)

logger = logging.getLogger(__name__)

MAX_SEGMENT_BYTES = 16 * 1024 * 1024
"""The size at which a segment is closed and a new segment is started. A single request
may be larger.
"""

_MOST_MODELS = 256
_LOG_SECONDS = 60.0
_LOOK_SECONDS = 1.0


@dataclass(eq=False)
class CaptureWriter:
    """Appends to this worker's segment. A request that cannot be written is only
    logged, and its response succeeds.

    `clock` returns monotonic seconds. `max_bytes` limits the spool of all workers. If
    the spool is full, requests are not captured until the agent has shipped data. The
    limit is checked once per second, so the spool may exceed it.
    """

    spool: Path
    clock: Callable[[], float] = time.monotonic
    max_bytes: int = 1024**3

    def __post_init__(self) -> None:
        self._is_full = False
        self._look_at = float("-inf")
        self._lock = threading.Lock()
        self._file = -1
        self._size = 0
        self._segment = 0  # the number of the open segment
        self._models: dict[CapturedModel, int] = {}
        self._layouts: dict[tuple[CapturedModel, bytes], int] = {}
        self._mask = ColumnMask(self.spool.parent / MASK_KEY)
        self._encoder = RequestEncoder(self._mask)
        self._quiet_until = float("-inf")

    def write(
        self,
        record: RequestRecord,
        model: CapturedModel,
        feeds: NamedArrays,
        outputs: NamedArrays,
        max_rows: int,
    ) -> tuple[int, int, bool]:
        """Append the first `max_rows` rows of a request as they were sent. A failed
        request becomes a row of texts.

        Return the number of rows of the request, the number of rows to capture, and
        True if these rows were written.
        """
        if isinstance(feeds, NarrowedFeeds):
            feeds = feeds.sent
        try:
            plan, pieces = self._encoder.encode(record, model, feeds, outputs, max_rows)
            with self._lock:
                # Far from the limit, the size of the request is not needed.
                is_roomy = 2 * self._size < MAX_SEGMENT_BYTES
                if self._file < 0 or self._is_full or not is_roomy or self.clock() >= self._look_at:
                    self._make_room(sum(map(len, pieces)))
                # A segment has each model and each layout before the first request
                # that refers to it.
                if plan.segment != self._segment:
                    offset = self._layouts.get((plan.model, plan.layout))
                    if offset is None:
                        if plan.model not in self._models:
                            # A new segment forgets the versions that were replaced.
                            if len(self._models) >= _MOST_MODELS:
                                self._make_room(MAX_SEGMENT_BYTES)
                            self._models[plan.model] = self._write_frame(
                                MODEL_KIND + encode_model(plan.model)
                            )
                        offset = self._write_frame(
                            REFERRING.pack(LAYOUT_KIND, self._models[plan.model]) + plan.layout,
                        )
                        self._layouts[plan.model, plan.layout] = offset
                    plan.segment = self._segment
                    plan.reference = REFERRING.pack(REQUEST_KIND, offset)
                self._write_frame(b"".join((plan.reference, *pieces)))
        except Exception as error:
            now = self.clock()
            if now >= self._quiet_until:
                self._quiet_until = now + _LOG_SECONDS
                logger.error(
                    "requests are not captured: %s",
                    error,
                    exc_info=not isinstance(error, OSError),
                )
            rows = model.schema.count_rows(feeds)
            return rows, min(rows, max_rows), False
        return plan.rows, plan.kept_rows, True

    def write_feedback(
        self,
        endpoint: str,
        received_time: int,
        entries: Sequence[Feedback],
        mask: Sequence[str] = (),
    ) -> None:
        """Append labels that were received at `received_time` (µs since 1970). Key
        columns in `mask` are hashed.

        Raises OSError if the spool or the disk is full, and InvalidConfig if there is
        no valid key for the hashes.
        """
        if mask:
            names = frozenset(mask)
            entries = [
                entry._replace(key=self._mask.hash_values(entry.key, names)) if entry.key else entry
                for entry in entries
            ]
        payload = FEEDBACK_KIND + encode_feedback(endpoint, received_time, entries)
        with self._lock:
            self._make_room(len(payload))
            self._write_frame(payload)

    def close(self) -> None:
        """Release the segment. The next write starts a new segment."""
        with self._lock:
            self._close()

    def _make_room(self, size: int) -> None:
        """Open a segment with space for `size` bytes if needed. Raises OSError if the
        spool or the disk is full.
        """
        now = self.clock()
        if now >= self._look_at:
            self._look_at = now + _LOOK_SECONDS
            self._is_full = spool_bytes(self.spool) >= self.max_bytes
        if self._is_full:
            self._close()  # Unlock the segment, so that the agent can remove it.
            raise OSError(
                f"the spool has reached its limit of {self.max_bytes} bytes; check that the agent "
                "ships it",
            )
        if self._file < 0 or self._size + size > MAX_SEGMENT_BYTES:
            self._close()
            self.spool.mkdir(parents=True, exist_ok=True)
            # Rename the segment after it is locked, so that no reader takes it for
            # abandoned.
            name = uuid.uuid4().hex
            temporary = self.spool / f".{name}"
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND
            file = os.open(temporary, flags, 0o640)
            try:
                lock_file(file)
                os.rename(temporary, self.spool / (name + SUFFIX))
            except OSError:
                os.close(file)
                temporary.unlink(missing_ok=True)
                raise
            self._file = file
            self._size = 0
            self._segment += 1

    def _write_frame(self, payload: bytes) -> int:
        """Append a frame in one write, and return its offset. A partial frame is
        removed.
        """
        offset = self._size
        frame = FRAME.pack(MAGIC, len(payload), zlib.crc32(payload)) + payload
        try:
            written = os.write(self._file, frame)
            if written != len(frame):
                raise OSError("no space left for the complete frame")
        except OSError:
            os.ftruncate(self._file, offset)
            raise
        self._size += len(frame)
        return offset

    def _close(self) -> None:
        """Close the segment if one is open. The next segment needs its own models and
        layouts.
        """
        if self._file >= 0:
            os.close(self._file)
        self._file = -1
        self._size = 0
        self._models.clear()
        self._layouts.clear()
