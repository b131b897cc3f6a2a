"""The controller runs rollouts, monitors and retrainings over time, under leases in the store.

A name is imported from its module on first use: a command that needs one part must not wait for the imports of others.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow_deploy_plugin.controller.leadership import STORE_LEASE, LeaseKeeper, controller_name, process_name
    from mlflow_deploy_plugin.controller.locality import rollouts_lease_name
    from mlflow_deploy_plugin.controller.metrics import start_metrics_server
    from mlflow_deploy_plugin.controller.monitors.evaluation import EvaluatedWindow, judge_and_log
    from mlflow_deploy_plugin.controller.monitors.file_drift import run_files
    from mlflow_deploy_plugin.controller.monitors.manual_runs import backfill, find_monitor, run_due, run_window
    from mlflow_deploy_plugin.controller.monitors.overview import MonitorOverview, overviews
    from mlflow_deploy_plugin.controller.retraining.plan import retraining_summary
    from mlflow_deploy_plugin.controller.retraining.runner import RetrainingRunner
    from mlflow_deploy_plugin.controller.retraining.trigger import request_retraining, retrain_on_alarm
    from mlflow_deploy_plugin.controller.rollouts.actions import RolloutActions
    from mlflow_deploy_plugin.controller.rollouts.commands import (
        command_rollout,
        controller_status,
        describe_rollout,
        last_rollout,
        require_controller,
        stall_reason,
    )
    from mlflow_deploy_plugin.controller.rollouts.controller import RolloutController
    from mlflow_deploy_plugin.controller.rollouts.rollback import rollback, rollback_refusal
    from mlflow_deploy_plugin.controller.rollouts.start import RolloutRequest, start_rollout
    from mlflow_deploy_plugin.controller.rollouts.state_machine import rollout_summary
    from mlflow_deploy_plugin.controller.service import retraining_context, run_controller

__all__ = [
    "STORE_LEASE",
    "EvaluatedWindow",
    "LeaseKeeper",
    "MonitorOverview",
    "RetrainingRunner",
    "RolloutActions",
    "RolloutController",
    "RolloutRequest",
    "backfill",
    "command_rollout",
    "controller_name",
    "controller_status",
    "describe_rollout",
    "find_monitor",
    "judge_and_log",
    "last_rollout",
    "overviews",
    "process_name",
    "request_retraining",
    "require_controller",
    "retrain_on_alarm",
    "retraining_context",
    "retraining_summary",
    "rollback",
    "rollback_refusal",
    "rollout_summary",
    "rollouts_lease_name",
    "run_controller",
    "run_due",
    "run_files",
    "run_window",
    "stall_reason",
    "start_metrics_server",
    "start_rollout",
]

_HOMES = {
    "leadership": ("STORE_LEASE", "LeaseKeeper", "controller_name", "process_name"),
    "locality": ("rollouts_lease_name",),
    "metrics": ("start_metrics_server",),
    "monitors.evaluation": ("EvaluatedWindow", "judge_and_log"),
    "monitors.file_drift": ("run_files",),
    "monitors.manual_runs": ("backfill", "find_monitor", "run_due", "run_window"),
    "monitors.overview": ("MonitorOverview", "overviews"),
    "retraining.plan": ("retraining_summary",),
    "retraining.runner": ("RetrainingRunner",),
    "retraining.trigger": ("request_retraining", "retrain_on_alarm"),
    "rollouts.actions": ("RolloutActions",),
    "rollouts.commands": (
        "command_rollout",
        "controller_status",
        "describe_rollout",
        "last_rollout",
        "require_controller",
        "stall_reason",
    ),
    "rollouts.controller": ("RolloutController",),
    "rollouts.rollback": ("rollback", "rollback_refusal"),
    "rollouts.start": ("RolloutRequest", "start_rollout"),
    "rollouts.state_machine": ("rollout_summary",),
    "service": ("retraining_context", "run_controller"),
}
"""The names of each module, below this package."""


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
