"""Judge a window and log the result; the steps are the same for every kind of
monitor.
"""

from collections.abc import Callable
from dataclasses import replace

from mlflow_deploy_plugin.core.spec.monitors import MonitorKind
from mlflow_deploy_plugin.watch.kinds import drift, performance, service_level, shadow
from mlflow_deploy_plugin.watch.reports.log import build_report, log_result
from mlflow_deploy_plugin.watch.result import MonitorResult, ReportData, WindowRequest
from mlflow_deploy_plugin.wrap.evaluation.curves import require_matplotlib

KINDS: dict[MonitorKind, Callable[[WindowRequest], MonitorResult]] = {
    "drift": drift.judge,
    "performance": performance.judge,
    "shadow": shadow.judge,
    "service_level": service_level.judge,
}


def run_monitor(request: WindowRequest, log_rows: int = 0) -> MonitorResult:
    """Judge the window, log the result, and return the result with its MLflow run.
    Problems with the rows, the reference or the labels give the state "not judged".
    `log_rows` is as in `MonitorResult`.

    Raises NotInstalled without matplotlib, OnnxserveError if the log is unreachable,
    and RegistryUnavailable if MLflow does not answer.
    """
    require_matplotlib()
    result = KINDS[request.spec.kind](request)
    request.progress("drawing the report")
    files = build_report(result, request.past)
    request.progress(f"logging the report to the experiment onnxserve/{request.endpoint}")
    return replace(
        result,
        report=ReportData(),
        log_rows=log_rows,
        run=log_result(result, files),
    )
