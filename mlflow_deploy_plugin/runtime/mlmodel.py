"""The MLmodel file as a document: read with libyaml, since PyYAML's own reader takes most of the load of a small model.

Measured with 200 models of 30 columns: 5.8 ms a file by PyYAML, 1.7 ms here; and several readers ask for the same file
one after the other.
"""

import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from mlflow_deploy_plugin.errors import InvalidArtifact

MLMODEL = "MLmodel"
_IDENTIFIERS = ("model_id", "model_uuid", "run_id", "mlflow_version")
_IDENTIFIER = re.compile(r"[!-~]{1,256}")
"""They are shown in headers, metrics and logs, and whoever made the file is not always whoever serves it."""


def read_mlmodel(folder: Path) -> Mapping[str, Any]:
    """The MLmodel file in `folder`; not to be changed, since other readers may be given the same one.

    Raises:
        InvalidArtifact: there is none, it is no mapping of YAML, or an identifier in it is none.
    """
    file = folder / MLMODEL
    try:
        status = file.stat()
        document = _read(file, status.st_mtime_ns, status.st_size)
    except FileNotFoundError:
        raise InvalidArtifact(f"{folder.name}: no MLmodel file in this folder, so it is not an MLflow model") from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InvalidArtifact(f"the MLmodel file cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(document, Mapping):
        raise InvalidArtifact("the MLmodel file is not a mapping")
    for name in _IDENTIFIERS:
        value = document.get(name)
        if value and not _IDENTIFIER.fullmatch(str(value)):
            raise InvalidArtifact(
                f"the MLmodel file has {name} {str(value)[:80]!r}: at most 256 visible ASCII characters are expected"
            )
    return document


@lru_cache(maxsize=8)
def _read(file: Path, modified_ns: int, size: int) -> Any:
    return load_yaml(file.read_text())


_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # PyYAML may have been built without libyaml
_DEEPEST = 100


def check_yaml(text: str, takes_aliases: bool = True) -> None:
    """Goes through the text once.

    Args:
        takes_aliases: false where all that it describes is written out: a few characters may stand for gigabytes.

    Raises:
        YAMLError: it is no YAML, nested too deeply, or has aliases.
    """
    depth = 0
    for event in yaml.parse(text, Loader=_LOADER):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        elif isinstance(event, yaml.AliasEvent) and not takes_aliases:
            raise yaml.YAMLError("it has aliases (*name), which are not taken here")
        if depth > _DEEPEST:
            raise yaml.YAMLError(f"it is nested more than {_DEEPEST} levels deep")


def load_yaml(text: str) -> Any:
    """The document of a text by libyaml.

    Raises:
        YAMLError: see `check_yaml`.
        ValueError: a value of it is none, as the date 2001-99-99.
    """
    check_yaml(text)
    return yaml.load(text, Loader=_LOADER)
