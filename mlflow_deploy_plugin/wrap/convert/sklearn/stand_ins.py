"""Stand-ins for fitted estimators that skl2onnx does not support. Their formulas are in
`formulas/`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.base import BaseEstimator, ClassifierMixin, TransformerMixin
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


class GroupedCategories(TransformerMixin, _Fitted):  # type: ignore[misc]
    """A step that replaces unknown categories by one string. Missing values are not
    replaced.
    """

    def __init__(self, known: list[str], fill_value: str) -> None:
        self.known = known
        self.fill_value = fill_value

    def transform(self, rows: pd.DataFrame) -> pd.DataFrame:
        return rows.where(rows.isin(self.known), self.fill_value)


@dataclass(eq=False, repr=False)
class Computed(TransformerMixin, _Fitted):  # type: ignore[misc]
    """A step of another library as a function of columns [N, k], which
    `formulas/tracing.py` can convert to a graph.

    Attributes:
        refuses: the reason why the original refuses some rows, for error messages.
        tests: ONNX comparisons (`Less`) that are true for refused numbers, each with
            one bound, or one per column.
        stands_for: the class name of the original, for error messages.
        edges: the discontinuities of the function, per column.
    """

    compute: Callable[..., Array]
    refuses: str = ""
    tests: Mapping[str, Sequence[float] | Array] | None = None
    stands_for: str = ""
    edges: Sequence[Array] = ()

    def transform(self, rows: npt.ArrayLike) -> Array:
        return self.compute(np.asarray(rows, np.float64))


@dataclass(eq=False, repr=False)
class AdditiveModel(_Fitted):
    """A sum of an intercept and terms. Each term is looked up by the bins of one or
    several columns.

    Attributes:
        cuts: the position of each binned column and its ascending cuts, or None if the
            column contains bin numbers.
        strides: the distance in `scores` between adjacent bins of each binned column,
            [binned, terms].
        offsets: the first row of each term in `scores`, [terms].
        scores: the values of all terms, [rows, 1 or classes].
        link: the link function; its inverse turns the sum into the prediction.
    """

    cuts: list[tuple[int, Array | None]]
    strides: Array
    offsets: Array
    scores: Array
    intercept: Array
    link: str

    @property
    def n_features_in_(self) -> int:
        return 1 + max(position for position, _ in self.cuts)


class AdditiveClassifier(ClassifierMixin, AdditiveModel):  # type: ignore[misc]
    """An `AdditiveModel` that predicts classes by the sign of its sum, or by the
    largest of several sums.
    """

    classes_: Array


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
