"""The files of a resolved version: downloading them from MLflow's storage, and reading
the MLmodel file.
"""

import os
import shutil
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlparse

from mlflow_deploy_plugin.core import mlflow_private
from mlflow_deploy_plugin.core.column_names import OUTPUT_PREFIX, PREDICTION
from mlflow_deploy_plugin.core.errors import (
    InvalidArtifact,
    InvalidConfig,
    NotFound,
    NotInstalled,
    RegistryUnavailable,
    SignatureRefused,
)
from mlflow_deploy_plugin.core.messages import did_you_mean
from mlflow_deploy_plugin.core.registry.connection import (
    check_address,
    harden_mlflow_client,
    ignore_warnings,
    no_request_timeout,
    redact_credentials,
    refuse_folder,
    registry_client,
    registry_errors,
    rest_client,
    store_failure,
)
from mlflow_deploy_plugin.core.registry.model_uri import parse_model_uri
from mlflow_deploy_plugin.core.settings import local_path
from mlflow_deploy_plugin.core.signatures import BUNDLE, UNSIGNED, Signature, Trust, read_bundle

if TYPE_CHECKING:
    from mlflow.models import Model
    from mlflow.store.artifact.artifact_repo import ArtifactRepository

    from mlflow_deploy_plugin.core.registry.resolution import ResolvedModel

_THROUGH_MLFLOW = ("mlflow-artifacts", "models", "runs")
_PACKAGES = {
    **dict.fromkeys(("s3", "r2", "b2"), "'mlflow-onnxserve[s3]'"),
    "gs": "google-cloud-storage",
    "wasbs": "azure-storage-blob azure-identity",
    "abfss": "azure-storage-file-datalake azure-identity",
    "sftp": "pysftp",
}
"""The packages, as pip arguments, that MLflow needs to download from a store with this
scheme.
"""


def download(source: str, destination: Path) -> Path:
    """Copy the files at `source` (of a `ResolvedModel`) into an empty folder. Return
    the folder of the MLmodel file.

    Files that are not part of a version (`is_extra_file`) are not copied.

    Raises:
        NotFound: the files of the version do not exist.
        InvalidArtifact: one of the files is a link.
        InvalidConfig: MLflow has no artifact store for the scheme, or the path has a
            segment `..`.
        NotInstalled: the artifact store needs a package that is not installed.
        RegistryUnavailable: MLflow or its artifact store does not answer, or the disk
            is full.
    """
    location = _location(source)
    folder = local_path(location)
    if folder:
        copied = destination / "model"
        if not folder.is_dir():
            raise NotFound(f"the folder {folder} of the model's files does not exist")
        refuse_links(folder)
        try:
            shutil.copytree(folder, copied, symlinks=True)
        except OSError as error:
            # `shutil.Error` has a list of errors, of which the first has the cause.
            reason = error.args[0][0][2] if isinstance(error, shutil.Error) else error.strerror
            raise RegistryUnavailable(
                f"the files in {folder} cannot be copied: {reason}",
            ) from None
    else:
        what = f"the files of {redact_credentials(source)}"
        copied = fetch(location, destination, what)
    for path in copied.rglob("*"):
        if path.is_file() and is_extra_file(path.relative_to(copied)):
            path.unlink()
    return copied


def is_extra_file(path: Path) -> bool:
    """Return True if the file is not part of a version: its signature, or a file that
    MLflow or Python writes when a model is loaded in place.
    """
    return path.parent.name == "__pycache__" or str(path) in UNSIGNED


def find_signature(source: str, trust: Trust) -> Signature:
    """Return the signature at `source` (of a `ResolvedModel`). Raises SignatureRefused
    if there is none, and the errors of `download`.
    """
    bundle = fetch_bundle(source)
    if bundle is None:
        raise SignatureRefused(
            f"it has no signature {BUNDLE}; sign it with `onnxserve sign {source} --key KEY`"
        )
    return Signature(bundle, trust)


def fetch_bundle(source: str) -> bytes | None:
    """Return the bundle of the signature at `source` (of a `ResolvedModel`); None if
    there is none. Raises the errors of `download`.
    """
    location = _location(source)
    folder = local_path(location)
    what = f"{BUNDLE} of {redact_credentials(source)}"
    with tempfile.TemporaryDirectory(prefix="onnxserve-signature-") as temporary:
        try:
            if folder is not None:
                return read_bundle(folder / BUNDLE)
            return read_bundle(fetch(f"{location}/{BUNDLE}", Path(temporary), what))
        except (NotFound, FileNotFoundError):
            return None


