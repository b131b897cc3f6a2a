"""Where the inference log lies: a folder, or a bucket behind an S3 API. The agent writes there, monitoring reads."""

import importlib
import io
import os
import re
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlparse

import pyarrow as pa
from pyarrow import fs

from mlflow_deploy_plugin.errors import InvalidConfig, NotInstalled, OnnxserveError
from mlflow_deploy_plugin.inference_log.windows import EPOCH, Window
from mlflow_deploy_plugin.settings import load_settings

FAILURES = "_failed"
"""The folder below the log's root that is a log of its own: requests that got no answer, without a model's columns."""
SKETCHES = "_sketches"
"""The folder of profiles, which follow from the rows (`monitoring/hourly.py`)."""


@dataclass(frozen=True)
class LogLocation:
    """A file system and the log's root on it.

    Attributes:
        shown: the log as messages name it.
        is_local: files can be renamed into place; an object store shows an object only once it is whole.
        endpoint, region: of the S3 API; None: Amazon's.
    """

    filesystem: Any
    root: str
    shown: str
    is_local: bool
    endpoint: str | None = None
    region: str = ""


def locate_log(log_uri: str) -> LogLocation:
    """The log at a folder, a file:// or an s3:// URI.

    An S3 API other than Amazon's is named by `AWS_ENDPOINT_URL`, as for boto3 and so for MLflow's own artifacts.

    Raises:
        InvalidConfig: any other URI; the message holds nothing of one that may hold a secret.
    """
    if ":" not in log_uri:  # a folder, whatever stands in its name
        return LogLocation(fs.LocalFileSystem(), log_uri.rstrip("/"), log_uri, is_local=True)
    parsed = urlparse(log_uri)
    if "@" in parsed.netloc or parsed.query or parsed.fragment:
        raise InvalidConfig(
            "ONNXSERVE_LOG_URI holds more than s3://BUCKET/PREFIX, which is all that is read of it: credentials stand "
            "in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, another S3 API in AWS_ENDPOINT_URL"
        )
    if parsed.scheme in ("", "file"):
        return LogLocation(fs.LocalFileSystem(), unquote(parsed.path).rstrip("/"), log_uri, is_local=True)
    if parsed.scheme != "s3" or not parsed.netloc:
        raise InvalidConfig(f"ONNXSERVE_LOG_URI: {log_uri!r} is neither a folder nor s3://BUCKET/PREFIX")
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    filesystem = fs.S3FileSystem(endpoint_override=endpoint, region=region)
    return LogLocation(filesystem, (parsed.netloc + parsed.path).rstrip("/"), log_uri, False, endpoint, region)


def write_file(location: LogLocation, name: str, content: bytes | pa.Buffer) -> None:
    """Writes `content` as `name` below the log's root, in place of a file of that name.

    Raises:
        OSError: the log does not take it.
        NotInstalled: it lies in a bucket, and boto3 is not here.
    """
    path = PurePosixPath(location.root, name)
    if not location.is_local:
        put_object(str(path), content, location.endpoint, location.region, load_settings().log_sse)
        return
    temporary = path.with_name(f".{uuid.uuid4().hex}")  # readers of a dataset pass over names with a dot
    location.filesystem.create_dir(str(path.parent), recursive=True)
    try:
        with location.filesystem.open_output_stream(str(temporary)) as stream:
            stream.write(content)
        os.replace(temporary, path)
    except OSError:
        Path(temporary).unlink(missing_ok=True)  # on a full disk it is tried again and again
        raise


PART_BYTES = 8 * 1024 * 1024
"""Of an upload in parts; what is larger than one is uploaded so."""
_CONNECT_SECONDS, _READ_SECONDS, _ATTEMPTS = 5, 30, 4
_KMS = "aws:kms"


def put_object(path: str, content: bytes | pa.Buffer, endpoint: str | None, region: str, encryption: str) -> None:
    """Puts `content` at `path`, a bucket and a key, in place of what is there. It is seen whole or not at all.

    Args:
        endpoint: of the S3 API; None: Amazon's.
        encryption: as `ONNXSERVE_LOG_SSE` says it; empty: what the bucket does by itself.

    Raises:
        OSError: the bucket does not take it, after some attempts.
        NotInstalled: boto3 is not here.
    """
    client, transfer, failures = _client(endpoint, region)
    bucket, _, key = path.partition("/")
    try:
        client.upload_fileobj(
            io.BytesIO(content), bucket, key, ExtraArgs=encryption_arguments(encryption), Config=transfer
        )
    except failures as error:
        asked = f"; ONNXSERVE_LOG_SSE asks for {encryption}" if encryption else ""
        raise OSError(f"s3://{path}: {error}{asked}") from None


def encryption_arguments(encryption: str) -> dict[str, str]:
    """`AES256`, `aws:kms` or `aws:kms:KEY` as an upload's arguments.

    https://docs.aws.amazon.com/AmazonS3/latest/API/API_PutObject.html
    """
    if encryption.startswith(_KMS + ":"):
        return {"ServerSideEncryption": _KMS, "SSEKMSKeyId": encryption.removeprefix(_KMS + ":")}
    return {"ServerSideEncryption": encryption} if encryption else {}


@lru_cache(maxsize=4)
def _client(endpoint: str | None, region: str) -> tuple[Any, Any, tuple[type[Exception], ...]]:
    """The client, how it transfers, and what it raises."""
    try:
        boto3 = importlib.import_module("boto3")
    except ImportError:
        raise NotInstalled("a log at s3:// needs boto3: pip install 'mlflow-onnxserve[s3]'") from None
    settings = importlib.import_module("botocore.config")
    exceptions = importlib.import_module("botocore.exceptions")
    config = settings.Config(
        connect_timeout=_CONNECT_SECONDS,
        read_timeout=_READ_SECONDS,
        retries={"mode": "standard", "max_attempts": _ATTEMPTS},
        # other S3 APIs than Amazon's refuse the checksums that boto3 adds by itself since 1.36
        request_checksum_calculation=os.environ.get("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
        if endpoint
        else None,
    )
    client = boto3.session.Session().client("s3", endpoint_url=endpoint, region_name=region, config=config)
    transfer = importlib.import_module("boto3.s3.transfer").TransferConfig(
        multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES, use_threads=False
    )
    uploads = importlib.import_module("boto3.exceptions").Boto3Error
    return client, transfer, (exceptions.BotoCoreError, exceptions.ClientError, uploads)


HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
CLOCK_SKEW = timedelta(hours=1)
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


def list_files_by_hour(location: LogLocation, endpoint: str) -> dict[Hour, list[LogFile]]:
    """Every hour that has files, ascending, with its files: one listing, as a bucket does it fastest."""
    with wrap_log_errors(location):
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
def wrap_log_errors(location: LogLocation) -> Iterator[None]:
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
    with wrap_log_errors(location):
        return list(location.filesystem.get_file_info(fs.FileSelector(folder, allow_not_found=True)))


def _moment(text: str, form: str) -> datetime | None:
    """None: a folder that is not of this log."""
    try:
        return datetime.strptime(text, form).replace(tzinfo=UTC)
    except ValueError:
        return None


def _overlaps(start: datetime, length: timedelta, window: Window | None) -> bool:
    return window is None or (start < window.end and start + length > window.start)
