"""Putting a file into the inference log: seen in full or not at all, whatever happens to the writer."""

import os
import uuid
from pathlib import Path, PurePosixPath

import pyarrow as pa

from mlflow_deploy_plugin.inference_log.bucket import put_object
from mlflow_deploy_plugin.inference_log.location import LogLocation
from mlflow_deploy_plugin.settings import load_settings


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