def copy_bundle(source: str, folder: Path) -> None:
    """Write the bundle of the signature at `source` (of a `ResolvedModel`), if there is
    one, into a folder. Raises the errors of `download`.
    """
    if (bundle := fetch_bundle(source)) is not None:
        (folder / BUNDLE).write_bytes(bundle)


def require_signed(resolved: "ResolvedModel", folder: Path, signature: Signature) -> None:
    """Check the signature of the downloaded files of a version. Raises SignatureRefused
    if it is refused, or if the files are another model than MLflow has registered.
    """
    # PyYAML is not needed by most commands.
    from mlflow_deploy_plugin.core.mlmodel import read_mlmodel

    signature.check(folder)
    registered = resolved.aspects.get("model_id")
    model_id = read_mlmodel(folder).get("model_id")
    if registered not in (None, model_id):
        raise SignatureRefused(
            f"its signed files are those of the logged model {model_id}, but MLflow has "
            f"registered {registered}"
        )


def add_file(source: str, file: Path) -> None:
    """Add a file to the files at `source` (of a `ResolvedModel`), or replace it. Raises
    the errors of `download`.
    """
    location = _location(source)
    what = f"{file.name} of {redact_credentials(source)}"
    with registry_errors(what):
        if (folder := local_path(location)) is not None:
            shutil.copy(file, folder)
            return
        if location.startswith("models:"):
            raise InvalidConfig(
                f"{what}: Unity Catalog does not change the files of a version; add the file to "
                "the logged model (models:/m-…) and register the model again",
            )
        repository, path = open_repository(location)
        repository.log_artifact(str(file), path)


def version_digest(source: str) -> str:
    """Return the digest of all files at `source` (of a `ResolvedModel`). Raises the
    errors of `download`.
    """
    # PyYAML is not needed by most commands.
    from mlflow_deploy_plugin.core.mlmodel import hash_folder

    with tempfile.TemporaryDirectory(prefix="onnxserve-digest-") as temporary:
        return hash_folder(download(source, Path(temporary)))


def fetch_mlmodel(source: str) -> "Model":
    """Return the MLmodel file at `source` (of a `ResolvedModel`). Raises the errors of
    `download`, NotFound, and InvalidArtifact.

    This function replaces MLflow's `Model.load`, which leaves a copy in TMPDIR unless
    the source is a local folder.
    """
    from mlflow.models import Model  # The import takes a second, and few commands need it.

    from mlflow_deploy_plugin.core.mlmodel import MALFORMED, read_mlmodel

    location = _location(source)
    what = f"the model {redact_credentials(source)}"
    with (
        tempfile.TemporaryDirectory(prefix="onnxserve-mlmodel-") as folder,
        registry_errors(what),
    ):
        local = local_path(location) or fetch(f"{location}/MLmodel", Path(folder), what).parent
        document = read_mlmodel(local)
        try:
            model = Model.load(str(local))
        except MALFORMED as error:
            raise InvalidArtifact(
                f"{what}: the MLmodel file cannot be understood: {error}",
            ) from None
        model.flavors = dict(document.get("flavors", {}))
        return model


def _location(source: str) -> str:
    """Return the path or the download address of the files at `source` (of a
    `ResolvedModel`).
    """
    reference = parse_model_uri(source)
    location = source
    if reference.kind == "version":
        with registry_errors(f"model {reference.name} version {reference.selector}"):
            location = str(
                registry_client().get_model_version_download_uri(
                    reference.name,
                    reference.selector,
                ),
            )
    elif reference.kind == "logged_model":
        with registry_errors(f"logged model {reference.name}"):
            location = str(
                registry_client().get_logged_model(reference.name).artifact_location,
            )
    if location != source:
        refuse_folder(location)
    return location


def refuse_links(folder: Path) -> None:
    """Raise InvalidArtifact unless the folder has only plain files. A link could expose
    any file of this machine.
    """
    for parent, folders, files in os.walk(folder):
        for name in folders + files:
            path = Path(parent, name)
            relative = path.relative_to(folder)
            if path.is_symlink() or (path.is_file() and path.lstat().st_nlink > 1):
                raise InvalidArtifact(
                    f"the model's {str(relative)!r} is a link; only plain files are allowed",
                )
            if not (path.is_file() or path.is_dir()):
                raise InvalidArtifact(
                    f"the model's {str(relative)!r} is neither a file nor a folder",
                )


