"""The reference of a version, under its former name."""

from mlflow_deploy_plugin.monitoring.references.rows import ReferenceRows
from mlflow_deploy_plugin.monitoring.references.training import load_reference

__all__ = ["ReferenceRows", "load_reference"]
