"""The store: endpoints, audit events, rollouts, monitors, alerts, retrainings and leases, in an SQL database."""

from mlflow_deploy_plugin.store.alerts import Alert, Alerts, Silence, Silences
from mlflow_deploy_plugin.store.audit import AuditEvent, current_actor, describe_traffic
from mlflow_deploy_plugin.store.database import open_store, utc_now
from mlflow_deploy_plugin.store.endpoints import Endpoint, UnreadableEndpoint, unknown_endpoint
from mlflow_deploy_plugin.store.leases import Lease, LeaseView
from mlflow_deploy_plugin.store.monitors import MonitorNote, Monitors, MonitorState, MonitorWindow
from mlflow_deploy_plugin.store.retrainings import Retraining, Retrainings, WaitsFor
from mlflow_deploy_plugin.store.rollouts import Rollout
from mlflow_deploy_plugin.store.store import Store

__all__ = [
    "Alert",
    "Alerts",
    "AuditEvent",
    "Endpoint",
    "Lease",
    "LeaseView",
    "MonitorNote",
    "MonitorState",
    "MonitorWindow",
    "Monitors",
    "Retraining",
    "Retrainings",
    "Rollout",
    "Silence",
    "Silences",
    "Store",
    "UnreadableEndpoint",
    "WaitsFor",
    "current_actor",
    "describe_traffic",
    "open_store",
    "unknown_endpoint",
    "utc_now",
]
