"""Trained models → ONNX: one module for each framework, chosen by the table in `converters.py`.

Each module has `read_batch(model, data) -> ModelInput`, which returns the user's rows as the model takes them, and
`forms(model, batch, predict_fn, dynamic_axes) -> Forms`. A converter of another distribution (docs/extend.md) may
import the names below.
"""

from mlflow_deploy_plugin.flavor.convert.converted import ConvertedModel, DynamicAxes, bind_graph
from mlflow_deploy_plugin.flavor.convert.converters import Converter

__all__ = ["ConvertedModel", "Converter", "DynamicAxes", "bind_graph"]
