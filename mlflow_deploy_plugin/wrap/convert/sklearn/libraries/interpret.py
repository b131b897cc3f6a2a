"""Convert the explainable boosting machines of interpret to sums of numbers that are
looked up by bin.
"""

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
    positions, cuts, steps, row = _binned_columns(machine)
    strides = np.zeros((len(positions), len(machine.term_features_)))
    offsets: list[float] = []
    tables: list[Array] = []
    for term, (features, scores) in enumerate(
        zip(machine.term_features_, machine.term_scores_, strict=True),
    ):
        sizes = scores.shape[: len(features)]
        for axis, key in enumerate(_levels(machine, features)):
            strides[positions[key], term] += np.prod(sizes[axis + 1 :])
        offsets.append(sum(len(table) for table in tables))
        tables.append(scores.reshape(int(np.prod(sizes)), -1))
    kind = AdditiveClassifier if hasattr(machine, "classes_") else AdditiveModel
    scored = np.array(offsets, float), np.concatenate(tables)
    sums = kind(cuts, strides, *scored, np.ravel(machine.intercept_), machine.link_)
    if hasattr(machine, "classes_"):
        sums.classes_ = machine.classes_
    if len(steps) == 1:
        return Pipeline([("sums", sums)])
    return Pipeline([("bins", ColumnTransformer(steps).fit(pd.DataFrame([row]))), ("sums", sums)])


def _binned_columns(
    machine: Estimator,
) -> tuple[dict[_Key, int], list[tuple[int, Array | None]], list[_Step], dict[str, Category]]:
    """Return the position per feature and level, the cuts as in `AdditiveModel`, the
    steps, and an example row.
    """
    names = [str(name) for name in machine.feature_names_in_]
    columns = [
        name
        for feature, name in enumerate(names)
        if machine.feature_types_in_[feature] == "continuous"
    ]
    steps: list[_Step] = [("numbers", "passthrough", columns)]
    row: dict[str, Category] = dict.fromkeys(columns, 0.0)
    positions: dict[_Key, int] = {}
    cuts: list[tuple[int, Array | None]] = []
    for feature, level in sorted(
        {key for term in machine.term_features_ for key in _levels(machine, term)},
    ):
        bins = machine.bins_[feature][level]
        name = names[feature]
        positions[feature, level] = len(positions)
        if name in columns:
            cuts.append((columns.index(name), np.asarray(bins, np.float64)))
            continue
        category_codes = {_category(text): code for text, code in bins.items()}
        # The last codes: missing and unknown values.
        codes = [
            *category_codes.values(),
            0,
            max(category_codes.values(), default=0) + 1,
        ]
        is_text = any(isinstance(category, str) for category in category_codes)
        categories = np.array([*category_codes, np.nan], object if is_text else np.float64)
        row[name] = next(iter(category_codes))
        cuts.append((len(columns) + len(steps) - 1, None))
        steps.append(
            (
                f"{name} {level}",
                CategoryTables([categories], [np.array(codes, float)[:, None]]),
                [name],
            ),
        )
    return positions, cuts, steps, row


def _levels(machine: Estimator, features: tuple[int, ...]) -> list[_Key]:
    return [(feature, min(len(machine.bins_[feature]), len(features)) - 1) for feature in features]


def _category(text: str) -> Category:
    """Return the number or boolean that interpret stores as text, otherwise the
    text.
    """
    try:
        return float({"True": "1", "False": "0"}.get(text, text))
    except ValueError:
        return text
