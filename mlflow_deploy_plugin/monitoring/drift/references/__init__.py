"""What a window is compared with: the reference, as frozen bins and the sketches of its own contiguous windows."""

from mlflow_deploy_plugin.monitoring.drift.references.load import load_reference, load_segment_references
from mlflow_deploy_plugin.monitoring.drift.references.windows import DriftReference

__all__ = ["DriftReference", "load_reference", "load_segment_references"]
