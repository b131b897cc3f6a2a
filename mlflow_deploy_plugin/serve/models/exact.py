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

from mlflow_deploy_plugin.serve.models.leaf_tables import DeadlinePassed, LeafTables
from mlflow_deploy_plugin.serve.runtime.additive import AdditiveForm
from mlflow_deploy_plugin.serve.runtime.feeds import Array

_MAX_MODELS = 4


@dataclass(eq=False)
class ExactExplainer:
    """The exact contributions of columns to the sums of a form. The features of the
    background rows are `background`, [B, F].
    """

    form: AdditiveForm
    background: Array
    _tables: LeafTables | None = None

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
        summed = np.zeros((len(features), columns, len(form.base)))
        if form.is_linear:
            differences = features - self.background.mean(axis=0)
            for column in range(columns):
                read = np.flatnonzero(form.columns == column)
                summed[:, column] = differences[:, read] @ form.slopes[read]
            return summed
        tables = self._tables or LeafTables(form, self.background, deadline)
        self._tables = tables
        for row, totals in zip(features, summed, strict=True):
            if time.monotonic() > deadline:
                raise DeadlinePassed
            tables.add_to(totals, row)
        return summed


@lru_cache(_MAX_MODELS)
def exact_explainer(form: AdditiveForm, background: bytes) -> ExactExplainer:
    """Return the explainer of a form against the features of the background rows, [B,
    F] float64, as bytes. The explainers of the last models are kept.
    """
    return ExactExplainer(form, np.frombuffer(background).reshape(-1, len(form.columns)))
