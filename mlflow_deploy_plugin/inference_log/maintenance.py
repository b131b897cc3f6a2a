"""Upkeep of the log: the many small files of an hour become one, and what is too old is deleted.

**Compaction.** An agent that ships every few seconds leaves hundreds of files an hour, each of which costs a reader a
round trip. Once an hour is over and its files are quiet, their rows are written into a new file, and when that one is
whole the old ones are deleted. A reader that sees both drops doubles by `_segment`, `_offset` and `_row`, as
everywhere (`rows.py`); so nothing is lost when the writer dies in between, nor when two of them work at once, each of
which deletes only what stands in a file that it has written itself. A file that has changed since it was read stays,
and so does one that makes no sense. Files of different columns or types are not mixed: a version's rows get no columns
of another's.

**Retention.** Rows go by the hour of their event time, labels by the day they came in, the monitors' profiles of rows
(`_sketches`) by the day they are of. What lies in a window that is spared stays.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from mlflow_deploy_plugin.inference_log.columns import Array, conform, group_tables, unify_schemas
from mlflow_deploy_plugin.inference_log.dedup import (
    IDENTITY,
    Deduplicator,
    combine_hashes,
    hash_rows,
    hash_texts,
)
from mlflow_deploy_plugin.inference_log.label_join import labels_folder
from mlflow_deploy_plugin.inference_log.reader import InferenceLog
from mlflow_deploy_plugin.inference_log.scan import FileVanished, read_file
from mlflow_deploy_plugin.inference_log.storage import (
    DAY,
    SKETCHES,
    LogFile,
    LogLocation,
    list_days,
    list_files,
    parquet_options,
    wrap_log_errors,
    write_file,
)
from mlflow_deploy_plugin.inference_log.windows import Window

QUIET = timedelta(minutes=10)
"""A file that was written since may be written again by its agent."""
LARGE_BYTES = 32 * 2**20
"""A file from there on is left alone."""
GROUP_BYTES = 64 * 2**20
"""Of files that are made one."""
_GROUP_ROWS = 131_072
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MaintenanceResult:
    """What was done.

    Attributes:
        compacted_files: small files that were replaced.
        written_files: files that stand in their place.
        expired_files: files of rows, labels and sketches that were deleted, for their age.
        expired_bytes: what they took.
    """

    compacted_files: int = 0
    written_files: int = 0
    expired_files: int = 0
    expired_bytes: int = 0


def maintain(
    log: InferenceLog, endpoint: str, now: datetime, keep: timedelta | None, spared: Sequence[Window] = ()
) -> MaintenanceResult:
    """Compacts the hours of the endpoint that are over, and deletes what is older than `keep`; None keeps all.

    Args:
        spared: windows of event time in which nothing is deleted.

    Raises:
        OnnxserveError: the log is down. What was done until then is done; the next call goes on.
    """
    compacted = compact(log, endpoint, now)
    expired = expire(log, endpoint, now, keep, spared) if keep is not None else MaintenanceResult()
    return MaintenanceResult(
        compacted.compacted_files, compacted.written_files, expired.expired_files, expired.expired_bytes
    )


def expire(
    log: InferenceLog,
    endpoint: str,
    now: datetime,
    keep: timedelta,
    spared: Sequence[Window] = (),
    only_count: bool = False,
) -> MaintenanceResult:
    """Deletes rows, labels and sketches of the endpoint that are older than `keep`, by whole hours and days.

    Args:
        spared: windows of event time in which nothing is deleted; of labels, what came in then.

    Raises:
        OnnxserveError: the log is down.
    """
    location = log.location
    try:
        oldest = now - keep
    except OverflowError:  # nothing is older than the calendar
        return MaintenanceResult()
    hours = [*log.all_files(endpoint).items(), *log.failures.all_files(endpoint).items()]

    def is_over(start: datetime, end: datetime) -> bool:
        return end <= oldest and not any(start < window.end and window.start < end for window in spared)

    folders = {hour.folder: files for hour, files in hours if is_over(hour.start, hour.end)}
    sketches = _sketch_folders(location, endpoint)
    for root in [labels_folder(location, endpoint), *sketches]:
        for day, folder in list_days(location, root):
            if is_over(day, day + DAY):
                folders[folder] = list_files(location, folder)
    if not only_count:
        with wrap_log_errors(location):
            for folder in folders:
                _delete_folder(location, folder)
        _delete_empty(location, [*sketches, *(folder.rpartition("/")[0] for folder in sketches)])
    files = [file for found in folders.values() for file in found]
    return MaintenanceResult(expired_files=len(files), expired_bytes=sum(file.size for file in files))


def compact(log: InferenceLog, endpoint: str, now: datetime) -> MaintenanceResult:
    """Makes one file of the small ones of each hour that is over, and of each day of labels.

    Raises:
        OnnxserveError: the log is down.
    """
    location = log.location
    compacted = written = 0
    hours = [*log.all_files(endpoint).items(), *log.failures.all_files(endpoint).items()]
    folders = [(hour.folder, hour.end, files) for hour, files in hours]
    for day, folder in list_days(location, labels_folder(location, endpoint)):
        folders.append((folder, day + DAY, list_files(location, folder)))
    for folder, end, files in folders:
        if end + QUIET > now:
            continue
        small = [file for file in files if file.size < LARGE_BYTES and file.changed + QUIET <= now]
        for group in _groups(location, small):
            replaced = _compact_group(log, folder, group)
            compacted += replaced
            written += replaced > 0
    return MaintenanceResult(compacted_files=compacted, written_files=written)


@dataclass(frozen=True)
class _SmallFile:
    """A small file, and the columns of its rows."""

    file: LogFile
    schema: pa.Schema


def _groups(location: LogLocation, files: Sequence[LogFile]) -> Iterator[list[_SmallFile]]:
    """Files that are worth being one: of the same columns, at least two, together not large."""
    if len(files) < 2:
        return
    by_columns: dict[str, list[_SmallFile]] = {}
    for file in files:
        with suppress(OSError, pa.ArrowException):  # gone, or it makes no sense: it is left alone
            schema = pq.read_schema(file.path, filesystem=location.filesystem)
            by_columns.setdefault(_model_columns(schema), []).append(_SmallFile(file, schema))
    for alike in by_columns.values():
        group: list[_SmallFile] = []
        size = 0
        for small in alike:
            if group and size + small.file.size > GROUP_BYTES:
                yield from [group] if len(group) > 1 else []
                group, size = [], 0
            group.append(small)
            size += small.file.size
        if len(group) > 1:
            yield group


def _model_columns(schema: pa.Schema) -> str:
    """Names and types of the model's columns; the log's own may grow by a version of this package."""
    return "\n".join(sorted(f"{field.name}\t{field.type}" for field in schema if not field.name.startswith("_")))


def _compact_group(log: InferenceLog, folder: str, group: Sequence[_SmallFile]) -> int:
    """Writes one file in place of these and gives how many of them are gone."""
    location = log.location
    whole: list[LogFile] = []
    content = pa.BufferOutputStream()
    schema = unify_schemas(small.schema for small in group)
    if not set(IDENTITY) <= set(schema.names):
        return 0
    with pq.ParquetWriter(content, schema, **parquet_options(schema)) as writer:
        for tables in group_tables(_distinct_rows(log, schema, group, whole), _GROUP_ROWS, GROUP_BYTES):
            writer.write_table(pa.concat_tables(tables), row_group_size=_GROUP_ROWS)
    if len(whole) < 2:
        return 0
    name = f"{folder.removeprefix(location.root).lstrip('/')}/compacted-{uuid4().hex}.parquet"
    with wrap_log_errors(location):
        write_file(location, name, content.getvalue())
        return sum(_delete(location, file) for file in whole)


def _distinct_rows(
    log: InferenceLog, schema: pa.Schema, group: Iterable[_SmallFile], whole: list[LogFile]
) -> Iterator[pa.Table]:
    """The rows of the files, each once; a file that was read to its end is put into `whole`."""
    seen = Deduplicator()
    for small in group:
        broken: dict[str, str] = {}
        with suppress(FileVanished, pa.ArrowException, TypeError, ValueError):
            for table in read_file(log.location, small.file.path, lambda names: None, broken, IDENTITY):
                table = conform(table, schema)
                yield table.filter(pa.array(seen.fresh(_hashes(table))))
            if not broken:
                whole.append(small.file)
        log.unreadable.update(broken)


def _hashes(table: pa.Table) -> Array:
    """[N] uint64 that tell the rows apart, or the labels."""
    if "_label" not in table.column_names:
        return hash_rows(table)
    hashes = combine_hashes(hash_texts(table.column("_segment")), table.column("_offset").to_numpy().astype("uint64"))
    for name in ("_prediction_id", "_key", "_label"):
        hashes = combine_hashes(hashes, hash_texts(table.column(name)))
    return combine_hashes(hashes, table.column("_row").fill_null(-1).to_numpy().astype("uint64"))


def _delete(location: LogLocation, file: LogFile) -> bool:
    """Whether the file is gone. One that its agent has written again meanwhile stays."""
    info = location.filesystem.get_file_info(file.path)
    if info.type == fs.FileType.NotFound:
        return True
    if info.size != file.size or info.mtime != file.changed:
        _log.info("%s was written again while it was compacted, and stays", file.path)
        return False
    with suppress(FileNotFoundError):
        location.filesystem.delete_file(file.path)
    return True


def _sketch_folders(location: LogLocation, endpoint: str) -> list[str]:
    with wrap_log_errors(location):
        selector = fs.FileSelector(f"{location.root}/{SKETCHES}", allow_not_found=True)
        keys = [info.path for info in location.filesystem.get_file_info(selector)]
    return [f"{key}/endpoint={endpoint}" for key in keys]


def _delete_folder(location: LogLocation, folder: str) -> None:
    with suppress(FileNotFoundError):
        location.filesystem.delete_dir(folder)
    _delete_empty(location, [folder.rpartition("/")[0]])


def _delete_empty(location: LogLocation, folders: Sequence[str]) -> None:
    """Those of these folders that hold nothing any more; in a bucket there are none."""
    for folder in folders if location.is_local else ():
        with suppress(OSError):  # it has other hours
            Path(folder).rmdir()
