"""What a window is compared with: the reference, as frozen bins and the sketches of its own contiguous windows."""

from mlflow_deploy_plugin.monitoring.references.blocks import Reference
from mlflow_deploy_plugin.monitoring.references.load import load_blocks, load_segments

__all__ = ["Reference", "load_blocks", "load_segments"]
