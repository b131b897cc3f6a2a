"""The MLflow store that this process uses, and the empty database of one.

MLflow is imported inside: it takes seconds, and most rooms' tests do without.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DEFAULT_EXPERIMENT = "0"


def create_database(path: Path) -> None:
    """Make an SQLite file with MLflow's tables and no rows, to be copied: their migrations take seconds."""
    from mlflow import MlflowClient

    # only the registry's store is opened: the tracking store would add an experiment whose files lie here
    MlflowClient("http://127.0.0.1:9", f"sqlite:///{path}").search_registered_models()


@contextmanager
def tracking_at(uri: str) -> Iterator[None]:
    """Set MLflow's tracking, and with it its registry, to `uri`; afterwards to what the environment says.

    An experiment that is set meanwhile is forgotten at the end: MLflow would look for it in every other store.

    `mlflow.set_registry_uri` is left alone: once it is called, the registry follows the tracking URI no more.
    """
    import mlflow
    from mlflow.tracking import fluent

    before = os.environ.get("MLFLOW_TRACKING_URI")
    experiment = fluent._active_experiment_id, os.environ.get("MLFLOW_EXPERIMENT_ID")
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        fluent._active_experiment_id = experiment[0]
        os.environ.pop("MLFLOW_EXPERIMENT_ID", None)
        if experiment[1] is not None:
            os.environ["MLFLOW_EXPERIMENT_ID"] = experiment[1]
        mlflow.set_tracking_uri(None)  # type: ignore[arg-type]  # forgets it, here and in the environment
        if before is not None:
            os.environ["MLFLOW_TRACKING_URI"] = before


def pass_gate(model: str, version: str) -> None:
    """Write on a version of the registry in use what a passed gate writes: the state and the digest of the files."""
    from mlflow_deploy_plugin.registry.model_files import version_digest
    from mlflow_deploy_plugin.registry.tags import GATE_DIGEST_TAG, GATE_TAG, tag_version

    tag_version(model, version, GATE_TAG, "passed")
    tag_version(model, version, GATE_DIGEST_TAG, version_digest(f"models:/{model}/{version}"))
