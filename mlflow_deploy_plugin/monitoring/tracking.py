"""A drift verdict in MLflow: one run with the report, tags on the model version that lead to it."""

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from mlflow import MlflowClient

from mlflow_deploy_plugin.errors import NotFound
from mlflow_deploy_plugin.monitoring.report import DriftReport
from mlflow_deploy_plugin.monitoring.verdict import Verdict
from mlflow_deploy_plugin.monitoring.windows import Window
from mlflow_deploy_plugin.registry.runs import LoggedRun, experiment_named, log_figures, log_run
from mlflow_deploy_plugin.registry.tags import LONGEST_TAG, tag_version

VERDICT_TAG = "onnxserve.drift.{monitor}"
RUN_TAG = "onnxserve.drift.{monitor}.run"
HTML, JSON, VERDICT = "drift_report.html", "drift_report.json", "verdict.json"

_LONGEST_NAME = 200


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


def log_judgement(judgement: Judgement, report: DriftReport) -> LoggedRun:
    """Logs the run and tags the registered version with the verdict and the run.

    It is the run of the MLflow project that this process belongs to (`mlflow run . -e drift`), else a new one in the
    experiment `onnxserve/ENDPOINT`.

    Raises:
        RegistryUnavailable: MLflow does not answer.
    """

    def log_content(client: MlflowClient, run_id: str) -> None:
        log_figures(client, run_id, judgement.model_id, _metrics(judgement.verdict))
        client.log_text(run_id, report.html, HTML)
        client.log_text(run_id, report.json, JSON)
        client.log_dict(run_id, {**_described(judgement), **asdict(judgement.verdict)}, VERDICT)

    run = log_run(
        "the experiment of the drift run",
        f"{judgement.monitor} {judgement.window}",
        _tags(judgement),
        lambda client: experiment_named(client, f"onnxserve/{judgement.endpoint}"),
        log_content,
    )
    _tag_version(judgement, run.url or run.run_id)
    return run


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
        tags["onnxserve.reason"] = judgement.verdict.reason[:LONGEST_TAG]
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


def _tag_version(judgement: Judgement, run: str) -> None:
    """Where the version is registered; what was served from a folder or a run has no page to be found from."""
    if not judgement.version.isdigit():
        return
    try:
        for tag, value in ((VERDICT_TAG, judgement.verdict.state), (RUN_TAG, run)):
            tag_version(judgement.model, judgement.version, tag.format(monitor=judgement.monitor), value)
    except NotFound:
        return  # deleted since it answered: the run stands
