"""Models that are not MLflow folders: a model file, or a folder in the layout of
another server. The readers of the group `onnxserve.folders` find and adopt them.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Protocol

from mlflow_deploy_plugin.core.extensions import load_entry, registered_in

FOLDERS = "onnxserve.folders"
"""The group of readers (`FolderReader`)."""


@dataclass(frozen=True)
class ModelFile:
    """A model that is adopted: an MLmodel folder is written for it.

    Attributes:
        version: the version that its settings specify; empty if they specify none.
        runs_code: True if loading the file can run any code, as for a pickle.
        identify: a function that returns a digest of the file and its settings. It
            reads the whole file.
        always_converts: True for a file of data, which becomes ONNX without example
            rows.
        adopt: a function that writes the MLmodel folder to a path that does not exist.
            Raises InvalidArtifact if the file cannot be loaded.
    """

    version: str
    runs_code: bool
    identify: Callable[[], str]
    adopt: Callable[[Path], None]
    always_converts: bool = False


@dataclass(frozen=True)
class FoundModels:
    """The models of a folder.

    Attributes:
        models: for each endpoint, the paths of its models by their versions; the last
            version answers requests that name none.
        server: values of fields of `server` that the folder's settings specify.
    """

    models: Mapping[str, Mapping[str, Path]]
    server: Mapping[str, object] = field(default_factory=dict)


class FolderReader(Protocol):
    """A reader of model files and folders.

    Attributes:
        endings: the endings of model files, in lower case, such as .onnx.
    """

    endings: Collection[str]

    def find_models(self, path: Path) -> FoundModels | None:
        """Return the models of a folder or file; None for a folder that this reader
        does not know. Raises InvalidConfig if it cannot serve them.
        """

    def read_model(self, path: Path) -> ModelFile | None:
        """Return a model of `find_models`; None for an MLflow folder. Raises
        InvalidArtifact.
        """


@cache
def _readers() -> Sequence[FolderReader]:
    return [load_entry(entry) for entry in registered_in(FOLDERS).values()]


def is_model_file(path: Path) -> bool:
    """Return True for a file whose name ends like a model's."""
    ending = path.suffix.lower()
    return path.is_file() and any(ending in reader.endings for reader in _readers())


def find_models(path: Path) -> FoundModels | None:
    """Return the models of a folder or file that is not an MLflow folder; None if no
    reader knows it.
    """
    found = (reader.find_models(path) for reader in _readers())
    return next((models for models in found if models is not None), None)


def read_model(path: Path) -> ModelFile | None:
    """Return the model of a file or folder; None for an MLflow folder."""
    read = (reader.read_model(path) for reader in _readers())
    return next((model for model in read if model is not None), None)
