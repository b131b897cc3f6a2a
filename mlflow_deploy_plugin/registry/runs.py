"""MLflow runs that a report is logged to: begun, filled and ended in one way, whatever was judged."""

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlflow_deploy_plugin.registry.connection import no_request_timeout, registry_client, registry_errors

if TYPE_CHECKING:
    from mlflow import MlflowClient

_PROJECT_RUN = "MLFLOW_RUN_ID"  # MLflow sets it for the process of a project
_MOST_METRICS = 1000  # MLflow's bound of one call


@dataclass(frozen=True)
class LoggedRun:
    """The run in MLflow; `url` is empty where the tracking server has no pages (a database URI)."""

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
    """Logs to the run of the MLflow project that this process belongs to (`mlflow run . -e …`), else to a new one.

    Args:
        what: names the run in the message of an error.
        experiment_id: of a new run; asked only for one.
        log_content: is given the run's id; where it fails, a new run ends as FAILED.

    Raises:
        RegistryUnavailable: MLflow does not answer.
    """
    client = registry_client()
    with registry_errors(what), no_request_timeout():
        run_id, is_new = _begin(client, name, tags, experiment_id)
        is_complete = False
        try:
            log_content(client, run_id)
            is_complete = True
        finally:
            if is_new:
                client.set_terminated(run_id, "FINISHED" if is_complete else "FAILED")
        return logged_run(client, run_id)


def logged_run(client: "MlflowClient", run_id: str) -> LoggedRun:
    experiment = client.get_experiment(client.get_run(run_id).info.experiment_id)
    return LoggedRun(run_id, experiment.name, _url(experiment.experiment_id, run_id))


def get_or_create_experiment(client: "MlflowClient", name: str) -> str:
    """The id of the experiment, which is made, or brought back, where needed."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name))
        except MlflowException:  # another process made it in between
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
    """Logs names and values as metrics of the run, and of the model where this tracking server has it.

    Args:
        at_ms: the time that they hold for, in milliseconds since 1970; default: now.
        step: of values of one name and time, MLflow takes that of the last step for the metric's.
    """
    from mlflow.entities import LoggedModelInput, Metric
    from mlflow.utils.time import get_current_time_millis

    known = _known_model(client, model_id)
    time = get_current_time_millis() if at_ms is None else at_ms
    metrics = [Metric(key, value, time, step, model_id=known) for key, value in figures]
    for start in range(0, len(metrics), _MOST_METRICS):
        client.log_batch(run_id, metrics=metrics[start : start + _MOST_METRICS])
    if known is not None:
        client.log_inputs(run_id, models=[LoggedModelInput(known)])


def tag_run(client: "MlflowClient", run_id: str, tags: Mapping[str, str]) -> None:
    """Unlike `set_tag`, this call does not fail in MLflow 3.17 where two set the same tag at the same time."""
    from mlflow.entities import RunTag

    client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])


def project_run_id() -> str | None:
    """The run of the MLflow project that this process belongs to."""
    return os.environ.get(_PROJECT_RUN) or None


def _begin(
    client: "MlflowClient", name: str, tags: Mapping[str, str], experiment_id: "Callable[[MlflowClient], str]"
) -> tuple[str, bool]:
    """The run to log to, with its tags, and whether it was made here."""
    if run_id := project_run_id():
        tag_run(client, run_id, tags)
        return run_id, False
    run = client.create_run(experiment_id(client), run_name=name, tags=dict(tags))
    return str(run.info.run_id), True


def _known_model(client: "MlflowClient", model_id: str) -> str | None:
    """The model's id where this tracking server has it; a model may come from another one."""
    from mlflow.exceptions import MlflowException

    try:
        return str(client.get_logged_model(model_id).model_id) if model_id else None
    except MlflowException:
        return None


def _url(experiment_id: str, run_id: str) -> str:
    from mlflow.tracking import get_tracking_uri

    uri = str(get_tracking_uri()).rstrip("/")
    return f"{uri}/#/experiments/{experiment_id}/runs/{run_id}" if uri.startswith(("http://", "https://")) else ""
