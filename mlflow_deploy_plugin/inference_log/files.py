"""The files of the log: which hours and days there are, and what lies in them."""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pyarrow as pa
from pyarrow import fs

from mlflow_deploy_plugin.errors import OnnxserveError
from mlflow_deploy_plugin.inference_log.location import LogLocation
from mlflow_deploy_plugin.inference_log.windows import EPOCH, Window

HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
SLACK = timedelta(hours=1)
"""The clocks of a server and of a bucket may differ by less."""
_HOUR_FOLDER = re.compile(r"/date=([^/]+)/hour=([^/]+)$")


@dataclass(frozen=True, order=True)
class Hour:
    """An hour of event time that has rows, and the folder that they lie in."""

    start: datetime
    folder: str

    @property
    def end(self) -> datetime:
        return self.start + HOUR


@dataclass(frozen=True, order=True)
class LogFile:
    """A file of rows or labels: `size` in bytes, and when it was last written."""

    path: str
    size: int
    changed: datetime


def list_endpoints(location: LogLocation, folder: str = "") -> list[str]:
    """The endpoints that have something in the log, or in a folder of it, as `_labels`."""
    root = f"{location.root}/{folder}" if folder else location.root
    return [value for value, _ in _partitions(location, root, "endpoint")]


def list_hours(location: LogLocation, endpoint: str, window: Window | None = None) -> list[Hour]:
    """The hours that have rows, ascending; with a window, those that overlap it."""
    hours = []
    for date, folder in _partitions(location, f"{location.root}/endpoint={endpoint}", "date"):
        day = _moment(date, "%Y-%m-%d")
        if day is None or not _overlaps(day, DAY, window):
            continue
        for number, hour_folder in _partitions(location, folder, "hour"):
            start = _moment(f"{date} {number}", "%Y-%m-%d %H")
            if start is not None and _overlaps(start, HOUR, window):
                hours.append(Hour(start, hour_folder))
    return sorted(hours)


def list_all(location: LogLocation, endpoint: str) -> dict[Hour, list[LogFile]]:
    """Every hour that has files, ascending, with its files: one listing, as a bucket does it fastest."""
    with reaching(location):
        root = f"{location.root}/endpoint={endpoint}"
        entries = location.filesystem.get_file_info(fs.FileSelector(root, allow_not_found=True, recursive=True))
    hours: dict[Hour, list[LogFile]] = {}
    for file in _parquet_files(entries):
        folder, _, _ = file.path.rpartition("/")
        found = _HOUR_FOLDER.search(folder)
        start = _moment(f"{found[1]} {found[2]}", "%Y-%m-%d %H") if found else None
        if start is not None:
            hours.setdefault(Hour(start, folder), []).append(file)
    return dict(sorted(hours.items()))


def list_days(location: LogLocation, folder: str) -> list[tuple[datetime, str]]:
    """The days below a folder, ascending, with the folder of each."""
    days = [(_moment(date, "%Y-%m-%d"), path) for date, path in _partitions(location, folder, "date")]
    return [(day, path) for day, path in days if day is not None]


def list_files(location: LogLocation, folder: str) -> list[LogFile]:
    """The Parquet files in a folder, by name; what begins with a dot is still being written."""
    return _parquet_files(_entries(location, folder))


@contextmanager
def reaching(location: LogLocation) -> Iterator[None]:
    """Turns what a log that is down raises into one line that names it."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        shown = " ".join(str(error).split())
        raise OnnxserveError(f"the inference log {location.shown} cannot be reached: {shown}") from None


def _parquet_files(entries: Iterable[fs.FileInfo]) -> list[LogFile]:
    return sorted(
        LogFile(entry.path, entry.size or 0, entry.mtime or EPOCH)
        for entry in entries
        if entry.type == fs.FileType.File
        and entry.base_name.endswith(".parquet")
        and not entry.base_name.startswith(".")
    )


def _partitions(location: LogLocation, folder: str, key: str) -> list[tuple[str, str]]:
    """Values of the partition `key` below the folder, ascending, with the folder of each."""
    prefix = f"{key}="
    return sorted(
        (entry.base_name.removeprefix(prefix), entry.path)
        for entry in _entries(location, folder)
        if entry.type == fs.FileType.Directory and entry.base_name.startswith(prefix)
    )


def _entries(location: LogLocation, folder: str) -> list[fs.FileInfo]:
    with reaching(location):
        return list(location.filesystem.get_file_info(fs.FileSelector(folder, allow_not_found=True)))


def _moment(text: str, form: str) -> datetime | None:
    """None: a folder that is not of this log."""
    try:
        return datetime.strptime(text, form).replace(tzinfo=UTC)
    except ValueError:
        return None


def _overlaps(start: datetime, length: timedelta, window: Window | None) -> bool:
    return window is None or (start < window.end and start + length > window.start)
