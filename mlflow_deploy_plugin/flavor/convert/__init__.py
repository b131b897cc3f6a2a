"""Convert trained models to ONNX, with one module per framework. `converters.py` selects the module.

Each module has `read_batch(model, data) -> ModelInput`, which converts the user's rows to the model's input, and
`forms(model, batch, predict_fn, dynamic_axes) -> Forms`. Converters in other distributions (docs/extend.md) may import
the names below.
"""

from mlflow_deploy_plugin.flavor.convert.converted import ConvertedModel, DynamicAxes, bind_graph
from mlflow_deploy_plugin.flavor.convert.converters import Converter

__all__ = ["ConvertedModel", "Converter", "DynamicAxes", "bind_graph"]
