"""torch modules, converted by torch's dynamo exporter."""

import inspect
import io
import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from mlflow_deploy_plugin.errors import ConversionError, InvalidConfig
from mlflow_deploy_plugin.flavor import batch as batches
from mlflow_deploy_plugin.flavor.batch import Batch
from mlflow_deploy_plugin.flavor.convert.conversion_errors import plain_reason
from mlflow_deploy_plugin.flavor.convert.converted import ConvertedModel, OriginalModel, call_original, dtype_and_shape
from mlflow_deploy_plugin.runtime import Array, Input, Output

_EXAMPLE_ROWS = 3
"""Rows of the traced example. One row would silently fix the batch of an LSTM or Transformer at 1; with two rows the
exporter may take an inner size of 2 for the batch."""


def read_batch(model: Any, data: Any) -> Batch:
    """Return a table of numbers, or tensors by name from an array, a tuple in the order of `forward`, or a mapping."""
    if isinstance(data, pd.DataFrame):
        return data
    if isinstance(data, dict):
        return {str(name): _array(values) for name, values in data.items()}
    if isinstance(data, tuple):
        return {name: _array(values) for name, values in zip(_parameters(model), data, strict=False)}
    return {"": _array(data)}


def forms(model: Any, batch: Batch | None, predict_fn: str) -> list[Callable[[], ConvertedModel]]:
    """Return one form, the exported module.

    Raises:
        InvalidConfig: no example (its shapes and types are needed), or `predict_proba`, which a module does not have.
    """
    if batch is None:
        raise InvalidConfig("input_example: a torch module needs one, to know the shapes and types of its inputs")
    if predict_fn != "predict":
        raise InvalidConfig("pyfunc_predict_fn: a torch module has only its forward; leave it at 'predict'")
    return [partial(_export, model, batch)]


def _export(module: torch.nn.Module, batch: Batch) -> ConvertedModel:
    columns = tuple(str(name) for name in batch.columns) if isinstance(batch, pd.DataFrame) else ()
    if columns or set(batch) == {""}:
        names = [next(iter(_parameters(module)), "input")]
    else:
        names = [name for name in _parameters(module) if name in batch]
        if unknown := [name for name in batch if name not in names]:
            raise InvalidConfig(
                f"input_example: {type(module).__name__}.forward has no parameter {unknown[0]!r}; "
                f"it has {', '.join(_parameters(module))}"
            )
    # the example is repeated if it is shorter
    some = batches.take_rows(batch, np.arange(_EXAMPLE_ROWS) % batches.row_count(batch))
    answers = call_original(_original(module), some)
    with _eval_mode(module):
        proto = _to_onnx(module, _tensors(module, some), names, list(answers))
    return ConvertedModel(
        proto=proto,
        inputs=tuple(Input(value.name, *_free(value), columns) for value in proto.graph.input),
        outputs=tuple(Output(value.name, *_free(value)) for value in proto.graph.output),
        prediction=tuple(value.name for value in proto.graph.output),
        framework="torch",
        framework_version=str(torch.__version__),
        original=_original(module),
    )


def _to_onnx(module: Any, arguments: tuple[torch.Tensor, ...], names: list[str], outputs: list[str]) -> Any:
    """Return the ModelProto, its weights inline.

    Raises:
        ConversionError: the exporter refuses the module; the message has its first line.
    """
    size = torch.export.Dim("batch")
    logger = logging.getLogger("torch.onnx")
    try:
        # the exporter prints its progress, and warns of each missing optional library
        with redirect_stdout(io.StringIO()), ExitStack() as silenced:
            silenced.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.ERROR)
            program = torch.onnx.export(
                module,
                arguments,
                dynamo=True,
                dynamic_shapes=tuple({0: size} for _ in arguments),
                input_names=names,
                output_names=outputs,
                verbose=False,
            )
    except Exception as error:
        cause = error.__cause__ or error
        lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
        reason = plain_reason(lines[0]) if lines else type(error).__name__
        if any(isinstance(one, GuardOnDataDependentSymNode) for one in (cause, cause.__cause__)):
            reason = f"its forward decides by the values of its tensors; torch.where does so in a graph ({reason})"
        raise ConversionError(f"{type(module).__name__} cannot be converted to ONNX: {reason}") from error
    return program.model_proto


@contextmanager
def _eval_mode(module: torch.nn.Module) -> Iterator[None]:
    """Switch to `eval` mode, and afterwards each layer to its own mode again: some may be frozen in training."""
    modes = [(layer, layer.training) for layer in module.modules()]
    with suppress(NotImplementedError):  # a traced graph, as MLflow's format pt2 holds, has no modes but its own
        module.eval()
    try:
        yield
    finally:
        for layer, training in modes:
            layer.training = training


def _original(module: torch.nn.Module) -> OriginalModel:
    def original(batch: Batch) -> dict[str, Array]:
        with _eval_mode(module), torch.no_grad():
            answers = _by_name(module(*_tensors(module, batch)))
        return {name: answer.detach().cpu().numpy() for name, answer in answers.items()}

    return original


def _by_name(answer: Any, name: str = "") -> dict[str, torch.Tensor]:
    """Return a module's nested result by output names: `output`, `output_1`, the keys of a mapping."""
    if isinstance(answer, torch.Tensor):
        return {name or "output": answer}
    if isinstance(answer, dict):
        parts = {f"{name}.{key}" if name else str(key): part for key, part in answer.items()}
    elif isinstance(answer, list | tuple):
        parts = {f"{name or 'output'}_{position}": part for position, part in enumerate(answer)}
    elif answer is None:
        return {}
    else:
        raise ConversionError(f"the module's forward answers a {type(answer).__name__}, which is not a tensor")
    return {key: tensor for part_name, part in parts.items() for key, tensor in _by_name(part, part_name).items()}


def _tensors(module: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, ...]:
    """Return the arguments of `forward`, in its order, on the module's device."""
    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    if isinstance(batch, pd.DataFrame):
        return (torch.from_numpy(batch.to_numpy(dtype=np.float32)).to(device),)
    order = [name for name in _parameters(module) if name in batch] or list(batch)
    return tuple(torch.from_numpy(np.ascontiguousarray(batch[name])).to(device) for name in order)


def _parameters(module: torch.nn.Module) -> list[str]:
    return list(inspect.signature(module.forward).parameters)


def _free(value: Any) -> tuple[str, tuple[int, ...]]:
    """Return dtype and shape.

    Raises:
        ConversionError: the first dimension is fixed, so that only batches of one size could be answered.
    """
    dtype, shape = dtype_and_shape(value)
    if not shape or shape[0] != -1:
        raise ConversionError(
            f"{value.name!r} has the fixed shape {list(shape)}: the module must treat its first dimension as the batch"
        )
    return dtype, shape


def _array(values: Any) -> Array:
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
