"""Monitoring: judge the rows of a window, log the report, record and send alerts.

Other rooms import from here. A name's module is loaded when the name is imported: judging brings Evidently, scipy and
pandas, which the command line and the controller do without.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow_deploy_plugin.monitoring.alerts import (
        GROUPING_DELAY,
        announce,
        record_failure,
        record_result,
        resolve_orphaned,
        send_due,
    )
    from mlflow_deploy_plugin.monitoring.drift.references.dataset import dataset_columns, load_dataset
    from mlflow_deploy_plugin.monitoring.drift.references.rows import ReferenceRows
    from mlflow_deploy_plugin.monitoring.kinds.performance import affordable_rows
    from mlflow_deploy_plugin.monitoring.request import Engine, WindowRequest
    from mlflow_deploy_plugin.monitoring.result import ALARMS, UNDECIDED, MonitorResult, to_document
    from mlflow_deploy_plugin.monitoring.run import run_monitor
    from mlflow_deploy_plugin.monitoring.spool import wait_until_shipped

__all__ = [
    "ALARMS",
    "GROUPING_DELAY",
    "UNDECIDED",
    "Engine",
    "MonitorResult",
    "ReferenceRows",
    "WindowRequest",
    "affordable_rows",
    "announce",
    "dataset_columns",
    "load_dataset",
    "record_failure",
    "record_result",
    "resolve_orphaned",
    "run_monitor",
    "send_due",
    "to_document",
    "wait_until_shipped",
]
_MODULES = {
    "alerts": ("GROUPING_DELAY", "announce", "record_failure", "record_result", "resolve_orphaned", "send_due"),
    "drift.references.dataset": ("dataset_columns", "load_dataset"),
    "drift.references.rows": ("ReferenceRows",),
    "kinds.performance": ("affordable_rows",),
    "request": ("Engine", "WindowRequest"),
    "result": ("ALARMS", "UNDECIDED", "MonitorResult", "to_document"),
    "run": ("run_monitor",),
    "spool": ("wait_until_shipped",),
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
