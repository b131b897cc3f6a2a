"""Where the inference log lies: a folder, or a bucket behind an S3 API. The agent writes there, monitoring reads."""

import os
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlparse

from pyarrow import fs

from mlflow_deploy_plugin.errors import InvalidConfig

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
