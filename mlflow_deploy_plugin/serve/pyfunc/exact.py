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
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import shap

from mlflow_deploy_plugin.core.errors import InferenceError
from mlflow_deploy_plugin.serve.pyfunc.leaf_tables import KEPT_BYTES, LeafTables, fits
from mlflow_deploy_plugin.serve.runtime.additive import AdditiveForm
from mlflow_deploy_plugin.serve.runtime.feeds import Array

_MAX_MODELS = 4
_TABLE_ROWS = 256
_SHAP_ROWS = 50
"""The number of rows between two checks of the deadline, with tables and with shap."""
_MOST_VALUES = 4_000_000
"""The maximum number of the features' values in memory."""


class DeadlinePassed(Exception):
    """The deadline of an explain request has passed."""


@dataclass(frozen=True, eq=False)
class ExactExplainer:
    """The exact contributions of columns to the sums of a form. The features of the
    background rows are `background`, [B, F].
    """

    form: AdditiveForm
    background: Array

    @cached_property
    def base_values(self) -> Array:
        """The means of the sums over the background, [K]."""
        means: Array = self.form.sums(self.background).mean(axis=0)
        return means

    def contributions(self, features: Array, columns: int, deadline: float = math.inf) -> Array:
        """Return the contributions of the columns to the sums, [N, columns, K] float64.

        Args:
            features: the features of the explained rows, [N, F].
            columns: the number of columns.
            deadline: a time of `time.monotonic`, after which DeadlinePassed is raised.
        """
        form = self.form
        is_of_column = np.arange(columns)[:, np.newaxis] == form.columns
        summed = np.empty((len(features), columns, len(form.base)))
        most_rows = _TABLE_ROWS if form.is_linear or self._tables else _SHAP_ROWS
        most_rows = min(most_rows, max(_MOST_VALUES // (features.shape[1] * len(form.base)), 1))
        for start in range(0, len(features), most_rows):
            if time.monotonic() > deadline:
                raise DeadlinePassed
            part = slice(start, start + most_rows)
            rows = features[part]
            if form.is_linear:
                of_features = (
                    form.slopes.T[:, :, np.newaxis] * (rows - self.background.mean(axis=0)).T
                )
            elif self._tables:
                by_feature = np.ascontiguousarray(rows.T)
                of_features = np.zeros((len(form.base), *by_feature.shape))
                for tables in self._tables:
                    tables.add_to(of_features, by_feature)
            else:
                of_rows = self._shap.shap_values(self._codes(rows), check_additivity=False)
                # shap drops the last dimension of one sum.
                of_features = np.reshape(of_rows, (*rows.shape, -1)).transpose(2, 1, 0)
            values = is_of_column.astype(float) @ of_features  # [K, columns, N]
            summed[part] = values.transpose(2, 1, 0)
        return summed

    @cached_property
    def _shap(self) -> shap.TreeExplainer:
        form = self.form
        thresholds = self._codes(form.threshold)
        trees = []
        for position, left in enumerate(form.left):
            right = form.right[position]
            trees.append(
                {
                    "children_left": left,
                    "children_right": right,
                    "children_default": np.where(form.missing_left[position], left, right),
                    "features": np.where(left < 0, -2, form.feature[position]),
                    "thresholds": thresholds[position],
                    "values": form.value[position],
                    # Interventional values do not use the weights.
                    "node_sample_weight": np.ones(len(left)),
                }
            )
        model = {
            "trees": trees,
            "base_offset": form.base,
            "internal_dtype": np.float64,
            "input_dtype": np.float64,
            "objective": None,
            "tree_output": "raw_value",
        }
        background = self._codes(self.background)
        return shap.TreeExplainer(model, background, feature_perturbation="interventional")

    def _codes(self, numbers: Array) -> Array:
        """Return the numbers of thresholds below each number, because shap rounds
        thresholds to 32 bits. The codes compare like the numbers and are not rounded.
        """
        codes = np.searchsorted(self._thresholds, numbers).astype(float)
        codes[np.isnan(numbers)] = np.nan
        return codes

    @cached_property
    def _thresholds(self) -> Array:
        return np.unique(self.form.threshold[self.form.left >= 0])

    @cached_property
    def _tables(self) -> list[LeafTables]:
        """The tables of all trees; empty if they are too large, so that shap explains
        the trees.
        """
        if not fits(self.form, KEPT_BYTES):
            if self.form.needs_tables:  # `log_model` saves no such trees.
                raise InferenceError("the model's trees are too large to be explained")
            return []
        by_feature = np.ascontiguousarray(self.background.T)
        return [LeafTables(self.form, tree, by_feature) for tree in range(len(self.form.left))]


@lru_cache(_MAX_MODELS)
def exact_explainer(form: AdditiveForm, background: bytes) -> ExactExplainer:
    """Return the explainer of a form against the features of the background rows, [B,
    F] float64, as bytes. The explainers of the last models are kept.
    """
    return ExactExplainer(form, np.frombuffer(background).reshape(-1, len(form.columns)))
