"""Trees are one operator, however many of them there are and whoever asks them."""

from typing import Any

import numpy as np
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.model_selection import FixedThresholdClassifier
from sklearn.tree import DecisionTreeClassifier

from mlflow_deploy_plugin.flavor.wrap import wrap

ROWS = np.random.default_rng(0).normal(size=(200, 3))
SIDES = np.where(ROWS > 0, "above", "below")
MODELS: dict[str, Any] = {
    "texts of several targets": RandomForestClassifier(10, random_state=0).fit(ROWS, SIDES),
    "numbers of several targets": DecisionTreeClassifier().fit(ROWS, np.digitize(ROWS[:, :2], [-1, 1])),
    "a threshold": FixedThresholdClassifier(HistGradientBoostingClassifier(max_iter=5)).fit(ROWS, ROWS[:, 0] > 0),
}


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_trees_are_proven_as_one_operator(model: Any) -> None:
    wrapped = wrap(model, ROWS)

    assert wrapped.report.state == "proven"
    assert [node.op_type for node in wrapped.converted.proto.graph.node].count("TreeEnsembleRegressor") == 1
