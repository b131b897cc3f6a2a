"""Shipping: write the workers' spool to the inference log, as Parquet partitioned by
endpoint and hour of event time.

- `LOG/endpoint=NAME/date=YYYY-MM-DD/hour=HH/<name>.parquet`: rows; the name is
  `<segment>-<first offset>-<last offset>`
- `LOG/_labels/endpoint=NAME/date=YYYY-MM-DD/<name>.parquet`: labels from feedback on
  these rows
- `LOG/_failed/endpoint=…`: failed requests, with the reason and without the model's
  columns

Rows are shipped at least once: the shipped offset is written to `<segment>.shipped`
after the rows are in the log. A segment is deleted when its worker has released it and
all its rows are shipped. If rows are shipped again after a crash together with new
rows, the file has a different name. No name is therefore used for two contents, and a
compactor may delete a file. Readers drop duplicates by (`_segment`, `_offset`, `_row`).
Shipping waits while a busy worker's segment grows, which reduces the number of files.
"""

import logging
import shutil
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mlflow_deploy_plugin.core.column_names import EVENT_TIME, GUARD, SHADOW, TRIED, TRIED_ID
from mlflow_deploy_plugin.core.errors import NotInstalled
from mlflow_deploy_plugin.core.processes.child import backoff_seconds
from mlflow_deploy_plugin.core.statedir.files import write_atomically
from mlflow_deploy_plugin.core.statedir.models import ShippingState
from mlflow_deploy_plugin.serve.agent.progress import ShippingProgress
from mlflow_deploy_plugin.serve.inference_log.labels import LABELS, Label, labels_table
from mlflow_deploy_plugin.serve.inference_log.storage import (
    FAILURES,
    encode_parquet,
    endpoint_folder,
    hour_folder,
    locate_log,
    write_file,
)
from mlflow_deploy_plugin.serve.inference_log.tables import TIME, concat_tables, nested_lists
from mlflow_deploy_plugin.serve.runtime.feeds import Array
from mlflow_deploy_plugin.serve.runtime.log_columns import (
    as_text,
    cast_columns_losslessly,
    to_log_columns,
)
from mlflow_deploy_plugin.serve.spool.codec import FeedbackFrame
from mlflow_deploy_plugin.serve.spool.frames import (
    SHIPPED,
    is_released,
    remove_left_over,
    segments,
    shipped_bytes,
)
from mlflow_deploy_plugin.serve.spool.spool_reader import (
    CapturedBatch,
    CapturedSegment,
    Utf8Array,
    read_batches,
)

_log = logging.getLogger(__name__)

_BROKEN = ".broken"
_MOST_BROKEN = 4
"""The number of malformed segments that are kept for inspection; in total at most 64
MiB without larger requests.
"""
_LONGEST_WAIT_SECONDS = 10.0
_LONGEST_BACKOFF_SECONDS = 30.0
_STATE_SECONDS = 10.0
"""The steps, in seconds, in which `complete_until` of agent.json advances."""
_MICROSECONDS_A_DAY = 86_400_000_000


class _SegmentError(Exception):
    """A failure (first argument) of one segment's files, and its reason. The next
    segments are still shipped.
    """


