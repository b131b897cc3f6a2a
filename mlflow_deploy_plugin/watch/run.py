"""Judge a window by the kind of its monitor."""

from collections.abc import Callable

from mlflow_deploy_plugin.core.spec.monitors import MonitorKind
from mlflow_deploy_plugin.watch.kinds import drift, performance, service_level, shadow
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
