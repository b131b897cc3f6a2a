"""A retraining in MLflow: its run, the version that the run registered, and the version's provenance tags."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow_deploy_plugin.registry import (
    CAUSE_TAG,
    MAX_TAG_LENGTH,
    PARENT_TAG,
    TRAINING_TAG,
    get_or_create_experiment,
    no_request_timeout,
    redact_credentials,
    registry_client,
    registry_errors,
    tag_version,
)
from mlflow_deploy_plugin.store import Retraining

if TYPE_CHECKING:
    from mlflow_deploy_plugin.controller.retraining.plan import RetrainPlan

RETRAINING_TAG = "onnxserve.retraining"
HEARTBEAT_TAG = "onnxserve.heartbeat"
_PARENT_RUN = "mlflow.parentRunId"
_FOLDER = "retraining"


@dataclass(frozen=True)
class TrainingRun:
    """A run as MLflow has it.

    Attributes:
        status: RUNNING, FINISHED, FAILED, KILLED or SCHEDULED.
        alive_at: the time of the last heartbeat; None if there was none.
        has_logged_a_model: registered or not.
    """

    status: str
    alive_at: datetime | None
    has_logged_a_model: bool


def column_types(model_uri: str) -> dict[str, str]:
    """Return the columns of the model's signature with their types, as `long`; empty for tensors, or no signature.

    Raises:
        NotFound / RegistryUnavailable: the version is not there, or MLflow does not answer.
    """
    from mlflow.models import Model

    with registry_errors(model_uri), no_request_timeout():
        signature = Model.load(model_uri).signature  # `get_model_info` refuses a model of another tracking server
    if signature is None or signature.inputs is None or signature.inputs.is_tensor_spec():
        return {}
    return {str(column.name): getattr(column.type, "name", "") for column in signature.inputs.inputs}


def ensure_run(one: Retraining, plan: "RetrainPlan", attempt: int, parameters: Mapping[str, str]) -> str:
    """Return the id of the run that trains; create it if it is not there yet.

    Raises:
        RegistryUnavailable: MLflow does not answer.
    """
    from mlflow.entities import Param

    key = f"{one.id}.{attempt} {one.created_at.isoformat()}"
    with registry_errors(f"retraining {one.id}"):
        client = registry_client()
        experiment = get_or_create_experiment(client, f"onnxserve/{plan.endpoint}")
        found = client.search_runs([experiment], f"tags.`{RETRAINING_TAG}` = '{key}'", max_results=1)
        if found:
            return str(found[0].info.run_id)
        tags = {
            RETRAINING_TAG: key,
            CAUSE_TAG: str(one.cause["why"])[:MAX_TAG_LENGTH],
            "onnxserve.endpoint": plan.endpoint,
            "mlflow.source.type": "PROJECT",
            "mlflow.source.name": redact_credentials(plan.project),
            "mlflow.project.entryPoint": plan.entry_point,
            "mlflow.user": plan.actor,
        }
        if one.cause.get("run_id"):
            tags["onnxserve.cause.run_id"] = one.cause["run_id"]
        run_id = str(client.create_run(experiment, run_name=f"retraining {one.id}", tags=tags).info.run_id)
        client.log_batch(run_id, params=[Param(name, value[:5000]) for name, value in parameters.items()])
    return run_id


def log_file(run_id: str, file: Path) -> str:
    """Log the file to the run and return its URI. Raises RegistryUnavailable."""
    with registry_errors(f"run {run_id}"), no_request_timeout():
        registry_client().log_artifact(run_id, str(file), _FOLDER)
    return f"runs:/{run_id}/{_FOLDER}/{file.name}"


def get_run(run_id: str) -> TrainingRun:
    """Return the run as it is now. Raises NotFound, RegistryUnavailable."""
    with registry_errors(f"run {run_id}"):
        run = registry_client().get_run(run_id)
    heartbeat = run.data.tags.get(HEARTBEAT_TAG)
    has_logged = bool(run.outputs and run.outputs.model_outputs)
    return TrainingRun(str(run.info.status), datetime.fromisoformat(heartbeat) if heartbeat else None, has_logged)


def write_heartbeat(run_id: str, now: datetime) -> None:
    """Write a heartbeat to the run: its training is alive. Raises as `get_run`."""
    with registry_errors(f"run {run_id}"):
        registry_client().set_tag(run_id, HEARTBEAT_TAG, now.isoformat())


def end_run(run_id: str, state: str) -> None:
    """End the run, unless it has ended. Raises as `get_run`."""
    if get_run(run_id).status in ("RUNNING", "SCHEDULED"):
        with registry_errors(f"run {run_id}"):
            registry_client().set_terminated(run_id, state)


def registered_version(model: str, run_id: str) -> str:
    """Return the newest version of the model that the run, or a run nested in it, has registered; empty if none.

    Raises:
        NotFound / RegistryUnavailable: the run is gone, or MLflow does not answer.
    """
    with registry_errors(f"model {model}"):
        client = registry_client()
        found = [one for one in client.search_model_versions(f"run_id = '{run_id}'") if one.name == model]
        if not found:
            experiment = client.get_run(run_id).info.experiment_id
            nested = {one.info.run_id for one in client.search_runs([experiment], f"tags.{_PARENT_RUN} = '{run_id}'")}
            versions = client.search_model_versions(f"name = '{model}'") if nested else []
            found = [one for one in versions if one.run_id in nested]
    return max((str(one.version) for one in found), key=int, default="")


def tag_provenance(one: Retraining, plan: "RetrainPlan", version: str) -> None:
    """Tag the version with its cause, parent and kind of training. Tags that the project has set stay.

    Raises as `tag_version`.
    """
    with registry_errors(f"model {plan.model} version {version}"):
        known = registry_client().get_model_version(plan.model, version).tags
    tags = {CAUSE_TAG: str(one.cause["why"]), PARENT_TAG: plan.base_uri, TRAINING_TAG: plan.mode}
    for key, value in tags.items():
        if key not in known:
            tag_version(plan.model, version, key, value)
