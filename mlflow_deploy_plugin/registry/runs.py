"""Logging to an MLflow run: the project's run or a new one, its tags, and metrics in batches."""

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlflow_deploy_plugin.registry.connection import no_request_timeout, registry_client, registry_errors

if TYPE_CHECKING:
    from mlflow import MlflowClient

_PROJECT_RUN = "MLFLOW_RUN_ID"  # MLflow sets it for the process of a project
_MAX_METRICS = 1000  # MLflow's limit for one call


@dataclass(frozen=True)
class LoggedRun:
    """A run in MLflow; `url` is empty if the tracking server has no pages (a database URI)."""

    run_id: str
    experiment: str
    url: str


def log_run(
    what: str,
    name: str,
    tags: Mapping[str, str],
    experiment_id: "Callable[[MlflowClient], str]",
    log_content: "Callable[[MlflowClient, str], None]",
) -> LoggedRun:
    """Log to the run of the MLflow project that this process belongs to (`mlflow run . -e …`), else to a new one.

    Args:
        what: the run, for the message of an error.
        experiment_id: returns the experiment of a new run; called only for one.
        log_content: a function of the client and the run's id. If it fails, a new run ends as FAILED.

    Raises:
        RegistryUnavailable: MLflow does not answer.
    """
    client = registry_client()
    with registry_errors(what), no_request_timeout():
        if project_run := project_run_id():
            tag_run(client, project_run, tags)
            log_content(client, project_run)
            return logged_run(client, project_run)
        run_id = str(client.create_run(experiment_id(client), run_name=name, tags=dict(tags)).info.run_id)
        is_complete = False
        try:
            log_content(client, run_id)
            is_complete = True
        finally:
            client.set_terminated(run_id, "FINISHED" if is_complete else "FAILED")
        return logged_run(client, run_id)


def logged_run(client: "MlflowClient", run_id: str) -> LoggedRun:
    from mlflow.tracking import get_tracking_uri

    experiment = client.get_experiment(client.get_run(run_id).info.experiment_id)
    uri = str(get_tracking_uri()).rstrip("/")
    has_pages = uri.startswith(("http://", "https://"))
    url = f"{uri}/#/experiments/{experiment.experiment_id}/runs/{run_id}" if has_pages else ""
    return LoggedRun(run_id, experiment.name, url)


def get_or_create_experiment(client: "MlflowClient", name: str) -> str:
    """Return the id of the experiment, which is created or restored if needed."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name))
        except MlflowException:  # another process has created it meanwhile
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return str(found.experiment_id)


def log_metrics(
    client: "MlflowClient",
    run_id: str,
    model_id: str,
    figures: Iterable[tuple[str, float]],
    at_ms: int | None = None,
    step: int = 0,
) -> None:
    """Log names and values as metrics of the run, and of the model if this tracking server has it.

    Args:
        at_ms: the time of the values in milliseconds since 1970; default: now.
        step: among values of one name and time, MLflow shows that of the last step.
    """
    from mlflow.entities import LoggedModelInput, Metric
    from mlflow.utils.time import get_current_time_millis

    known = _known_model(client, model_id)
    time = get_current_time_millis() if at_ms is None else at_ms
    metrics = [Metric(key, value, time, step, model_id=known) for key, value in figures]
    for start in range(0, len(metrics), _MAX_METRICS):
        client.log_batch(run_id, metrics=metrics[start : start + _MAX_METRICS])
    if known is not None:
        client.log_inputs(run_id, models=[LoggedModelInput(known)])


def tag_run(client: "MlflowClient", run_id: str, tags: Mapping[str, str]) -> None:
    """Set tags of a run. In MLflow 3.17 `set_tag` fails if two processes set the same tag at once; this does not."""
    from mlflow.entities import RunTag

    client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])


def project_run_id() -> str | None:
    """Return the run of the MLflow project that this process belongs to."""
    return os.environ.get(_PROJECT_RUN) or None


def _known_model(client: "MlflowClient", model_id: str) -> str | None:
    """Return the model's id if this tracking server has it; a model may come from another one."""
    from mlflow.exceptions import MlflowException

    try:
        return str(client.get_logged_model(model_id).model_id) if model_id else None
    except MlflowException:
        return None
