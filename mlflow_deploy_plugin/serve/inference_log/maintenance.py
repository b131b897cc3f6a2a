"""Maintenance of the log: compact the many small files of an hour into one file, and
delete expired rows.

**Compaction.** Each small file costs a reader a round trip. When an hour is over and
its files no longer change, their rows are written to a new file, and then the old files
are deleted. Readers drop the temporary duplicates (`scan.py`), and a writer deletes
only files that it has copied. Therefore a crash or two concurrent writers lose no rows.
If a copied file has vanished, another writer has replaced it, perhaps without some of
its rows (`erasure.py`), so that the copy is deleted instead. Malformed files, and files
that changed after the copy, are kept. Files with different columns or types are not
merged.

**Retention.** Rows expire by the hour of event time, labels by the day of receipt, and
files in `_sketches` by their day. Protected windows are kept. If the log is
unreachable, OnnxserveError is raised, and the next call continues.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import chain
from pathlib import Path
from uuid import uuid4

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs

from mlflow_deploy_plugin.core.tabular.streams import group_tables
from mlflow_deploy_plugin.serve.inference_log import storage
from mlflow_deploy_plugin.serve.inference_log.labels import labels_folder
from mlflow_deploy_plugin.serve.inference_log.log_reader import InferenceLog
from mlflow_deploy_plugin.serve.inference_log.scan import FileVanished, read_file
from mlflow_deploy_plugin.serve.inference_log.storage import Hour, LogFile, LogLocation, write_file
from mlflow_deploy_plugin.serve.inference_log.tables import (
    IDENTITY,
    Deduplicator,
    conform,
    hash_rows,
    unify_schemas,
)
from mlflow_deploy_plugin.serve.inference_log.windows import Window

QUIET = timedelta(minutes=10)
"""The time without a write after which a file is compacted. Until then, its agent may
rewrite the file.
"""
LARGE_BYTES = 32 * 2**20
"""The size from which a file is not compacted."""
GROUP_BYTES = 64 * 2**20
"""The maximum size of a group of small files that are compacted together."""
_GROUP_ROWS = 131_072
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MaintenanceResult:
    """The numbers of compacted files, newly written files and expired files, and the
    bytes of expired files.
    """

    compacted_files: int = 0
    written_files: int = 0
    expired_files: int = 0
    expired_bytes: int = 0


def maintain(
    log: InferenceLog,
    endpoint: str,
    now: datetime,
    keep: timedelta | None,
    spared: Sequence[Window] = (),
) -> MaintenanceResult:
    """Compact finished hours, and delete rows older than `keep` (None: never) outside
    of the `spared` windows.
    """
    compacted = compact(log, endpoint, now)
    if keep is None:
        return compacted
    expired = expire(log, endpoint, now, keep, spared)
    return replace(
        compacted,
        expired_files=expired.expired_files,
        expired_bytes=expired.expired_bytes,
    )


def expire(
    log: InferenceLog,
    endpoint: str,
    now: datetime,
    keep: timedelta,
    spared: Sequence[Window] = (),
    only_count: bool = False,
) -> MaintenanceResult:
    """Delete rows, labels and sketches of the endpoint older than `keep`, in units of
    hours and days. Rows with an event time in the `spared` windows, and labels received
    in these windows, are not deleted.
    """
    location = log.location
    try:
        oldest = now - keep
    except OverflowError:  # `keep` reaches back before the year 1, so nothing is old.
        return MaintenanceResult()

    def is_expired(start: datetime, end: datetime) -> bool:
        return end <= oldest and not any(
            start < window.end and window.start < end for window in spared
        )

    folders = {
        hour.folder: hour.files
        for hour in all_hours(log, endpoint)
        if is_expired(hour.start, hour.end)
    }
    sketches = [
        f"{info.path}/{storage.endpoint_folder(endpoint)}"
        for info in storage.list_folder(location, f"{location.root}/{storage.SKETCHES}")
    ]
    for root in [labels_folder(location, endpoint), *sketches]:
        for day, folder in storage.list_days(location, root):
            if is_expired(day, day + storage.DAY):
                folders[folder] = storage.list_files(location, folder)
    if not only_count:
        with storage.wrap_log_errors(location):
            for folder in folders:
                with suppress(FileNotFoundError):
                    location.filesystem.delete_dir(folder)
                _delete_empty(location, [_parent(folder)])
        _delete_empty(location, [*sketches, *map(_parent, sketches)])
    files = list(chain.from_iterable(folders.values()))
    return MaintenanceResult(
        expired_files=len(files),
        expired_bytes=sum(file.size for file in files),
    )


def _parent(folder: str) -> str:
    return folder.rpartition("/")[0]


def compact(log: InferenceLog, endpoint: str, now: datetime) -> MaintenanceResult:
    """Merge the small files of each finished hour, and of each finished day of labels,
    into larger files.
    """
    # The folders of finished hours of rows and finished days of labels.
    finished = [
        (hour.folder, hour.files) for hour in all_hours(log, endpoint) if hour.end + QUIET <= now
    ]
    location = log.location
    for day, day_folder in storage.list_days(location, labels_folder(location, endpoint)):
        if day + storage.DAY + QUIET <= now:
            finished.append((day_folder, storage.list_files(location, day_folder)))
    deleted = []
    for folder, files in finished:
        small = [file for file in files if file.size < LARGE_BYTES and file.changed + QUIET <= now]
        for group in _groups(location, small):
            deleted.append(replace_files(log, folder, group))
    return MaintenanceResult(sum(deleted), sum(map(bool, deleted)))


def all_hours(log: InferenceLog, endpoint: str) -> Iterator[Hour]:
    """Yield the hours of the endpoint's rows, and of its requests without an answer."""
    return chain(log.all_hours(endpoint), log.failures.all_hours(endpoint))


