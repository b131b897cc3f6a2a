"""The scan of one hour of the log, which returns each row exactly once.

Rows are written at least once (`serve/agent/ship.py`), and compaction
(`maintenance.py`) writes rows again before it deletes the old files, so a row may be in
two files of the hour. If a file vanishes during reading, it was compacted or has
expired, and the folder is listed again. Malformed files are skipped and reported.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mlflow_deploy_plugin.core.column_names import EVENT_TIME, SHADOW, TRIED
from mlflow_deploy_plugin.core.errors import OnnxserveError
from mlflow_deploy_plugin.core.messages import one_line
from mlflow_deploy_plugin.core.tabular.streams import row_groups
from mlflow_deploy_plugin.serve.inference_log.storage import Hour, LogFile, LogLocation, list_files
from mlflow_deploy_plugin.serve.inference_log.tables import (
    IDENTITY,
    TIME,
    Deduplicator,
    hash_rows,
)
from mlflow_deploy_plugin.serve.inference_log.windows import ALL_TIMES, TimeRange, microseconds
from mlflow_deploy_plugin.serve.runtime.feeds import Array

RECEIVED_TIME = "_received_time"
_BATCH_ROWS = 65_536
BATCH_BYTES = 32 * 2**20
"""The approximate size of a returned table in bytes."""
_THREADED_BYTES = 2**20
"""The size below which a file is read by one thread. For 2,000 labels this halves the
CPU time and the wall time.
"""
_TRIES = 2
_PREFETCHED_FILES = 8
_SMALL_BYTES = 4 * 2**20
PASS_BYTES = 512 * 2**20
"""The size above which an hour is read in several passes. Each pass reads all files and
keeps a part of the rows. This limits the memory for row identities: about 8 bytes per
row, which takes at least 20 bytes in Parquet.
"""


MARKS = (SHADOW, TRIED)
"""The columns that mark rows that are not traffic."""
_TEXTS = (pa.types.is_string, pa.types.is_large_string, pa.types.is_null)
_COLUMN_TYPES = {
    EVENT_TIME: (pa.types.is_timestamp,),
    RECEIVED_TIME: (pa.types.is_timestamp,),
    "_offset": (pa.types.is_integer,),
    "_row": (pa.types.is_integer,),
    "_segment": _TEXTS,
    "_prediction_id": _TEXTS,
    **dict.fromkeys(MARKS, (pa.types.is_boolean, pa.types.is_null)),
}


class FileVanished(Exception):
    """A file was deleted during reading."""


@dataclass(frozen=True)
class RowFilter:
    """The selected rows (by time range, without the rows that have a mark of
    `left_out`) and columns, in order (None: all columns).
    """

    columns: Sequence[str] | None
    times: TimeRange
    left_out: Sequence[str] = MARKS

    @property
    def needed_columns(self) -> set[str] | None:
        """The columns of a file that the filter needs, or None for all columns."""
        if self.columns is None:
            return None
        received = [RECEIVED_TIME] if self.times.received_us else []
        return {*self.columns, *IDENTITY, EVENT_TIME, *MARKS, *received}

    def filter(self, table: pa.Table) -> pa.Table:
        """Return the selected rows. A table is not filtered by a column that it lacks:
        the time of receipt, or a mark.
        """
        times = microseconds_of(table.column(EVENT_TIME))
        passes = (times >= microseconds(self.times.start)) & (times < microseconds(self.times.end))
        bounds = self.times.received_us
        if bounds is not None and RECEIVED_TIME in table.column_names:
            received = microseconds_of(table.column(RECEIVED_TIME))
            passes &= (received >= bounds[0]) & (received < bounds[1])
        for mark in {*self.left_out} & {*table.column_names}:
            passes &= ~np.asarray(pc.fill_null(table.column(mark), False))
        if passes.all():
            return table
        return table.filter(pa.array(passes))

    def select(self, table: pa.Table) -> pa.Table:
        """Return the selected columns that the table has, in order. A missing shadow
        column is added, with False.
        """
        if SHADOW not in table.column_names and (self.columns is None or SHADOW in self.columns):
            # Older files lack SHADOW.
            table = table.append_column(SHADOW, pa.repeat(False, len(table)))
        if self.columns is None:
            return table
        present = set(table.column_names)
        return table.select([name for name in self.columns if name in present])


def scan_hour(
    location: LogLocation,
    hour: Hour,
    rows: RowFilter,
    unreadable: dict[str, str],
) -> Iterator[pa.Table]:
    """Yield the rows of an hour in tables of some thousand rows. The path of
    each malformed file and the reason are added to `unreadable`. Raises OnnxserveError
    if the log is unreachable.
    """
    total_bytes = sum(file.size for file in hour.files)
    pass_count = 1 + total_bytes // PASS_BYTES
    for pass_number in range(pass_count):
        convert = partial(_first_rows, rows, Deduplicator(pass_number, pass_count))
        tables = read_folder(
            location,
            hour.folder,
            unreadable,
            convert,
            rows.needed_columns,
            may_have_rows=rows.times.may_have_rows,
        )
        yield from (table for table in tables if len(table))


def _first_rows(rows: RowFilter, deduplicator: Deduplicator, table: pa.Table) -> pa.Table:
    """Return the selected rows of a table that the deduplicator accepts."""
    table = rows.filter(table)
    is_first = deduplicator.add(hash_rows(table))
    if not is_first.all():
        table = table.filter(pa.array(is_first))
    return rows.select(table)


def read_folder(
    location: LogLocation,
    folder: str,
    unreadable: dict[str, str],
    convert: Callable[[pa.Table], pa.Table],
    columns: Collection[str] | None = None,
    required: Sequence[str] = (*IDENTITY, EVENT_TIME),
    may_have_rows: Callable[[datetime], bool] = ALL_TIMES.may_have_rows,
) -> Iterator[pa.Table]:
    """Yield the tables of a folder's files, including files that appear during reading;
    rows may be repeated. The path of each malformed file and the reason are added to
    `unreadable`. A file that `convert` rejects is malformed.
    """
    done: set[str] = set()
    while files := [
        file
        for file in list_files(location, folder)
        if file.path not in done and may_have_rows(file.changed)
    ]:
        done.update(file.path for file in files)
        for file, content in _prefetch(location, files):
            try:
                tables = read_file(location, file.path, unreadable, columns, required, content)
                yield from map(convert, tables)
            except FileVanished:
                continue
            except (pa.ArrowException, TypeError, ValueError) as error:
                # A column of the log has another type.
                unreadable[file.path] = one_line(error)


def _prefetch(
    location: LogLocation,
    files: Sequence[LogFile],
) -> Iterator[tuple[LogFile, Future[bytes] | None]]:
    """Yield the files. The contents of small files in a bucket are fetched together, to
    hide the round trips.
    """

    def fetch(path: str) -> bytes:
        with location.filesystem.open_input_stream(path) as stream:
            content: bytes = stream.read()
        return content

    with ThreadPoolExecutor(_PREFETCHED_FILES) as pool:
        for first in range(0, len(files), _PREFETCHED_FILES):
            group = files[first : first + _PREFETCHED_FILES]
            small = {file for file in group if file.size <= _SMALL_BYTES and not location.is_local}
            contents = {file: pool.submit(fetch, file.path) for file in small}
            yield from ((file, contents.get(file)) for file in group)


def read_file(
    location: LogLocation,
    path: str,
    unreadable: dict[str, str],
    columns: Collection[str] | None = None,
    required: Sequence[str] = (*IDENTITY, EVENT_TIME),
    content: Future[bytes] | None = None,
) -> Iterator[pa.Table]:
    """Yield the rows of a file in tables of some tens of MiB. Rows may be repeated
    after a connection error. `content` is the prefetched content. Raises FileVanished
    if the file was deleted, OnnxserveError if the log is unreachable.
    """
    reason = ""
    for _ in range(_TRIES):
        try:
            if content is not None:
                source = pa.BufferReader(content.result())
            else:
                source = location.filesystem.open_input_file(path)
            with source:
                # From a bucket, large ranges save round trips. From a disk, a buffered
                # stream per column saves their memory.
                buffer_size = 2**14 if location.is_local else 0
                parquet = pq.ParquetFile(
                    source, buffer_size=buffer_size, pre_buffer=not location.is_local
                )
                reason = _schema_fault(parquet.schema_arrow, required)
                if reason:
                    break
                metadata = parquet.metadata
                total_bytes = sum(group.total_byte_size for group in row_groups(metadata))
                # Limit the rows per batch by size, because a row with a tensor may be
                # large.
                rows_per_batch = BATCH_BYTES * metadata.num_rows // max(total_bytes, 1)
                for batch in parquet.iter_batches(
                    min(max(rows_per_batch, 1), _BATCH_ROWS),
                    columns=[
                        name
                        for name in parquet.schema_arrow.names
                        if columns is None or name in columns
                    ],
                    use_threads=total_bytes > _THREADED_BYTES,
                ):
                    yield pa.Table.from_batches([batch])
                return
        except FileNotFoundError:
            raise FileVanished from None
        except (OSError, pa.ArrowException) as error:
            reason = _unreadable_reason(location, path, error)
            content = None
    unreadable[path] = reason


def _schema_fault(schema: pa.Schema, required: Sequence[str]) -> str:
    """Return the reason why a file cannot be a file of the log, or an empty text. Model
    columns may have any type.
    """
    names = set(schema.names)
    for name in required:
        if name not in names:
            return f"it has no column {name}"
    for field in schema:
        kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
        allowed = _COLUMN_TYPES.get(field.name)
        if field.name in ("_label", "_label_number"):
            is_valid = EVENT_TIME not in names
        else:
            is_valid = allowed is None or any(is_type(kind) for is_type in allowed)
        if not is_valid:
            return f"its column {field.name} has the type {field.type}"
    return ""


def is_answered_by(table: pa.Table, model: str, version: str) -> Array:
    """Return True for each row that this version answered, or computed as a shadow: [N]
    bool.
    """
    of_model = pc.equal(table.column("_model"), model)
    return np.asarray(
        pc.fill_null(
            pc.and_(of_model, pc.equal(table.column("_version"), version)),
            False,
        ),
    )


def microseconds_of(column: pa.ChunkedArray) -> Array:
    """Return the times in microseconds since 1970, [N] int64. Files that pandas wrote
    have nanoseconds.
    """
    times: Array = column.cast(TIME, safe=False).cast(pa.int64()).to_numpy()
    return times


def _unreadable_reason(location: LogLocation, path: str, error: Exception) -> str:
    """Return the reason why a file cannot be read. Arrow raises the same exceptions for
    a damaged file and for a broken connection, so all bytes are read to distinguish the
    two causes.
    """
    try:
        with location.filesystem.open_input_stream(path) as stream:
            while stream.read(BATCH_BYTES):
                pass
    except FileNotFoundError:
        raise FileVanished from None
    except OSError as outage:
        reason = one_line(outage)
        raise OnnxserveError(
            f"the inference log {location.shown} cannot be read: {path}: {reason}",
        ) from None
    return one_line(error)
