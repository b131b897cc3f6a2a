"""Convert Keras 3 models with the exporter of their backend.

| backend    | exporter                                          |
|------------|---------------------------------------------------|
| torch      | torch's dynamo exporter, then its legacy exporter |
| tensorflow | tf2onnx (`tensorflow.py`)                         |
| jax        | jax2onnx                                          |

Keras 3.15 has an export of its own. For torch, it would trace sizes of 1; for
TensorFlow, it omits the statistics of a Normalization layer.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import keras
import numpy as np
import onnx
import pandas as pd
from onnx import ModelProto

from mlflow_deploy_plugin.core.errors import ConversionError, InvalidConfig
from mlflow_deploy_plugin.serve.runtime.feeds import Array
from mlflow_deploy_plugin.wrap.convert import converted
from mlflow_deploy_plugin.wrap.convert.batch import ModelData, ModelInput
from mlflow_deploy_plugin.wrap.convert.comparison import moved_by_roundings
from mlflow_deploy_plugin.wrap.convert.conversion_errors import plain_reason
from mlflow_deploy_plugin.wrap.convert.converted import (
    ConvertedModel,
    DynamicAxes,
    Forms,
    OriginalModel,
)

TensorFunction = Callable[..., tuple[keras.KerasTensor, ...]]
_UNNAMED = "input"
"""The name of a single input that is unnamed in the model and in the example."""


def read_batch(model: keras.Model, data: ModelData) -> ModelInput:
    """Return a numeric table, or arrays by input name (from a mapping, or a list in the
    order of the inputs).
    """
    if isinstance(data, pd.DataFrame):
        return data
    if isinstance(data, list | tuple) and len(data) == len(_inputs(model)) > 1:
        data = {tensor.name: values for tensor, values in zip(_inputs(model), data, strict=True)}
    if isinstance(data, dict):
        return {str(name): keras.ops.convert_to_numpy(values) for name, values in data.items()}
    return {"": np.asanyarray(data)}


def forms(
    model: keras.Model, batch: ModelInput | None, predict_fn: str, dynamic_axes: DynamicAxes
) -> Forms:
    """Return the forms: first with the free sizes that the inputs declare, then with
    the free sizes of the data; for torch, then both with its legacy exporter.

    Raises InvalidConfig without an example or for `predict_proba`, and ConversionError
    for a backend without an exporter.
    """
    example = converted.require_example(batch, predict_fn, "a Keras model", "predict")
    names = _names(model, example)
    varied = {name: tuple(dynamic_axes.get(name, dynamic_axes.get("", ()))) for name in names}
    declared = {}
    for (name, axes), tensor in zip(varied.items(), _inputs(model), strict=False):
        declared[name] = tuple(
            axis
            for axis, size in enumerate(tensor.shape)
            if axis and (size is None or axis in axes)
        )
    free_axes = [varied]
    if declared and declared != varied:
        free_axes = [declared, varied]
    backend = keras.backend.backend()
    if backend not in ("torch", "tensorflow", "jax"):
        raise ConversionError(f"the Keras backend {backend} has no ONNX exporter")
    exports: Forms = [partial(_export, model, example, names, axes) for axes in free_axes]
    if backend == "torch":
        exports += [
            partial(_export, model, example, names, axes, legacy=True) for axes in free_axes
        ]
    return exports


def _export(
    model: keras.Model,
    batch: ModelInput,
    names: list[str],
    axes: DynamicAxes,
    legacy: bool = False,
) -> ConvertedModel:
    """Return the graph from the exporter of the backend.

    Args:
        model: the model.
        batch: the example.
        names: the inputs of the model, in order.
        axes: the free axes of each input.
        legacy: True for torch's legacy exporter.
    """
    original = original_model(model)
    arrays = _arrays(model, batch, names)
    outputs = list(converted.call_original(original, batch))

    def function(*tensors: keras.KerasTensor) -> tuple[keras.KerasTensor, ...]:
        return _call_in_order(model, names, *tensors)

    try:
        match keras.backend.backend():  # The other backends may not be installed.
            case "torch":
                # The exporter needs a module with positional arguments.
                import torch

                from mlflow_deploy_plugin.wrap.convert.torch import export as export_module

                class Positional(torch.nn.Module):  # type: ignore[misc]
                    def __init__(self) -> None:
                        super().__init__()
                        self.model = model

                    def forward(self, *tensors: keras.KerasTensor) -> tuple[keras.KerasTensor, ...]:
                        return _call_in_order(self.model, names, *tensors)

                # The exporter's errors contain this name.
                Positional.__name__ = type(model).__name__
                proto = export_module(Positional().eval(), arrays, names, axes, original, legacy)
            case "tensorflow":
                from mlflow_deploy_plugin.wrap.convert.tensorflow import export

                proto = export(function, arrays, outputs, axes, type(model).__name__)
            case _:
                proto = _by_jax(function, arrays, outputs, axes)
    except (ConversionError, InvalidConfig):
        raise
    except Exception as error:
        reason = plain_reason(str(error)) or type(error).__name__
        raise ConversionError(
            f"{type(model).__name__} cannot be converted to ONNX: {reason}"
        ) from error
    bound = converted.bind_graph(proto, batch, "keras", str(keras.__version__), original)

    @contextmanager
    def move_weights(random: np.random.Generator) -> Iterator[None]:
        """Move each weight up or down at random by some rounding steps, and restore the
        weights on exit.
        """
        weights = model.get_weights()
        try:
            model.set_weights([moved_by_roundings(weight, random) for weight in weights])
            yield
        finally:
            model.set_weights(weights)

    return replace(bound, move_weights=move_weights)


def _call_in_order(
    model: keras.Model, names: list[str], *tensors: keras.KerasTensor
) -> tuple[keras.KerasTensor, ...]:
    """Return the outputs of the model for tensors in the order of `names`."""
    answers = _call(model, dict(zip(names, tensors, strict=True)))
    return tuple(answers.values())


def _by_jax(
    function: TensorFunction, arrays: dict[str, Array], outputs: list[str], axes: DynamicAxes
) -> ModelProto:
    """Return the graph of a function from jax2onnx, with the names of the arrays and of
    the outputs.
    """
    import jax
    import jax2onnx

    specs: list[jax.ShapeDtypeStruct] = []
    for name, array in arrays.items():
        shape = ["batch", *array.shape[1:]]
        for axis in axes[name]:
            shape[axis] = f"size_{len(specs)}_{axis}"
        dtype = jax.dtypes.canonicalize_dtype(array.dtype)
        specs.append(jax.ShapeDtypeStruct(tuple(shape), dtype))
    with TemporaryDirectory(prefix="onnxserve-") as folder:
        path = Path(folder) / "model.onnx"
        names = [f"x{position}" for position in range(len(specs))]
        jax2onnx.to_onnx(
            function, inputs=specs, input_names=names, return_mode="file", output_path=str(path)
        )
        return converted.rename_values(onnx.load(str(path)), list(arrays), outputs)


def original_model(model: keras.Model) -> OriginalModel:
    """Return a function for the original's predictions by output name."""

    def original(batch: ModelInput) -> dict[str, Array]:
        tensors = _arrays(model, batch, _names(model, batch))
        answers = _call(model, tensors)
        return {name: keras.ops.convert_to_numpy(answer) for name, answer in answers.items()}

    return original


