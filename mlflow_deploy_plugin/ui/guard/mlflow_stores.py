"""The stores of MLflow's server in this process, and the files of versions and runs in
them.

A verdict covers the files of a version. All files of the version are read for each
decision, because an editor may replace a file by another one of the same size and time.
"""

import hashlib
import logging
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow.environment_variables import MLFLOW_ARTIFACT_UPLOAD_DOWNLOAD_TIMEOUT
from mlflow.exceptions import MlflowException
from mlflow.prompt.constants import IS_PROMPT_TAG_KEY
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

from mlflow_deploy_plugin.core import mlflow_private
from mlflow_deploy_plugin.core.errors import NotFound, OnnxserveError, RegistryUnavailable
from mlflow_deploy_plugin.core.messages import one_line
from mlflow_deploy_plugin.core.mlmodel import MLMODEL, combine_hashes, read_mlmodel
from mlflow_deploy_plugin.core.registry import tags
from mlflow_deploy_plugin.core.registry.model_files import is_extra_file
from mlflow_deploy_plugin.core.settings import active_workspace
from mlflow_deploy_plugin.ui.access import is_administrator, may_read

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel
    from mlflow.store.artifact.artifact_repo import ArtifactRepository
    from mlflow.store.model_registry.abstract_store import AbstractStore as Registry

_log = logging.getLogger(__name__)

_MODELS_AT_ONCE = 1000
_RECORD_BYTES = 50_000_000
"""The maximum size of a file that this process reads for a record."""
_READERS = 4
_READING_SECONDS = 100
"""The number of versions whose files this process reads at once, and the time after
which a decision no longer waits for the files of a version. MLflow's clients wait for
120 seconds.
"""
_CHUNK_BYTES = 2**20
_readers = threading.BoundedSemaphore(_READERS)
_turns: defaultdict[tuple[str, str], threading.Lock] = defaultdict(threading.Lock)
"""The turns of the readers of each model, so that an editor's large files do not occupy
all readers.
"""


def registry() -> "Registry":
    """Return MLflow's registry store, which runs in this process and needs no HTTP
    request.
    """
    return mlflow_private._get_model_registry_store()


def registered_model(name: str) -> "RegisteredModel":
    """Return the model with exactly this name.

    A database that ignores case or accents finds a model by another spelling, with
    which its policy and its events are not found. Raises MlflowException.
    """
    model = registry().get_registered_model(name)
    if model.name != name:
        raise MlflowException(
            f"there is no registered model {name!r}; the name of the model is {model.name!r}",
            RESOURCE_DOES_NOT_EXIST,
        )
    return model


def model_and_version(model: str, version: str) -> "tuple[RegisteredModel, ModelVersion]":
    return registered_model(model), registry().get_model_version(model, version)


def gated_models() -> "Iterator[RegisteredModel]":
    """Yield the models with a gate policy. A model with the tag of a prompt, which each
    editor may set, is one of them.
    """
    has_policy = f"tags.`{tags.GATE_POLICY_TAG}` ILIKE '%'"
    for query in (has_policy, f"{has_policy} AND tags.`{IS_PROMPT_TAG_KEY}` = 'true'"):
        token = None
        while True:
            page = registry().search_registered_models(query, _MODELS_AT_ONCE, page_token=token)
            yield from page
            token = page.token
            if not token:
                break


@contextmanager
def known_to_mlflow() -> Iterator[None]:
    """Raise NotFound instead of MLflow's exception within the block."""
    try:
        yield
    except MlflowException as error:
        raise NotFound(one_line(error)) from None


def read_report(run_id: str) -> bytes:
    """Return the gate report in MLflow, which people who may edit the run can replace.
    Raises NotFound if the report cannot be read.
    """
    with _reading(f"the gate report of run {run_id}"), tempfile.TemporaryDirectory() as folder:
        address = mlflow_private._get_tracking_store().get_run(run_id).info.artifact_uri
        return fetch_file(address, Path(folder), tags.GATE_REPORT_FILE).read_bytes()


def report_digest(run_id: str) -> str:
    """Return the SHA-256 of the gate report in MLflow. Raises NotFound."""
    return hashlib.sha256(read_report(run_id)).hexdigest()


class OwnStores:
    """The stores of this process with the caller's permissions, and with methods of
    MLflow's client for `record_of`.

    Only administrators may read runs, because a login does not report permissions for
    experiments.
    """

    def get_model_version(self, name: str, version: str) -> "ModelVersion":
        if not may_read(name):
            raise NotFound(f"there is no registered model {name} that you may read")
        return registry().get_model_version(name, version)

    def get_model_version_download_uri(self, name: str, version: str) -> str:
        return str(registry().get_model_version_download_uri(name, version))

    def get_run(self, run_id: str) -> "Run":
        if not is_administrator():
            raise NotFound(f"only an administrator may read the run {run_id} here")
        return mlflow_private._get_tracking_store().get_run(run_id)


