"""Convert affine estimators of any library: linear models, scalers, selections,
projections.

The outputs for a row of zeros and for rows with a single non-zero number determine the
intercept and the weights. Then rows with codes, years, large numbers and markers such
as -999 test whether the estimator is affine.
"""

import warnings
from contextlib import suppress

import numpy as np
import pandas as pd
from sklearn.base import is_classifier
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import Pipeline

from mlflow_deploy_plugin.serve.runtime.feeds import Array
from mlflow_deploy_plugin.wrap.convert.sklearn.estimators import Estimator
from mlflow_deploy_plugin.wrap.convert.sklearn.formulas.tracing import TracedArray
from mlflow_deploy_plugin.wrap.convert.sklearn.stand_ins import Computed, Selection

_MOST_COLUMNS = 1000
_FAR = 2.0**30
"""The number that determines a weight, so large that a large intercept does not reduce
the precision.
"""
_CODES = np.arange(-1100.0, 2200.0)
_MARKS = np.array(
    [sign * (10.0**power - less) for power in range(3, 13) for less in (0, 1) for sign in (-1, 1)],
)
_CLOSE = 1e-12
"""The maximum error of an output, relative to the sum of its terms' absolute values."""


def stand_in(
    part: Estimator,
    columns: list[str] | int = 0,
) -> Computed | Selection | Pipeline | None:
    """Return an affine step or regression, or None if the estimator is not affine.
    `columns`: see `with_stand_ins`.
    """
    with suppress(Exception), warnings.catch_warnings():  # The library may raise any error.
        warnings.simplefilter("ignore")
        predicts = hasattr(part, "predict")
        width = columns if isinstance(columns, int) else len(columns)
        names = getattr(part, "feature_names_in_", None if isinstance(columns, int) else columns)
        count = getattr(part, "n_features_in_", width) or len(np.ravel(getattr(part, "coef_", ())))
        has_weights = hasattr(part, "coef_") and not is_classifier(part)
        if (
            predicts == hasattr(part, "transform")
            or predicts > has_weights
            or not 0 < count <= _MOST_COLUMNS
        ):
            return None

        def answers(rows: Array) -> Array:
            table = rows if names is None else pd.DataFrame(rows, columns=names)
            answer = np.asarray(part.predict(table) if predicts else part.transform(table))
            if answer.dtype.kind != "f" or len(answer) != len(rows):
                raise TypeError(f"answers of the type {answer.dtype} and the shape {answer.shape}")
            return answer.astype(np.float64)

        intercept, *slopes = answers(np.vstack([np.zeros(count), np.eye(count) * _FAR]))
        weights = (np.array(slopes) - intercept) / _FAR
        random = np.random.default_rng(0)
        few = random.normal(size=(3, count)) * [[1.0], [1e-3], [1e3]]
        codes = random.permuted(np.tile(_CODES, (count, 1)), axis=1).T
        mixed = np.round(
            random.normal(size=(2000, count)) * 10 ** random.uniform(-1, 5, (2000, count)),
        )
        for rows in (few, np.vstack([codes, mixed, np.outer(_MARKS, np.ones(count))])):
            allowed = _CLOSE * (np.abs(rows) @ np.abs(weights) + np.abs(intercept))
            if not (np.abs(answers(rows) - (rows @ weights + intercept)) <= allowed).all():
                return None
        with suppress(ValueError):  # The estimator may refuse missing numbers.
            if np.isfinite(answers(np.where(np.eye(count), np.nan, 0.0)))[weights != 0].any():
                return None
        if predicts:
            return _regression(weights, intercept)
        return _step(weights, intercept, part)
    return None


def _regression(weights: Array, intercept: Array) -> Pipeline | None:
    """Return a regression on the columns with non-zero weights: missing numbers in
    other columns have no effect.
    """
    reads = (weights != 0).reshape(len(weights), -1).any(axis=1)
    if not reads.any():
        return None
    regression = LinearRegression()
    regression.coef_ = weights[reads].T
    regression.intercept_ = intercept
    regression.n_features_in_ = int(reads.sum())
    return Pipeline([("select", Selection(reads)), ("sum", regression)])


def _step(weights: Array, intercept: Array, part: Estimator) -> Computed | Selection:
    """Return a step. A value of an output column is missing only if one of its input
    values is missing.
    """
    origins = np.abs(weights).argmax(axis=0)
    reads = weights != 0
    scales = weights[origins, np.arange(len(origins))]
    of_one = reads.sum(axis=0) == 1
    if (
        of_one.all()
        and (scales == 1).all()
        and not intercept.any()
        and (np.diff(origins) > 0).all()
    ):
        return Selection(reads.any(axis=1), type(part).__name__)

    def compute(x: TracedArray) -> TracedArray:
        scaled = x[:, origins] * scales
        if not of_one.all():
            is_missing = np.isnan(x).astype(np.float64) @ reads.astype(np.float64) > 0
            sums = np.where(np.isnan(x), 0.0, x) @ weights
            scaled = np.where(of_one, scaled, np.where(is_missing, np.nan, sums))
        return scaled + intercept

    return Computed(compute, stands_for=type(part).__name__)
