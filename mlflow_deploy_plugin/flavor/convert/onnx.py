"""ONNX models and files: nothing to convert, and no original to compare with."""

from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any

import onnx

from mlflow_deploy_plugin.errors import ConversionError, InvalidConfig, one_line
from mlflow_deploy_plugin.flavor import batch as batches
from mlflow_deploy_plugin.flavor.batch import Batch
from mlflow_deploy_plugin.flavor.convert.converted import ConvertedModel, DynamicAxes, bind_graph


def read_batch(model: Any, data: Any) -> Batch:
    """Return a table, or arrays by the names of the model's inputs; the only one may have no name."""
    return batches.read_batch(data)


def forms(
    model: Any, batch: Batch | None, predict_fn: str, dynamic_axes: DynamicAxes
) -> list[Callable[[], ConvertedModel]]:
    """Return one form, a copy of the graph with its weights inline.

    Raises:
        InvalidConfig: `predict_proba` is requested; a graph does not say which output that is.
    """
    if predict_fn != "predict":
        raise InvalidConfig("pyfunc_predict_fn: an ONNX graph answers all its outputs; only 'predict' is possible")

    def load() -> ConvertedModel:
        try:
            if isinstance(model, str | PathLike):
                proto = onnx.load(str(Path(model)))  # reads external weights too
            else:
                proto = onnx.ModelProto()
                proto.CopyFrom(model)
        except Exception as error:  # noqa: BLE001 - protobuf and the file system each raise their own
            raise ConversionError(f"not a valid ONNX model: {one_line(error, 300)}") from None
        return bind_graph(proto, batch, "onnx", onnx.__version__, None)

    return [load]
