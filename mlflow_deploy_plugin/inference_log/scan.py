"""The rows of one hour, each once, whatever happens to its files meanwhile.

The log is written at least once (`agent/ship.py`), and compaction (`maintenance.py`) writes rows anew before it deletes
them, so a row may stand in two files of its hour; never in two hours, which its event time decides. A file that goes
away while it is read has been compacted or has expired: the folder is looked at again. A file that makes no sense is
passed over and named.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mlflow_deploy_plugin.errors import OnnxserveError
from mlflow_deploy_plugin.inference_log.columns import Array
from mlflow_deploy_plugin.inference_log.dedup import IDENTITY, Deduplicator, hash_rows
from mlflow_deploy_plugin.inference_log.storage import LogFile, LogLocation, list_files
from mlflow_deploy_plugin.runtime import EVENT_TIME

SHADOW, RECEIVED_TIME = "_shadow", "_received_time"
_BATCH_ROWS = 65_536
BATCH_BYTES = 32 * 2**20
"""About so large are the tables that are given."""
_TRIES = 2
_AHEAD, _SMALL_BYTES = 8, 4 * 2**20
FIRST_US, LAST_US = -(2**63), 2**63 - 1
PASS_BYTES = 512 * 2**20
"""Of an hour that is larger, each pass reads all files and gives a part of the rows, so that what is remembered of the
rows that came by does not grow with the hour: about 8 bytes a row, of which Parquet needs 20 and more."""


class FileVanished(Exception):
    """A file went away while it was read."""


@dataclass(frozen=True)
class RowFilter:
    """Which rows and columns are asked for.

    Attributes:
        columns: by name, in this order where a file has them; None: all.
        start_us, end_us: event time in microseconds since 1970, half-open.
        shadows: also what shadows answered.
        received_us: when the server got the request, half-open; None: whenever.
        is_due: which files may have such rows.
    """

    columns: Sequence[str] | None = None
    start_us: int = FIRST_US
    end_us: int = LAST_US
    shadows: bool = False
    received_us: tuple[int, int] | None = None
    is_due: Callable[[LogFile], bool] = lambda file: True

    def needed(self, present: Sequence[str]) -> list[str] | None:
        """The columns to be read of those that a file has."""
        if self.columns is None:
            return None
        wanted = {*self.columns, *IDENTITY, EVENT_TIME, SHADOW} | ({RECEIVED_TIME} if self.received_us else set())
        return [name for name in present if name in wanted]


def scan_hour(location: LogLocation, folder: str, wanted: RowFilter, unreadable: dict[str, str]) -> Iterator[pa.Table]:
    """The wanted rows of an hour's folder, some thousand at a time.

    Args:
        unreadable: gets the path of each file that makes no sense, and why.

    Raises:
        OnnxserveError: the log is down.
    """
    passes = 1 + sum(file.size for file in list_files(location, folder)) // PASS_BYTES
    for number in range(passes):
        seen, done = Deduplicator(), set[str]()
        while files := [file for file in list_files(location, folder) if file.path not in done and wanted.is_due(file)]:
            done.update(file.path for file in files)
            for file, content in prefetch(location, files):
                try:
                    for table in read_file(location, file.path, wanted.needed, unreadable, content=content):
                        kept = _drop_duplicates(_apply_filter(table, wanted), seen, number, passes)
                        if len(kept):
                            yield _select_columns(kept, wanted.columns)
                except FileVanished:
                    continue
                except (pa.ArrowException, TypeError, ValueError) as error:  # its own columns hold other types
                    unreadable[file.path] = " ".join(str(error).split())


def prefetch(location: LogLocation, files: Iterable[LogFile]) -> Iterator[tuple[LogFile, Future[bytes] | None]]:
    """The files; of small ones in a bucket the content, some fetched ahead, since a round trip costs more than they."""
    if location.is_local:
        yield from ((file, None) for file in files)
        return
    rest = iter(files)
    waiting: deque[tuple[LogFile, Future[bytes] | None]] = deque()
    pool = ThreadPoolExecutor(_AHEAD)
    try:
        while True:
            for file in islice(rest, _AHEAD - len(waiting)):
                is_small = file.size <= _SMALL_BYTES
                waiting.append((file, pool.submit(_content, location, file.path) if is_small else None))
            if not waiting:
                return
            yield waiting.popleft()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def read_file(
    location: LogLocation,
    path: str,
    needed: Callable[[Sequence[str]], Sequence[str] | None],
    unreadable: dict[str, str],
    required: Sequence[str] = (*IDENTITY, EVENT_TIME),
    content: Future[bytes] | None = None,
) -> Iterator[pa.Table]:
    """A file's rows, so many at a time that they take some tens of MiB. Where the line to it broke for a moment, rows
    may come twice.

    Args:
        content: the file's, where it is fetched already.

    Raises:
        Vanished: it is not there, or no longer.
        OnnxserveError: the log is down.
    """
    why = ""
    for attempt in range(_TRIES):
        try:
            opened = (
                pa.BufferReader(content.result())
                if content and attempt == 0
                else location.filesystem.open_input_file(path)
            )
            with opened as source:
                parquet = pq.ParquetFile(source)
                names = parquet.schema_arrow.names
                if missing := [name for name in required if name not in names]:
                    unreadable[path] = f"it has no column {missing[0]}"
                    return
                if wrong := [field for field in parquet.schema_arrow if not _has_valid_type(field, names)]:
                    unreadable[path] = f"its column {wrong[0].name} is of the type {wrong[0].type}"
                    return
                for batch in parquet.iter_batches(_batch_rows(parquet.metadata), columns=needed(names)):
                    yield pa.Table.from_batches([batch])
            return
        except FileNotFoundError:
            raise FileVanished from None
        except (OSError, pa.ArrowException) as error:
            why = _unreadable_reason(location, path, error)
    unreadable[path] = why


def _has_valid_type(column: pa.Field, names: Sequence[str]) -> bool:
    """Whether a column of the log's own may be of this type; the model's may be of any."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if column.name in (EVENT_TIME, RECEIVED_TIME):
        return bool(pa.types.is_timestamp(kind))
    if column.name in ("_offset", "_row"):
        return bool(pa.types.is_integer(kind))
    if column.name in ("_segment", "_prediction_id"):
        return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind))
    if column.name == SHADOW:
        return bool(pa.types.is_boolean(kind) or pa.types.is_null(kind))
    return not (column.name in ("_label", "_label_number") and EVENT_TIME in names)


