"""The reference that a window is compared with, as frozen bins and sketches of the reference's own windows."""

from mlflow_deploy_plugin.monitoring.drift.references.load import load_reference, load_segment_references
from mlflow_deploy_plugin.monitoring.drift.references.windows import DriftReference

__all__ = ["DriftReference", "load_reference", "load_segment_references"]
