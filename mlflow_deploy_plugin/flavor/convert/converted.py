"""A converted model, as every framework's module returns it, and the inputs and outputs of a graph."""

import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
import onnx
import pandas as pd
from onnx import GraphProto, ModelProto, TensorProto, TypeProto, ValueInfoProto, helper, numpy_helper

from mlflow_deploy_plugin.errors import ConversionError, InvalidConfig, OnnxserveError
from mlflow_deploy_plugin.flavor.batch import Batch, ModelInput
from mlflow_deploy_plugin.flavor.onnx_file import check_graph
from mlflow_deploy_plugin.messages import one_line
from mlflow_deploy_plugin.runtime import Input, Output
from mlflow_deploy_plugin.runtime.feeds import Array
from mlflow_deploy_plugin.runtime.refusals import REFUSED_ROWS

TrainedModel: TypeAlias = Any
"""A trained model of any framework: the frameworks have no base class in common, and most have no types."""

Category: TypeAlias = str | int | float | bool | None
"""A category that a model has learned, or a missing one."""

OriginalModel = Callable[[ModelInput], dict[str, Array]]
"""A function that returns the original model's predictions for a batch, by ONNX output name; its errors are its own."""

DynamicAxes = Mapping[str, tuple[int, ...]]
"""The axes of each tensor, except axis 0, whose size differs between requests: lengths of texts, image sizes."""


