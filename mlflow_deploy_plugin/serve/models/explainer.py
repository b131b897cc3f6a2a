"""Explain the predictions of ONNX models, one request at a time: with exact Shapley
values, otherwise with permutations in antithetic pairs, as
`shap.PermutationExplainer`.

Lundberg and Lee, A Unified Approach to Interpreting Model Predictions, 2017; Mitchell
et al., Sampling Permutations for Shapley Value Estimation, JMLR 23, 2022.
"""

import math
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
from pyarrow.types import is_floating

from mlflow_deploy_plugin.core import errors
from mlflow_deploy_plugin.core.errors import (
    InferenceError,
    InvalidArtifact,
    InvalidRequest,
    OnnxserveError,
)
from mlflow_deploy_plugin.core.messages import one_line
from mlflow_deploy_plugin.core.mlmodel import INPUT_EXAMPLE
from mlflow_deploy_plugin.core.tabular.streams import read_parquet
from mlflow_deploy_plugin.serve.models.exact import exact_explainer
from mlflow_deploy_plugin.serve.models.leaf_tables import DeadlinePassed
from mlflow_deploy_plugin.serve.protocols import mlflow as mlflow_protocol
from mlflow_deploy_plugin.serve.protocols.content import JSON
from mlflow_deploy_plugin.serve.runtime.additive import ADDITIVE_FILE, TOLERANCE, FeatureReader
from mlflow_deploy_plugin.serve.runtime.explained import (
    ExplainedFeature,
    Explanation,
    Name,
    explained_features,
    explained_numbers,
)
from mlflow_deploy_plugin.serve.runtime.feeds import (
    Array,
    Feeds,
    row_count,
    sample_positions,
    slice_feeds,
)
from mlflow_deploy_plugin.serve.runtime.log_columns import cast_columns
from mlflow_deploy_plugin.serve.runtime.model import OnnxModel
from mlflow_deploy_plugin.serve.runtime.session import describe_error

BACKGROUND_ROWS = 100
_MIN_ROWS = 10
_MATRIX_BYTES = 128 * 1024 * 1024
"""The maximum bytes of a permutation's matrix of masked rows. Models with many columns
use fewer background rows.
"""
_MAX_MODELS = 4
"""The maximum number of models in memory. The least recently used model is removed."""
_RUN_ROWS = 2048
_SEED = 0

_load_model = lru_cache(_MAX_MODELS)(OnnxModel.load)
_load_reader = lru_cache(_MAX_MODELS)(FeatureReader.load)


def answer(folder: Path, feeds: Feeds, max_evals: int, seed: int, seconds: float) -> Explanation:
    """Return the explanation of the rows `feeds` by the model in `folder`. Raises
    InferenceError, InvalidRequest, or DeadlineExceeded after `seconds`.
    """
    deadline = time.monotonic() + seconds
    try:
        model = _load_model(folder)
        background = _read_background(model, most_background_rows(model, feeds), _SEED)
        contributions = explain_rows(model, background.feeds, feeds, max_evals, seed, deadline)
    except InferenceError:
        raise
    except OnnxserveError as error:
        raise InvalidRequest(error.message) from None
    except DeadlinePassed:
        raise errors.DeadlineExceeded(
            f"the rows could not be explained within {seconds:.0f} s; send fewer rows, or set a "
            f"smaller max_evals (it was {max_evals})"
        ) from None
    except Exception as error:  # noqa: BLE001 - NumPy and ONNX Runtime raise unrelated classes
        raise InvalidRequest(f"the model cannot be explained: {describe_error(error)}") from None
    return Explanation(
        columns=[feature.name for feature in contributions.features],
        outputs=contributions.outputs,
        method=contributions.method,
        link=contributions.link,
        background={"source": background.source, "rows": contributions.background_rows},
        values=contributions.values,
        base_values=contributions.base_values,
    )


@dataclass(frozen=True, eq=False)
class RowContributions:
    """The contributions `values` [N, C, K] (float64) of C features to the K predicted
    numbers of N rows.

    `outputs` are the K classes or output names. `base_values` [K] are the means over
    the background.

    Attributes:
        method: `tree` and `linear` are exact Shapley values; `permutation` is an
            estimate from random permutations.
        link: the function from predictions to the explained numbers, in the words of
            shap: `identity`, `logit` or `log`.
    """

    features: list[ExplainedFeature]
    outputs: list[Name]
    values: Array
    base_values: Array
    background_rows: int
    method: Literal["tree", "linear", "permutation"]
    link: str


