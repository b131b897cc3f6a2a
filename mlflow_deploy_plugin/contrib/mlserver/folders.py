"""Read model files, and folders in MLServer's layout: `model-settings.json` next to the
files of each model, and `settings.json` in the folder of all models.

The keys are described in https://mlserver.readthedocs.io/en/latest/reference/model-settings.html.
The names of files are those of MLServer 1.7.1 (`wellknown_filenames` of its runtimes)
and of the servers of KServe 0.21, which accept any name with the ending.
"""

import hashlib
import json
import logging
import os
import re
import shutil
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from mlflow_deploy_plugin.core.errors import (
    CommandFailed,
    InvalidArtifact,
    InvalidConfig,
    OnnxserveError,
)
from mlflow_deploy_plugin.core.messages import join_names, one_line
from mlflow_deploy_plugin.core.mlmodel import MLMODEL, hash_folder, read_mlmodel
from mlflow_deploy_plugin.core.model_code import MODEL_CODE
from mlflow_deploy_plugin.core.packages import installed_version
from mlflow_deploy_plugin.core.processes.child import run_to_end
from mlflow_deploy_plugin.core.registry.model_files import refuse_links
from mlflow_deploy_plugin.core.registry.model_folders import FolderReader, FoundModels, ModelFile
from mlflow_deploy_plugin.core.registry.model_uri import endpoint_name

_log = logging.getLogger(__name__)

METADATA = "mlserver"
"""The key in `metadata` of an MLmodel file with the document of model-settings.json."""
MODEL_SETTINGS = "model-settings.json"
SETTINGS = "settings.json"
_IMPLEMENTATION = "MLSERVER_MODEL_IMPLEMENTATION"
_NAME = "MLSERVER_MODEL_NAME"
MLFLOW = "mlserver_mlflow.MLflowRuntime"
_ADOPT = "mlflow_deploy_plugin.contrib.mlserver.adopt"
_ADOPT_SECONDS = 600.0
_MOST_BYTES = 2**20
"""The maximum size of a settings file."""
_MOST_FOLDERS = 20_000
_SNIFFED_BYTES = 2**16
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,61}")
"""The versions that become the name of a variant, which begins with v."""
_NUMBER = re.compile(r"(\d+)")
OF_SERVER = {
    "host": "host",
    "http_port": "port",
    "grpc_port": "grpc_port",
    "metrics_port": "metrics_port",
    "parallel_workers": "workers",
}
"""The keys of settings.json, and the fields of `server` that they set."""


@dataclass(frozen=True)
class Runtime:
    """The files of a runtime of MLServer.

    Attributes:
        kind: the name of the library.
        names: the names of files that MLServer looks for, in this order.
        endings: the endings of files that KServe's server of this library accepts.
        libraries: the distributions that load a file.
    """

    kind: str
    names: tuple[str, ...]
    endings: tuple[str, ...]
    libraries: tuple[str, ...] = ()

    @property
    def runs_code(self) -> bool:
        return self.kind == "sklearn"


RUNTIMES = {
    "mlserver_sklearn.SKLearnModel": Runtime(
        "sklearn",
        ("model.joblib", "model.pickle", "model.pkl"),
        (".joblib", ".pkl", ".pickle"),
        ("scikit-learn", "joblib", "numpy"),
    ),
    "mlserver_xgboost.XGBoostModel": Runtime(
        "xgboost",
        ("model.bst", "model.json", "model.ubj"),
        (".bst", ".json", ".ubj"),
        ("xgboost", "xgboost-cpu"),
    ),
    "mlserver_lightgbm.LightGBMModel": Runtime(
        "lightgbm", ("model.bst", "model.txt"), (".bst", ".txt"), ("lightgbm",)
    ),
    "mlserver_catboost.CatboostModel": Runtime(
        "catboost", ("model.cbm", "model.bin"), (".cbm",), ("catboost",)
    ),
    "onnx": Runtime("onnx", ("model.onnx",), (".onnx",)),
}
"""The runtimes by their `implementation`. MLServer itself has no runtime of ONNX."""


class _Parameters(BaseModel):
    model_config = ConfigDict(extra="allow")

    uri: str | None = None
    version: str | None = None
    content_type: str | None = None


class _ModelSettings(BaseModel):
    model_config = ConfigDict(extra="allow")

    name: str | None = None
    implementation: str | None = None
    parameters: _Parameters | None = None


