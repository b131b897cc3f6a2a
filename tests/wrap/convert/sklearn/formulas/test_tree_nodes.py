"""Trees are converted to one operator, for any number of trees and in any ensemble."""

from typing import Any

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
from sklearn.naive_bayes import GaussianNB
from sklearn.svm import LinearSVC
from sklearn.tree import DecisionTreeClassifier

from mlflow_deploy_plugin.wrap.flavor.wrap import wrap
from tests.support.random_rows import normal_rows

ROWS = normal_rows(200, 3)
SIDES = np.where(ROWS > 0, "above", "below")
MODELS: dict[str, Any] = {
    "texts of several targets": RandomForestClassifier(10, random_state=0).fit(ROWS, SIDES),
    "numbers of several targets": DecisionTreeClassifier().fit(
        ROWS, np.digitize(ROWS[:, :2], [-1, 1])
    ),
    "a bag": BaggingClassifier(max_features=0.7, random_state=0).fit(ROWS, SIDES[:, 0]),
    "a bag of numbers": BaggingRegressor(max_features=0.7, random_state=0).fit(
        ROWS, ROWS[:, 0] * ROWS[:, 1]
    ),
    "votes of texts": AdaBoostClassifier(n_estimators=20).fit(ROWS, SIDES[:, 0]),
    "votes of three classes": AdaBoostClassifier(n_estimators=20).fit(
        ROWS, np.digitize(ROWS[:, 0], [-1, 1])
    ),
    "a weighted median": AdaBoostRegressor(n_estimators=20).fit(ROWS, ROWS[:, 0] * ROWS[:, 1]),
    "a threshold": FixedThresholdClassifier(HistGradientBoostingClassifier(max_iter=5)).fit(
        ROWS, ROWS[:, 0] > 0
    ),
}
MEMBERS = (LinearSVC(), GaussianNB(), HistGradientBoostingClassifier(max_iter=2))


@pytest.mark.parametrize("member", MEMBERS, ids=lambda member: type(member).__name__)
def test_members_of_all_kinds_vote_for_texts(member):
    assert (
        wrap(AdaBoostClassifier(member, n_estimators=3).fit(ROWS, SIDES[:, 0]), ROWS).report.state
        == "proven"
    )


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_trees_are_proven_as_one_operator(model):
    wrapped = wrap(model, ROWS)

    assert wrapped.report.state == "proven"
    assert [node.op_type for node in wrapped.converted.proto.graph.node].count(
        "TreeEnsembleRegressor"
    ) == 1
