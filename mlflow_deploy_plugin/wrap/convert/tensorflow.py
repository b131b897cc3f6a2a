"""Convert a loaded SavedModel, a `tf.Module` or a `tf.function` with tf2onnx.

tf2onnx 1.17 turns captured eager tensors into inputs of the graph. `export` turns these
inputs into constants.
"""

import inspect
import logging
from collections.abc import Callable, Sequence

import numpy as np
import onnx
import pandas as pd
import tensorflow as tf
from onnx import ModelProto

from mlflow_deploy_plugin.core.errors import ConversionError, InvalidConfig
from mlflow_deploy_plugin.serve.runtime.feeds import Array
from mlflow_deploy_plugin.wrap.convert import converted
from mlflow_deploy_plugin.wrap.convert.batch import Batch, ModelData, ModelInput
from mlflow_deploy_plugin.wrap.convert.conversion_errors import plain_reason
from mlflow_deploy_plugin.wrap.convert.converted import (
    ConvertedModel,
    DynamicAxes,
    Forms,
    TrainedModel,
)

TensorFunction = Callable[..., Sequence[tf.Tensor]]
_OPSET = 18
_SIGNATURE = "serving_default"


def read_batch(model: TrainedModel, data: ModelData) -> ModelInput:
    """Return a table, or arrays by input name; a single array may be unnamed."""
    return Batch.read(data).data


def forms(
    model: TrainedModel, batch: ModelInput | None, predict_fn: str, dynamic_axes: DynamicAxes
) -> Forms:
    """Return one form: the graph of the signature `serving_default` or of the call.
    Raises InvalidConfig without an example or for `predict_proba`.
    """
    example = converted.require_example(batch, predict_fn, "a TensorFlow model", "signature")

    def form() -> ConvertedModel:
        """Return the graph with the free axes of the signature or, if it declares none,
        with those of the data.
        """
        specs = _specs(model)
        arrays = _arrays(specs, example)
        original = original_model(model)
        outputs = list(converted.call_original(original, example))
        unnamed_axes = dynamic_axes.get("", ())
        free_axes = {}
        for name in arrays:
            spec = specs[name]
            if spec is None or spec.shape.rank is None:  # The signature declares no shape.
                free_axes[name] = tuple(dynamic_axes.get(name, unnamed_axes))
            else:
                free_axes[name] = tuple(
                    axis for axis, size in enumerate(spec.shape) if axis and size is None
                )

        def function(*tensors: tf.Tensor) -> list[tf.Tensor]:
            answers = _call(model, dict(zip(arrays, tensors, strict=True)))
            return list(answers.values())

        if getattr(model, "signatures", None):
            display_name = "the SavedModel"
        else:
            display_name = type(model).__name__
        proto = export(function, arrays, outputs, free_axes, display_name)
        return converted.bind_graph(proto, example, "tensorflow", str(tf.__version__), original)

    return [form]


def export(
    function: TensorFunction,
    arrays: dict[str, Array],
    outputs: list[str],
    axes: DynamicAxes,
    display_name: str,
) -> ModelProto:
    """Return the ModelProto of a function of tensors. Raises ConversionError if tf2onnx
    is not installed or lacks an operation.

    Args:
        function: a function of the tensors in the order of `arrays`.
        arrays: the example by input name.
        outputs: the names of the outputs.
        axes: the free axes of each input, in addition to its first dimension.
        display_name: the name of the model in messages.
    """
    try:
        import tf2onnx  # tf2onnx is slow to import, and only in the extra `tensorflow`.
    except ModuleNotFoundError as error:
        raise ConversionError(
            f"converting a TensorFlow model needs {error.name}: pip install "
            "'mlflow-onnxserve[tensorflow]'"
        ) from None
    logging.getLogger("tf2onnx").setLevel(logging.CRITICAL)
    specs: list[tf.TensorSpec] = []
    for name, array in arrays.items():
        sizes: list[int | None] = [None, *array.shape[1:]]
        for axis in axes[name]:
            sizes[axis] = None
        dtype = tf.string if array.dtype.kind in "OU" else array.dtype
        specs.append(tf.TensorSpec(sizes, dtype, name=f"x{len(specs)}"))
    traced = tf.function(function)
    try:
        captured = {
            inner.name: outer
            for outer, inner in traced.get_concrete_function(*specs).graph.captures
        }
        proto = tf2onnx.convert.from_function(traced, specs, opset=_OPSET)[0]
        # The checker finds unsupported operations, which remain in the graph.
        onnx.checker.check_model(proto)
    except Exception as error:
        raise ConversionError(
            f"{display_name} cannot be converted to ONNX: {plain_reason(str(error))}"
        ) from error
    # The variables of the model are inputs of the graph, and become constants.
    for value in [value for value in proto.graph.input if value.name in captured]:
        proto.graph.initializer.append(
            onnx.numpy_helper.from_array(captured[value.name].numpy(), value.name)
        )
        proto.graph.input.remove(value)
    return converted.rename_values(proto, list(arrays), outputs)


def original_model(model: TrainedModel) -> converted.OriginalModel:
    """Return a function for the original's predictions by output name."""
    specs = _specs(model)

    def original(batch: ModelInput) -> dict[str, Array]:
        tensors = {name: tf.constant(array) for name, array in _arrays(specs, batch).items()}
        return {name: answer.numpy() for name, answer in _call(model, tensors).items()}

    return original


def _specs(model: TrainedModel) -> dict[str, tf.TensorSpec | None]:
    """Return the inputs by name: the `tf.TensorSpec` of the signature, or None for
    parameters of a call.
    """
    signature = getattr(model, "signatures", {}).get(_SIGNATURE)
    if signature:
        return dict(signature.structured_input_signature[1])
    call = type(model).__call__
    # A `tf.function` contains the user's Python function, which has the parameters.
    source = model if hasattr(model, "python_function") else call
    function = getattr(source, "python_function", None) or call
    return {name: None for name in inspect.signature(function).parameters if name != "self"}


def _arrays(specs: dict[str, tf.TensorSpec | None], batch: ModelInput) -> dict[str, Array]:
    """Return the arrays by input name, with the types of the signature. Raises
    InvalidConfig if an input of the signature is missing.

    An unnamed array is the first input, and so is a table without the columns of the
    inputs.
    """
    data = batch
    if isinstance(batch, pd.DataFrame) and not set(specs) <= set(batch.columns):
        data = {"": batch.to_numpy(dtype=np.float32)}
    if "" in data:
        first = next(iter(specs))
        values = data[first] if first in data else data[""]
        arrays = {first: np.asarray(values)}
    else:
        for name, spec in specs.items():
            if name not in data and spec is not None:
                raise InvalidConfig(
                    f"input_example: {name!r} is missing; the model needs {', '.join(specs)}"
                )
        arrays = {name: np.asarray(data[name]) for name in specs if name in data}
    for name, array in arrays.items():
        spec = specs[name]
        if array.dtype.kind not in "OU" and spec is not None:
            arrays[name] = array.astype(spec.dtype.as_numpy_dtype)
    return arrays


def _call(model: TrainedModel, tensors: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """Return the outputs by name: names of the signature, keys of a mapping, or
    `output`.
    """
    signature = getattr(model, "signatures", {}).get(_SIGNATURE)
    if signature:
        answer = signature(**tensors)
    else:
        answer = model(*tensors.values())
    if isinstance(answer, dict):
        return {str(name): answer[name] for name in sorted(answer)}
    if isinstance(answer, list | tuple):
        return {f"output_{position}": part for position, part in enumerate(answer)}
    return {"output": answer}
