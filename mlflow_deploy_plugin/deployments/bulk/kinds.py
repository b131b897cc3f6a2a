"""The kinds of files that rows stand in, by the ends of their names. Light: what `--help` shows is made of it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, get_args

from mlflow_deploy_plugin.errors import InvalidConfig

Kind = Literal["csv", "json", "jsonl", "parquet"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_SUFFIXES: Mapping[str, Kind] = {
    ".csv": "csv",
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
}


def kind_of(path: str) -> Kind | None:
    """What the name of a file says of what is in it."""
    return _SUFFIXES.get(Path(path).suffix.lower())


def output_kind(path: str, given: Kind) -> Kind:
    """What is written into a file that nothing but its name is known of; where it has no ending, as the input is.

    Raises:
        InvalidConfig: its ending is that of something else.
    """
    kind, ending = kind_of(path), Path(path).suffix
    if kind is None and ending:
        raise InvalidConfig(
            f"{path}: {ending} is none of the endings that are known, {' '.join(_SUFFIXES)}; say -O to choose"
        )
    return kind or given
