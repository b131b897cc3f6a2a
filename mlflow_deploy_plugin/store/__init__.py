"""What onnxserve remembers: the endpoints that were asked for, and who changed what."""

from mlflow_deploy_plugin.store.database import open_store
from mlflow_deploy_plugin.store.store import AuditEvent, Endpoint, Store

__all__ = ["AuditEvent", "Endpoint", "Store", "open_store"]