class Shipper:
    """Ships the segments in `spool` to the log at `log_uri`. Another thread may read
    `state`, the shipping state for agent.json. `hold` is called with the segments
    before they are shipped and removed. Raises InvalidConfig for a URI that cannot be
    written.
    """

    def __init__(
        self,
        spool: Path,
        log_uri: str,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
        hold: Callable[[Sequence[Path]], None] = lambda listed: None,
    ) -> None:
        self._spool = spool
        self._hold = hold
        self.location = locate_log(log_uri)
        self._now = now
        self.progress = ShippingProgress(spool)
        self._clock = clock
        self._growing: dict[str, tuple[int, float]] = {}
        """Segment → the segment's size in the last round, and the time since which a
        part of the segment has waited.
        """
        self._failing = ""
        self._failures = 0
        self._retry_at = float("-inf")
        self.state = ShippingState()
        self._list_segments()  # A segment that is created later has no rows from before this list.

    def round(self) -> int:
        """Ship the segments that are due, and return the number of rows. A segment is
        due if its worker has released it, if it has not grown since the last round, or
        if a part of it has waited for `_LONGEST_WAIT_SECONDS`.
        """
        listed = self._list_segments()
        self._hold(listed)
        if self._clock() < self._retry_at:
            return 0
        due = []
        for segment in listed:
            now = self._clock()
            moment = self._now()
            try:
                size = segment.stat().st_size
                shipped = shipped_bytes(segment)
                is_final = is_released(segment)
            except OSError:
                due.append(segment)  # Let `_ship_segment` report why it cannot be read.
                continue
            if is_final:
                due.append(segment)
            elif size <= shipped:
                self.progress.set_complete(segment.name, moment)
            else:
                size_before, since = self._growing.get(segment.name, (None, now))
                self._growing[segment.name] = size, since
                if size == size_before or now - since >= _LONGEST_WAIT_SECONDS:
                    due.append(segment)
        return self._ship(due)

    def ship(self) -> int:
        """Ship the new rows of all segments, including segments that are not due."""
        listed = self._list_segments()
        self._hold(listed)
        return self._ship(listed)

    def _list_segments(self) -> list[Path]:
        """Return the segments in the spool, and tell the progress about them."""
        moment = self._now()
        listed = segments(self._spool)
        self.progress.set_segments({segment.name for segment in listed}, moment)
        return listed

    def _ship(self, due: Sequence[Path]) -> int:
        """Ship the new rows of these segments, and return the number of rows. A failure
        is logged when it begins, changes or ends, and delays the next attempt.
        """
        rows = 0
        failing = ""
        reason = ""
        for segment in due:
            try:
                rows += self._ship_segment(segment)
            except _SegmentError as failure:
                failing, reason = failure.args
            except MemoryError as failure:  # Continue, because a smaller segment may fit in memory.
                failing = f"segment {segment.name} cannot be shipped: not enough memory"
                reason = str(failure)
            except (
                OSError,
                NotInstalled,
            ) as failure:  # The next segment would fail too, after the same timeout.
                failing = f"the inference log {self.location.shown} cannot be written"
                reason = str(failure)
                break
        error = f"{failing}: {reason}" if failing else ""
        if failing != self._failing:  # `reason` may name a different file at each attempt.
            if error:
                _log.error("%s", error)
            else:
                _log.info("the inference log can be written again")
            self._failing = failing
        self._failures = self._failures + 1 if error else 0
        pause = backoff_seconds(self._failures, _LONGEST_BACKOFF_SECONDS, first=2.0)
        self._retry_at = self._clock() + pause if error else float("-inf")
        complete_until = self.progress.complete_until // _STATE_SECONDS * _STATE_SECONDS
        self.state = self.state.model_copy(
            update={"error": error, "complete_until": complete_until},
        )
        remove_left_over(self._spool)
        if rows:
            # Free the memory of the segments' tables, which is about ten times the
            # agent's other memory.
            pa.default_memory_pool().release_unused()
        return rows

    def _ship_segment(self, segment: Path) -> int:
        """Ship the new rows of a segment, and return the number of rows. Delete a
        segment that is released.

        Raises:
            _SegmentError: the segment cannot be read, or its shipped offset cannot be
                written.
            OSError, NotInstalled: the log cannot be written.
        """
        moment = self._now()
        try:
            start = shipped_bytes(segment)
            # Check before the size is read: a released segment does not grow.
            is_final = is_released(segment)
            size = segment.stat().st_size
            captured = CapturedSegment([], [], start)
            if size > start:
                captured = read_batches(segment, start)
        except OSError as error:
            raise _SegmentError(f"segment {segment.name} cannot be read", str(error)) from None
        rows = self._write(segment, captured) if size > start else 0
        # Report these frames only after a successful write, because a failed write is
        # repeated.
        if captured.malformed:
            copy = segment.with_suffix(_BROKEN)
            _log.error(
                "%d frames of segment %s are malformed and are omitted: see %s",
                captured.malformed,
                segment.stem,
                copy,
            )
            try:
                shutil.copy2(segment, copy)
                broken = sorted(
                    self._spool.glob(f"*{_BROKEN}"), key=lambda path: path.stat().st_mtime_ns
                )
                for surplus in broken[:-_MOST_BROKEN]:
                    _log.warning(
                        "%s is removed: only the last %d malformed segments are kept",
                        surplus.name,
                        _MOST_BROKEN,
                    )
                    surplus.unlink()
            except OSError as error:  # The disk may be full; further shipping frees space.
                _log.error("%s cannot be kept: %s", copy.name, error)
            self.state = self.state.model_copy(
                update={"broken_segments": self.state.broken_segments + 1},
            )
        self._growing.pop(segment.name, None)
        # The worker was killed during a write, another program wrote to the file, or
        # the disk failed.
        lost_bytes = captured.lost_bytes
        if is_final:
            lost_bytes += size - captured.end
        if lost_bytes:
            _log.warning(
                "%d bytes of segment %s are not a complete frame and are lost",
                lost_bytes,
                segment.stem,
            )
            self.state = self.state.model_copy(
                update={"torn_segments": self.state.torn_segments + 1},
            )
        if is_final:
            segment.unlink()
            segment.with_suffix(SHIPPED).unlink(missing_ok=True)
        elif captured.end > start:
            try:
                write_atomically(segment.with_suffix(SHIPPED), str(captured.end).encode())
            except OSError as error:
                raise _SegmentError(
                    f"the shipped offset of {segment.name} cannot be written",
                    str(error),
                ) from None
        self.progress.set_complete(segment.name, moment, is_gone=is_final)
        return rows

    def _write(self, segment: Path, captured: CapturedSegment) -> int:
        """Write the content of a segment to the log, record the progress, and return
        the number of rows.
        """
        # Rows before this offset were counted before they are shipped again.
        counted_end = self.progress.totals.counted.get(segment.name, 0)
        shipped = Counter[str]()
        lost = Counter[str]()
        rows = 0
        for group in group_by_file(captured.batches):
            requests = sum(len(batch.offsets) for batch in group)
            tables = captured_tables(segment.stem, group)
            written = self._write_files(f"{requests} requests of {segment.stem}", tables)
            rows += written
            counts = shipped if written else lost
            for batch in group:
                if not (batch.is_shadow or batch.is_failed):
                    new_requests = int((batch.offsets >= counted_end).sum())
                    counts[batch.endpoint] += new_requests * batch.rows
        self._write_files(
            f"labels of {segment.stem}",
            label_tables(segment.stem, captured.feedback),
        )
        self.progress.add_shipped(segment.name, captured.end, shipped, lost)
        return rows

    def _write_files(
        self,
        what: str,
        tables: Iterator[tuple[str, pa.Table]],
    ) -> int:
        """Write each table to its file, and return the number of rows. If a table
        cannot be encoded, log `what` was omitted, and skip all files.
        """
        try:
            files = [
                (
                    name,
                    encode_parquet(table),
                    len(table),
                )
                for name, table in tables
            ]
        except MemoryError:  # A later attempt may have enough memory.
            raise
        except Exception:  # noqa: BLE001 - Arrow raises many unrelated classes of errors
            _log.exception("%s cannot be represented in the log and are omitted", what)
            return 0
        for name, content, _ in files:
            write_file(self.location, name, content)
        return sum(rows for _, _, rows in files)