@dataclass(frozen=True)
class _Settings:
    """The settings of a model, and the folder of their file."""

    folder: Path
    document: Mapping[str, Any]

    @property
    def parameters(self) -> Mapping[str, Any]:
        return self.document.get("parameters") or {}

    @property
    def version(self) -> str:
        return self.parameters.get("version") or ""

    @property
    def name(self) -> str:
        """The name of the endpoint: other characters than those of names are
        replaced.
        """
        name = self.document.get("name") or os.environ.get(_NAME) or self.folder.name
        endpoint = endpoint_name(name)
        if endpoint != name:
            _log.warning("the model %s is served as %s", one_line(repr(name), 80), endpoint)
        return endpoint

    @property
    def metadata(self) -> dict[str, Any]:
        """The document for the MLmodel file, without the path of the files."""
        document = dict(self.document)
        parameters = {name: value for name, value in self.parameters.items() if name != "uri"}
        document.pop("parameters", None)
        if parameters:
            document["parameters"] = parameters
        return document


class MlserverFolders:
    """The `FolderReader` of model files and of MLServer's layout."""

    endings: Collection[str] = frozenset(
        chain.from_iterable(runtime.endings for runtime in RUNTIMES.values())
    )

    def find_models(self, path: Path) -> FoundModels | None:
        """Return the models of a folder or file; None for an MLflow folder without
        settings. Raises InvalidConfig if there is no model, or more than one without
        settings.
        """
        if path.is_file():
            stem = path.stem if path.stem != "model" else path.absolute().parent.name
            return FoundModels({endpoint_name(stem): {"": path}})
        folders = settings_folders(path)
        if not folders and (path / MLMODEL).is_file():
            return None
        server = {OF_SERVER[key]: value for key, value in server_settings(path).items()}
        if not folders:
            try:
                _find_file(path, _named_runtime())
            except InvalidArtifact as error:
                raise InvalidConfig(f"{path}: {error.message}") from None
            name = os.environ.get(_NAME) or path.absolute().name
            return FoundModels({endpoint_name(name): {"": path}}, server)
        found = []
        for folder in folders:
            try:
                found.append(_read_settings(folder))
            except InvalidArtifact:  # The agent reports it, and serves the other models.
                place = folder.name if folder == path else folder.relative_to(path)
                found.append(_Settings(folder, {"name": str(place)}))
        # The versions are ordered with their numbers compared as numbers.
        found.sort(key=lambda found: [part.zfill(64) for part in _NUMBER.split(found.version)])
        models: dict[str, dict[str, Path]] = {}
        for settings in found:
            versions = models.setdefault(settings.name, {})
            if settings.version in versions:
                raise InvalidConfig(
                    f"{path}: {versions[settings.version].relative_to(path)} and "
                    f"{settings.folder.relative_to(path)} have the same name {settings.name!r} and "
                    f"version; set parameters.version in {MODEL_SETTINGS}"
                )
            versions[settings.version] = settings.folder
        return FoundModels(models, server)

    def read_model(self, path: Path) -> ModelFile | None:
        """Return the model of a file, or of a folder with settings or one file; None
        for an MLflow folder without settings.

        Raises InvalidArtifact if the settings or the files cannot be served.
        """
        settings = _Settings(path, {})
        implementation = _named_runtime()
        if path.is_file():
            file = path
        elif (path / MODEL_SETTINGS).is_file():
            settings = _read_settings(path)
            implementation = settings.document.get("implementation") or implementation
            file = _inside(path, settings.parameters.get("uri") or ".")
        elif (path / MLMODEL).is_file():
            return None
        else:
            file = path
        if implementation not in ("", MLFLOW, *RUNTIMES):
            known = join_names([MLFLOW, *(name for name in RUNTIMES if name != "onnx")])
            raise InvalidArtifact(
                f"the implementation {one_line(repr(implementation), 100)} is not one of {known}; "
                "a class of your own becomes steps around a model (onnxserve serve --steps FILE), "
                "or a pyfunc (mlflow.pyfunc.log_model)"
            )
        if file.is_dir() and (file / MLMODEL).is_file() and implementation in ("", MLFLOW):
            return mlflow_folder(file, settings)
        if implementation == MLFLOW:
            raise InvalidArtifact(f"{file.name}: {MLFLOW} needs a folder with an MLmodel file")
        if file.is_dir():
            file = _inside(file, str(_find_file(file, implementation).relative_to(file)))
        implementation = implementation or _runtime_of(file)
        if not implementation:
            raise InvalidArtifact(f"{file.name} is not a model of a library that is served")
        return model_file(file, implementation, settings)


