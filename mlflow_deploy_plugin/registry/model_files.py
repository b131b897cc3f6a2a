"""The files of one resolved version, from wherever MLflow keeps them, into a folder of ours."""

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from mlflow_deploy_plugin.errors import (
    InvalidArtifact,
    InvalidConfig,
    NotFound,
    NotInstalled,
    OnnxserveError,
    RegistryUnavailable,
)
from mlflow_deploy_plugin.registry.connection import (
    no_request_timeout,
    redact_credentials,
    registry_client,
    registry_errors,
    unavailable_message,
)
from mlflow_deploy_plugin.registry.model_uri import parse_model_uri
from mlflow_deploy_plugin.runtime import FLAVOR, OUTPUT_PREFIX, PREDICTION

_THROUGH_MLFLOW = ("mlflow-artifacts", "runs")
_PACKAGES = {
    **dict.fromkeys(("s3", "r2", "b2"), "'mlflow-onnxserve[s3]'"),
    "gs": "google-cloud-storage",
    "wasbs": "azure-storage-blob azure-identity",
    "abfss": "azure-storage-file-datalake azure-identity",
    "sftp": "pysftp",
}
"""What MLflow fetches from a store of this scheme with, as pip calls it."""


def download(source: str, destination: Path) -> Path:
    """Copies what `source` (of a `ResolvedModel`) holds below the empty folder `destination`.

    Returns:
        The folder of the MLmodel file, somewhere below `destination`.

    Raises:
        NotFound: the registry knows the version, but its files are gone.
        InvalidArtifact: a link stands among the files.
        InvalidConfig: MLflow knows no artifact store of this scheme.
        NotInstalled: the artifact store needs a package that is not here.
        RegistryUnavailable: MLflow, or the artifact store behind it, does not answer, or the disk is full.
    """
    location = _location(source)
    scheme = urlparse(location).scheme
    if scheme in ("", "file"):
        return _copy(Path(unquote(urlparse(location).path)), destination)
    return _fetch(source, location, destination)


def refuse_links(folder: Path) -> None:
    """A model is made of plain files: a link could bring in any file of this machine.

    Raises:
        InvalidArtifact: a symbolic or hard link, or something that is neither file nor folder.
    """
    for parent, folders, files in os.walk(folder):
        for name in folders + files:
            path = Path(parent, name)
            status = path.lstat()
            shown = path.relative_to(folder)
            if path.is_symlink() or (path.is_file() and status.st_nlink > 1):
                raise InvalidArtifact(f"the model's {str(shown)!r} is a link; only plain files are taken")
            if not (path.is_file() or path.is_dir()):
                raise InvalidArtifact(f"the model's {str(shown)!r} is neither a file nor a folder")


def _location(source: str) -> str:
    """Where the artifact store keeps the files: the registry knows it for models:/, the tracking server for runs."""
    reference = parse_model_uri(source)
    match reference.kind:
        case "version":
            with registry_errors(f"model {reference.name} version {reference.selector}"):
                return str(registry_client().get_model_version_download_uri(reference.name, reference.selector))
        case "logged_model":
            with registry_errors(f"logged model {reference.name}"):
                return str(registry_client().get_logged_model(reference.name).artifact_location)
        case _:
            return source


def _fetch(source: str, location: str, destination: Path) -> Path:
    from mlflow.artifacts import download_artifacts  # a second to import; a model on this disk does without

    scheme = urlparse(location).scheme
    where = "" if scheme in _THROUGH_MLFLOW else f"{scheme}://{urlparse(location).hostname}"
    what = f"the files of {redact_credentials(source)}"
    try:
        with registry_errors(what, where), no_request_timeout():
            return Path(download_artifacts(artifact_uri=location, dst_path=str(destination)))
    except RegistryUnavailable as error:
        if "registered artifact repository" in error.message:
            raise InvalidConfig(f"{what}: MLflow knows no store {scheme}:…; it knows s3, gs and others") from None
        raise
    except OnnxserveError:
        raise
    except ImportError as error:
        needed = _PACKAGES.get(scheme, error.name or "another package")
        raise NotInstalled(
            f"{what} need a package that is not installed here ({error.name}): pip install {needed}"
        ) from None
    except Exception as error:  # noqa: BLE001 - each kind of artifact store (boto3, GCS, Azure, …) has its own classes
        raise RegistryUnavailable(unavailable_message(what, where, error)) from None


def _copy(folder: Path, destination: Path) -> Path:
    if not folder.is_dir():
        raise NotFound(f"the folder {folder} of the model's files does not exist")
    refuse_links(folder)
    copied = destination / "model"
    try:
        shutil.copytree(folder, copied, symlinks=True)
    except shutil.Error as error:
        _, _, reason = error.args[0][0]  # of the first file; they vanish, or the disk is full
        raise RegistryUnavailable(f"the files in {folder} cannot be copied: {reason}") from None
    except OSError as error:
        raise RegistryUnavailable(f"the files in {folder} cannot be copied: {error.strerror}") from None
    return copied


@dataclass(frozen=True)
class LoggedColumns:
    """Columns of one model.

    Attributes:
        inputs: of the signature; empty where there is none, or its only tensor has no name.
        answers: `prediction`, `output.NAME`; None: the file does not say them (any flavor but ours).
    """

    inputs: tuple[str, ...]
    answers: tuple[str, ...] | None


def logged_columns(source: str) -> LoggedColumns:
    """Return the columns of the model at `source` (of a `ResolvedModel`).

    Raises:
        NotFound: it has no MLmodel file.
        RegistryUnavailable: MLflow, or the artifact store behind it, does not answer.
    """
    from mlflow.models import get_model_info  # a second; few commands need it

    with registry_errors(f"the model {source}"):
        info = get_model_info(source)
    inputs = info.signature.inputs if info.signature is not None else None
    names = inputs.input_names() if inputs is not None and inputs.has_input_names() else []
    return LoggedColumns(tuple(map(str, names)), _answers(info.flavors.get(FLAVOR)))


def _answers(section: Mapping[str, Any] | None) -> tuple[str, ...] | None:
    if section is None:
        return None
    prediction = tuple(section.get("prediction") or ())
    outputs: Sequence[Mapping[str, Any]] = section.get("outputs") or ()
    return tuple(
        PREDICTION if prediction == (one["name"],) and len(one["shape"]) == 1 else OUTPUT_PREFIX + one["name"]
        for one in outputs
    )
