"""What onnxserve remembers: the endpoints that were asked for, who changed what, and the rollouts under way."""

from mlflow_deploy_plugin.store.audit import AuditEvent, current_actor, describe_traffic
from mlflow_deploy_plugin.store.database import open_store
from mlflow_deploy_plugin.store.endpoints import Endpoint, UnreadableEndpoint, unknown_endpoint
from mlflow_deploy_plugin.store.leases import Lease, LeaseView
from mlflow_deploy_plugin.store.rollouts import Rollout
from mlflow_deploy_plugin.store.store import Store

__all__ = [
    "AuditEvent",
    "Endpoint",
    "Lease",
    "LeaseView",
    "Rollout",
    "Store",
    "UnreadableEndpoint",
    "current_actor",
    "describe_traffic",
    "open_store",
    "unknown_endpoint",
]