_FATAL_IF_EMPTY = ("LSTM", "GRU")
_AS_EMPTY = ("Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
"""Operators whose output is empty only if their input is."""
MAX_VALUES = 1_000
"""The most edges, categories and terms of a column, and learned rows, evenly spread over all."""


@dataclass(frozen=True)
class BoundaryValues:
    """The inputs at which a fitted model may change its prediction, by signature column, or by position in a matrix.

    Attributes:
        edges: thresholds and edges of bins, [T] float64.
        rows: sets of learned rows (neighbours, centres, support vectors), each as [K] by column.
        left_out: the error of each step that could not be read, by its name.
    """

    edges: Mapping[str, Array] = field(default_factory=dict)
    categories: Mapping[str, tuple[Category, ...]] = field(default_factory=dict)
    texts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    rows: tuple[Mapping[str, Array], ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ConvertedModel:
    """A model's ONNX form, and the means to prove it.

    Attributes:
        proto: with its weights inline; a copy if the caller has one.
        inputs, outputs: the graph's, bound to the signature by column (or tensor) name.
        prediction: names of the outputs that `predict` returns.
        original: None if there is nothing to compare with (a ready ONNX model).
        classes: labels in the order of the columns of the probabilities.
        margin: the decision function of a classifier, [N] or [N, C], which shows ties.
        many_rows: the fewest rows for which the graph uses other operators, or 0. All rows are proven in both ways.
        move_weights: moves each weight of a net at random by some roundings until its block ends.
        repair: the change that keeps 32-bit floats from changing the predictions; empty for the plain conversion.
    """

    proto: ModelProto
    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]
    prediction: tuple[str, ...]
    framework: str
    framework_version: str
    original: OriginalModel | None
    classes: tuple[str | int | float | bool, ...] = ()
    boundary_values: BoundaryValues = field(default_factory=BoundaryValues)
    margin: Callable[[ModelInput], Array] | None = None
    many_rows: int = 0
    move_weights: Callable[[np.random.Generator], AbstractContextManager[None]] | None = None
    repair: str = ""


Forms: TypeAlias = list[Callable[[], ConvertedModel]]
"""Functions that make an ONNX form of a model, the preferred one first; they are called until one form is proven."""


def bind_graph(
    proto: ModelProto, batch: ModelInput | None, framework: str, framework_version: str, original: OriginalModel | None
) -> ConvertedModel:
    """Change a graph so that its inputs are bound to the columns or tensors of the batch, and return it converted.

    A table's columns are the graph's inputs by name, or are stacked into its only input, [N, columns]. All outputs are
    values; `dataclasses.replace` gives them other roles. Raises InvalidConfig if the batch does not have the graph's
    inputs, and ConversionError if the graph is not valid or cannot be served.

    Args:
        batch: the example, or an empty table with the signature's columns; None to serve the inputs that are declared.
        original: if it is given, the first dimension of each input and output must be free.
    """
    for value in proto.graph.input:
        if value.type.HasField("tensor_type") and not value.type.tensor_type.HasField("shape"):
            raise ConversionError(
                f"the graph does not declare the shape of its input {value.name!r}: add it, with a name for each free "
                "size (onnx.helper.make_tensor_value_info)"
            )
    _refuse_empty_sequences(proto.graph)
    try:
        check_graph(proto)
    except Exception as error:  # noqa: BLE001 - protobuf and the checker each raise their own
        raise ConversionError(f"not a valid ONNX model: {one_line(error, 300)}") from None
    for kind, values in (("inputs", proto.graph.input), ("outputs", proto.graph.output)):
        if not values:
            raise ConversionError(f"the graph has no {kind}: there is nothing to ask of it")
    inputs = [Input(value.name, *served_type(value, original)) for value in fed_inputs(proto.graph)]
    names = [entry.name for entry in inputs]
    if isinstance(batch, pd.DataFrame):
        columns = tuple(str(column) for column in batch.columns)
        is_matrix = len(inputs) == 1 and (len(inputs[0].shape) != 2 or inputs[0].shape[1] in (-1, len(columns)))
        if not is_matrix and not set(names) <= set(columns):
            argument = "input_example" if len(batch) else "signature"
            raise InvalidConfig(f"{argument}: its columns {list(columns)} are not the graph's inputs {names}")
        inputs = [replace(one, columns=(one.name,) if one.name in columns else columns) for one in inputs]
    elif batch is not None and set(batch) != set(names) and not (set(batch) == {""} and len(names) == 1):
        raise InvalidConfig(f"input_example: its tensors {sorted(batch)} are not the graph's inputs {sorted(names)}")
    served = [value for value in proto.graph.output if value.name != REFUSED_ROWS]
    outputs = tuple(Output(value.name, *served_type(value, original)) for value in served)
    return ConvertedModel(
        proto=proto,
        inputs=tuple(inputs),
        outputs=outputs,
        prediction=tuple(output.name for output in outputs),
        framework=framework,
        framework_version=framework_version,
        original=original,
    )


def _refuse_empty_sequences(graph: GraphProto) -> None:
    """Make an LSTM or GRU refuse an empty tensor that the graph itself has made, as a selection of steps.

    ONNX Runtime 1.31 ends the process there. To reshape to [0, 0, -1] changes nothing, and is an error for an empty
    tensor. Empty tensors of a request are refused before the graph runs (`runtime/model.py`).
    """
    weights = {entry.name for entry in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}

    def may_be_empty(name: str) -> bool:
        maker = makers.get(name)
        if maker is None or maker.op_type in _FATAL_IF_EMPTY:
            return False
        if maker.op_type == "Gather" and maker.input[0] in weights:  # an embedding
            return may_be_empty(maker.input[1])
        return maker.op_type not in _AS_EMPTY or may_be_empty(maker.input[0])

    for place, node in reversed([*enumerate(graph.node)]):
        if node.op_type in _FATAL_IF_EMPTY and may_be_empty(node.input[0]):
            name = f"not_empty_{node.op_type}_{place}"
            graph.initializer.append(numpy_helper.from_array(np.array([0, 0, -1]), f"{name}_shape"))
            reshape = helper.make_node("Reshape", [node.input[0], f"{name}_shape"], [name], name)
            node.input[0] = name
            graph.node.insert(place, reshape)


def fed_inputs(graph: GraphProto) -> list[ValueInfoProto]:
    """Return the inputs that a caller gives; older graphs also name their weights among the inputs."""
    held = {initializer.name for initializer in graph.initializer}
    return [value for value in graph.input if value.name not in held]


def served_type(value: ValueInfoProto, original: OriginalModel | None) -> tuple[str, tuple[int, ...]]:
    """Return dtype and shape of a graph's input or output. Raises ConversionError if it cannot be served."""
    dtype, shape = dtype_and_shape(value)
    if not dtype:
        raise ConversionError(f"the graph's {value.name!r} is {_unservable(value.type)}")
    if original is not None and (not shape or shape[0] != -1):
        raise ConversionError(
            f"{value.name!r} has the fixed shape {list(shape)}: the model must treat its first dimension as the batch"
        )
    return dtype, shape


def _unservable(kind: TypeProto) -> str:
    """Describe a value that is not a tensor of numbers, booleans or texts, and the right type."""
    match kind.WhichOneof("value"):
        case "sequence_type":
            return (
                "a sequence of any length, which cannot be served; a tensor can: add a ConcatFromSequence to the graph "
                "(SplitToSequence for an input)"
            )
        case "optional_type":
            return "optional, which cannot be served; a tensor can: add an OptionalGetElement to the graph"
        case "tensor_type":
            name = TensorProto.DataType.Name(kind.tensor_type.elem_type)
            return (
                f"a tensor of {name}, which cannot be served; numbers of 8 to 64 bits, booleans and texts can: add a "
                "Cast to the graph"
            )
    return "no tensor, which cannot be served"


def rename_values(proto: ModelProto, inputs: list[str], outputs: list[str]) -> ModelProto:
    """Return the graph with other names of its inputs and outputs; subgraphs still find the old names."""
    graph = proto.graph
    for value, name in zip(fed_inputs(graph), inputs, strict=True):
        if value.name != name:
            graph.node.insert(0, onnx.helper.make_node("Identity", [name], [value.name]))
            value.name = name
    for value, name in zip(graph.output, outputs, strict=True):
        if value.name != name:
            graph.node.append(onnx.helper.make_node("Identity", [value.name], [name]))
            value.name = name
    return proto


def require_example(batch: ModelInput | None, predict_fn: str, what: str, method: str) -> ModelInput:
    """Return the example of a model, called `what` in messages, that has only this method.

    Raises InvalidConfig without an example or for `predict_proba`, and ConversionError if its tensors share no rows.
    """
    if batch is None:
        raise InvalidConfig(f"input_example: {what} needs one, to know the shapes and types of its inputs")
    if predict_fn != "predict":
        raise InvalidConfig(f"pyfunc_predict_fn: {what} has only its {method}; leave it at 'predict'")
    if not Batch(batch).has_rows:
        shapes = ", ".join(f"{name!r} {list(values.shape)}" for name, values in batch.items())
        raise ConversionError(f"its inputs differ in their first dimension, which has to be the batch: {shapes}")
    return batch


def call_original(original: OriginalModel, batch: ModelInput, argument: str = "input_example") -> dict[str, Array]:
    """Return the original's predictions for the user's rows. Raises InvalidConfig if the model refuses the rows."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about unseen categories and the like: generated rows have them on purpose
            return original(batch)
    except OnnxserveError:
        raise
    except Exception as error:
        reason = one_line(error, 300)
        raise InvalidConfig(f"{argument}: the model itself refuses it: {type(error).__name__}: {reason}") from error


_SAME_NAME = ("float16", "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
DTYPES: dict[int, str] = {
    TensorProto.FLOAT: "float32",
    TensorProto.DOUBLE: "float64",
    TensorProto.STRING: "str",
    **{getattr(TensorProto, name.upper()): name for name in _SAME_NAME},
}


def dtype_and_shape(value: ValueInfoProto) -> tuple[str, tuple[int, ...]]:
    """Return the numpy dtype (`str` for strings) and shape of a graph input or output; -1 for free dimensions."""
    tensor = value.type.tensor_type
    sizes = (size.dim_value if size.HasField("dim_value") else -1 for size in tensor.shape.dim)
    return DTYPES.get(tensor.elem_type, ""), tuple(max(size, -1) for size in sizes)
