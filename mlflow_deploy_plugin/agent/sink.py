"""Where the inference log is written: a folder, or a bucket behind an S3 API."""

import io
import os
import uuid
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote, urlparse

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from mlflow_deploy_plugin.errors import InvalidConfig


@dataclass(frozen=True)
class Sink:
    """A log that takes whole files: a reader sees a file in full or not at all.

    Attributes:
        shown: the log as messages name it.
        is_local: files are renamed into place; an object store shows an object only once it is whole.
    """

    filesystem: Any
    root: str
    shown: str
    is_local: bool

    def write(self, name: str, table: pa.Table) -> None:
        """Writes the table as `name` below the log, in place of a file of that name.

        Raises:
            OSError: the log does not take it.
        """
        content = io.BytesIO()
        pq.write_table(table, content, compression="zstd")
        path = PurePosixPath(self.root, name)
        if not self.is_local:
            self._put(str(path), content)
            return
        temporary = path.with_name(f".{uuid.uuid4().hex}")  # readers of a dataset pass over names with a dot
        self.filesystem.create_dir(str(path.parent), recursive=True)
        self._put(str(temporary), content)
        os.replace(temporary, path)

    def _put(self, path: str, content: io.BytesIO) -> None:
        with self.filesystem.open_output_stream(path) as stream:
            stream.write(content.getbuffer())


def open_sink(log_uri: str) -> Sink:
    """The log at a folder, a file:// or an s3:// URI.

    An S3 API other than Amazon's is named by `AWS_ENDPOINT_URL`, as for boto3 and so for MLflow's own artifacts.

    Raises:
        InvalidConfig: any other URI.
    """
    parsed = urlparse(log_uri)
    if parsed.scheme in ("", "file"):
        return Sink(fs.LocalFileSystem(), unquote(parsed.path), log_uri, is_local=True)
    if parsed.scheme != "s3" or not parsed.netloc:
        raise InvalidConfig(f"ONNXSERVE_LOG_URI: {log_uri!r} is neither a folder nor s3://BUCKET/PREFIX")
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    filesystem = fs.S3FileSystem(endpoint_override=endpoint, region=region or "us-east-1")
    return Sink(filesystem, parsed.netloc + parsed.path, log_uri, is_local=False)
