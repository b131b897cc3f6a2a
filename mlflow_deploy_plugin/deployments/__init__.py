"""CONTROL: the `mlflow.deployments` plugin. `client.py` translates, `lifecycle.py` decides, `backends/` act."""

from mlflow_deploy_plugin.deployments.backends import DeploymentState, Observation
from mlflow_deploy_plugin.deployments.description import describe_endpoint, describe_endpoints, summarize_endpoints
from mlflow_deploy_plugin.deployments.endpoints import AuditContext, ObservedEndpoint
from mlflow_deploy_plugin.deployments.lifecycle import (
    Deployment,
    Deployments,
    open_deployments,
    rollout_traffic_refusal,
)
from mlflow_deploy_plugin.deployments.monitor_checks import check_project
from mlflow_deploy_plugin.deployments.server_client import ServerSession

__all__ = [
    "AuditContext",
    "Deployment",
    "DeploymentState",
    "Deployments",
    "Observation",
    "ObservedEndpoint",
    "ServerSession",
    "check_project",
    "describe_endpoint",
    "describe_endpoints",
    "open_deployments",
    "rollout_traffic_refusal",
    "summarize_endpoints",
]
