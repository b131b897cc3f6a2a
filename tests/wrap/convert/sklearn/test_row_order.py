"""Large ensembles of trees compute many rows in sorted order, and return the answers in
the order of the request.
"""

from itertools import chain

import numpy as np
import onnx
import onnxruntime
import pytest
from sklearn.ensemble import (
    GradientBoostingRegressor,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from xgboost import XGBRegressor

from mlflow_deploy_plugin.serve.runtime.tree_operator import MANY_ROWS_CONSTANT, PREFIXES
from mlflow_deploy_plugin.wrap.convert.sklearn.conversion import forms
from mlflow_deploy_plugin.wrap.convert.sklearn.levels import MANY_ROWS
from mlflow_deploy_plugin.wrap.flavor.wrap import wrap
from tests.wrap.conftest import cases, operators_of, proven

DRAW = np.random.default_rng(0)
ROWS = DRAW.normal(size=(500, 4))
ROWS[:, 3] = ROWS[:, 3] > 0
SCORE = np.sin(2 * ROWS[:, 0]) + ROWS[:, 1] * ROWS[:, 3]
GAPS = np.where(DRAW.random(ROWS.shape) < 0.1, np.nan, ROWS)
MODELS = {
    "forest": (RandomForestRegressor(10, random_state=0), GAPS, SCORE),
    "forest, two targets": (
        RandomForestRegressor(30, random_state=0),
        ROWS,
        np.c_[SCORE, -2 * SCORE],
    ),
    "forest, classes that are texts": (
        RandomForestClassifier(40, random_state=0),
        ROWS,
        np.array(["low", "middle", "high"])[np.digitize(SCORE, [-0.5, 0.5])],
    ),
    "histograms": (
        HistGradientBoostingRegressor(max_leaf_nodes=40, min_samples_leaf=2),
        GAPS,
        SCORE,
    ),
}


@pytest.mark.long
@pytest.mark.parametrize(("model", "rows", "target"), cases(MODELS))
def test_rows_are_answered_in_order(model, rows, target, saved):
    model.fit(rows, target)
    loaded = saved(model, ROWS)
    graph = onnx.load(loaded.artifact.onnx_file)
    onnx.checker.check_model(graph, full_check=True)
    assert "ScatterND" in {node.op_type for node in graph.graph.node}
    for size in (1, MANY_ROWS - 1, MANY_ROWS, 3000):
        sample = ROWS[DRAW.integers(0, len(ROWS), size)]
        outputs = loaded.run(loaded.schema.from_array(sample))
        predictions = np.asarray(loaded.prediction(outputs))
        if "label" in outputs:
            assert predictions.tolist() == model.predict(sample).tolist()
            expected = model.predict_proba(sample)
            np.testing.assert_allclose(outputs["probabilities"], expected, atol=1e-5)
        else:
            np.testing.assert_allclose(predictions, model.predict(sample), atol=1e-4)


def test_both_orders_are_proven():
    forest, rows, target = MODELS["forest"]
    report = proven(forest.fit(rows, target), rows).report
    assert report.doubts == (False, 0, 0, False)
    assert {MANY_ROWS - 1, MANY_ROWS} & {*report.batch_sizes}


@pytest.mark.parametrize(
    ("model", "target"),
    [
        (RandomForestRegressor(5), SCORE),
        pytest.param(
            GradientBoostingRegressor(n_estimators=4096), np.ones(500), marks=pytest.mark.long
        ),
    ],
    ids=["few trees", "no splits"],
)
def test_small_ensemble_stays_one_operator(model, target):
    operators = operators_of(wrap(model.fit(ROWS, target), ROWS))
    assert not {*operators} & {"If", "GatherND", "ScatterND"}


@pytest.mark.parametrize(
    "model",
    [XGBRegressor(n_estimators=40), RandomForestRegressor(12, random_state=0)],
    ids=["by levels", "sorted"],
)
def test_replaced_constant_leaves_the_rows_alone(model, saved):
    """`add_tree_operator` replaces the constant."""
    loaded = saved(model.fit(ROWS, SCORE), ROWS)
    file = str(loaded.artifact.onnx_file)
    constants = [constant.name for constant in onnx.load(file).graph.initializer]
    (name,) = [name for name in constants if MANY_ROWS_CONSTANT in name]
    assert name.removesuffix(MANY_ROWS_CONSTANT) in PREFIXES
    options = onnxruntime.SessionOptions()
    never = onnxruntime.OrtValue.ortvalue_from_numpy(np.array([2**62]))
    options.add_initializer(name, never)
    session = onnxruntime.InferenceSession(file, options)
    feeds = loaded.schema.from_array(ROWS)
    (expected,) = loaded.run(feeds).values()
    np.testing.assert_allclose(session.run(None, feeds)[0], expected, rtol=1e-5, atol=1e-6)


def test_key_takes_few_comparisons():
    """Each comparison takes nine bytes per row: with 4,000 comparisons, 100,000 rows
    would need gigabytes.
    """
    column = DRAW.normal(size=(1200, 1))
    model = RandomForestRegressor(4).fit(column, DRAW.normal(size=1200))
    graph = forms(model, {"": column}, "predict", {})[0]().proto.graph
    choice = next(node for node in graph.node if node.op_type == "If")
    constants = list(chain.from_iterable(branch.g.initializer for branch in choice.attribute))
    assert max(chain.from_iterable(constant.dims for constant in constants)) <= 128
