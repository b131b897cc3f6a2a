"""Nested estimators are converted by a formula, by a converter, or after steps of a
pipeline.
"""

from typing import Any

import numpy as np
import pytest
from sklearn.ensemble import (
    AdaBoostClassifier,
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
)
from sklearn.feature_selection import RFE
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.model_selection import FixedThresholdClassifier
from sklearn.multiclass import OneVsOneClassifier, OneVsRestClassifier
from sklearn.neighbors import NearestCentroid
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.svm import SVC, LinearSVC
from sklearn.tree import DecisionTreeClassifier

from mlflow_deploy_plugin.core.errors import ConversionError
from mlflow_deploy_plugin.wrap.flavor.wrap import wrap
from tests.support.random_rows import normal_rows
from tests.wrap.conftest import is_proven

ROWS = normal_rows(200, 3)
SUM = ROWS @ [2.0, 1.0, 0.0]
THREE = np.digitize(SUM, [-1, 1])

WITHIN: dict[str, Any] = {
    "linear": LinearSVC(),
    "linear, behind steps": make_pipeline(
        FunctionTransformer(lambda x: x / 2), "passthrough", RidgeClassifier()
    ),
    "linear, of columns of its own": RFE(LogisticRegression(), n_features_to_select=1),
    "a converter's scores": GradientBoostingClassifier(n_estimators=3),
    "scores of 64 bits": HistGradientBoostingClassifier(max_iter=3),
    "a kernel's scores": SVC(),
    "a pipeline's trees": make_pipeline(StandardScaler(), DecisionTreeClassifier(max_depth=3)),
    "a kernel's scores beside probabilities": SVC(probability=True, random_state=0),
    "one that asks others itself": FixedThresholdClassifier(LogisticRegression(), threshold=0.4),
}


@pytest.mark.parametrize("within", WITHIN.values(), ids=WITHIN)
def test_an_estimator_within_answers_as_it_does_alone(within):
    model = (
        OneVsRestClassifier(within)
        if not hasattr(within, "threshold")
        else OneVsOneClassifier(within)
    )

    if isinstance(within, FixedThresholdClassifier):
        with pytest.raises(ConversionError, match="scores of the inner FixedThresholdClassifier"):
            wrap(model.fit(ROWS, THREE), ROWS)
    else:
        assert is_proven(model.fit(ROWS, THREE), ROWS)


def test_a_value_that_is_used_twice_is_computed_once_in_the_graph():
    model = OneVsRestClassifier(DecisionTreeClassifier(max_depth=3)).fit(ROWS, THREE)

    nodes = [node.op_type for node in wrap(model, ROWS).converted.proto.graph.node]

    assert sum(name.startswith("TreeEnsemble") for name in nodes) == 3


@pytest.mark.long
def test_steps_that_learned_the_same_are_in_the_graph_once():
    pipeline = make_pipeline(StandardScaler(), FunctionTransformer(np.exp), LogisticRegression())
    three, ten = (
        OneVsRestClassifier(pipeline).fit(ROWS, np.digitize(SUM, edges))
        for edges in ([-1, 1], range(-4, 5))
    )

    few, many = (wrap(model, ROWS).converted.proto.graph.node for model in (three, ten))

    assert sum(node.op_type == "Div" for node in many) == sum(node.op_type == "Div" for node in few)


def test_scores_that_a_converter_lacks_are_named():
    model = OneVsRestClassifier(AdaBoostClassifier(n_estimators=2)).fit(ROWS, THREE)
    lacking = OneVsRestClassifier(NearestCentroid()).fit(ROWS, THREE)

    assert is_proven(model, ROWS)
    with pytest.raises(ConversionError, match="scores of the inner NearestCentroid"):
        wrap(lacking, ROWS)
