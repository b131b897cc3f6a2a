"""CONTROL: the `mlflow.deployments` plugin. `client.py` translates, `lifecycle.py` decides, `backends/` act.

Other rooms import from here. A name's module is loaded when the name is imported: SQLAlchemy, pandas and pyarrow take
seconds that most callers need not wait for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow_deploy_plugin.deployments.backends import DeploymentState, Observation
    from mlflow_deploy_plugin.deployments.backends.local import state_dir
    from mlflow_deploy_plugin.deployments.batch_prediction import (
        Predictor,
        RowBatch,
        RowFile,
        model_predictor,
        predict_batch,
        read_rows,
        server_predictor,
    )
    from mlflow_deploy_plugin.deployments.description import describe_endpoint, describe_endpoints, summarize_endpoints
    from mlflow_deploy_plugin.deployments.endpoints import AuditContext, ObservedEndpoint
    from mlflow_deploy_plugin.deployments.feedback import LabelTarget, check_key_columns, import_labels, label_target
    from mlflow_deploy_plugin.deployments.lifecycle import (
        Deployment,
        Deployments,
        open_deployments,
        rollout_traffic_refusal,
    )
    from mlflow_deploy_plugin.deployments.monitor_checks import check_project
    from mlflow_deploy_plugin.deployments.scoring import scoring_target
    from mlflow_deploy_plugin.deployments.server_client import ServerSession

__all__ = [
    "AuditContext",
    "Deployment",
    "DeploymentState",
    "Deployments",
    "LabelTarget",
    "Observation",
    "ObservedEndpoint",
    "Predictor",
    "RowBatch",
    "RowFile",
    "ServerSession",
    "check_key_columns",
    "check_project",
    "describe_endpoint",
    "describe_endpoints",
    "import_labels",
    "label_target",
    "model_predictor",
    "open_deployments",
    "predict_batch",
    "read_rows",
    "rollout_traffic_refusal",
    "scoring_target",
    "server_predictor",
    "state_dir",
    "summarize_endpoints",
]
_MODULES = {
    "backends": (
        "DeploymentState",
        "Observation",
    ),
    "backends.local": ("state_dir",),
    "batch_prediction": (
        "Predictor",
        "RowBatch",
        "RowFile",
        "model_predictor",
        "predict_batch",
        "read_rows",
        "server_predictor",
    ),
    "description": (
        "describe_endpoint",
        "describe_endpoints",
        "summarize_endpoints",
    ),
    "endpoints": (
        "AuditContext",
        "ObservedEndpoint",
    ),
    "feedback": (
        "LabelTarget",
        "check_key_columns",
        "import_labels",
        "label_target",
    ),
    "lifecycle": (
        "Deployment",
        "Deployments",
        "open_deployments",
        "rollout_traffic_refusal",
    ),
    "monitor_checks": ("check_project",),
    "scoring": ("scoring_target",),
    "server_client": ("ServerSession",),
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