MLSERVER: FolderReader = MlserverFolders()


def settings_folders(root: Path) -> list[Path]:
    """Return the folders below `root` that have model settings, without hidden ones.
    Raises InvalidConfig if there are too many folders.
    """
    found = []
    for count, (parent, folders, files) in enumerate(os.walk(root)):
        if count >= _MOST_FOLDERS:
            raise InvalidConfig(f"{root} has more than {_MOST_FOLDERS:,} folders")
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if MODEL_SETTINGS in files:
            found.append(Path(parent))
    return found


def _read_json(file: Path) -> dict[str, Any]:
    """Return the object in a settings file. Raises InvalidArtifact for any other
    file.
    """
    try:
        if not file.is_file():
            raise InvalidArtifact(f"{file.name} is not a file")
        with file.open("rb") as stream:
            text = stream.read(_MOST_BYTES + 1)
        if len(text) > _MOST_BYTES:
            raise InvalidArtifact(f"{file.name} has more than {_MOST_BYTES:,} bytes")
        document = json.loads(text)
        json.dumps(document, ensure_ascii=False).encode()  # A YAML file has no lone surrogates.
    except OSError as error:
        raise InvalidArtifact(f"{file.name} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise InvalidArtifact(f"{file.name} is not JSON: {one_line(error, 200)}") from None
    if not isinstance(document, dict):
        raise InvalidArtifact(f"{file.name} is not a JSON object")
    return document


def _read_settings(folder: Path) -> _Settings:
    """Return the model settings in a folder. Raises InvalidArtifact if they cannot be
    read, or if one of the keys that are used has another type.
    """
    document = _read_json(folder / MODEL_SETTINGS)
    try:
        _ModelSettings.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise InvalidArtifact(f"{MODEL_SETTINGS}: {place}: {one_line(first['msg'], 200)}") from None
    settings = _Settings(folder, document)
    if settings.version and not _VERSION.fullmatch(settings.version):
        raise InvalidArtifact(
            f"{MODEL_SETTINGS}: parameters.version is {settings.version[:80]!r}; at most 62 "
            "letters, digits and . _ - are expected"
        )
    return settings


def server_settings(folder: Path) -> dict[str, Any]:
    """Return the keys of a folder's settings.json that set a field of `server`
    (`OF_SERVER`). Raises InvalidConfig if it cannot be read.
    """
    file = folder / SETTINGS
    if not file.exists():
        return {}
    try:
        document = _read_json(file)
    except InvalidArtifact as error:
        raise InvalidConfig(f"{folder}: {error.message}") from None
    unused = sorted(document.keys() - OF_SERVER.keys())
    if unused:
        _log.info("these keys of %s have no effect: %s", SETTINGS, join_names(unused))
    return {key: document[key] for key in OF_SERVER if document.get(key)}


def _named_runtime() -> str:
    return os.environ.get(_IMPLEMENTATION, "")


def _inside(folder: Path, uri: str) -> Path:
    """Return the path of a file or folder in a folder. Raises InvalidArtifact if it is
    outside, also through links, or does not exist.
    """
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):", uri)
    if scheme is not None and scheme[1] != "file":
        raise InvalidArtifact(
            f"parameters.uri is {one_line(repr(uri), 100)}; a path in the folder of "
            f"{MODEL_SETTINGS} is expected"
        )
    try:
        path = (folder / uri.removeprefix("file:")).resolve(strict=True)
        is_inside = path.is_relative_to(folder.resolve())
    except (OSError, ValueError, RuntimeError):
        is_inside = False
    if not is_inside:
        raise InvalidArtifact(
            f"parameters.uri is {one_line(repr(uri), 100)}, which is not in the folder of "
            f"{MODEL_SETTINGS}: copy the files there"
        )
    return path


