"""Judges a window and logs what was found: the same for every kind of monitor."""

from collections.abc import Callable
from dataclasses import dataclass

from mlflow_deploy_plugin.monitoring.kinds import data_quality, drift, performance, prediction, service_level, shadow
from mlflow_deploy_plugin.monitoring.reports import add_history, build_report, log_result, past_windows
from mlflow_deploy_plugin.monitoring.request import WindowRequest
from mlflow_deploy_plugin.monitoring.result import Judged, MonitorResult
from mlflow_deploy_plugin.registry import LoggedRun
from mlflow_deploy_plugin.spec import MonitorKind

KINDS: dict[MonitorKind, Callable[[WindowRequest], Judged]] = {
    "drift": drift.judge,
    "prediction_drift": prediction.judge,
    "data_quality": data_quality.judge,
    "performance": performance.judge,
    "shadow": shadow.judge,
    "service_level": service_level.judge,
}


@dataclass(frozen=True)
class LoggedResult:
    """What was found, and the run in MLflow that shows it."""

    result: MonitorResult
    run: LoggedRun


def run_monitor(request: WindowRequest) -> LoggedResult:
    """Judges the window and logs the run, whatever the outcome is.

    What is wrong with the rows, the reference or the labels is an outcome: "not judged", with its reason.

    Raises:
        OnnxserveError: the log is down.
        RegistryUnavailable: MLflow does not answer.
    """
    judged = KINDS[request.spec.kind](request)
    past = past_windows(judged.result)
    result = add_history(judged.result, past)
    request.progress("drawing the report")
    files = build_report(result, judged.evidence)
    request.progress(f"logging it to the experiment onnxserve/{request.endpoint}")
    return LoggedResult(result, log_result(result, files, past))