def _groups(
    location: LogLocation, files: Sequence[LogFile]
) -> Iterator[Mapping[LogFile, pa.Schema]]:
    """Yield groups of files to be merged, with their schemas: two or more with the same
    columns, limited in size.
    """
    if len(files) < 2:
        return
    # The schemas by the names and types of the model's columns. Log columns are not
    # compared, because a later version of this package may add some.
    by_columns: dict[tuple[str, ...], dict[LogFile, pa.Schema]] = {}
    for file in files:
        with suppress(OSError, pa.ArrowException):  # Skip a file that is deleted or malformed.
            schema = pq.read_schema(file.path, filesystem=location.filesystem)
            columns = sorted(
                f"{field.name}\t{field.type}" for field in schema if not field.name.startswith("_")
            )
            by_columns.setdefault(tuple(columns), {})[file] = schema
    for schemas in by_columns.values():
        group: dict[LogFile, pa.Schema] = {}
        group_bytes = 0
        for file, schema in schemas.items():
            if group_bytes + file.size > GROUP_BYTES:
                if len(group) > 1:
                    yield group
                group = {}
                group_bytes = 0
            group[file] = schema
            group_bytes += file.size
        if len(group) > 1:
            yield group


def replace_files(
    log: InferenceLog,
    folder: str,
    group: Mapping[LogFile, pa.Schema],
    is_dropped: Callable[[pa.Table], pa.Array] = lambda table: pa.repeat(False, len(table)),
) -> int:
    """Write one file with the rows of the group that are not dropped, or none if all
    are, delete the files of the group, and return the number of deleted files.

    The number is 0 if the files have no row identities, if a single file can be read
    and none of its rows is dropped, or if another process has replaced a file
    meanwhile.

    Args:
        is_dropped: returns a mask of the table's rows that are dropped, [N] bool.
    """
    location = log.location
    complete: list[LogFile] = []
    content = pa.BufferOutputStream()
    schema = unify_schemas(group.values())
    if not set(IDENTITY) <= set(schema.names):
        return 0
    rows = _distinct_rows(log, schema, group, complete)
    written = 0
    dropped = 0
    with pq.ParquetWriter(content, schema, **storage.parquet_options(schema)) as writer:
        for tables in group_tables(rows, _GROUP_ROWS, GROUP_BYTES):
            table = pa.concat_tables(tables)
            kept = table.filter(pc.invert(is_dropped(table)))
            written += len(kept)
            dropped += len(table) - len(kept)
            writer.write_table(kept, row_group_size=_GROUP_ROWS)
    if not complete or (len(complete) < 2 and not dropped):
        return 0
    name = f"{folder.removeprefix(location.root).lstrip('/')}/compacted-{uuid4().hex}.parquet"
    with storage.wrap_log_errors(location):
        if written:
            write_file(location, name, content.getvalue())
        # After this check, every process that replaces a file can see the copy.
        found = location.filesystem.get_file_info([file.path for file in complete])
        if any(info.type == fs.FileType.NotFound for info in found):
            with suppress(FileNotFoundError):  # The copy has no rows, so it was not written.
                location.filesystem.delete_file(f"{location.root}/{name}")
            return 0
        return sum(_delete(location, file) for file in complete)


def _distinct_rows(
    log: InferenceLog,
    schema: pa.Schema,
    group: Iterable[LogFile],
    complete: list[LogFile],
) -> Iterator[pa.Table]:
    """Yield the distinct rows of the files, and append each completely read file to
    `complete`. Malformed files are added to `log.unreadable`.
    """
    deduplicator = Deduplicator()
    for file in group:
        unreadable: dict[str, str] = {}
        with suppress(FileVanished, pa.ArrowException, TypeError, ValueError):
            for part in read_file(log.location, file.path, unreadable, required=IDENTITY):
                table = conform(part, schema)
                yield table.filter(pa.array(deduplicator.add(hash_rows(table))))
            if not unreadable:
                complete.append(file)
        log.unreadable.update(unreadable)


def _delete(location: LogLocation, file: LogFile) -> bool:
    """Delete a file unless its agent has rewritten it, and return True if the file no
    longer exists.
    """
    info = location.filesystem.get_file_info(file.path)
    if info.type == fs.FileType.NotFound:
        return True
    if info.size != file.size or info.mtime != file.changed:
        _log.info("%s was rewritten during compaction and is kept", file.path)
        return False
    with suppress(FileNotFoundError):
        location.filesystem.delete_file(file.path)
    return True


def _delete_empty(location: LogLocation, folders: Sequence[str]) -> None:
    """Delete folders that are empty. A bucket has no empty folders."""
    if not location.is_local:
        return
    for folder in folders:
        with suppress(OSError):  # The folder is not empty.
            Path(folder).rmdir()