def _find_file(folder: Path, implementation: str = "") -> Path:
    """Return the model file in a folder. Raises InvalidArtifact unless there is one."""
    runtime = RUNTIMES.get(implementation)
    files = [file for file in sorted(folder.glob("[!.]*")) if file.is_file()]
    if runtime is None:
        files = [file for file in files if _runtime_of(file)]
    else:
        known = [folder / name for name in runtime.names if folder / name in files]
        of_runtime = [file for file in files if file.suffix.lower() in runtime.endings]
        files = known[:1] or of_runtime
    if len(files) > 1:
        raise InvalidArtifact(
            f"the folder has several models ({join_names([file.name for file in files])}): write a "
            f"{MODEL_SETTINGS} with parameters.uri, or keep one file"
        )
    if not files:
        runtimes = RUNTIMES.values() if runtime is None else [runtime]
        endings = chain.from_iterable(runtime.endings for runtime in runtimes)
        raise InvalidArtifact(
            f"the folder has no model: an MLmodel file, {MODEL_SETTINGS}, or a file with one of "
            f"the endings {join_names(sorted({*endings}))} is expected"
        )
    return files[0]


def _runtime_of(file: Path) -> str:
    """Return the implementation for a file by its ending; empty for another file. A
    text or JSON file is a model only if it begins like one, and so are the two kinds of
    .bst told apart.
    """
    ending = file.suffix.lower()
    with file.open("rb") as stream:
        start = stream.read(_SNIFFED_BYTES)
    is_lightgbm = start.startswith(b"tree")
    is_other_text = ending == ".txt" and not is_lightgbm
    is_other_json = ending == ".json" and b'"learner"' not in start
    for name, runtime in RUNTIMES.items():
        if is_other_text or is_other_json or ending not in runtime.endings:
            continue
        if ending != ".bst" or is_lightgbm == (runtime.kind == "lightgbm"):
            return name
    return ""


def mlflow_folder(folder: Path, settings: _Settings) -> ModelFile:
    """Return an MLflow folder with settings, which are added to a copy of its MLmodel
    file.
    """
    refuse_links(folder)
    metadata = {"implementation": MLFLOW, **settings.metadata}

    @cache
    def content() -> str:
        return hash_folder(folder)

    def identify() -> str:
        return _digest(content(), json.dumps(metadata))

    def adopt(target: Path) -> None:
        shutil.copytree(folder, target, symlinks=True)
        refuse_links(target)  # A link may have been added since.
        if hash_folder(target) != content():
            raise OnnxserveError(f"{folder.name} was changed while it was read")
        document = dict(read_mlmodel(target))
        document["metadata"] = {**document.get("metadata", {}), METADATA: metadata}
        (target / MLMODEL).write_text(yaml.safe_dump(document, sort_keys=False))

    return ModelFile(settings.version, runs_code=False, identify=identify, adopt=adopt)


def model_file(file: Path, implementation: str, settings: _Settings) -> ModelFile:
    """Return a file of a library, which a process loads to describe its columns."""
    runtime = RUNTIMES[implementation]
    if not file.is_file():
        raise InvalidArtifact(f"{file.name} is not a file")
    metadata = {**settings.metadata, "implementation": implementation}
    # The suffix of a file with another name, such as model.bin, is that of the library.
    name = f"model{file.suffix.lower()}"

    @cache
    def content() -> str:
        return _content_of(file)

    def identify() -> str:
        installed = [f"{library} {installed_version(library)}" for library in runtime.libraries]
        return _digest(content(), name, json.dumps(metadata), *installed)

    def adopt(target: Path) -> None:
        target.mkdir()
        copy = target / name
        shutil.copyfile(file, copy)
        if _content_of(copy) != content():
            raise OnnxserveError(f"{file.name} was changed while it was read")
        (target / MODEL_SETTINGS).write_text(json.dumps(metadata))
        if runtime.kind == "onnx":
            flavors = {"onnx": {"data": name, "onnx_version": ""}}
            document = {"flavors": flavors, "metadata": {METADATA: metadata}}
            (target / MLMODEL).write_text(yaml.safe_dump(document))
            return
        command = [sys.executable, "-B", "-m", _ADOPT, str(copy), runtime.kind]
        environment = {**os.environ, MODEL_CODE: str(runtime.runs_code).lower()}
        try:
            run_to_end(command, _ADOPT_SECONDS, environment=environment)
        except CommandFailed as error:
            reason = one_line(error.message, 400)
            raise InvalidArtifact(
                f"{file.name} cannot be loaded by {runtime.kind}: {reason}"
            ) from None

    return ModelFile(
        settings.version,
        runtime.runs_code,
        identify,
        adopt,
        always_converts=not runtime.runs_code,
    )


def _content_of(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
