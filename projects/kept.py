"""What the run of a registered version has kept beside its model, so that an incremental training can go on from it."""

import tempfile
from collections.abc import Callable
from typing import TypeVar

import mlflow
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from mlflow_deploy_plugin.registry import resolve

Kept = TypeVar("Kept")


def kept_by(model_uri: str, name: str, read: Callable[[str], Kept]) -> Kept | None:
    """What `read` makes of the file; None where the run has kept none, or none that can be read here.

    Raises:
        NotFound / RegistryUnavailable: the version is not there, or MLflow does not say so.
    """
    run_id = resolve(model_uri).aspects.get("run_id", "")
    try:
        if not run_id or name not in {file.path for file in MlflowClient().list_artifacts(run_id)}:
            return None
        with tempfile.TemporaryDirectory() as folder:
            return read(mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path=name, dst_path=folder))
    except MlflowException:
        return None
    except Exception:  # noqa: BLE001 — a damaged file, or of another library: pickle raises anything
        return None
