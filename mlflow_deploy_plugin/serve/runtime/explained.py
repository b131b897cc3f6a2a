"""The parts of a model that can be explained: its features and its numeric outputs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mlflow_deploy_plugin.core.errors import InvalidRequest
from mlflow_deploy_plugin.core.mlmodel import INPUT_EXAMPLE, PYTHON_FUNCTION
from mlflow_deploy_plugin.serve.runtime.artifact import Artifact, Output
from mlflow_deploy_plugin.serve.runtime.feeds import Array, Feeds

if TYPE_CHECKING:
    from mlflow_deploy_plugin.serve.runtime.model import OnnxModel

MAX_COLUMNS = 1000
MAX_OUTPUTS = 100

Name = str | int | float | bool
"""The name of an explained number. A class has the type of the predicted labels, so
that labels can be found.
"""


@dataclass(frozen=True, slots=True)
class ExplainedFeature:
    """A column of a table or of a tensor of rank 2. `places` has the feature's position
    in each input that it feeds.
    """

    name: str
    places: tuple[tuple[str, int], ...]

    def values(self, feeds: Mapping[str, Array]) -> Array:
        """Return the values of this feature in the feeds of the graph, [N]."""
        name, position = self.places[0]
        return feeds[name].reshape(len(feeds[name]), -1)[:, position]


@dataclass(frozen=True, eq=False)
class Explanation:
    """The contributions `values` [N, columns, outputs] of the columns to the outputs of
    N rows, in float64. `base_values` [outputs] are the means over the `background`, of
    which it has the source and the number of rows. `method` and `link` are those of
    `explainer.RowContributions`.
    """

    columns: list[str]
    outputs: list[Name]
    method: str
    link: str
    background: dict[str, str | int]
    values: Array
    base_values: Array


def check_explainable(artifact: Artifact) -> None:
    """Raise InvalidRequest if the artifact shows, without any rows, that the model
    cannot be explained.
    """
    if artifact.flavor == PYTHON_FUNCTION:
        raise InvalidRequest(
            "this version has no ONNX form (it is a pyfunc), and only an ONNX model can be "
            "explained"
        )
    for entry in artifact.inputs:
        if entry.shape:  # An empty shape means that the shape is unknown.
            _check_rank(entry.name, len(entry.shape))
        if entry.shape[:1] not in ((), (-1,)):
            raise InvalidRequest(
                f"the graph takes batches of {entry.shape[0]} rows; only graphs with a free batch "
                "size can be explained"
            )
    explained_outputs(artifact)
    if artifact.reference is None and not (artifact.folder / INPUT_EXAMPLE).is_file():
        raise InvalidRequest(
            "the model has no sample rows, which an explanation needs; log it with "
            "onnxserve.log_model and reference_data= or input_example="
        )


def is_explainable(artifact: Artifact) -> bool:
    try:
        check_explainable(artifact)
    except InvalidRequest:
        return False
    return True


def explained_features(artifact: Artifact, feeds: Feeds) -> list[ExplainedFeature]:
    """Return the features in the order of the signature. `feeds` determine the width of
    a tensor.

    Raises InvalidRequest if the inputs are not single values per row, or if there are
    too many features.
    """
    for entry in artifact.inputs:
        _check_rank(entry.name, feeds[entry.name].ndim)
    features = []
    if artifact.columns:
        places: dict[str, list[tuple[str, int]]] = {column.name: [] for column in artifact.columns}
        for entry in artifact.inputs:
            for position, name in enumerate(entry.columns):
                places[name].append((entry.name, position))
        for name, of_column in places.items():
            if of_column:
                features.append(ExplainedFeature(name, tuple(of_column)))
    else:
        for entry in artifact.inputs:
            array = feeds[entry.name]
            if array.ndim == 1:
                names = [entry.name]
            elif len(artifact.inputs) == 1:
                # The features of a single tensor are numbered like unnamed columns.
                names = list(map(str, range(array.shape[1])))
            else:
                names = [f"{entry.name}[{index}]" for index in range(array.shape[1])]
            for index, name in enumerate(names):
                features.append(ExplainedFeature(name, ((entry.name, index),)))
    if len(features) > MAX_COLUMNS:
        raise InvalidRequest(
            f"the model takes {len(features)} columns; at most {MAX_COLUMNS} can be explained"
        )
    return features


def explained_outputs(artifact: Artifact) -> list[Output]:
    """Return the probabilities, otherwise the scores, otherwise numbers. Raises
    InvalidRequest if there are none.
    """
    for role in ("probabilities", "scores"):
        if matching := [output for output in artifact.outputs if output.role == role]:
            return matching
    predicted = [
        item
        for item in artifact.outputs
        if item.name in artifact.prediction and item.role == "values"
    ]
    for kinds in (
        ("map",),
        ("float16", "float32", "float64"),
        ("int8", "int16", "int32", "int64", "uint8", "bool"),
    ):
        if matching := [output for output in predicted if output.dtype in kinds]:
            return matching
    raise InvalidRequest(
        "the model returns only labels, and only numbers can be explained; log the model with its "
        "probabilities"
    )


def explained_numbers(model: "OnnxModel", feeds: Feeds) -> tuple[list[Name], Array]:
    """Run the model, and return the names of the numbers to explain, and the numbers,
    [N, K] float64. Raises the errors of `OnnxModel.run`, and InvalidRequest if the
    outputs cannot be explained.
    """
    explained = explained_outputs(model.artifact)
    outputs = model.run(feeds, [output.name for output in explained])
    return explained_columns(model.artifact, explained, outputs)


def explained_columns(
    artifact: Artifact, explained: Sequence[Output], outputs: Mapping[str, Array]
) -> tuple[list[Name], Array]:
    """Return the names of the numbers to explain, and the numbers, [N, K] float64.

    A number's name is its class, otherwise its position. A single number per row has
    the name of its output. Raises InvalidRequest if an output does not have the same
    number of values in each row, or if there are too many values.
    """
    names = []
    parts = []
    for output in explained:
        array = outputs[output.name]
        labels: list[Name]
        if output.dtype == "map":
            labels = list(array[0])
            rows = []
            for row in array:
                rows.append([row[label] for label in labels])
            labels = [key.item() if isinstance(key, np.generic) else key for key in labels]
            numbers = np.array(rows, dtype=np.float64)
        elif array.ndim not in (1, 2) or array.dtype.kind not in "iufb":
            raise InvalidRequest(
                f"the output {output.name!r} is {array.dtype} with {array.ndim} dimensions; only "
                "one number or a few numbers per row can be explained"
            )
        else:
            numbers = array.astype(np.float64).reshape(len(array), -1)
            width = numbers.shape[1]
            labels = list(artifact.classes) if width == len(artifact.classes) else [*range(width)]
            if width == 1:
                labels = []
        if len(explained) > 1:
            labels = [f"{output.name}[{label}]" for label in labels]
        names += labels or [output.name]
        parts.append(numbers)
    if len({len(part) for part in parts}) > 1:
        raise InvalidRequest(
            "the model's outputs have different numbers of rows, so they cannot be explained"
        )
    if len(names) > MAX_OUTPUTS:
        raise InvalidRequest(
            f"the model returns {len(names)} numbers per row; at most {MAX_OUTPUTS} can be "
            "explained"
        )
    return names, np.concatenate(parts, axis=1)


def _check_rank(name: str, rank: int) -> None:
    """Raise InvalidRequest if an input is not a table."""
    if rank not in (1, 2):
        raise InvalidRequest(
            f"the input {name!r} has {rank} dimensions; only tables can be explained: columns, or "
            "tensors with one row of single values per prediction (not images, texts or sequences)"
        )