def group_by_file(batches: Sequence[CapturedBatch]) -> Collection[list[CapturedBatch]]:
    """Group the batches by endpoint, hour and typed columns. Failed requests have
    separate files.
    """
    groups: dict[tuple[object, ...], list[CapturedBatch]] = defaultdict(list)
    for batch in batches:
        arrays = [
            *batch.feeds.items(),
            *batch.outputs.items(),
            *batch.masked.items(),
        ]
        types = tuple((name, array.dtype, array.ndim) for name, array in arrays)
        groups[batch.endpoint, batch.hour, batch.is_failed, id(batch.model), types].append(batch)
    return groups.values()


def captured_tables(segment: str, group: Sequence[CapturedBatch]) -> Iterator[tuple[str, pa.Table]]:
    """Yield the one file of a group of batches: its name, and its table with one row
    per captured row, identified by `_segment`, `_offset` and `_row`. A column has the
    type of the signature, or a wider type if the values need it.
    """
    first = group[0]
    moment = datetime.fromtimestamp(first.hour * 3600, UTC)
    root = f"{FAILURES}/" if first.is_failed else ""
    last_offset = max(int(batch.offsets[-1]) for batch in group)
    name = f"{segment}-{first.offsets[0]}-{last_offset}"
    folder = f"{root}{hour_folder(first.endpoint, moment)}"
    yield (
        f"{folder}/{name}.parquet",
        concat_tables([_batch_table(segment, batch) for batch in group]),
    )


