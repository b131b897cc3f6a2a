"""Exact Shapley values of trees and linear models, from their additive form.

The values are interventional: a feature that is not in a coalition takes its values
from the background rows. They explain the sums before the link, such as log-odds, as
`shap.TreeExplainer` and `shap.LinearExplainer` do for the original model. The
contributions of the features that are made from one column are summed.

Lundberg et al., From local explanations to global understanding with explainable AI for
trees, Nature Machine Intelligence 2, 2020.
"""

import math
import time
from typing import Any

import numpy as np
import shap

from mlflow_deploy_plugin.serve.runtime.additive import AdditiveForm
from mlflow_deploy_plugin.serve.runtime.feeds import Array

_ROWS = 100
"""The number of rows between two checks of the deadline."""


class DeadlinePassed(Exception):
    """The deadline of an explain request has passed."""


def column_contributions(
    form: AdditiveForm,
    background: Array,
    features: Array,
    columns: int,
    deadline: float = math.inf,
) -> Array:
    """Return the contributions of the columns to the sums, [N, columns, K] float64.

    Args:
        form: the trees or slopes.
        background: the features of the background rows, [B, F].
        features: the features of the explained rows, [N, F].
        columns: the number of columns.
        deadline: a time of `time.monotonic`, after which DeadlinePassed is raised.
    """
    if form.is_linear:
        distances = features - background.mean(axis=0)
        return _sum_by_column(distances[:, :, None] * form.slopes, form.columns, columns)
    explainer = shap.TreeExplainer(
        _shap_model(form),
        background,
        feature_perturbation="interventional",
    )
    parts = []
    for start in range(0, len(features), _ROWS):
        if time.monotonic() > deadline:
            raise DeadlinePassed
        part = features[start : start + _ROWS]
        values = np.asarray(explainer.shap_values(part, check_additivity=False))
        values = values.reshape(*part.shape, -1)  # shap drops the last dimension of one sum.
        parts.append(_sum_by_column(values, form.columns, columns))
    return np.concatenate(parts)


def _sum_by_column(values: Array, columns_of_features: Array, columns: int) -> Array:
    """Return the sums of the features' values [N, F, K] by column, [N, columns, K]."""
    is_of_column = columns_of_features[:, None] == np.arange(columns)
    summed: Array = np.einsum("nfk,fc->nck", values, is_of_column.astype(float))
    return summed


def _shap_model(form: AdditiveForm) -> dict[str, Any]:
    """Return the trees in the dictionary that `shap.TreeExplainer` accepts."""
    trees = []
    for position, left in enumerate(form.left):
        right = form.right[position]
        trees.append(
            {
                "children_left": left,
                "children_right": right,
                "children_default": np.where(form.missing_left[position], left, right),
                "features": np.where(left < 0, -2, form.feature[position]),
                "thresholds": form.threshold[position],
                "values": form.value[position],
                "node_sample_weight": np.ones(len(left)),  # Interventional values do not use it.
            }
        )
    return {
        "trees": trees,
        "base_offset": form.base,
        "internal_dtype": np.float64,
        "input_dtype": np.float64,
        "objective": None,
        "tree_output": "raw_value",
    }
