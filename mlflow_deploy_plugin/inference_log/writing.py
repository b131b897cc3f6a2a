"""Putting a file into the inference log: seen in full or not at all, whatever happens to the writer."""

import os
import uuid
from pathlib import Path, PurePosixPath

import pyarrow as pa

from mlflow_deploy_plugin.inference_log.location import LogLocation


def write_file(location: LogLocation, name: str, content: bytes | pa.Buffer) -> None:
    """Writes `content` as `name` below the log's root, in place of a file of that name.

    Raises:
        OSError: the log does not take it.
    """
    path = PurePosixPath(location.root, name)
    if not location.is_local:
        _put(location, str(path), content)
        return
    temporary = path.with_name(f".{uuid.uuid4().hex}")  # readers of a dataset pass over names with a dot
    location.filesystem.create_dir(str(path.parent), recursive=True)
    try:
        _put(location, str(temporary), content)
        os.replace(temporary, path)
    except OSError:
        Path(temporary).unlink(missing_ok=True)  # on a full disk it is tried again and again
        raise


def _put(location: LogLocation, path: str, content: bytes | pa.Buffer) -> None:
    with location.filesystem.open_output_stream(path) as stream:
        stream.write(content)
