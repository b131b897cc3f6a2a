"""The converted model that the module of each framework returns, and the inputs and
outputs of a graph.

Converters of other distributions import from this module (docs/extend.md).
"""

import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, Protocol, TypeAlias

import numpy as np
import pandas as pd
from onnx import (
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    ValueInfoProto,
    helper,
    numpy_helper,
)

from mlflow_deploy_plugin.core.errors import (
    ConversionError,
    InvalidConfig,
    OnnxserveError,
    pass_exit,
)
from mlflow_deploy_plugin.core.messages import one_line
from mlflow_deploy_plugin.serve.runtime.additive import AdditiveForm
from mlflow_deploy_plugin.serve.runtime.artifact import Input, Output, TokenizerSpec
from mlflow_deploy_plugin.serve.runtime.feeds import Array
from mlflow_deploy_plugin.serve.runtime.refusals import REFUSED_ROWS
from mlflow_deploy_plugin.wrap.convert.batch import Batch, ModelInput
from mlflow_deploy_plugin.wrap.convert.onnx_file import check_graph

TrainedModel: TypeAlias = Any
"""A trained model of any framework. The frameworks have no common base class, and most
have no types.
"""

Category: TypeAlias = str | int | float | bool | None
"""A category from training. None and NaN are missing values."""

OriginalModel = Callable[[ModelInput], dict[str, Array]]
"""A function that returns the original's predictions for a batch by ONNX output name,
and may raise any error.
"""

Settings = Mapping[str, object]
"""The arguments that MLflow passes to a model with each request: `model_config`, and
the defaults of `params`.
"""

DynamicAxes = Mapping[str, tuple[int, ...]]
"""For each tensor, the axes with sizes that differ between requests (text lengths,
image sizes), except axis 0.
"""

