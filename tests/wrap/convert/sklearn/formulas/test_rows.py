"""Nested estimators are converted by a formula, by a converter, or after steps of a
pipeline.
"""

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
from tests.support.refusals import refused
from tests.wrap.conftest import cases, is_proven, operators_of

ROWS = normal_rows(200, 3)
SUM = ROWS @ [2.0, 1.0, 0.0]
THREE = np.digitize(SUM, [-1, 1])

WITHIN = [
    LinearSVC(),
    make_pipeline(FunctionTransformer(lambda x: x / 2), "passthrough", RidgeClassifier()),
    HistGradientBoostingClassifier(max_iter=3),
    SVC(),
]
SELDOM = [
    RFE(LogisticRegression(), n_features_to_select=1),
    GradientBoostingClassifier(n_estimators=3),
    make_pipeline(StandardScaler(), DecisionTreeClassifier(max_depth=3)),
    SVC(probability=True, random_state=0),
    AdaBoostClassifier(n_estimators=2),
]


@pytest.mark.parametrize("within", [*cases(WITHIN), *cases(SELDOM, is_long=True)])
def test_inner_estimator_is_proven(within):
    assert is_proven(OneVsRestClassifier(within).fit(ROWS, THREE), ROWS)


def test_repeated_value_is_computed_once():
    model = OneVsRestClassifier(DecisionTreeClassifier(max_depth=3)).fit(ROWS, THREE)

    assert sum(name.startswith("TreeEnsemble") for name in operators_of(wrap(model, ROWS))) == 3


@pytest.mark.long
def test_equal_steps_are_written_once():
    pipeline = make_pipeline(StandardScaler(), FunctionTransformer(np.exp), LogisticRegression())
    few, many = (
        operators_of(wrap(OneVsRestClassifier(pipeline).fit(ROWS, np.digitize(SUM, edges)), ROWS))
        for edges in ([-1, 1], range(-4, 5))
    )

    assert many.count("Div") == few.count("Div")


@pytest.mark.parametrize(
    "model",
    [
        OneVsRestClassifier(NearestCentroid()),
        OneVsOneClassifier(FixedThresholdClassifier(LogisticRegression(), threshold=0.4)),
    ],
    ids=str,
)
def test_missing_scores_are_named(model):
    with refused(ConversionError, f"scores of the inner {type(model.estimator).__name__}"):
        wrap(model.fit(ROWS, THREE), ROWS)