def fetch_file(address: str, folder: Path, name: str) -> Path:
    """Copy the file `name` of the folder at `address` to `folder`. Raises NotFound,
    also for a large file.
    """
    with _reading(f"the file {name}"):
        store, root = artifact_store(address)
        path = f"{root}/{name}".lstrip("/")
        sizes = {entry.path: entry.file_size for entry in store.list_artifacts(root or None)}
        if (size := sizes.get(path)) is not None and size <= _RECORD_BYTES:
            return Path(store.download_artifacts(path, str(folder)))
    raise NotFound(f"the file {name} does not exist, or is larger than {_RECORD_BYTES:,} bytes")


def read_mlmodel_at(address: str) -> Mapping[str, Any]:
    """Return the MLmodel file of the version whose files are at this address. Raises
    NotFound and InvalidArtifact.
    """
    with tempfile.TemporaryDirectory(prefix="onnxserve-mlmodel-") as folder:
        return read_mlmodel(fetch_file(address, Path(folder), MLMODEL).parent)


@contextmanager
def _reading(what: str) -> Iterator[None]:
    """Raise NotFound if an artifact store, which has its own exceptions, cannot read
    `what` within the block.
    """
    try:
        yield
    except OnnxserveError:
        raise
    except Exception:  # noqa: BLE001 - It becomes an error of onnxserve.
        _log.exception("%s cannot be read", what)
        raise NotFound(f"{what} cannot be read (see the log of MLflow's server)") from None


def files_digest(model: str, version: str) -> str:
    """Return the digest of all files that a version has now. Raises NotFound if they
    cannot be read, and RegistryUnavailable if this takes too long.
    """
    seconds = MLFLOW_ARTIFACT_UPLOAD_DOWNLOAD_TIMEOUT.get() or _READING_SECONDS
    deadline = time.monotonic() + seconds
    sizes: dict[str, int] = {}
    with (
        _reading(f"version {version} of {model}"),
        suppress(TimeoutError),
        _turn(model, deadline),
    ):
        store, root = artifact_store(registry().get_model_version_download_uri(model, version))
        return _digest_of_files(store, root, sizes, deadline)
    message = (
        f"MLflow's server did not read the files of version {version} of {model} "
        f"({sum(sizes.values()):,} bytes) within {seconds} seconds, with {_READERS} versions at "
        "once: try again, or set its environment variable "
        "MLFLOW_ARTIFACT_UPLOAD_DOWNLOAD_TIMEOUT to more seconds"
    )
    _log.warning(message)
    raise RegistryUnavailable(message)


@contextmanager
def _turn(model: str, deadline: float) -> Iterator[None]:
    """Wait for the turn of a reader of this model, and for one of all readers. Raises
    TimeoutError after the `deadline`.
    """
    with ExitStack() as taken:
        for lock in (_turns[active_workspace(), model], _readers):
            if not lock.acquire(timeout=max(0, deadline - time.monotonic())):
                raise TimeoutError
            taken.callback(lock.release)
        yield


def _require_time(deadline: float) -> None:
    if time.monotonic() > deadline:
        raise TimeoutError


def _digest_of_files(
    store: "ArtifactRepository", root: str, sizes: dict[str, int], deadline: float
) -> str:
    """Return the digest of the files in `root` of the artifact store, whose sizes are
    added to `sizes`. Raises TimeoutError after the `deadline`.
    """
    folders = [root]
    while folders:
        _require_time(deadline)
        for entry in store.list_artifacts(folders.pop() or None):
            if entry.is_dir:
                folders.append(entry.path)
            elif not is_extra_file(Path(entry.path).relative_to(root)):
                sizes[entry.path] = entry.file_size
    hashes = {}
    for path in sizes:
        _require_time(deadline)
        with tempfile.TemporaryDirectory(prefix="onnxserve-guard-") as folder:
            # A local file is read in its place.
            copies_to = None if isinstance(store, LocalArtifactRepository) else folder
            file = Path(store.download_artifacts(path, copies_to))
            if not file.is_file():  # A pipe would have no end.
                raise FileNotFoundError(path)
            digest = hashlib.sha256()
            with file.open("rb") as stream:
                while chunk := stream.read(_CHUNK_BYTES):
                    digest.update(chunk)
                    _require_time(deadline)
            hashes[Path(path).relative_to(root)] = digest.hexdigest()
    if Path(MLMODEL) not in hashes:
        raise FileNotFoundError(MLMODEL)
    return combine_hashes(hashes)


def artifact_store(uri: str) -> tuple["ArtifactRepository", str]:
    """Return the artifact store of `uri` and its folder there, as MLflow's server
    resolves them.
    """
    if not mlflow_private._is_servable_proxied_run_artifact_root(uri):
        return get_artifact_repository(uri), ""
    folder = mlflow_private._get_proxied_run_artifact_destination_path(uri)
    return (
        mlflow_private._get_artifact_repo_mlflow_artifacts(),
        mlflow_private._get_workspace_scoped_repo_path_if_enabled(folder),
    )
