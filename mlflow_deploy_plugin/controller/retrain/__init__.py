"""What an alarm starts: a run of the model's project, a candidate, its gate, and the way it goes into service."""

from mlflow_deploy_plugin.deployments.lifecycle import Deployments
from mlflow_deploy_plugin.monitoring.judgement import Judgement
from mlflow_deploy_plugin.registry.runs import LoggedRun
from mlflow_deploy_plugin.spec import MonitorSpec

__all__ = ["advance", "consider"]


def consider(deployments: Deployments, judgement: Judgement, run: LoggedRun, spec: MonitorSpec) -> None:
    """Writes a retraining down where the judgement is an alarm and its monitor's spec asks for one."""


def advance(deployments: Deployments, actor: str) -> None:
    """Takes every retraining that has not ended one step further; never waits for one."""