_FATAL_IF_EMPTY = ("LSTM", "GRU")
_AS_EMPTY = ("Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
"""Operators whose output is empty only if their input is empty."""
MAX_VALUES = 1_000
"""The maximum number of edges, categories or terms per column, and of training rows.
Larger sets are evenly sampled.
"""


@dataclass(frozen=True)
class BoundaryValues:
    """The inputs at which a fitted model may change its prediction, by signature column
    or matrix position.

    Attributes:
        edges: thresholds and bin edges, [T] float64.
        rows: sets of training rows (neighbours, centres, support vectors), each as
            arrays [K] by column.
        left_out: the errors of the steps that could not be read, by step name.
        farthest: the largest magnitude at which 64-bit distances from the training rows
            or centres still differ.
    """

    edges: Mapping[str, Array] = field(default_factory=dict)
    categories: Mapping[str, tuple[Category, ...]] = field(default_factory=dict)
    texts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    rows: tuple[Mapping[str, Array], ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
    farthest: float = np.inf


@dataclass(frozen=True, eq=False)
class AdditiveParts:
    """The trees or slopes of a model, whose features are not assigned to columns yet,
    and the graph of the steps before them, or None without such steps.
    """

    form: AdditiveForm
    features: ModelProto | None


@dataclass(frozen=True)
class ConvertedModel:
    """A model's ONNX form, and the data to check it.

    Attributes:
        proto: the ModelProto with inline weights; a copy if the user passed a
            ModelProto.
        inputs: inputs of the graph, bound to the signature by column (or tensor) name.
        outputs: outputs of the graph.
        prediction: names of the outputs that `predict` returns.
        original: the function for the original's predictions; None if the user passed
            an ONNX model.
        classes: labels in the order of the probability columns.
        margin: the decision function of a classifier, [N] or [N, C], which determines
            ties.
        many_rows: the minimum batch size for which the graph uses other operators, or
            0. Both branches are compared.
        move_weights: a context manager that moves each weight of a neural network by
            random rounding steps.
        tokenizer: for a text model, its tokenizer, whose `file` is only a file name.
            `inputs` are then texts.
        files: the contents of additional files by name.
        additive: a function for the parts from which exact explanations are computed;
            it returns None for a model that is not a sum.
        least_probability: the size below which the original's own probabilities are
            not exact, because it computes differences of 32-bit floats, or iterates.
        repair: the change that prevents rounding errors of 32-bit floats; empty if none
            was needed.
        cause: the probable cause if the predictions differ, with the correction, as a
            sentence without a full stop.
        unread: the columns that requests may contain, and that the model does not read.
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
    tokenizer: TokenizerSpec | None = None
    files: Mapping[str, str | bytes] = field(default_factory=dict)
    additive: Callable[[], AdditiveParts | None] | None = None
    least_probability: float = 0.0
    repair: str = ""
    cause: str = ""
    unread: tuple[str, ...] = ()


Forms: TypeAlias = list[Callable[[], ConvertedModel]]
"""Functions that return an ONNX form of a model, in order of preference. The calls end
when a form is proven.
"""


def bind_graph(
    proto: ModelProto,
    batch: ModelInput | None,
    framework: str,
    framework_version: str,
    original: OriginalModel | None,
) -> ConvertedModel:
    """Bind the inputs of a graph to the columns or tensors of the batch, and return the
    converted model.

    A table's columns are the graph's inputs by name, or are stacked into a single input
    [N, columns]. The role of all outputs is "values"; use `dataclasses.replace` for
    other roles. An LSTM or GRU of the graph is changed to fail for an empty tensor.
    Raises InvalidConfig if the batch lacks inputs of the graph, and ConversionError if
    the graph is invalid or cannot be served.

    Args:
        proto: the graph, which becomes the model's.
        batch: the example, or an empty table with the signature's columns; None to use
            the declared inputs.
        framework: the name of the model's package.
        framework_version: the version of this package.
        original: the function for the original's predictions. If it is not None, the
            first dimension of each input and output must be free.
    """
    for value in proto.graph.input:
        if value.type.HasField("tensor_type") and not value.type.tensor_type.HasField("shape"):
            raise ConversionError(
                f"the graph does not declare the shape of its input {value.name!r}: add it, with "
                "a name for each free size (onnx.helper.make_tensor_value_info)"
            )
    _refuse_empty_sequences(proto.graph)
    if original is not None:
        write_logistics(proto.graph)
    try:
        check_graph(proto)
    except Exception as error:  # noqa: BLE001 - protobuf and the checker raise errors of many classes.
        raise ConversionError(f"not a valid ONNX model: {one_line(error, 300)}") from None
    for kind in ("input", "output"):
        if not getattr(proto.graph, kind):
            raise ConversionError(f"the graph has no {kind}s, so it cannot be served")
    inputs = [Input(value.name, *served_type(value, original)) for value in fed_inputs(proto.graph)]
    names = [entry.name for entry in inputs]
    if isinstance(batch, pd.DataFrame):
        # An input has the column of its name; a single input may have all columns.
        columns = tuple(map(str, batch.columns))
        is_matrix = len(inputs) == 1 and (
            len(inputs[0].shape) != 2 or inputs[0].shape[1] in (-1, len(columns))
        )
        if not is_matrix and not set(names) <= set(columns):
            argument = "input_example" if len(batch) else "signature"
            raise InvalidConfig(
                f"{argument}: its columns {list(columns)} are not the graph's inputs {names}"
            )
        for position, entry in enumerate(inputs):
            read = (entry.name,) if entry.name in columns else columns
            inputs[position] = replace(entry, columns=read)
    elif (
        batch is not None
        and set(batch) != set(names)
        and (set(batch) != {""} or len(names) != 1)  # A single tensor may be unnamed.
    ):
        raise InvalidConfig(
            f"input_example: its tensors {sorted(batch)} are not the graph's inputs {sorted(names)}"
        )
    outputs = tuple(
        Output(value.name, *served_type(value, original))
        for value in proto.graph.output
        if value.name != REFUSED_ROWS
    )
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
    """Make an LSTM or GRU fail for an empty tensor that the graph has computed, such as
    a selection of steps.

    ONNX Runtime 1.31 would crash. The added Reshape to [0, 0, -1] raises an error for
    an empty tensor, and does not change other tensors. Empty tensors in a request are
    refused before the graph runs (`serve/runtime/model.py`).
    """
    weights = {entry.name for entry in graph.initializer}
    makers = makers_of(graph)

    def may_be_empty(name: str) -> bool:
        """Return True if a node may compute an empty value from other values than
        empty inputs of the graph.
        """
        maker = makers.get(name)
        if maker is None or maker.op_type in _FATAL_IF_EMPTY:
            return False
        if maker.op_type == "Gather" and maker.input[0] in weights:  # This Gather is an embedding.
            return may_be_empty(maker.input[1])
        return maker.op_type not in _AS_EMPTY or may_be_empty(maker.input[0])

    for index, node in reversed([*enumerate(graph.node)]):
        if node.op_type in _FATAL_IF_EMPTY and may_be_empty(node.input[0]):
            name = f"not_empty_{node.op_type}_{index}"
            shape = numpy_helper.from_array(np.array([0, 0, -1]), f"{name}_shape")
            graph.initializer.append(shape)
            reshape = helper.make_node("Reshape", [node.input[0], shape.name], [name], name)
            node.input[0] = name
            graph.node.insert(index, reshape)


def write_logistics(graph: GraphProto) -> None:
    """Replace logistic(x) by exp(min(x, 0)) * logistic(|x|), except between the layers
    of a network. After a 32-bit product, it becomes exp(-softplus(-x)).

    ONNX Runtime's logistic functions compute small probabilities as differences from 1,
    so that those below 1e-7 (in 64 bits, 1e-16) are 0
    (https://github.com/microsoft/onnxruntime/issues/26281).
    """
    layers = [node.input for node in graph.node if node.op_type in _LAYERS]
    read_by_layers = {*chain.from_iterable(layers)}
    makers = makers_of(graph)
    reads = Counter(chain.from_iterable(node.input for node in graph.node))
    reads.update(value.name for value in graph.output)
    single = {weight.name for weight in graph.initializer if weight.data_type == TensorProto.FLOAT}
    nodes: list[NodeProto] = []

    def add(operator: str, *inputs: str) -> str:
        output = f"logistic_{operator}_{len(nodes)}"
        nodes.append(helper.make_node(operator, inputs, [output], output))
        return output

    for node in graph.node:
        if node.op_type == "LinearClassifier":
            _write_softmax(node)
        if node.op_type != "Sigmoid" or node.output[0] in read_by_layers:
            nodes.append(node)
            continue
        [score] = node.input
        is_read_once = reads[score] == 1 and score in makers
        if is_read_once and _negate_product(makers[score], single):
            add("Exp", add("Neg", add("Softplus", score)))
        else:
            low = add("Exp", add("Neg", add("Relu", add("Neg", score))))
            add("Mul", low, add("Sigmoid", add("Abs", score)))
        nodes[-1].output[:] = node.output
    del graph.node[:]
    graph.node.extend(nodes)


def _negate_product(node: NodeProto, single: set[str]) -> bool:
    """Negate a Gemm with one of the 32-bit weights `single`, which ONNX Runtime fuses
    with a softplus. Return False for other nodes, which are not changed.
    """
    factors = [option for option in node.attribute if option.name in ("alpha", "beta")]
    if node.op_type != "Gemm" or len(factors) < 2 or single.isdisjoint(node.input):
        return False
    for factor in factors:
        factor.f = -factor.f
    return True


def _write_softmax(node: NodeProto) -> None:
    """Replace the logistic function of a LinearClassifier of two classes by the softmax
    of half the scores of both classes, which is the same.
    """
    options = {option.name: option for option in node.attribute}
    transform = options["post_transform"]
    if transform.s == b"LOGISTIC" and len(options["intercepts"].floats) == 2:
        transform.s = b"SOFTMAX"
        for name in ("coefficients", "intercepts"):
            options[name].floats[:] = [number / 2 for number in options[name].floats]


_LAYERS = {"Conv", "Gemm", "MatMul", "Mul"}


def makers_of(graph: GraphProto) -> dict[str, NodeProto]:
    """Return the node that computes each value of the graph."""
    makers: dict[str, NodeProto] = {}
    for node in graph.node:
        makers.update(dict.fromkeys(node.output, node))
    return makers


def fed_inputs(graph: GraphProto) -> list[ValueInfoProto]:
    """Return the inputs without weights: older graphs also list their weights as
    inputs.
    """
    weights = {initializer.name for initializer in graph.initializer}
    return [value for value in graph.input if value.name not in weights]


def served_type(
    value: ValueInfoProto, original: OriginalModel | None
) -> tuple[str, tuple[int, ...]]:
    """Return the dtype and shape of a graph's input or output. Raises ConversionError
    if the type cannot be served.
    """
    dtype, shape = dtype_and_shape(value)
    if not dtype:
        match value.type.WhichOneof("value"):
            case "sequence_type":
                described = (
                    "a sequence of any length, which cannot be served; add a ConcatFromSequence to "
                    "the graph (SplitToSequence for an input)"
                )
            case "optional_type":
                described = (
                    "optional, which cannot be served; add an OptionalGetElement to the graph"
                )
            case "tensor_type":
                kind = TensorProto.DataType.Name(value.type.tensor_type.elem_type)
                described = (
                    f"a tensor of {kind}, which cannot be served; add a Cast to numbers of 8 to 64 "
                    "bits, booleans or strings to the graph"
                )
            case _:
                described = "not a tensor, so it cannot be served"
        raise ConversionError(f"the graph's {value.name!r} is {described}")
    if original is not None and (not shape or shape[0] != -1):
        raise ConversionError(
            f"{value.name!r} has the fixed shape {list(shape)}: its first dimension must be the "
            "batch"
        )
    return dtype, shape


def rename_values(proto: ModelProto, inputs: list[str], outputs: list[str]) -> ModelProto:
    """Rename the inputs and outputs of the graph. Subgraphs may still use the old
    names.
    """
    graph = proto.graph
    for value, name in zip(fed_inputs(graph), inputs, strict=True):
        if value.name != name:
            graph.node.insert(0, helper.make_node("Identity", [name], [value.name]))
            value.name = name
    for value, name in zip(graph.output, outputs, strict=True):
        if value.name != name:
            graph.node.append(helper.make_node("Identity", [value.name], [name]))
            value.name = name
    return proto


def require_example(
    batch: ModelInput | None, predict_fn: str, what: str, method: str
) -> ModelInput:
    """Return the example of a model whose only method is `method`.

    Args:
        batch: the example, or None.
        predict_fn: the method that the user requests.
        what: the name of the model in messages.
        method: the name of the method in messages.

    Raises:
        InvalidConfig: there is no example, `predict_fn` is `predict_proba`, or a tensor
            has no dimension.
        ConversionError: the tensors differ in rows.
    """
    if batch is None:
        raise InvalidConfig(
            f"input_example: {what} needs an example for the shapes and types of its inputs"
        )
    if predict_fn != "predict":
        raise InvalidConfig(
            f"pyfunc_predict_fn: {what} has only {method}; use the default 'predict'"
        )
    example = Batch(batch)
    for name, values in example.tensors.items():
        if not values.ndim:
            label = f"the tensor {name!r}" if name else "the array"
            raise InvalidConfig(
                f"input_example: {label} is a single number without a dimension, but the first "
                "dimension must be the batch: pass an array with a number per row, or make the "
                "number an attribute of the model"
            )
    if not example.has_rows:
        shapes = ", ".join(
            f"{name!r} {list(values.shape)}" for name, values in example.tensors.items()
        )
        raise ConversionError(
            f"its inputs differ in their first dimension, which must be the batch: {shapes}"
        )
    return batch


def call_original(
    original: OriginalModel, batch: ModelInput, argument: str = "input_example"
) -> dict[str, Array]:
    """Return the original's predictions for rows. Raises InvalidConfig if the model
    refuses the rows; `argument` is their name in the message.
    """
    try:
        with warnings.catch_warnings():
            # Originals warn about unseen categories in generated rows.
            warnings.simplefilter("ignore")
            return original(batch)
    except OnnxserveError:
        raise
    except BaseException as error:
        pass_exit(error)
        reason = one_line(error, 300)
        raise InvalidConfig(
            f"{argument}: the model fails for the rows: {type(error).__name__}: {reason}"
        ) from error


_SAME_NAME = (
    "float16",
    "bool",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
)
DTYPES: dict[int, str] = {
    TensorProto.FLOAT: "float32",
    TensorProto.DOUBLE: "float64",
    TensorProto.STRING: "str",
    **{getattr(TensorProto, name.upper()): name for name in _SAME_NAME},
}


def dtype_and_shape(value: ValueInfoProto) -> tuple[str, tuple[int, ...]]:
    """Return the numpy dtype (`str` for strings, "" for a type that cannot be served)
    and shape of a graph input or output. -1 is a free dimension.
    """
    tensor = value.type.tensor_type
    shape = []
    for dimension in tensor.shape.dim:
        is_fixed = dimension.HasField("dim_value")
        shape.append(max(dimension.dim_value, -1) if is_fixed else -1)
    return DTYPES.get(tensor.elem_type, ""), tuple(shape)


class Converter(Protocol):
    """A converter in the entry-point group `onnxserve.converters`. Its method
    `read_batch(model, data)` is optional.
    """

    def matches(self, model: TrainedModel) -> bool:
        """Return True for supported models. The method is called for each model and
        must not import heavy modules.
        """

    def convert(
        self, model: TrainedModel, example: ModelInput | None, **options: object
    ) -> ConvertedModel:
        """Return the ONNX form with `bind_graph`. Raises ConversionError, which names
        the part that is not supported.

        Args:
            example: a table, or arrays by name (a single array is named ""); None
                without an example.
            options: `predict_fn` ("predict" or "predict_proba"), `dynamic_axes`
                (`DynamicAxes`), and future options.
        """
