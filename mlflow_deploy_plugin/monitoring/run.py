"""Judges a window and logs what was found: the same for every kind of monitor."""

from collections.abc import Callable
from dataclasses import dataclass

from mlflow_deploy_plugin.monitoring.judgement import Judged, Judgement
from mlflow_deploy_plugin.monitoring.kinds import drift, performance, prediction, quality, service, shadow
from mlflow_deploy_plugin.monitoring.question import Question
from mlflow_deploy_plugin.monitoring.reports import build_report, log_judgement, past_windows, with_change
from mlflow_deploy_plugin.registry import LoggedRun
from mlflow_deploy_plugin.spec import MonitorKind

KINDS: dict[MonitorKind, Callable[[Question], Judged]] = {
    "drift": drift.judge,
    "prediction_drift": prediction.judge,
    "data_quality": quality.judge,
    "performance": performance.judge,
    "shadow": shadow.judge,
    "service_level": service.judge,
}


@dataclass(frozen=True)
class MonitorResult:
    """What was found, and the run in MLflow that shows it."""

    judgement: Judgement
    run: LoggedRun


def run_monitor(question: Question) -> MonitorResult:
    """Judges the window and logs the run, whatever the outcome is.

    What is wrong with the rows, the reference or the labels is an outcome: "not judged", with its reason.

    Raises:
        OnnxserveError: the log is down.
        RegistryUnavailable: MLflow does not answer.
    """
    judged = KINDS[question.spec.kind](question)
    past = past_windows(judged.judgement)
    judgement = with_change(judged.judgement, past)
    question.progress("drawing the report")
    files = build_report(judgement, judged.evidence)
    question.progress(f"logging it to the experiment onnxserve/{question.endpoint}")
    return MonitorResult(judgement, log_judgement(judgement, files, past))
