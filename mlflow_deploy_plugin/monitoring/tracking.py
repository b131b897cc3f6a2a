"""A drift verdict in MLflow: one run with the report, tags on the model version that lead to it."""

import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import LoggedModelInput, Metric, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import get_tracking_uri
from mlflow.utils.time import get_current_time_millis

from mlflow_deploy_plugin.errors import NotFound
from mlflow_deploy_plugin.monitoring.report import DriftReport
from mlflow_deploy_plugin.monitoring.verdict import Verdict
from mlflow_deploy_plugin.monitoring.windows import Window
from mlflow_deploy_plugin.registry.connection import patience_for_files, registry_errors
from mlflow_deploy_plugin.registry.tags import tag_version

VERDICT_TAG = "onnxserve.drift.{monitor}"
RUN_TAG = "onnxserve.drift.{monitor}.run"
HTML, JSON, VERDICT = "drift_report.html", "drift_report.json", "verdict.json"

_PROJECT_RUN = "MLFLOW_RUN_ID"  # MLflow sets it for the process of a project
_LONGEST_NAME = 200
_LONGEST_TAG = 5000


@dataclass(frozen=True)
class Judgement:
    """What was judged, and how.

    Attributes:
        model_id: the logged model, empty where it is not known.
        notes: what the reader has to know beside the verdict.
    """

    endpoint: str
    monitor: str
    model: str
    version: str
    model_id: str
    window: Window
    verdict: Verdict
    notes: tuple[str, ...]


@dataclass(frozen=True)
class LoggedRun:
    """The run in MLflow; `url` is empty where the tracking server has no pages (a database URI)."""

    run_id: str
    experiment: str
    url: str


def log_judgement(judgement: Judgement, report: DriftReport) -> LoggedRun:
    """Logs the run and tags the registered version with the verdict and the run.

    It is the run of the MLflow project that this process belongs to (`mlflow run . -e drift`), else a new one in the
    experiment `onnxserve/ENDPOINT`.

    Raises:
        RegistryUnavailable: MLflow does not answer.
    """
    client = MlflowClient()
    with registry_errors("the experiment of the drift run"), patience_for_files():
        run_id, is_new = _begin(client, judgement)
        is_complete = False
        try:
            _log_content(client, run_id, judgement, report)
            is_complete = True
        finally:
            if is_new:
                client.set_terminated(run_id, "FINISHED" if is_complete else "FAILED")
        experiment = client.get_experiment(client.get_run(run_id).info.experiment_id)
    url = _url(experiment.experiment_id, run_id)
    _tag_version(judgement, url or run_id)
    return LoggedRun(run_id, experiment.name, url)


def _begin(client: MlflowClient, judgement: Judgement) -> tuple[str, bool]:
    """The run to log to, with its tags, and whether it was made here."""
    tags = _tags(judgement)
    if run_id := os.environ.get(_PROJECT_RUN):
        client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])
        return run_id, False
    experiment_id = _experiment_id(client, f"onnxserve/{judgement.endpoint}")
    name = f"{judgement.monitor} {judgement.window}"
    return str(client.create_run(experiment_id, run_name=name, tags=tags).info.run_id), True


def _log_content(client: MlflowClient, run_id: str, judgement: Judgement, report: DriftReport) -> None:
    verdict = judgement.verdict
    model_id = _known_model(client, judgement.model_id)
    now = get_current_time_millis()
    metrics = [Metric(key, value, now, 0, model_id=model_id) for key, value in _metrics(verdict)]
    for start in range(0, len(metrics), 1000):  # MLflow's bound of one call
        client.log_batch(run_id, metrics=metrics[start : start + 1000])
    if model_id is not None:
        client.log_inputs(run_id, models=[LoggedModelInput(model_id)])
    client.log_text(run_id, report.html, HTML)
    client.log_text(run_id, report.json, JSON)
    client.log_dict(run_id, {**_described(judgement), **asdict(verdict)}, VERDICT)


def _described(judgement: Judgement) -> dict[str, Any]:
    return {
        "endpoint": judgement.endpoint,
        "monitor": judgement.monitor,
        "model": judgement.model,
        "version": judgement.version,
        "window": {"start": judgement.window.start.isoformat(), "end": judgement.window.end.isoformat()},
        "notes": list(judgement.notes),
    }


def _tags(judgement: Judgement) -> dict[str, str]:
    tags = {
        "onnxserve.endpoint": judgement.endpoint,
        "onnxserve.monitor": judgement.monitor,
        "onnxserve.model": judgement.model,
        "onnxserve.version": judgement.version,
        "onnxserve.window.start": judgement.window.start.isoformat(),
        "onnxserve.window.end": judgement.window.end.isoformat(),
        "onnxserve.verdict": judgement.verdict.state,
    }
    if judgement.verdict.reason:
        tags["onnxserve.reason"] = judgement.verdict.reason[:_LONGEST_TAG]
    return tags


def _metrics(verdict: Verdict) -> Iterator[tuple[str, float]]:
    """Names and values; where there is no verdict, there are only the numbers of rows."""
    yield "rows", verdict.rows
    yield "reference_rows", verdict.reference_rows
    if verdict.threshold is None or verdict.statistic is None or verdict.p_value is None:
        return
    yield "is_drift", float(verdict.state == "drift")
    yield "share_of_drifted_columns", verdict.share_of_drifted_features
    yield "p_value", verdict.p_value
    yield "statistic", verdict.statistic
    yield "threshold", verdict.threshold
    yield "blocks", verdict.blocks
    yield "compared_rows", verdict.compared_rows
    yield "false_alarm_rate", verdict.false_alarm_rate
    if verdict.measured_false_alarm_rate is not None:
        yield "measured_false_alarm_rate", verdict.measured_false_alarm_rate
    taken: set[str] = set()
    for feature in verdict.features:
        name = _unique(_metric_name(feature.name), taken)
        yield f"drift_score/{name}", feature.score
        yield f"drift_distance/{name}", feature.distance


def _metric_name(column: str) -> str:
    """The column as a part of a metric's name: MLflow refuses most punctuation, and what looks like a path."""
    name = re.sub(r"[^\w.\- ]", "_", column)
    return re.sub(r"^\.+|\.+$|\.\.+", "_", name).strip()[:_LONGEST_NAME] or "_"


def _unique(name: str, taken: set[str]) -> str:
    count, unique = 1, name
    while unique in taken:
        count += 1
        unique = f"{name}_{count}"
    taken.add(unique)
    return unique


def _experiment_id(client: MlflowClient, name: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name))
        except MlflowException:  # another job made it in between
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return str(found.experiment_id)


def _known_model(client: MlflowClient, model_id: str) -> str | None:
    """The model's id where this tracking server has it; a model may come from another one."""
    try:
        return str(client.get_logged_model(model_id).model_id) if model_id else None
    except MlflowException:
        return None


def _url(experiment_id: str, run_id: str) -> str:
    uri = str(get_tracking_uri()).rstrip("/")
    return f"{uri}/#/experiments/{experiment_id}/runs/{run_id}" if uri.startswith(("http://", "https://")) else ""


def _tag_version(judgement: Judgement, run: str) -> None:
    """Where the version is registered; what was served from a folder or a run has no page to be found from."""
    if not judgement.version.isdigit():
        return
    try:
        for tag, value in ((VERDICT_TAG, judgement.verdict.state), (RUN_TAG, run)):
            tag_version(judgement.model, judgement.version, tag.format(monitor=judgement.monitor), value)
    except NotFound:
        return  # deleted since it answered: the run stands
