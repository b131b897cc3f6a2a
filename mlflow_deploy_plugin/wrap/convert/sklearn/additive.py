"""The additive form of trees and linear models, from which exact Shapley values are
computed (`serve/runtime/additive.py`).
"""

from typing import Literal

import numpy as np
from sklearn.base import is_classifier
from sklearn.linear_model import LogisticRegression
from sklearn.linear_model._glm import _GeneralizedLinearRegressor
from sklearn.pipeline import Pipeline

from mlflow_deploy_plugin.serve.runtime.additive import AdditiveForm
from mlflow_deploy_plugin.serve.runtime.feeds import Array
from mlflow_deploy_plugin.wrap.convert.sklearn.boosters import read_boosting
from mlflow_deploy_plugin.wrap.convert.sklearn.estimators import Estimator, is_linear, library_of
from mlflow_deploy_plugin.wrap.convert.sklearn.formulas.tree_nodes import (
    FORESTS,
    FORMULAS,
    boosted,
    forest_sums,
)
from mlflow_deploy_plugin.wrap.convert.sklearn.trees import (
    Boosting,
    Tree,
    link_of,
    merge_trees,
)

_MOST_VALUES = 20_000_000
"""The maximum number of leaf values in the arrays; models with more are explained by
permutations.
"""
_SHAP_LINKS: dict[str, Literal["identity", "log", "logit"]] = {
    "Identity": "identity",
    "Exp": "log",
    "Sigmoid": "logit",
    "Softmax": "logit",
}


def predictor_and_steps(fitted: Estimator) -> tuple[Estimator, Pipeline | None]:
    """Return the predictor, and the pipeline of the steps before it; None without such
    steps. Samplers of imbalanced-learn affect only training.
    """
    if not isinstance(fitted, Pipeline):
        return fitted, None
    steps = [step for step in fitted.steps if not hasattr(step[1], "fit_resample")]
    if len(steps) == 1:
        return predictor_and_steps(steps[0][1])
    return steps[-1][1], Pipeline(steps[:-1])


def additive_form(predictor: Estimator) -> AdditiveForm | None:
    """Return the additive form of a fitted predictor, whose features are not assigned
    to columns yet; None if it is no sum of trees or features, or if it is too large.
    """
    sums: Boosting | None = None
    try:
        if FORMULAS.get(type(predictor)) is boosted or library_of(predictor):
            sums = read_boosting(predictor)
        elif type(predictor) in FORESTS:
            sums = forest_sums(predictor)
        elif isinstance(predictor, _GeneralizedLinearRegressor) or is_linear(predictor):
            link = "Identity"
            slopes = np.atleast_2d(predictor.coef_).T
            if is_classifier(predictor):
                link = "Sigmoid" if slopes.shape[1] == 1 else "Softmax"
                if not isinstance(predictor, LogisticRegression):
                    return None
            elif isinstance(predictor, _GeneralizedLinearRegressor):
                link = link_of(predictor._base_loss)
            sums = Boosting(
                trees=[],
                targets=[],
                base=np.broadcast_to(predictor.intercept_, slopes.shape[1:]).astype(float),
                mode="BRANCH_LEQ",
                link=link,
                lines=slopes.astype(float),
            )
    except NotImplementedError:
        return None
    return None if sums is None else _as_arrays(sums)


def reads_categories(predictor: Estimator) -> bool:
    """Return True if the features of the trees have a code per category."""
    is_boosted = hasattr(predictor, "_predictors") or library_of(predictor)
    return bool(is_boosted and read_boosting(predictor).categories)


def _as_arrays(sums: Boosting) -> AdditiveForm | None:
    """Return trees or slopes as arrays of equal length, or None if they are too
    large.
    """
    trees, owners = merge_trees(sums)
    nodes = max((len(tree.left) for tree in trees), default=0)
    values = len(sums.base) * (1 + len(sums.slopes))
    if len(trees) * nodes * values > _MOST_VALUES:
        return None

    def padded(name: str, dtype: type, fill: object) -> Array:
        array: Array = np.full((len(trees), nodes), fill, dtype)
        for position, tree in enumerate(trees):
            array[position, : len(tree.left)] = getattr(tree, name)
        return array

    left = padded("left", np.int32, -1)
    threshold = padded("threshold", np.float64, 0.0)
    if sums.mode == "BRANCH_LT":
        # With the largest number below a threshold t, x < t becomes x <= t.
        if sums.has_single_rows:
            threshold = threshold.astype(np.float32)
        threshold = np.nextafter(threshold, -np.inf, dtype=threshold.dtype).astype(np.float64)
    membership, members = _memberships(trees, nodes)
    value = np.zeros((len(trees), nodes, values))
    for part, target, owner in zip(sums.trees, sums.targets, owners, strict=True):
        value[owner, : len(part.value), target] += np.where(part.left < 0, part.value, 0.0)
    return AdditiveForm(
        feature=padded("feature", np.int32, 0),
        threshold=np.where(membership < 0, threshold, np.nan),
        membership=membership,
        members=members,
        left=left,
        right=np.where(left < 0, -1, padded("right", np.int32, -1)),
        missing_left=padded("default_left", np.bool_, False),
        value=value,
        slopes=sums.lines.reshape(-1, len(sums.base)),
        base=np.asarray(sums.base, np.float64),
        columns=np.empty(0, np.int64),
        link=_SHAP_LINKS[sums.link],
        is_single=sums.has_single_rows,
        missing=sums.missing,
        slope_features=np.array(sums.slopes, np.int64),
    )


def _memberships(trees: list[Tree], nodes: int) -> tuple[Array, Array]:
    """Return `membership` and `members` of the form of trees with at most this number
    of nodes.
    """
    membership = np.full((len(trees), nodes), -1, np.int32)
    tests: list[list[int]] = []
    for position, tree in enumerate(trees):
        for node, codes in tree.members.items():
            membership[position, node] = len(tests)
            tests.append([code for code in codes if code >= 0])
    most = max(map(max, filter(None, tests)), default=-1)
    members = np.zeros((len(tests) + 1, most + 2), bool)
    for test, codes in enumerate(tests):
        members[test, codes] = True
    return membership, members
