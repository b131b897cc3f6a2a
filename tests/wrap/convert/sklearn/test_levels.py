"""Boosted trees predict many rows by levels and few rows by ONNX Runtime's tree
operator, with equal answers.
"""

from typing import Any

import catboost
import lightgbm
import numpy as np
import onnx
import pytest
import xgboost
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import HistGradientBoostingRegressor, VotingRegressor
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mlflow_deploy_plugin.wrap.convert.sklearn.levels import MANY_ROWS, MAX_SUMMED, MIN_TREES
from mlflow_deploy_plugin.wrap.flavor.wrap import wrap
from tests.wrap.conftest import cases, operators_of, proven

ROWS = 400
DRAW = np.random.default_rng(0)
FULL = DRAW.normal(size=(ROWS, 3)) * 10.0 ** np.arange(3)
GAPS = np.where(DRAW.random(FULL.shape) < 0.1, np.nan, FULL)
SCORE = np.sin(FULL[:, 0]) + FULL[:, 1] / 10
GAPPY = np.where(np.isnan(GAPS[:, 0]), 1.5, SCORE)
THREE = np.digitize(SCORE, [-0.5, 0.5])


def xgb(kind="Regressor", **options):
    return getattr(xgboost, f"XGB{kind}")(n_estimators=MIN_TREES, n_jobs=1, **options)


def lgbm(kind="Regressor", **options):
    options = {"num_leaves": 12, "max_depth": 6, "n_estimators": MIN_TREES} | options
    return getattr(lightgbm, f"LGBM{kind}")(n_jobs=1, verbose=-1, **options)


def cat(kind="Regressor", **options):
    options = {"depth": 4, "iterations": MIN_TREES} | options
    return getattr(catboost, f"CatBoost{kind}")(
        thread_count=1, verbose=0, allow_writing_files=False, **options
    )


Case = tuple[Any, np.ndarray, Any]
BY_LEVELS = {
    "xgboost, missing values go either way": (xgb(), GAPS, GAPPY),
    "lightgbm": (lgbm(), GAPS, GAPPY),
    "catboost, missing is the largest": (cat(nan_mode="Max"), GAPS, GAPPY),
    "catboost, targets that share trees": (
        cat(loss_function="MultiRMSE"),
        FULL,
        np.c_[SCORE, -SCORE, 2 * SCORE],
    ),
    "histograms": (
        HistGradientBoostingRegressor(max_iter=MIN_TREES, max_depth=5, max_leaf_nodes=20),
        GAPS,
        GAPPY,
    ),
}
SELDOM = {
    "xgboost, depth 9": (xgb(max_depth=9, min_child_weight=0), FULL, SCORE),
    "catboost, a tree more than is summed at once": (
        cat("Classifier", iterations=MAX_SUMMED + 1),
        FULL,
        THREE,
    ),
    "catboost, trees of other shapes": (cat(grow_policy="Depthwise", depth=3), GAPS, GAPPY),
    "beside a line, scaled in 64 bits": (
        VotingRegressor(
            [
                ("trees", HistGradientBoostingRegressor(max_iter=MIN_TREES, max_depth=5)),
                ("line", make_pipeline(StandardScaler(), LinearRegression())),
            ]
        ),
        FULL,
        SCORE,
    ),
    "lightgbm, a tree of each class more than is summed at once": (
        lgbm("Classifier", n_estimators=MAX_SUMMED + 1),
        FULL,
        THREE,
    ),
    "calibrated classes": (CalibratedClassifierCV(cat("Classifier"), cv=2), FULL, THREE),
}


@pytest.mark.parametrize(
    ("model", "rows", "target"),
    [*cases(BY_LEVELS), *cases(SELDOM, is_long=True)],
)
def test_many_and_few_rows_are_proven(model, rows, target):
    wrapped = proven(model.fit(rows, target), rows)

    assert wrapped.report.doubts == (False, 0, 0, False)
    assert {MANY_ROWS - 1, MANY_ROWS} & {*wrapped.report.batch_sizes}
    branches = {
        attribute.name: {node.op_type for node in attribute.g.node}
        for node in wrapped.converted.proto.graph.node
        if node.op_type == "If"
        for attribute in node.attribute
    }
    assert "Scan" in branches["then_branch"]
    assert "TreeEnsembleRegressor" in branches["else_branch"]


TREES_ALONE = {
    "few": (lgbm(n_estimators=MIN_TREES - 1), FULL, SCORE),
    "without a split": (xgb(), FULL, np.ones(ROWS)),
}
SELDOM_ALONE = {
    "far from complete": (
        lgbm(num_leaves=40, max_depth=-1, min_child_samples=1),
        FULL,
        SCORE**9,
    ),
}


@pytest.mark.parametrize(
    ("model", "rows", "target"), [*cases(TREES_ALONE), *cases(SELDOM_ALONE, is_long=True)]
)
def test_other_trees_stay_one_operator(model, rows, target):
    operators = operators_of(wrap(model.fit(rows, target), rows))
    assert "TreeEnsembleRegressor" in operators
    assert "If" not in operators


def test_rows_are_answered_in_order(saved):
    model = xgb("Classifier", max_depth=3).fit(GAPS, THREE)
    loaded = saved(model, GAPS)
    for rows in (1, MANY_ROWS - 1, MANY_ROWS, 8192, 8193, 20_001):
        sample = GAPS[np.random.default_rng(rows).integers(0, ROWS, rows)]
        outputs = loaded.run(loaded.schema.from_array(sample))
        np.testing.assert_allclose(outputs["probabilities"], model.predict_proba(sample), atol=1e-6)
        assert outputs["label"].tolist() == model.predict(sample).tolist()
    onnx.checker.check_model(str(loaded.artifact.onnx_file), full_check=True)
