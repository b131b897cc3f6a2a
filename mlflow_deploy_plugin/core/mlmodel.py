"""The MLmodel file in the folder of a saved model, and the digests of the folder's
files.

The file is read each time. Recent documents are cached by their text, because several
functions read the same file.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import yaml

from mlflow_deploy_plugin.core.errors import InvalidArtifact
from mlflow_deploy_plugin.core.messages import one_line
from mlflow_deploy_plugin.core.yaml_text import load_yaml

MLMODEL = "MLmodel"
INPUT_EXAMPLE = "serving_input_example.json"
"""The file that MLflow writes if a model is logged with an input example; it contains a
body for `/invocations`.
"""
_IDENTIFIERS = ("model_id", "model_uuid", "run_id", "mlflow_version")
_IDENTIFIER = re.compile(r"[!-~]{1,256}")
"""The allowed identifiers. Identifiers appear in headers, metrics and logs, and the
MLmodel file may be untrusted.
"""
MALFORMED = (AttributeError, KeyError, TypeError, ValueError, RecursionError)
"""The errors that a reader raises if a value is not the expected mapping, list or
string.
"""
FLAVOR = "onnxserve"
_MAPPINGS = (
    "categories",
    "digests",
    "optimization",
    "parity",
    "provenance",
    "reference",
    "refused",
    "tokenizer",
)
_PLAIN_LISTS = ("classes", "default_outputs", "prediction")
_LISTS = ("inputs", "outputs", *_PLAIN_LISTS)
"""The entries of the section `flavors.onnxserve` that are mappings, lists of plain
values, and lists of any kind.
"""
_PLAIN = (str, int, float)
PYTHON_FUNCTION: Final = "python_function"
JOBLIB = "joblib"
"""The `serialization_format` of the flavor sklearn for an adopted joblib file, which
MLflow itself does not write.
"""

COLUMN_TYPES: dict[str, str] = {
    "double": "float64",
    "float": "float32",
    "integer": "int32",
    "long": "int64",
    "boolean": "bool",
    "string": "str",
}
"""The MLflow column types that an ONNX graph can take, each with its numpy dtype
(`str`: an object array of str).
"""


def read_mlmodel(folder: Path) -> Mapping[str, Any]:
    """Return the parsed MLmodel file in `folder` without null entries. Callers share it
    and must not modify it.

    Raises InvalidArtifact if the file is missing, is not a YAML mapping, or has a
    malformed identifier or section.
    """
    file = folder / MLMODEL
    try:
        document: object = _parsed(file.read_text(encoding="utf-8"))
        if not isinstance(document, Mapping):
            raise InvalidArtifact("the MLmodel file is not a mapping")
        document = _checked_mappings(document, "", ("flavors", "metadata", "signature"))
        if "flavors" in document:
            flavors = document["flavors"]
            flavors = _checked_mappings(flavors, "flavors.", tuple(flavors))
            sections: dict[str, Mapping[str, Any]]
            sections = {
                name: _checked_mappings(section, f"flavors.{name}.", ())
                for name, section in flavors.items()
            }
            if FLAVOR in sections:
                sections[FLAVOR] = _checked_own_section(sections[FLAVOR], f"flavors.{FLAVOR}.")
            document = {**document, "flavors": sections}
        identifiers = {name: str(document[name]) for name in _IDENTIFIERS if document.get(name)}
    except FileNotFoundError:
        raise InvalidArtifact(
            f"{folder.name}: no MLmodel file in this folder, so it is not an MLflow model",
        ) from None
    except (
        OSError,
        ValueError,
        RecursionError,
        yaml.YAMLError,
    ) as error:  # Nested aliases raise a RecursionError.
        raise InvalidArtifact(f"the MLmodel file cannot be read: {one_line(error)}") from None
    for name, value in identifiers.items():
        if not _IDENTIFIER.fullmatch(value):
            raise InvalidArtifact(
                f"the MLmodel file has {name} {value[:80]!r}: at most 256 visible ASCII "
                "characters are expected",
            )
    return document


def _checked_own_section(
    section: Mapping[str, Any],
    where: str,
) -> Mapping[str, Any]:
    """Return our flavor's section of an MLmodel file after its mappings and lists have
    been checked. `where` is the place of the section in messages.
    """
    checked = _checked_mappings(section, where, _MAPPINGS)
    listed = {name: checked.get(name, []) for name in _LISTS}
    parity = checked.get("parity", {})
    _check_type(parity.get("rows", 0), int, "a whole number", f"{where}parity.rows")
    listed["parity.outputs"] = parity.get("outputs", [])
    for name, entries in listed.items():
        _check_type(entries, list, "a list", where + name)
        for entry in entries:
            if name in _PLAIN_LISTS:
                _check_type(entry, _PLAIN, "a text or a number", where + name)
                continue
            _check_type(entry, Mapping, "a mapping", where + name)
            _check_type(entry.get("name"), str, "a text", f"{where}{name}.name")
            _check_type(entry.get("shape", []), list, "a list", f"{where}{name}.shape")
    return checked


def _checked_mappings(
    parent: Mapping[str, Any],
    where: str,
    names: Sequence[str],
) -> dict[str, Any]:
    """Return a mapping without null entries, in which the entries `names` are
    mappings.
    """
    present = {name: value for name, value in parent.items() if value is not None}
    for name in present.keys() & set(names):
        _check_type(present[name], Mapping, "a mapping", f"{where}{name}")
    return present


def _check_type(
    value: object,
    expected: type | tuple[type, ...],
    description: str,
    where: str,
) -> None:
    if not isinstance(value, expected):
        raise InvalidArtifact(
            f"the MLmodel file cannot be understood: {where} is {one_line(repr(value), 80)}; "
            f"{description} is expected",
        )


_parsed = lru_cache(maxsize=8)(load_yaml)


def hash_files(folder: Path) -> dict[Path, str]:
    hashes = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as stream:
            hashes[path.relative_to(folder)] = hashlib.file_digest(stream, "sha256").hexdigest()
    return hashes


def hash_folder(folder: Path) -> str:
    """Return the digest of all files of a folder (`combine_hashes`)."""
    return combine_hashes(hash_files(folder))


def folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def combine_hashes(hashes: Mapping[Path, str]) -> str:
    """Return a SHA-256 over the paths and hashes of all files, which identifies the
    bytes of a version.
    """
    digest = hashlib.sha256()
    # Windows, which sorts paths without case, must return the same value.
    for path in sorted(hashes, key=lambda path: path.parts):
        digest.update(f"{path.as_posix()}\0{hashes[path]}\n".encode())
    return digest.hexdigest()
