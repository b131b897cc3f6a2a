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
    "STORE_LEASE": "leadership",
    "LeaseKeeper": "leadership",
    "controller_name": "leadership",
    "process_name": "leadership",
    "rollouts_lease_name": "locality",
    "start_metrics_server": "metrics",
    "EvaluatedWindow": "monitors.evaluation",
    "judge_and_log": "monitors.evaluation",
    "run_files": "monitors.file_drift",
    "backfill": "monitors.manual_runs",
    "find_monitor": "monitors.manual_runs",
    "run_due": "monitors.manual_runs",
    "run_window": "monitors.manual_runs",
    "MonitorOverview": "monitors.overview",
    "overviews": "monitors.overview",
    "retraining_summary": "retraining.plan",
    "RetrainingRunner": "retraining.runner",
    "request_retraining": "retraining.trigger",
    "retrain_on_alarm": "retraining.trigger",
    "RolloutActions": "rollouts.actions",
    "command_rollout": "rollouts.commands",
    "controller_status": "rollouts.commands",
    "describe_rollout": "rollouts.commands",
    "last_rollout": "rollouts.commands",
    "require_controller": "rollouts.commands",
    "stall_reason": "rollouts.commands",
    "RolloutController": "rollouts.controller",
    "rollback": "rollouts.rollback",
    "rollback_refusal": "rollouts.rollback",
    "RolloutRequest": "rollouts.start",
    "start_rollout": "rollouts.start",
    "rollout_summary": "rollouts.state_machine",
    "retraining_context": "service",
    "run_controller": "service",
}
"""The module of each name, below this package."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
