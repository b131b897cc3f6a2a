"""The formats of files of rows by the endings of their names, and opening files to be read and written."""

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Literal, get_args

from mlflow_deploy_plugin.errors import InvalidConfig

FileFormat = Literal["csv", "json", "jsonl", "parquet"]
FILE_FORMATS: tuple[FileFormat, ...] = get_args(FileFormat)
_SUFFIXES: Mapping[str, FileFormat] = {
    ".csv": "csv",
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
}


def format_of(path: str) -> FileFormat | None:
    """Return the format that the name of a file says, if any."""
    return _SUFFIXES.get(Path(path).suffix.lower())


def output_format(path: str, given: FileFormat) -> FileFormat:
    """Return the format of an output file by its name; one without an ending has the format of the input.

    Raises:
        InvalidConfig: its ending is unknown.
    """
    kind, ending = format_of(path), Path(path).suffix
    if kind is None and ending:
        raise InvalidConfig(
            f"{path}: {ending} is none of the endings that are known, {' '.join(_SUFFIXES)}; say -O to choose"
        )
    return kind or given


@contextmanager
def open_input(path: str, stdin: IO[bytes]) -> Iterator[IO[bytes]]:
    """Open the file, or standard input for `-`; raise InvalidConfig if it is missing or cannot be read."""
    if path == "-":
        yield stdin
        return
    try:
        file = Path(path).open("rb")  # noqa: SIM115 - closed below; only errors of open get this message
    except OSError as error:
        raise InvalidConfig(f"the file {path} cannot be read: {error.strerror}") from None
    with file:
        yield file


@contextmanager
def open_output(path: str, stdout: IO[bytes]) -> Iterator[IO[bytes]]:
    """Open a new file that replaces `path` at the end; `-` is standard output, written as it comes.

    Raises:
        InvalidConfig: the file cannot be written.
    """
    if path == "-":
        yield stdout
        stdout.flush()
        return
    try:
        with atomic_file(Path(path)) as file:
            yield file
    except OSError as error:
        raise InvalidConfig(f"the file {path} cannot be written: {error.strerror or error}") from None


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that replaces `path` when all of it is written; after an error `path` is as it was."""
    if path.exists() and not path.is_file():  # a pipe or a device cannot be replaced
        with path.open("wb") as file:
            yield file
        return
    target = path.resolve()
    with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f".{target.name}.", delete=False) as file:
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.chmod(file.name, target.stat().st_mode if target.exists() else 0o666 & ~_umask())
            os.replace(file.name, target)
        except BaseException:
            os.unlink(file.name)
            raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