def label_tables(segment: str, frames: Sequence[FeedbackFrame]) -> Iterator[tuple[str, pa.Table]]:
    """Yield the name and the table of each file of labels: one file per endpoint and
    day.
    """
    groups: dict[tuple[str, int], list[FeedbackFrame]] = defaultdict(list)
    for frame in frames:
        groups[frame.endpoint, frame.received_time // _MICROSECONDS_A_DAY].append(frame)
    for (endpoint, day), group in groups.items():
        date = datetime.fromtimestamp(day * 86_400, UTC).date()
        file_name = f"{segment}-{group[0].offset}-{group[-1].offset}.parquet"
        name = f"{LABELS}/{endpoint_folder(endpoint)}/date={date}/{file_name}"
        labels = []
        for frame in group:
            # The offset of a label is the frame's offset plus the label's position.
            for offset, entry in enumerate(frame.entries, frame.offset):
                labels.append(Label(*entry, frame.received_time, segment, offset))
        yield name, labels_table(labels)


def captured_columns(batch: CapturedBatch) -> dict[str, Array]:
    """Return the model's columns by name, [N * rows, …], with the hashes of masked
    columns. A column has the type of the signature if this cast is lossless.
    """
    schema = batch.model.schema
    columns = to_log_columns(schema, batch.model.prediction, batch.feeds, batch.outputs)
    return cast_columns_losslessly(schema.dtypes, columns) | batch.masked


def _batch_table(segment: str, batch: CapturedBatch) -> pa.Table:
    """Return one row per captured row: the columns of every table, then the model's
    columns, then the keys that have a value.
    """
    columns = _request_columns(segment, batch)
    if batch.is_failed:
        columns |= {name: pa.array(texts, pa.string()) for name, texts in batch.outputs.items()}
        return pa.table(columns)
    arrays = captured_columns(batch)
    key_arrays = {name: arrays[name] for name in batch.model.keys if name in arrays}
    for name, array in arrays.items():
        if name not in key_arrays:
            flat = array.reshape(-1)
            values = pa.array(flat, pa.string()) if flat.dtype == object else pa.array(flat)
            columns[name] = nested_lists(values, array.shape)
    if batch.model.is_guarded:
        columns.setdefault(GUARD, pa.repeat("", len(columns["_row"])))
    for name, array in key_arrays.items():
        raw = array.tolist() if array.dtype == object else array
        try:
            column = pa.array(raw, from_pandas=True)
        except (pa.ArrowInvalid, pa.ArrowTypeError):  # Callers have sent several types.
            column = pa.array([as_text(value) for value in array.tolist()], pa.string())
        if column.null_count < len(column):
            columns[name] = column
    return pa.table(columns)


def _request_columns(segment: str, batch: CapturedBatch) -> dict[str, pa.Array]:
    """Return the columns that every table of the log has, with one value per row of
    each request.
    """
    requests = len(batch.offsets)
    rows = batch.rows
    request_of_row = pa.array(np.repeat(np.arange(requests), rows)) if rows != 1 else None

    def per_row(values: pa.Array) -> pa.Array:
        if request_of_row is None:
            return values
        return values.take(request_of_row)

    def constant(value: object) -> pa.Array:
        return pa.repeat(value, requests * rows)

    request_ids = to_arrow(batch.request_ids)
    steps = {"_steps": constant(batch.model.steps)} if batch.model.steps else {}
    return {
        **steps,
        EVENT_TIME: per_row(pa.array(batch.event_times).view(TIME)),
        "_received_time": per_row(pa.array(batch.received_times).view(TIME)),
        "_prediction_id": per_row(to_arrow(batch.prediction_ids)),
        "_request_id": per_row(request_ids),
        "_variant": constant(batch.variant),
        SHADOW: constant(batch.is_shadow),
        TRIED: per_row(pc.starts_with(request_ids, TRIED_ID)),
        "_model": constant(batch.model.model),
        "_version": constant(batch.model.version),
        "_latency_us": per_row(pa.array(batch.latencies)),
        "_status": per_row(pa.array(batch.statuses)),
        "_segment": constant(segment),
        "_offset": per_row(pa.array(batch.offsets)),
        "_row": pa.array(np.tile(np.arange(rows, dtype=np.int32), requests)),
    }


def to_arrow(texts: Utf8Array) -> pa.Array:
    """Return the texts as an Arrow array, without decoding them."""
    buffers = [
        None,
        pa.py_buffer(texts.bounds),
        pa.py_buffer(np.ascontiguousarray(texts.content)),
    ]
    return pa.Array.from_buffers(
        pa.string(),
        len(texts.bounds) - 1,
        buffers,
    )
