"""Trees are converted to one operator, for any number of trees and in any ensemble."""

import numpy as np
import pytest
from sklearn.ensemble import (
    AdaBoostClassifier,
    AdaBoostRegressor,
    BaggingClassifier,
    BaggingRegressor,
    HistGradientBoostingClassifier,
    RandomForestClassifier,
)
from sklearn.model_selection import FixedThresholdClassifier
from sklearn.svm import LinearSVC
from sklearn.tree import DecisionTreeClassifier

from mlflow_deploy_plugin.core.errors import ConversionError
from mlflow_deploy_plugin.wrap.flavor.wrap import wrap
from tests.support.random_rows import normal_rows
from tests.support.refusals import refused
from tests.wrap.conftest import cases, operators_of, proven

ROWS = normal_rows(200, 3)
SIDES = np.where(ROWS > 0, "above", "below")
PRODUCT = ROWS[:, 0] * ROWS[:, 1]
MODELS = {
    "texts of several targets": (RandomForestClassifier(3, random_state=0), SIDES),
    "numbers of several targets": (
        DecisionTreeClassifier(),
        np.digitize(ROWS[:, :2], [-1, 1]),
    ),
    "a bag": (BaggingClassifier(None, 3, max_features=0.7, random_state=0), SIDES[:, 0]),
    "votes of texts": (AdaBoostClassifier(n_estimators=8), SIDES[:, 0]),
    "a weighted median": (AdaBoostRegressor(n_estimators=8), PRODUCT),
    "a threshold": (
        FixedThresholdClassifier(HistGradientBoostingClassifier(max_iter=5)),
        ROWS[:, 0] > 0,
    ),
}
SELDOM = {
    "a bag of numbers": (BaggingRegressor(None, 3, max_features=0.7, random_state=0), PRODUCT),
    "votes of three classes": (
        AdaBoostClassifier(n_estimators=8),
        np.digitize(ROWS[:, 0], [-1, 1]),
    ),
}


def test_members_other_than_trees_are_refused():
    with refused(ConversionError, "AdaBoost of LinearSVC"):
        wrap(AdaBoostClassifier(LinearSVC(), n_estimators=3).fit(ROWS, SIDES[:, 0]), ROWS)


@pytest.mark.parametrize(("model", "target"), [*cases(MODELS), *cases(SELDOM, is_long=True)])
def test_trees_are_one_operator(model, target):
    wrapped = proven(model.fit(ROWS, target), ROWS)
    assert operators_of(wrapped).count("TreeEnsembleRegressor") == 1
