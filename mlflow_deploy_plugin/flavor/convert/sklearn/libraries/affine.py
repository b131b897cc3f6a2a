"""Estimators of any library whose answers are affine in the columns: linear models, scalers, selections, projections.

They have many formulas, and one form: weights and an intercept. So the fitted estimator is asked for its answers to a
row of zeros and to the rows of the identity matrix, which are these numbers, and to further rows, which show whether it
is affine. The proof then compares the model's answers on rows that were not asked here.
"""

import warnings
from contextlib import suppress
from typing import Any

import numpy as np
import pandas as pd
from sklearn.base import is_classifier
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import Pipeline

from mlflow_deploy_plugin.flavor.convert.sklearn.stand_ins import Computed, Selection
from mlflow_deploy_plugin.runtime import Array

_MOST_COLUMNS = 1000
_CLOSE = 1e-9


def stand_in(part: Any, columns: list[str] | int = 0) -> Computed | Selection | Pipeline | None:
    """Return an affine step, or a regression for an affine predictor; None for a constant and any other estimator.

    Args:
        columns: the names of the columns that it reads, or their number; 0 if nobody knows.
    """
    with suppress(Exception), warnings.catch_warnings():  # whatever the library raises for rows of numbers
        warnings.simplefilter("ignore")
        predicts, known = hasattr(part, "predict"), columns if isinstance(columns, int) else len(columns)
        names = getattr(part, "feature_names_in_", None if isinstance(columns, int) else columns)
        count = getattr(part, "n_features_in_", known) or len(np.ravel(getattr(part, "coef_", ())))
        if predicts == hasattr(part, "transform") or is_classifier(part) or not 0 < count <= _MOST_COLUMNS:
            return None

        def answers(rows: Array) -> Array:
            given = rows if names is None else pd.DataFrame(rows, columns=names)
            found = np.asarray(part.predict(given) if predicts else part.transform(given))
            if found.dtype.kind != "f" or len(found) != len(rows):
                raise TypeError(f"answers of the type {found.dtype} and the shape {found.shape}")
            return found.astype(np.float64)

        intercept, *others = answers(np.vstack([np.zeros(count), np.eye(count)]))
        weights = np.array(others) - intercept
        checked = np.random.default_rng(0).normal(size=(3, count)) * [[1.0], [1e-3], [1e3]]
        expected = checked @ weights + intercept
        if np.allclose(answers(checked), expected, _CLOSE, _CLOSE * np.abs(expected).max()):
            return _regression(weights, intercept) if predicts else _step(weights, intercept, part)
    return None


def _regression(weights: Array, intercept: Array) -> Pipeline | None:
    """Return a regression that reads the columns with weights only, as a missing number elsewhere changes no sum."""
    reads = (weights != 0).reshape(len(weights), -1).any(axis=1)
    if not reads.any():
        return None
    regression = LinearRegression()
    regression.coef_, regression.intercept_, regression.n_features_in_ = weights[reads].T, intercept, int(reads.sum())
    return Pipeline([("select", Selection(reads)), ("sum", regression)])


def _step(weights: Array, intercept: Array, part: Any) -> Computed | Selection:
    """Return a step. Each of its columns is missing where one is that it is made of, and nowhere else."""
    origins, reads = np.abs(weights).argmax(axis=0), weights != 0
    scales = weights[origins, np.arange(len(origins))]
    of_one = reads.sum(axis=0) == 1
    if of_one.all() and (scales == 1).all() and not intercept.any() and (np.diff(origins) > 0).all():
        return Selection(reads.any(axis=1))

    def compute(x: Any) -> Any:
        scaled = x[:, origins] * scales
        if not of_one.all():
            is_missing = np.isnan(x).astype(np.float64) @ reads.astype(np.float64) > 0
            sums = np.where(np.isnan(x), 0.0, x) @ weights
            scaled = np.where(of_one, scaled, np.where(is_missing, np.nan, sums))
        return scaled + intercept

    return Computed(compute, stands_for=type(part).__name__)
