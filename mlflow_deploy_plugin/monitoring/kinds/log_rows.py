"""Rows of the log that a window has: the versions that answered them, and notes on rows that are left out."""

from collections.abc import Iterator, Mapping

import pyarrow as pa

from mlflow_deploy_plugin.errors import InvalidArtifact, NotFound
from mlflow_deploy_plugin.inference_log import InferenceLog, WindowRows
from mlflow_deploy_plugin.monitoring.drift.references.rows import model_folder
from mlflow_deploy_plugin.monitoring.request import WindowRequest
from mlflow_deploy_plugin.runtime import Artifact, read_artifact

ModelVersion = tuple[str, str]
"""Model and version."""
_SHOWN_FILES = 3


def count_versions(table: pa.Table) -> dict[ModelVersion, int]:
    """Return how many of the rows each version answered, the largest number first."""
    counted = table.select(["_model", "_version"]).group_by(["_model", "_version"]).aggregate([([], "count_all")])
    return most_first({(row["_model"], row["_version"]): row["count_all"] for row in counted.to_pylist()})


def most_first(counts: Mapping[ModelVersion, int]) -> dict[ModelVersion, int]:
    return dict(sorted(counts.items(), key=lambda entry: (-entry[1], entry[0])))


def version_artifact(request: WindowRequest, model: str, version: str) -> Artifact | None:
    """Return the version's own description of its outputs, or None if its files cannot be had any more.

    Raises:
        RegistryUnavailable: MLflow does not answer.
    """
    try:
        with model_folder(request.state_dir, model, version) as folder:
            return read_artifact(folder)
    except (InvalidArtifact, NotFound):
        return None


def row_notes(rows: WindowRows, log: InferenceLog) -> Iterator[str]:
    """Yield a line for each sort of rows that is left out."""
    for other, count in rows.other_versions.items():
        yield f"{count:,} rows of the window were answered by {other} and are left out"
    if rows.is_sampled:
        yield f"the window has about {rows.rows:,} rows, of which {len(rows.table):,} are judged"
    yield from unreadable_notes(log)


def unreadable_notes(log: InferenceLog) -> Iterator[str]:
    """Yield a line for each file of the log that was passed over, and one for the rest of many."""
    for path in sorted(log.unreadable)[:_SHOWN_FILES]:
        yield f"{path} cannot be read and was passed over: {log.unreadable[path]}"
    if (more := len(log.unreadable) - _SHOWN_FILES) > 0:
        yield f"{more:,} more files cannot be read and were passed over"
