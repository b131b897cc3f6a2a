"""Convert the explainable boosting machines of interpret to sums of numbers that are
looked up by bin.
"""

from dataclasses import dataclass
from itertools import chain

import numpy as np
import pandas as pd
from sklearn.compose import ColumnTransformer
from sklearn.pipeline import Pipeline

from mlflow_deploy_plugin.core.errors import ConversionError
from mlflow_deploy_plugin.serve.runtime.feeds import Array
from mlflow_deploy_plugin.wrap.convert.converted import Category
from mlflow_deploy_plugin.wrap.convert.sklearn.estimators import Estimator
from mlflow_deploy_plugin.wrap.convert.sklearn.stand_ins import (
    AdditiveClassifier,
    AdditiveModel,
    CategoryTables,
)

_LINKS = ("identity", "log", "logit", "mlogit")
_Step = tuple[str, Estimator, list[str]]
_Key = tuple[int, int]
"""A feature and the level of its bins. Pairs of features may have fewer bins than
single features.
"""


def as_additive(machine: Estimator) -> Pipeline | None:
    """Return bins and sums, or None if `machine` is unfitted. Raises ConversionError
    for unknown links.
    """
    if not hasattr(machine, "term_scores_"):
        return None
    if machine.link_ not in _LINKS:
        raise ConversionError(f"{type(machine).__name__} with the link {machine.link_!r}")
    bins = _binned_columns(machine)
    sums = _sums(machine, bins)
    if len(bins.steps) == 1:
        return Pipeline([("sums", sums)])
    columns = ColumnTransformer(bins.steps).fit(pd.DataFrame([bins.row]))
    return Pipeline([("bins", columns), ("sums", sums)])


def _sums(machine: Estimator, bins: "_Bins") -> AdditiveModel:
    """Return the sums of the terms' scores, which are looked up by bin."""
    tables = []
    for features, scores in zip(machine.term_features_, machine.term_scores_, strict=True):
        bin_count = int(np.prod(scores.shape[: len(features)]))
        tables.append(scores.reshape(bin_count, -1))
    kind = AdditiveClassifier if hasattr(machine, "classes_") else AdditiveModel
    sums = kind(
        cuts=bins.cuts,
        strides=_strides(machine, bins.positions),
        offsets=np.cumsum(
            [
                0.0,
                *map(len, tables[:-1]),
            ]
        ),
        scores=np.concatenate(tables),
        intercept=np.ravel(machine.intercept_),
        link=machine.link_,
    )
    if hasattr(machine, "classes_"):
        sums.classes_ = machine.classes_
    return sums


def _strides(machine: Estimator, positions: dict[_Key, int]) -> Array:
    """Return the distance between adjacent bins of each binned column in the scores of
    each term, [binned, terms]; 0 for a term without the column.
    """
    strides = np.zeros((len(positions), len(machine.term_features_)))
    for term, features in enumerate(machine.term_features_):
        sizes = machine.term_scores_[term].shape[: len(features)]
        for axis, key in enumerate(_levels(machine, features)):
            strides[positions[key], term] += np.prod(sizes[axis + 1 :])
    return strides


@dataclass(frozen=True)
class _Bins:
    """The binned columns of a machine.

    Attributes:
        positions: the position in `cuts` of each feature and level.
        cuts: the position of each binned column and its ascending cuts, or None if the
            column contains bin numbers.
        steps: a step for all numbers, and a step for each level of categories.
        row: a row that the steps accept.
    """

    positions: dict[_Key, int]
    cuts: list[tuple[int, Array | None]]
    steps: list[_Step]
    row: dict[str, Category]


def _binned_columns(machine: Estimator) -> _Bins:
    """Return the columns that the terms of a machine read: numbers, which are cut into
    bins, and a column of bin numbers per level of categories.
    """
    names = [str(name) for name in machine.feature_names_in_]
    kinds = zip(names, machine.feature_types_in_, strict=True)
    columns = [name for name, kind in kinds if kind == "continuous"]
    bins = _Bins(
        positions={},
        cuts=[],
        steps=[("numbers", "passthrough", columns)],
        row=dict.fromkeys(columns, 0.0),
    )
    used = chain.from_iterable(_levels(machine, term) for term in machine.term_features_)
    for feature, level in sorted(set(used)):
        name = names[feature]
        learned = machine.bins_[feature][level]
        bins.positions[feature, level] = len(bins.positions)
        if name in columns:
            bins.cuts.append(
                (
                    columns.index(name),
                    np.asarray(learned, np.float64),
                )
            )
            continue
        bins.row[name] = _category(next(iter(learned)))
        position = len(columns) + len(bins.steps) - 1  # The first step is for numbers.
        bins.cuts.append((position, None))
        bins.steps.append((f"{name} {level}", _table(learned), [name]))
    return bins


def _table(learned: dict[str, int]) -> CategoryTables:
    """Return a step that writes the codes of categories. The last two codes are for
    missing and unknown values.
    """
    codes = {_category(text): code for text, code in learned.items()}
    dtype = object if any(isinstance(category, str) for category in codes) else np.float64
    code_of_unknown = max(codes.values(), default=0) + 1
    numbers = [*codes.values(), 0, code_of_unknown]
    categories = np.array([*codes, np.nan], dtype)
    return CategoryTables(
        [categories],
        [np.array(numbers, float)[:, None]],
    )


def _levels(machine: Estimator, features: tuple[int, ...]) -> list[_Key]:
    """Return the features of a term with their levels: the number of the term's
    features minus 1, or the feature's last level.
    """
    keys = []
    for feature in features:
        level = min(len(machine.bins_[feature]), len(features)) - 1
        keys.append((feature, level))
    return keys


def _category(text: str) -> Category:
    """Return the number or boolean that interpret stores as text, otherwise the
    text.
    """
    try:
        return float({"True": "1", "False": "0"}.get(text, text))
    except ValueError:
        return text
