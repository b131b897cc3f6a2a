"""ONNX models and files: nothing to convert, and no original to compare with."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pandas as pd

from mlflow_deploy_plugin.errors import ConversionError, InvalidConfig
from mlflow_deploy_plugin.flavor.batch import Batch
from mlflow_deploy_plugin.flavor.convert.converted import ConvertedModel, dtype_and_shape
from mlflow_deploy_plugin.runtime import Input, Output


def read_batch(model: Any, data: Any) -> Batch:
    """Return a table, tensors by name, or one tensor for a graph with one input."""
    if isinstance(data, pd.DataFrame):
        return data
    if isinstance(data, dict):
        return {str(name): np.asarray(values) for name, values in data.items()}
    return {"": np.asarray(data)}


def forms(model: Any, batch: Batch | None, predict_fn: str) -> list[Callable[[], ConvertedModel]]:
    """Return one form, the graph itself.

    Raises:
        InvalidConfig: `predict_proba` is requested; a graph does not say which output that is.
    """
    if predict_fn != "predict":
        raise InvalidConfig("pyfunc_predict_fn: an ONNX graph answers all its outputs; only 'predict' is possible")
    return [partial(_bind, model, batch)]


def _bind(model: Any, batch: Batch | None) -> ConvertedModel:
    """Return a copy of the model with its weights inline, its inputs bound to the batch.

    Raises:
        ConversionError: not an ONNX file, or a graph that breaks ONNX's rules.
    """
    try:
        if isinstance(model, str | PathLike):
            proto = onnx.load(str(Path(model)))  # reads external weights too
        else:
            proto = onnx.ModelProto()
            proto.CopyFrom(model)
        onnx.checker.check_model(proto)
    except Exception as error:  # noqa: BLE001 - protobuf, the checker and the file system each raise their own
        raise ConversionError(f"not a valid ONNX model: {' '.join(str(error).split())[:300]}") from None
    held = {initializer.name for initializer in proto.graph.initializer}
    inputs = [Input(value.name, *_known(value)) for value in proto.graph.input if value.name not in held]
    names = [entry.name for entry in inputs]
    if isinstance(batch, pd.DataFrame):  # inputs are columns by name, or all of them are stacked into the only input
        columns = tuple(str(column) for column in batch.columns)
        is_matrix = len(inputs) == 1 and (len(inputs[0].shape) != 2 or inputs[0].shape[1] in (-1, len(columns)))
        if not is_matrix and not set(names) <= set(columns):
            raise InvalidConfig(f"input_example: its columns {list(columns)} are not the graph's inputs {names}")
        inputs = [replace(one, columns=(one.name,) if one.name in columns else columns) for one in inputs]
    elif batch is not None and set(batch) != set(names) and not (set(batch) == {""} and len(names) == 1):
        tensors, expected = sorted(batch), sorted(names)
        raise InvalidConfig(f"input_example: its tensors {tensors} are not the graph's inputs {expected}")
    outputs = tuple(Output(value.name, *_known(value)) for value in proto.graph.output)
    return ConvertedModel(
        proto=proto,
        inputs=tuple(inputs),
        outputs=outputs,
        prediction=tuple(output.name for output in outputs),
        framework="onnx",
        framework_version=onnx.__version__,
        original=None,
    )


def _known(value: Any) -> tuple[str, tuple[int, ...]]:
    dtype, shape = dtype_and_shape(value)
    if not dtype:
        raise ConversionError(f"the graph's {value.name!r} is of a type that cannot be served")
    return dtype, shape
