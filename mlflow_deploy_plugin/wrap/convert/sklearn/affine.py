"""Convert affine estimators of any library: linear models, scalers, selections,
projections.

The outputs for a row of zeros and for rows with a single non-zero number determine the
intercept and the weights. Then rows with codes, years, large numbers and markers such
as -999 test whether the estimator is affine.
"""

import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import product

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
    [sign * (10.0**power - less) for power, less, sign in product(range(3, 13), (0, 1), (-1, 1))]
)
_CLOSE = 1e-12
"""The maximum error of an output, relative to the sum of its terms' absolute values."""


def stand_in(
    part: Estimator, columns: list[str] | int = 0
) -> Computed | Selection | Pipeline | None:
    """Return an affine step or regression, or None if the estimator is not affine.

    Args:
        part: the fitted estimator.
        columns: the column names of the estimator's table, or the number of columns of
            its matrix; 0 is unknown.
    """
    with suppress(Exception), warnings.catch_warnings():  # The library may raise any error.
        warnings.simplefilter("ignore")
        is_predictor = hasattr(part, "predict")
        if is_predictor == hasattr(part, "transform"):
            return None
        if is_predictor and (is_classifier(part) or not hasattr(part, "coef_")):
            return None
        names = None if isinstance(columns, int) else columns
        width = columns if isinstance(columns, int) else len(columns)
        count = getattr(part, "n_features_in_", width) or len(np.ravel(getattr(part, "coef_", ())))
        if not 0 < count <= _MOST_COLUMNS:
            return None
        call = partial(_answers, part, getattr(part, "feature_names_in_", names))
        intercept, *slopes = call(np.vstack([np.zeros(count), np.eye(count) * _FAR]))
        weights = (np.array(slopes) - intercept) / _FAR
        if not _is_affine(call, weights, intercept):
            return None
        # A missing number times a weight of 0 is missing, but columns may be left out.
        reads = np.not_equal(weights, 0)
        with suppress(ValueError):  # The estimator may refuse missing numbers.
            reads = ~np.isfinite(call(np.where(np.eye(count), np.nan, 0.0)))
        if not reads[weights != 0].all():
            return None
        if is_predictor:
            reads = reads.reshape(len(weights), -1).any(axis=1)
            if not reads.any():
                return None
            regression = LinearRegression()
            regression.coef_ = weights[reads].T
            regression.intercept_ = intercept
            regression.n_features_in_ = int(reads.sum())
            return Pipeline([("select", Selection(reads)), ("sum", regression)])
        return _step(weights, intercept, reads, type(part).__name__)
    return None


def _answers(part: Estimator, names: list[str] | None, rows: Array) -> Array:
    """Return the outputs for rows [N, k], which become a table if there are names."""
    table = rows if names is None else pd.DataFrame(rows, columns=names)
    method = "predict" if hasattr(part, "predict") else "transform"
    answer = np.asarray(getattr(part, method)(table))
    if answer.dtype.kind != "f" or len(answer) != len(rows):
        raise TypeError(f"answers of the type {answer.dtype} and the shape {answer.shape}")
    return answer.astype(float)


def _is_affine(call: Callable[[Array], Array], weights: Array, intercept: Array) -> bool:
    """Return True if the outputs for various rows are rows @ weights + intercept, up to
    rounding.
    """
    count = len(weights)
    random = np.random.default_rng(0)
    # With three rows of fractions, most other estimators fail at once.
    few = random.normal(size=(3, count)) * [[1.0], [1e-3], [1e3]]
    codes = random.permuted(np.tile(_CODES, (count, 1)), axis=1).T
    shape = (2000, count)
    mixed = np.round(random.normal(size=shape) * 10 ** random.uniform(-1, 5, shape))
    marks = np.outer(_MARKS, np.ones(count))
    for rows in (few, np.vstack([codes, mixed, marks])):
        allowed = _CLOSE * (np.abs(rows) @ np.abs(weights) + np.abs(intercept))
        errors = np.abs(call(rows) - (rows @ weights + intercept))
        if not (errors <= allowed).all():
            return False
    return True


def _step(weights: Array, intercept: Array, reads: Array, kind: str) -> Computed | Selection:
    """Return a step that stands for an estimator of the class `kind`. A value of an
    output column is missing only if one of its input values, which are those of
    `reads`, is missing.
    """
    origins = np.abs(weights).argmax(axis=0)
    scales = weights[origins, np.arange(len(origins))]
    reads_one = reads.sum(axis=0) == 1
    is_copy = reads_one & (scales == 1) & (intercept == 0)
    if is_copy.all() and (np.diff(origins) > 0).all():
        return Selection(np.any(reads, axis=1), kind)

    def compute(x: TracedArray) -> TracedArray:
        """Return the outputs for rows; NaN only for a sum that contains a NaN."""
        scaled = x[:, origins] * scales
        if not reads_one.all():
            is_missing = np.isnan(x).astype(float) @ reads.astype(float) > 0
            summed = np.where(np.isnan(x), 0.0, x) @ weights
            scaled = np.where(reads_one, scaled, np.where(is_missing, np.nan, summed))
        return scaled + intercept

    return Computed(compute, stands_for=kind)
