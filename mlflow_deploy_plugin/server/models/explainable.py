"""What of a model can be explained: the features that are given, and the numbers that are answered.

Shared by the worker, which refuses early what cannot be, and the process that explains (`pyfunc/explainer.py`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mlflow_deploy_plugin.errors import InvalidRequest
from mlflow_deploy_plugin.runtime import PYTHON_FUNCTION, Array, Artifact, Feeds, Input, Output
from mlflow_deploy_plugin.server.models.loading import EXAMPLE

MAX_COLUMNS = 1000
MAX_OUTPUTS = 100

_NUMBERS = "iuf"
Name = str | int | float | bool
"""A class keeps its type, so that a predicted label is found among the names."""


@dataclass(frozen=True, slots=True)
class ExplainedFeature:
    """A column of a table, or of a tensor of rank 2.

    Attributes:
        places: the inputs of the graph that it feeds, and its position in each.
    """

    name: str
    places: tuple[tuple[str, int], ...]

    def values(self, feeds: Mapping[str, Array]) -> Array:
        """[N], as the graph is fed with them."""
        name, position = self.places[0]
        return feeds[name].reshape(len(feeds[name]), -1)[:, position]


def check_explainable(artifact: Artifact) -> None:
    """Refuses a model of which nothing can be explained, as far as that is told without its rows.

    Raises:
        InvalidRequest
    """
    if artifact.flavor == PYTHON_FUNCTION:
        raise InvalidRequest("this version has no ONNX form (it is a pyfunc), and only an ONNX model is explained here")
    for entry in artifact.inputs:
        if entry.shape:  # else nobody knows
            _check_rank(entry.name, len(entry.shape))
        if entry.shape[:1] not in ((), (-1,)):
            raise InvalidRequest(
                f"the graph takes batches of {entry.shape[0]} rows; explaining needs one that takes any number of them"
            )
    explained_outputs(artifact)
    if artifact.reference is None and not (artifact.folder / EXAMPLE).is_file():
        raise InvalidRequest(
            "the model came without rows to explain against; log it with mlflow_deploy_plugin.log_model and "
            "reference_data= or input_example="
        )


def is_explainable(artifact: Artifact) -> bool:
    try:
        check_explainable(artifact)
    except InvalidRequest:
        return False
    return True


def explained_features(artifact: Artifact, feeds: Feeds) -> list[ExplainedFeature]:
    """The features in the order of the signature; how many a tensor has is told by `feeds`.

    Raises:
        InvalidRequest: the rows are not made of single values, or of too many.
    """
    for entry in artifact.inputs:
        _check_rank(entry.name, feeds[entry.name].ndim)
    if artifact.columns:
        places: dict[str, list[tuple[str, int]]] = {column.name: [] for column in artifact.columns}
        for entry in artifact.inputs:
            for position, name in enumerate(entry.columns):
                places[name].append((entry.name, position))
        features = [ExplainedFeature(name, tuple(where)) for name, where in places.items() if where]
    else:
        features = [feature for entry in artifact.inputs for feature in _of_tensor(artifact, entry, feeds[entry.name])]
    if len(features) > MAX_COLUMNS:
        raise InvalidRequest(f"the model takes {len(features)} columns; at most {MAX_COLUMNS} are explained")
    return features


def _check_rank(name: str, rank: int) -> None:
    if rank not in (1, 2):
        raise InvalidRequest(
            f"the input {name!r} has {rank} dimensions; what is explained is a table: columns, or tensors with one row "
            "of single values a prediction (not images, texts or sequences)"
        )


def _of_tensor(artifact: Artifact, entry: Input, array: Array) -> list[ExplainedFeature]:
    """The only tensor's are numbered, as columns without names are."""
    is_only = len(artifact.inputs) == 1
    if array.ndim == 1:
        return [ExplainedFeature(entry.name, ((entry.name, 0),))]
    names = [str(i) if is_only else f"{entry.name}[{i}]" for i in range(array.shape[1])]
    return [ExplainedFeature(name, ((entry.name, position),)) for position, name in enumerate(names)]


def explained_outputs(artifact: Artifact) -> list[Output]:
    """The outputs that are explained: the probabilities of the classes, else scores, else the numbers of `predict`.

    Raises:
        InvalidRequest: there is none.
    """
    for role in ("probabilities", "scores"):
        if found := [output for output in artifact.outputs if output.role == role]:
            return found
    given = [output for output in artifact.outputs if output.name in artifact.prediction and output.role == "values"]
    for kinds in (("map",), ("float16", "float32", "float64"), ("int8", "int16", "int32", "int64", "uint8", "bool")):
        if found := [output for output in given if output.dtype in kinds]:
            return found
    raise InvalidRequest(
        "the model answers labels alone, and no number that could be explained; log it with its probabilities"
    )


def numbers_of(explained: Sequence[Output], outputs: Mapping[str, Array]) -> Array:
    """What is explained of an answer: [N, K] float64.

    Raises:
        InvalidRequest: an output has not one row of numbers for each row, or there are too many of them.
    """
    parts = [_table(output, outputs[output.name]) for output in explained]
    if len({len(part) for part in parts}) > 1:
        raise InvalidRequest("the model's outputs have different numbers of rows, and cannot be explained")
    numbers = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
    if numbers.shape[1] > MAX_OUTPUTS:
        raise InvalidRequest(f"the model answers {numbers.shape[1]} numbers a row; at most {MAX_OUTPUTS} are explained")
    return numbers


def names_of(artifact: Artifact, explained: Sequence[Output], outputs: Mapping[str, Array]) -> list[Name]:
    """The name of each column of `numbers_of`: its class, its place among several, or the only output's name."""
    if len(explained) == 1:
        return _labels(artifact, explained[0], outputs[explained[0].name]) or [explained[0].name]
    names: list[Name] = []
    for output in explained:
        labels = _labels(artifact, output, outputs[output.name])
        names += [f"{output.name}[{label}]" for label in labels] or [output.name]
    return names


def _labels(artifact: Artifact, output: Output, array: Array) -> list[Name]:
    """What tells the numbers of one output from each other; empty: there is one alone."""
    if output.dtype == "map":
        return [key.item() if isinstance(key, np.generic) else key for key in array[0]]
    width = array.shape[1] if array.ndim > 1 else 1
    if width > 1 and width == len(artifact.classes):
        return list(artifact.classes)
    return list(range(width)) if width > 1 else []


def _table(output: Output, array: Array) -> Array:
    if output.dtype == "map":
        return np.array([[row[key] for key in array[0]] for row in array], dtype=np.float64)
    if array.ndim not in (1, 2) or array.dtype.kind not in _NUMBERS + "b":
        raise InvalidRequest(
            f"the output {output.name!r} is {array.dtype} of {array.ndim} dimensions; numbers, one or a few a row, are "
            "explained"
        )
    return array.astype(np.float64).reshape(len(array), -1)