def fetch(location: str, destination: Path, what: str) -> Path:
    """Download a file or folder, called `what` in messages, and return the copy.

    Raises NotFound, InvalidConfig if MLflow has no artifact store for the scheme or the
    path has a segment `..`, NotInstalled if the store needs a package, and
    RegistryUnavailable.
    """
    scheme = urlparse(location).scheme
    # Both clients would follow `..` out of the folder of a run, or of the copy.
    if scheme != "file" and ".." in unquote(location).split("/"):
        raise InvalidConfig(
            f"{what}: the path of {redact_credentials(location)} has a segment ..; remove it",
        )
    if (client := rest_client()) is not None and client.serves(location):
        with registry_errors(what), no_request_timeout:
            return client.download(location, destination)
    # The import takes a second, and a model in a local folder does not need it.
    from mlflow.store.artifact.artifact_repository_registry import (
        get_registered_artifact_repositories,
    )

    host = urlparse(redact_credentials(location)).netloc
    store = f"{scheme}://{host}" if host or scheme not in _THROUGH_MLFLOW else ""
    stores = get_registered_artifact_repositories()
    if scheme not in stores:
        hint = did_you_mean(scheme, stores, "s3, gs and other schemes are supported")
        raise InvalidConfig(f"{what}: MLflow has no artifact store for {scheme}:…{hint}")
    try:
        with warnings.catch_warnings(), no_request_timeout:
            ignore_warnings()
            destination.mkdir(parents=True, exist_ok=True)
            repository, path = open_repository(location)
            return Path(repository.download_artifacts(path, str(destination)))
    except InvalidConfig as error:
        raise InvalidConfig(f"{what}: {error.message}") from None
    except ImportError as error:
        needed = _PACKAGES.get(scheme, error.name or "another package")
        raise NotInstalled(
            f"{what} need a package that is not installed ({error.name}): pip install {needed}",
        ) from None
    except Exception as error:  # noqa: BLE001 - each artifact store (boto3, GCS, Azure, …) has its own error classes
        raise store_failure(what, store, error) from None


def open_repository(location: str) -> tuple["ArtifactRepository", str]:
    """Return MLflow's artifact store for an address, and the path of the files in this
    store.

    Raises InvalidConfig if the files must not be read (`check_address`), and MLflow's
    exceptions.
    """
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
    from mlflow.store.artifact.runs_artifact_repo import RunsArtifactRepository

    class OwnRuns(RunsArtifactRepository):  # type: ignore[misc]  # MLflow has no types
        """The files of a run, whose logged models may be at other addresses."""

        def _get_logged_model_artifact_repo(
            self,
            run_id: str,
            name: str,
        ) -> "ArtifactRepository | None":
            model = super()._get_logged_model_artifact_repo(run_id, name)
            if model is not None:
                check_address(model.repo.artifact_uri, is_of_server=True)
            return model

    harden_mlflow_client()
    root, path = mlflow_private._get_root_uri_and_artifact_path(location)
    check_address(root, is_of_server=False)
    scheme = urlparse(root).scheme
    repository = OwnRuns(root) if scheme == "runs" else get_artifact_repository(root)
    is_of_server = scheme in ("runs", "models")
    store: Any = getattr(repository, "repo", repository)
    check_address(store.artifact_uri, is_of_server)
    return repository, path


@dataclass(frozen=True)
class LoggedColumns:
    """The columns of one or several models in the inference log.

    Attributes:
        inputs: the input columns; empty if the signature has no inputs, or if the only
            tensor has no name.
        outputs: the columns `prediction` and `output.NAME`; None if the MLmodel file
            lists no outputs (other flavors).
        dtypes: the numpy dtypes of the signature's columns by name, `str` for text.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...] | None
    dtypes: Mapping[str, str] = field(default_factory=dict)

    @property
    def all(self) -> tuple[str, ...]:
        return *self.inputs, *(self.outputs or ())


def logged_columns(source: str) -> LoggedColumns:
    """Return the columns of the model at `source` (of a `ResolvedModel`). Raises the
    errors of `fetch_mlmodel`.
    """
    # PyYAML is not needed by most commands.
    from mlflow_deploy_plugin.core.mlmodel import COLUMN_TYPES, FLAVOR

    info = fetch_mlmodel(source)
    inputs = info.signature.inputs if info.signature is not None else None
    names = []
    dtypes = {}
    if inputs is not None:
        if inputs.has_input_names():
            names = inputs.input_names()
        for column in inputs.to_dict():
            if "name" in column and column["type"] in COLUMN_TYPES:
                dtypes[str(column["name"])] = COLUMN_TYPES[column["type"]]
    section = info.flavors.get(FLAVOR)
    outputs = None
    if section is not None:
        logged = []
        prediction = tuple(section.get("prediction") or ())
        for output in section.get("outputs") or ():
            if prediction == (output["name"],) and len(output["shape"]) == 1:
                logged.append(PREDICTION)
            else:
                logged.append(OUTPUT_PREFIX + output["name"])
        outputs = tuple(logged)
    return LoggedColumns(tuple(map(str, names)), outputs, dtypes)
