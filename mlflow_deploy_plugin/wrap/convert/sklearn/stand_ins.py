"""Stand-ins for fitted estimators that skl2onnx does not support. Their formulas are in
`formulas/`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.feature_selection import SelectorMixin
from sklearn.multioutput import MultiOutputRegressor

from mlflow_deploy_plugin.serve.runtime.feeds import Array


class _Fitted(BaseEstimator):  # type: ignore[misc]
    """An estimator that is created in the fitted state. scikit-learn requires a `fit`
    method.
    """

    def fit(self, rows: object, target: object = None) -> "_Fitted":
        return self


class Selection(SelectorMixin, _Fitted):  # type: ignore[misc]
    """A step that keeps some columns.

    Attributes:
        support: True for the columns that are kept, [k].
        stands_for: the class name of the original, for error messages.
    """

    def __init__(self, support: Array, stands_for: str = "RFE") -> None:
        self.support = support
        self.stands_for = stands_for
        self.n_features_in_ = len(support)

    def _get_support_mask(self) -> Array:
        return self.support


class CategoryTables(TransformerMixin, _Fitted):  # type: ignore[misc]
    """One table per column, [categories + 1, numbers], ordered as `categories_`. The
    last row is for other values.
    """

    def __init__(self, categories_: list[Array], tables: list[Array]) -> None:
        self.categories_ = categories_
        self.tables = tables
        self.n_features_in_ = len(categories_)

    def transform(self, rows: pd.DataFrame) -> Array:
        numbers = []
        for name, categories, table in zip(
            rows.columns, self.categories_, self.tables, strict=True
        ):
            # The position of other values is -1, the last row of the table.
            positions = pd.Index(categories).get_indexer(pd.Index(rows[name]))
            numbers.append(table[positions])
        return np.hstack(numbers)


class TreeFeatures(TransformerMixin, _Fitted):  # type: ignore[misc]
    """The step before the trees of `model`: the columns as numbers, with a code per
    category.
    """

    def __init__(self, model: BaseEstimator) -> None:
        self.model = model


@dataclass(eq=False, repr=False)
class Computed(TransformerMixin, _Fitted):  # type: ignore[misc]
    """A step of another library as a function of columns [N, k], which
    `formulas/tracing.py` can convert to a graph.

    Attributes:
        stands_for: the class name of the original, for error messages.
    """

    compute: Callable[..., Array]
    stands_for: str = ""

    def transform(self, rows: npt.ArrayLike) -> Array:
        return self.compute(np.asarray(rows, np.float64))


class Transforming(TransformerMixin, _Fitted):  # type: ignore[misc]
    """A predictor that is used as a transformer. skl2onnx would always convert its
    `predict`.
    """

    def __init__(self, estimator: BaseEstimator) -> None:
        self.estimator = estimator
        self.n_features_in_ = estimator.n_features_in_


class SeveralTargets(MultiOutputRegressor):  # type: ignore[misc]
    """One estimator per target or label. skl2onnx does not support pipelines here, or
    labels without scores.
    """
