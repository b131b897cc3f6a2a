"""Judge a window, and log the result; the steps are the same for every kind of
monitor.
"""

from collections.abc import Callable

from mlflow_deploy_plugin.core.registry.runs import LoggedRun
from mlflow_deploy_plugin.core.spec.monitors import MonitorKind
from mlflow_deploy_plugin.watch.kinds import drift, performance, service_level, shadow
from mlflow_deploy_plugin.watch.reports.log import build_report, log_result
from mlflow_deploy_plugin.watch.result import MonitorResult, WindowRequest
from mlflow_deploy_plugin.wrap.evaluation.curves import require_matplotlib

KINDS: dict[MonitorKind, Callable[[WindowRequest], MonitorResult]] = {
    "drift": drift.judge,
    "performance": performance.judge,
    "shadow": shadow.judge,
    "service_level": service_level.judge,
}


def judge(request: WindowRequest) -> MonitorResult:
    """Judge the window. Problems with the rows, the reference or the labels give the
    state "not judged".

    Raises NotInstalled without matplotlib, and OnnxserveError if the log is
    unreachable.
    """
    require_matplotlib()
    return KINDS[request.spec.kind](request)


def log_report(request: WindowRequest, result: MonitorResult) -> LoggedRun:
    """Draw the report, log it to MLflow, and return its run. Raises RegistryUnavailable
    if MLflow does not answer.
    """
    request.progress("drawing the report")
    files = build_report(result, request.past)
    request.progress(f"logging the report to the experiment onnxserve/{request.endpoint}")
    return log_result(result, files)
