"""Who answered the rows of a window, and what is known of each version."""

import pyarrow as pa

from mlflow_deploy_plugin.errors import InvalidArtifact, NotFound
from mlflow_deploy_plugin.monitoring.drift.references.training import model_folder
from mlflow_deploy_plugin.monitoring.request import WindowRequest
from mlflow_deploy_plugin.runtime import Artifact, read_artifact

ModelVersion = tuple[str, str]
"""Model and version."""


def count_versions(table: pa.Table) -> dict[ModelVersion, int]:
    """Of rows of the log, how many each version answered; the most first."""
    counted = table.select(["_model", "_version"]).group_by(["_model", "_version"]).aggregate([([], "count_all")])
    return most_first({(row["_model"], row["_version"]): row["count_all"] for row in counted.to_pylist()})


def most_first(counts: dict[ModelVersion, int]) -> dict[ModelVersion, int]:
    return dict(sorted(counts.items(), key=lambda entry: (-entry[1], entry[0])))


def version_artifact(request: WindowRequest, model: str, version: str) -> Artifact | None:
    """What the version's files say of its outputs; None where they cannot be had any more.

    Raises:
        RegistryUnavailable: MLflow does not answer.
    """
    try:
        with model_folder(request.state_dir, model, version) as folder:
            return read_artifact(folder)
    except (InvalidArtifact, NotFound):
        return None
