"""The formats of files of rows, by the endings of their names. The module is light: `--help` imports it."""

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
