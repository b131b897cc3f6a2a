"""Trained models → ONNX: one module for each framework, chosen by the table in `converters.py`.

The next framework is one module with the two functions below, and one line in `converters._MODULES`:

    read_batch(model, data) -> ModelInput  returns the user's example or data as the model takes it
    forms(model, batch, predict_fn, dynamic_axes) -> Forms

A framework of your own is a `Converter` of another distribution, in the entry-point group `onnxserve.converters`
(docs/extend.md). It may import the names below.
"""

from mlflow_deploy_plugin.flavor.convert.converted import ConvertedModel, DynamicAxes, bind_graph
from mlflow_deploy_plugin.flavor.convert.converters import Converter

__all__ = ["ConvertedModel", "Converter", "DynamicAxes", "bind_graph"]
