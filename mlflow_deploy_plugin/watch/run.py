"""Judge a window and log the result; the steps are the same for every kind of monitor."""

from collections.abc import Callable
from dataclasses import replace

from mlflow_deploy_plugin.core.messages import one_line
from mlflow_deploy_plugin.core.registry.runs import LoggedRun
from mlflow_deploy_plugin.core.spec.monitors import MonitorKind
from mlflow_deploy_plugin.watch.kinds import drift, performance, service_level, shadow
from mlflow_deploy_plugin.watch.reports.history import add_history
from mlflow_deploy_plugin.watch.reports.log import build_report, log_result, past_windows
from mlflow_deploy_plugin.watch.result import MonitorResult, ReportData, WindowRequest
from mlflow_deploy_plugin.wrap.evaluation.curves import require_matplotlib

KINDS: dict[MonitorKind, Callable[[WindowRequest], MonitorResult]] = {
    "drift": drift.judge,
    "prediction_drift": drift.judge_predictions,
    "data_quality": drift.judge_quality,
    "performance": performance.judge,
    "shadow": shadow.judge,
    "service_level": service_level.judge,
}


def run_monitor(request: WindowRequest) -> tuple[MonitorResult, LoggedRun]:
    """Judge the window, log the result, and return the result and its MLflow run. Problems with the rows, the reference
    or the labels give the state "not judged". Raises NotInstalled without matplotlib, OnnxserveError if the log is
    unreachable, and RegistryUnavailable if MLflow does not answer."""
    require_matplotlib()
    judged = KINDS[request.spec.kind](request)
    judged_result = replace(judged, reason=one_line(judged.reason), notes=tuple(map(one_line, judged.notes)))
    past = past_windows(judged_result)
    result = add_history(judged_result, past)
    request.progress("drawing the report")
    files = build_report(result, past)
    request.progress(f"logging the report to the experiment onnxserve/{request.endpoint}")
    return replace(result, report=ReportData()), log_result(result, files)
