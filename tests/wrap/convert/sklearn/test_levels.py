"""Boosted trees predict many rows by levels and few rows by ONNX Runtime's tree
operator, with equal answers.
"""

from collections.abc import Callable
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

from mlflow_deploy_plugin.serve.runtime.model import OnnxModel
from mlflow_deploy_plugin.wrap.convert.sklearn.levels import MANY_ROWS, MAX_SUMMED, MIN_TREES
from mlflow_deploy_plugin.wrap.flavor.save import save_model
from mlflow_deploy_plugin.wrap.flavor.wrap import wrap

ROWS = 400
DRAW = np.random.default_rng(0)
FULL = DRAW.normal(size=(ROWS, 5)) * 10.0 ** np.arange(5)
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


Case = tuple[Callable[[], Any], np.ndarray]
BY_LEVELS: dict[str, Case] = {
    "xgboost": (lambda: xgb().fit(FULL, SCORE), FULL),
    "xgboost, missing values go either way": (lambda: xgb().fit(GAPS, GAPPY), GAPS),
    "xgboost, classes": (lambda: xgb("Classifier", max_depth=3).fit(GAPS, THREE), GAPS),
    "xgboost, depth 9": (lambda: xgb(max_depth=9, min_child_weight=0).fit(FULL, SCORE), FULL),
    "lightgbm": (lambda: lgbm().fit(GAPS, GAPPY), GAPS),
    "lightgbm, classes": (lambda: lgbm("Classifier").fit(FULL, THREE), FULL),
    "catboost": (lambda: cat().fit(GAPS, GAPPY), GAPS),
    "catboost, missing is the largest": (lambda: cat(nan_mode="Max").fit(GAPS, GAPPY), GAPS),
    "catboost, depth 9": (lambda: cat(depth=9).fit(FULL, SCORE), FULL),
    "catboost, targets that share trees": (
        lambda: cat(loss_function="MultiRMSE").fit(FULL, np.c_[SCORE, -SCORE, 2 * SCORE]),
        FULL,
    ),
    "catboost, a tree more than is summed at once": (
        lambda: cat("Classifier", iterations=MAX_SUMMED + 1).fit(FULL, THREE),
        FULL,
    ),
    "lightgbm, a tree of each class more than is summed at once": (
        lambda: lgbm("Classifier", n_estimators=MAX_SUMMED + 1).fit(FULL, THREE),
        FULL,
    ),
    "catboost, trees of other shapes": (
        lambda: cat(grow_policy="Depthwise", depth=3).fit(GAPS, GAPPY),
        GAPS,
    ),
    "in a pipeline": (lambda: make_pipeline(StandardScaler(), xgb()).fit(GAPS, GAPPY), GAPS),
    "calibrated classes": (
        lambda: CalibratedClassifierCV(cat("Classifier"), cv=2).fit(FULL, THREE),
        FULL,
    ),
    "beside a line, scaled in 64 bits": (
        lambda: VotingRegressor(
            [
                ("trees", HistGradientBoostingRegressor(max_iter=MIN_TREES, max_depth=5)),
                ("line", make_pipeline(StandardScaler(), LinearRegression())),
            ]
        ).fit(FULL, SCORE),
        FULL,
    ),
    "histograms": (
        lambda: HistGradientBoostingRegressor(
            max_iter=MIN_TREES, max_depth=5, max_leaf_nodes=20
        ).fit(GAPS, GAPPY),
        GAPS,
    ),
}


@pytest.mark.parametrize("case", BY_LEVELS.values(), ids=BY_LEVELS.keys())
def test_many_rows_and_few_are_proven(case):
    fit, example = case
    wrapped = wrap(fit(), example)
    assert wrapped.report.state == "proven"
    assert wrapped.report.doubts == (False, 0, 0, False)
    assert {MANY_ROWS - 1, MANY_ROWS} & {*wrapped.report.batch_sizes}
    forms = {
        attribute.name: {node.op_type for node in attribute.g.node}
        for node in wrapped.converted.proto.graph.node
        if node.op_type == "If"
        for attribute in node.attribute
    }
    assert "Scan" in forms["then_branch"]
    assert "TreeEnsembleRegressor" in forms["else_branch"]


TREES_ALONE: dict[str, Case] = {
    "few": (lambda: lgbm(n_estimators=MIN_TREES - 1).fit(FULL, SCORE), FULL),
    "without a split": (lambda: xgb().fit(FULL, np.ones(ROWS)), FULL),
    "far from complete": (
        lambda: lgbm(num_leaves=40, max_depth=-1, min_child_samples=1).fit(FULL, SCORE**9),
        FULL,
    ),
}


@pytest.mark.parametrize("case", TREES_ALONE.values(), ids=TREES_ALONE.keys())
def test_trees_that_levels_would_slow_down_stay_one_operator(case):
    fit, example = case
    operators = [node.op_type for node in wrap(fit(), example).converted.proto.graph.node]
    assert "TreeEnsembleRegressor" in operators
    assert "If" not in operators


@pytest.mark.parametrize("rows", [1, MANY_ROWS - 1, MANY_ROWS, 8192, 8193, 20_001])
def test_any_number_of_rows_is_answered_in_order(rows, tmp_path):
    model = xgb("Classifier", max_depth=3).fit(GAPS, THREE)
    save_model(model, tmp_path / "model", input_example=GAPS)
    loaded = OnnxModel.load(tmp_path / "model")
    sample = GAPS[np.random.default_rng(rows).integers(0, ROWS, rows)]
    outputs = loaded.run(loaded.schema.from_array(sample))
    np.testing.assert_allclose(outputs["probabilities"], model.predict_proba(sample), atol=1e-6)
    assert outputs["label"].tolist() == model.predict(sample).tolist()
    onnx.checker.check_model(str(loaded.artifact.onnx_file), full_check=True)
