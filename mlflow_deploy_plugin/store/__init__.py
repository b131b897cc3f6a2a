"""What onnxserve remembers: the endpoints that were asked for, who changed what, and the rollouts under way."""

from mlflow_deploy_plugin.store.audit import AuditEvent, this_actor, traffic_of
from mlflow_deploy_plugin.store.database import open_store
from mlflow_deploy_plugin.store.endpoints import Endpoint, UnreadableEndpoint, no_endpoint
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
    "no_endpoint",
    "open_store",
    "this_actor",
    "traffic_of",
]