def most_background_rows(model: OnnxModel, rows: Feeds) -> int:
    """Return the maximum number of background rows. Raises the errors of
    `explained_features`.
    """
    features = len(explained_features(model.artifact, rows))
    # A permutation has 2 * features + 1 masks per background row, in float64.
    bytes_per_row = 8 * features * (2 * features + 1)
    return min(BACKGROUND_ROWS, max(_MATRIX_BYTES // bytes_per_row, _MIN_ROWS))


def explain_rows(
    model: OnnxModel,
    background: Feeds,
    rows: Feeds,
    max_evals: int,
    seed: int,
    deadline: float = math.inf,
) -> RowContributions:
    """Explain the predictions for rows, separately for each row. Raises InvalidRequest
    or InferenceError.

    Each row takes `max_evals` evaluations with all background rows. `deadline` is a
    time of `time.monotonic`.
    """
    reader = _load_reader(model.artifact.folder)
    features = explained_features(model.artifact, rows)
    if reader is None:
        return _explain_by_permutations(
            model, features, background, rows, max_evals, seed, deadline
        )
    # Explain the sums of the form, such as log-odds, with exact Shapley values.
    form = reader.form
    if form.columns.max(initial=0) >= len(features):
        raise InvalidRequest(f"{ADDITIVE_FILE} has other columns than the model")
    exact = exact_explainer(form, reader.read(background).tobytes())
    values = exact.contributions(reader.read(rows), len(features), deadline)
    names, numbers = explained_numbers(model, rows)
    sums = values.sum(axis=1) + exact.base_values
    scale = np.abs(values).sum(axis=(1, 2)) + np.abs(numbers).max(axis=1) + 1
    predicted = form.predictions(sums)
    # Rows without a finite prediction have no finite difference either.
    is_wrong = ~(np.abs(predicted - numbers).max(axis=1) <= TOLERANCE * scale)
    is_wrong &= np.isfinite(numbers).all(axis=1)
    if predicted.shape != numbers.shape or is_wrong.any():
        raise InferenceError(
            f"row {is_wrong.argmax()}: the contributions do not add up to the prediction; log the "
            "model again with reference_data that has such rows"
        )
    return RowContributions(
        features,
        names[-len(form.base) :],  # One sum of two classes is the score of the last class.
        values,
        exact.base_values,
        len(exact.background),
        method="linear" if form.is_linear else "tree",
        link=form.link,
    )


@dataclass(frozen=True, eq=False)
class Background:
    """The rows that explained predictions are compared with. `source` is `reference` or
    `input_example`.
    """

    feeds: Feeds
    source: str


def read_background(model: OnnxModel, most_rows: int, seed: int) -> Background:
    """Return random rows of the model's reference sample or its input example. Raises
    InvalidArtifact.
    """
    artifact = model.artifact
    example = artifact.folder / INPUT_EXAMPLE
    try:
        if artifact.reference_file is not None:
            schema = model.schema if model.schema.columns else model.schema.tensor_schema
            table = read_parquet(artifact.reference_file, list(schema.names))
            if table.num_rows > most_rows:
                table = table.take(sample_positions(table.num_rows, most_rows, seed))
            columns = {}
            floats = {}
            for name in schema.names:
                column = table.column(name)
                columns[name] = column.to_pylist()
                if is_floating(column.type):
                    floats[name] = column.to_numpy()
            columns |= cast_columns(schema.dtypes, floats)
            return Background(schema.from_columns(columns), "reference")
        if example.is_file():
            feeds = mlflow_protocol.decode(JSON, example.read_bytes(), model.schema)
            first_rows = {name: array[:most_rows] for name, array in feeds.items()}
            return Background(first_rows, "input_example")
    except (OSError, pa.ArrowException) as error:
        reason = one_line(error) if isinstance(error, pa.ArrowException) else error.strerror
        raise InvalidArtifact(
            f"the model's reference or example rows cannot be read: {reason}"
        ) from None
    except OnnxserveError as error:
        raise InvalidArtifact(
            f"the model's reference or example rows are invalid: {error.message}"
        ) from None
    raise InvalidArtifact(
        "the model has neither reference rows nor an input example, which explanations need"
    )


_read_background = lru_cache(_MAX_MODELS)(read_background)


def _explain_by_permutations(
    model: OnnxModel,
    features: list[ExplainedFeature],
    background: Feeds,
    rows: Feeds,
    max_evals: int,
    seed: int,
    deadline: float,
) -> RowContributions:
    """Explain each row with the same permutations, so that its contributions do not
    depend on others. See `explain_rows`.
    """
    width = len(features)
    count = row_count(background)
    pairs = max_evals // (2 * width + 1)
    ranks = np.tile(np.arange(width), (pairs, 1))
    np.random.default_rng(seed).permuted(ranks, axis=1, out=ranks)
    # The features become known one by one, and unknown in the same order.
    is_known = ranks[:, np.newaxis] < np.arange(width + 1)[:, np.newaxis]
    known = np.concatenate([is_known, ~is_known[:, 1:]], axis=1).reshape(-1, width)
    most = max(_RUN_ROWS // count, 1)
    values = []
    for position in range(row_count(rows)):
        row = slice_feeds(rows, slice(position, position + 1))
        means = []
        for sets in np.split(known, range(most, len(known), most)):
            if time.monotonic() > deadline:
                raise DeadlinePassed
            feeds = {
                name: np.concatenate([background[name].astype(array.dtype)] * len(sets))
                for name, array in row.items()
            }
            for feature, is_set in zip(features, sets.repeat(count, axis=0).T, strict=True):
                for name, place in feature.places:
                    feeds[name].reshape(len(is_set), -1)[is_set, place] = feature.values(row)
            names, numbers = explained_numbers(model, feeds)
            if len(numbers) != len(is_set):
                raise InvalidRequest(
                    f"the model returns {len(numbers)} rows for {len(is_set)} and cannot be "
                    "explained"
                )
            means.append(numbers.reshape(len(sets), count, -1).mean(axis=1))
        by_pair = np.concatenate(means).reshape(pairs, 2 * width + 1, -1)
        changes = np.diff(by_pair, axis=1)
        both = changes[:, :width] - changes[:, width:]
        values.append(np.take_along_axis(both, ranks[..., np.newaxis], axis=1).mean(axis=0) / 2)
    return RowContributions(
        features,
        names,
        np.array(values),
        by_pair[0, 0],
        count,
        method="permutation",
        link="identity",
    )
