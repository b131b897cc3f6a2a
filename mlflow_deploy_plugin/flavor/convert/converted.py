"""ConvertedModel: what every framework's module gives."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mlflow_deploy_plugin.errors import InvalidConfig, OnnxserveError
from mlflow_deploy_plugin.flavor.batch import Batch
from mlflow_deploy_plugin.runtime import Array, Input, Output

OriginalModel = Callable[[Batch], dict[str, Array]]
"""The original model's answers for a batch, by ONNX output name; it raises what it raises for rows it refuses."""


@dataclass(frozen=True)
class BoundaryValues:
    """What a fitted model itself knows of its inputs, by signature column (by position, as text, for a matrix).

    Attributes:
        edges: numbers at which something in the model decides ([T] float64): thresholds, edges of bins.
        categories: values that an encoder has learned.
        texts: terms of a vocabulary.
        rows: sets of rows that answers are computed from (neighbours, centres, support vectors), each as [K] by column.
    """

    edges: Mapping[str, Array] = field(default_factory=dict)
    categories: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    texts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    rows: tuple[Mapping[str, Array], ...] = ()


@dataclass(frozen=True)
class ConvertedModel:
    """A model's ONNX form, and what is needed to prove it.

    Attributes:
        proto: the `onnx.ModelProto`, with its weights inline; never one that the caller still holds.
        inputs / outputs: the graph's, bound to the signature by column (or tensor) name.
        prediction: names of the outputs that `predict` answers.
        original: None where there is nothing to compare with (a ready ONNX model).
        classes: labels in the order of the columns of the probabilities.
        boundary_values: what the proof has to ask about, beside what the example shows.
        margin: for classifiers that have one: the decision function, [N] or [N, C], from which ties are told.
        repair: what was done so that 32-bit floats do not change the answers; empty for the plain conversion.
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
    repair: str = ""


def call_original(original: OriginalModel, batch: Batch, argument: str = "input_example") -> dict[str, Array]:
    """The original's answers for rows that the user has given.

    Raises:
        InvalidConfig: the model itself refuses them; the message names the argument and has the model's reason.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of unseen categories and the like, which generated rows hold on purpose
            return original(batch)
    except OnnxserveError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise InvalidConfig(f"{argument}: the model itself refuses it: {type(error).__name__}: {reason}") from error
