"""The kinds of files that rows stand in, by the ends of their names. Light: what `--help` shows is made of it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, get_args

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
    """What the name of a file says of what is in it."""
    return _SUFFIXES.get(Path(path).suffix.lower())


def output_format(path: str, given: FileFormat) -> FileFormat:
    """What is written into a file that nothing but its name is known of; where it has no ending, as the input is.

    Raises:
        InvalidConfig: its ending is that of something else.
    """
    kind, ending = format_of(path), Path(path).suffix
    if kind is None and ending:
        raise InvalidConfig(
            f"{path}: {ending} is none of the endings that are known, {' '.join(_SUFFIXES)}; say -O to choose"
        )
    return kind or given