def _inputs(model: keras.Model) -> list[keras.KerasTensor]:
    """Return the declared inputs. A subclassed model does not declare inputs."""
    return list(getattr(model, "inputs", None) or ())


def _names(model: keras.Model, batch: ModelInput) -> list[str]:
    """Return the input names in their order: the model's, or the batch's if the model
    does not declare inputs. Raises InvalidConfig if the batch has other names.
    """
    names = [tensor.name for tensor in _inputs(model)]
    is_unnamed = isinstance(batch, pd.DataFrame) or set(batch) == {""}
    if len(names) == 1 or (not names and is_unnamed):
        if not is_unnamed:
            return [str(next(iter(batch)))]
        # Keras generates names such as `keras_tensor`.
        chosen = [name for name in names if not name.startswith(("keras_tensor", "input_layer"))]
        return chosen or [_UNNAMED]
    batch_names = [str(name) for name in batch]
    if names and set(names) != set(batch_names):
        raise InvalidConfig(f"input_example: {batch_names} are not the model's inputs {names}")
    return names or batch_names


def _arrays(model: keras.Model, batch: ModelInput, names: list[str]) -> dict[str, Array]:
    """Return the arrays of a batch by input name, with the dtypes that the model
    declares.
    """
    if not isinstance(batch, pd.DataFrame):
        arrays = {name: batch[name] if name in batch else batch[""] for name in names}
    elif len(names) == 1:
        arrays = {names[0]: batch.to_numpy()}
    else:
        arrays = {name: batch[name].to_numpy()[:, np.newaxis] for name in names}
    dtypes = [tensor.dtype for tensor in _inputs(model)] or [None] * len(names)
    for name, declared in zip(names, dtypes, strict=True):
        dtype = declared
        if dtype is None and arrays[name].dtype == np.float64:
            dtype = keras.config.floatx()
        if dtype not in (None, "string"):
            arrays[name] = arrays[name].astype(dtype)
    return arrays


def _call(
    model: keras.Model, tensors: dict[str, keras.KerasTensor]
) -> dict[str, keras.KerasTensor]:
    """Return the outputs by name: keys of a mapping, the model's `output_names` if they
    are unique, or `output`.
    """
    # The tensors are passed in the structure of the model's inputs, as keywords, alone,
    # or as a mapping.
    inputs = _inputs(model)
    if inputs:
        structure = getattr(model, "input", inputs[0])
        packed = keras.tree.pack_sequence_as(structure, list(tensors.values()))
        answer = model(packed, training=False)
    elif set(tensors) <= set(inspect.signature(model.call).parameters):
        answer = model(**tensors, training=False)
    elif list(tensors) == [_UNNAMED]:
        answer = model(tensors[_UNNAMED], training=False)
    else:
        answer = model(tensors, training=False)
    if isinstance(answer, dict):
        return {str(name): part for name, part in answer.items()}
    if not isinstance(answer, list | tuple):
        return {"output": answer}
    names = getattr(model, "output_names", None) or ()
    if len({*names}) != len(answer):  # In a GRU, states and sequence have the same name.
        names = [f"output_{position}" for position in range(len(answer))]
    return dict(zip(names, answer, strict=True))
