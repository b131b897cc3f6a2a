"""The package `mlflow_deploy_plugin` by the name of the product: `import onnxserve`."""

import sys
from typing import TYPE_CHECKING

import mlflow_deploy_plugin

if TYPE_CHECKING:
    from mlflow_deploy_plugin import *  # noqa: F403
    from mlflow_deploy_plugin import __all__ as __all__

sys.modules[__name__] = mlflow_deploy_plugin  # Its names are imported on first use.