def _content(location: LogLocation, path: str) -> bytes:
    with location.filesystem.open_input_stream(path) as stream:
        content: bytes = stream.read()
    return content


def _unreadable_reason(location: LogLocation, path: str, error: Exception) -> str:
    """Why a file cannot be understood.

    Arrow raises the same classes for a broken file and for a broken line to it; the file's bytes tell which it is.
    """
    try:
        with location.filesystem.open_input_stream(path) as stream:
            while stream.read(BATCH_BYTES):
                pass
    except FileNotFoundError:
        raise FileVanished from None
    except OSError as outage:
        shown = " ".join(str(outage).split())
        raise OnnxserveError(f"the inference log {location.shown} cannot be read: {path}: {shown}") from None
    return " ".join(str(error).split())


def _batch_rows(metadata: pq.FileMetaData) -> int:
    """How many rows take about `BATCH_BYTES`; a row of a tensor may be large."""
    size = sum(metadata.row_group(number).total_byte_size for number in range(metadata.num_row_groups))
    return int(np.clip(BATCH_BYTES * metadata.num_rows // max(size, 1), 1, _BATCH_ROWS))


def _apply_filter(table: pa.Table, wanted: RowFilter) -> pa.Table:
    times = microseconds_of(table.column(EVENT_TIME))
    inside = (times >= wanted.start_us) & (times < wanted.end_us)
    if wanted.received_us is not None and RECEIVED_TIME in table.column_names:
        received = microseconds_of(table.column(RECEIVED_TIME))
        inside &= (received >= wanted.received_us[0]) & (received < wanted.received_us[1])
    if not wanted.shadows and SHADOW in table.column_names:
        inside &= ~np.asarray(pc.fill_null(table.column(SHADOW), False))
    return table if inside.all() else table.filter(pa.array(inside))


def _drop_duplicates(table: pa.Table, seen: Deduplicator, number: int, passes: int) -> pa.Table:
    hashes = hash_rows(table) if len(table) else np.empty(0, np.uint64)
    mine = np.flatnonzero(hashes % np.uint64(passes) == number) if passes > 1 else np.arange(len(hashes))
    kept = mine[seen.fresh(hashes[mine])]
    return table if len(kept) == len(table) else table.take(pa.array(kept))


def _select_columns(table: pa.Table, columns: Sequence[str] | None) -> pa.Table:
    if SHADOW not in table.column_names and (columns is None or SHADOW in columns):
        table = table.append_column(SHADOW, pa.repeat(False, len(table)))  # files of before there was this column
    if columns is None:
        return table
    present = set(table.column_names)
    return table.select([name for name in columns if name in present])


def is_answered_by(table: pa.Table, model: str, version: str) -> Array:
    """[N] bool: the rows of the log that one version answered, or computed in a shadow."""
    of_model = pc.equal(table.column("_model"), model)
    return np.asarray(pc.fill_null(pc.and_(of_model, pc.equal(table.column("_version"), version)), False))


def microseconds_of(column: pa.ChunkedArray) -> Array:
    """[N] int64: times since 1970."""
    times: Array = column.cast(pa.timestamp("us", tz="UTC")).cast(pa.int64()).to_numpy()
    return times
