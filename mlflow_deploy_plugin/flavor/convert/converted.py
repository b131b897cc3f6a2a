"""A converted model, as every framework's module returns it, and what a graph says of its inputs and outputs."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from onnx import TensorProto

from mlflow_deploy_plugin.errors import InvalidConfig, OnnxserveError
from mlflow_deploy_plugin.flavor.batch import Batch
from mlflow_deploy_plugin.runtime import Array, Input, Output

OriginalModel = Callable[[Batch], dict[str, Array]]
"""A function that returns the original model's predictions for a batch, by ONNX output name; its errors are its own."""


@dataclass(frozen=True)
class BoundaryValues:
    """The inputs at which a fitted model may change its prediction, by signature column.

    A column of a matrix has its position as its name.

    Attributes:
        edges: numbers at which the model decides ([T] float64): thresholds, edges of bins.
        categories: values that an encoder has learned.
        texts: terms of a vocabulary.
        rows: sets of learned rows (neighbours, centres, support vectors), each as [K] by column.
    """

    edges: Mapping[str, Array] = field(default_factory=dict)
    categories: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    texts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    rows: tuple[Mapping[str, Array], ...] = ()


@dataclass(frozen=True)
class ConvertedModel:
    """A model's ONNX form, and the means to prove it.

    Attributes:
        proto: the `onnx.ModelProto`, with its weights inline; a copy if the caller has one.
        inputs, outputs: the graph's, bound to the signature by column (or tensor) name.
        prediction: names of the outputs that `predict` returns.
        original: None if there is nothing to compare with (a ready ONNX model).
        classes: labels in the order of the columns of the probabilities.
        boundary_values: inputs for the proof that the example does not show.
        margin: the decision function of a classifier, [N] or [N, C], from which ties are found.
        many_rows: the fewest rows that the graph computes by other operators than fewer rows, 0 if it has one way: all
            rows are proven in both.
        repair: the change that keeps 32-bit floats from changing the predictions; empty for the plain conversion.
    """

    proto: Any
    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]
    prediction: tuple[str, ...]
    framework: str
    framework_version: str
    original: OriginalModel | None
    classes: tuple[str | int | float | bool, ...] = ()
    boundary_values: BoundaryValues = field(default_factory=BoundaryValues)
    margin: Callable[[Batch], Array] | None = None
    many_rows: int = 0
    repair: str = ""


def call_original(original: OriginalModel, batch: Batch, argument: str = "input_example") -> dict[str, Array]:
    """Return the original's predictions for the user's rows.

    Raises:
        InvalidConfig: the model refuses the rows; the message has the argument's name and the model's reason.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about unseen categories and the like: generated rows have them on purpose
            return original(batch)
    except OnnxserveError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise InvalidConfig(f"{argument}: the model itself refuses it: {type(error).__name__}: {reason}") from error


_SAME_NAME = ("float16", "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
DTYPES: dict[int, str] = {
    TensorProto.FLOAT: "float32",
    TensorProto.DOUBLE: "float64",
    TensorProto.STRING: "str",
    **{getattr(TensorProto, name.upper()): name for name in _SAME_NAME},
}


def dtype_and_shape(value: Any) -> tuple[str, tuple[int, ...]]:
    """Return the numpy dtype (`str` for strings) and shape of a graph input or output; -1 for free dimensions."""
    tensor = value.type.tensor_type
    sizes = (size.dim_value if size.HasField("dim_value") else -1 for size in tensor.shape.dim)
    return DTYPES.get(tensor.elem_type, ""), tuple(max(size, -1) for size in sizes)
