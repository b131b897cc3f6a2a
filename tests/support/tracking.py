"""The MLflow store of this process, and the empty database of an MLflow store.

MLflow is imported in the functions, because its import takes seconds and most tests do
not need it.
"""

import functools
import os
from contextlib import contextmanager

DEFAULT_EXPERIMENT = "0"


def create_database(path):
    """Make an SQLite file with MLflow's tables and no rows. Tests copy it, because the
    migrations take seconds.
    """
    from mlflow import MlflowClient

    # Open only the registry's store: the tracking store would add an experiment with
    # its artifacts in this folder.
    MlflowClient("http://127.0.0.1:9", f"sqlite:///{path}").search_registered_models()


@contextmanager
def tracking_at(uri):
    """Set MLflow's tracking URI, and thereby its registry URI, to `uri`. Afterwards
    restore the URI of the environment.

    At the end, an experiment that was set in the meantime is reset: MLflow would look
    for it in every other store.

    Do not call `mlflow.set_registry_uri`: after a call, the registry URI no longer
    follows the tracking URI.
    """
    import mlflow
    from mlflow.store.db import utils
    from mlflow.tracking import fluent

    # Each store that is opened would read all of MLflow's migrations again.
    if not hasattr(utils._get_latest_schema_revision, "cache_info"):
        utils._get_latest_schema_revision = functools.cache(utils._get_latest_schema_revision)

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
        # This call resets the URI, in this process and in the environment.
        mlflow.set_tracking_uri(None)  # type: ignore[arg-type]
        if before is not None:
            os.environ["MLFLOW_TRACKING_URI"] = before


def pass_gate(model, version, state="passed", reason=""):
    """Record a verdict on the files of a version of the current registry, as `onnxserve
    gate` does.
    """
    from mlflow_deploy_plugin.core.registry.model_files import version_digest
    from mlflow_deploy_plugin.core.registry.policy import choose_policy
    from mlflow_deploy_plugin.promote.gate.recording import VerdictRecord, write_verdict
    from tests.support.stores import own_store

    files = version_digest(f"models:/{model}/{version}")
    policy = choose_policy(model).policy.digest
    record = {"state": state, "reason": reason, "files": files, "policy_digest": policy}
    with own_store() as store:
        write_verdict(
            VerdictRecord.model_validate({"model": model, "version": version, **record}), store
        )
