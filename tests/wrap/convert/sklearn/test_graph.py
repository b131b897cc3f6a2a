import numpy as np
import pandas as pd
import pytest
from skl2onnx import to_onnx
from sklearn.decomposition import PCA
from sklearn.ensemble import (
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
    StackingRegressor,
    VotingRegressor,
)
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import FeatureUnion, make_pipeline
from sklearn.preprocessing import SplineTransformer, StandardScaler
from sklearn.svm import SVC
from sklearn.tree import DecisionTreeRegressor

from mlflow_deploy_plugin.wrap.flavor.wrap import wrap
from tests.wrap.conftest import is_proven

ENSEMBLES = {
    "voting": lambda: VotingRegressor(
        [
            ("boosted", HistGradientBoostingRegressor(max_iter=5)),
            ("scaled", make_pipeline(StandardScaler(), DecisionTreeRegressor(max_depth=4))),
        ]
    ),
    "stacked": lambda: StackingRegressor(
        [
            ("boosted", HistGradientBoostingRegressor(max_iter=5)),
            ("forest", RandomForestRegressor(5)),
        ],
        cv=2,
    ),
}


@pytest.mark.parametrize("make", ENSEMBLES.values(), ids=ENSEMBLES.keys())
def test_parts_of_an_ensemble_keep_their_own_precision(make, matrix):
    rows, target = matrix

    assert is_proven(make().fit(rows[:400], target[:400]), rows[:400])


@pytest.mark.parametrize("step", [StandardScaler(), SplineTransformer(), SimpleImputer()], ids=str)
def test_the_last_estimator_of_a_stack_may_be_a_pipeline(step, matrix):
    rows, target = matrix
    members = [("tree", DecisionTreeRegressor(max_depth=2)), ("ridge", Ridge())]
    model = StackingRegressor(members, make_pipeline(step, Ridge()), cv=2).fit(rows, target)

    assert is_proven(model, rows)


def test_a_part_that_a_union_leaves_out_is_left_out(matrix):
    rows, target = matrix
    union = FeatureUnion([("left out", "drop"), ("all", PCA(2))], transformer_weights={"all": 3.0})

    assert is_proven(make_pipeline(union, Ridge()).fit(rows, target), rows)


@pytest.mark.long
def test_the_parts_of_a_union_read_the_same_texts():
    texts = ["a red fox", "blue fox", "a red hen", "blue hen and fox"] * 20
    union = FeatureUnion(
        [("words", CountVectorizer()), ("weights", TfidfVectorizer(analyzer="char"))]
    )
    model = make_pipeline(union, LogisticRegression()).fit(texts, [0, 1, 0, 1] * 20)

    assert is_proven(model, texts)


@pytest.mark.parametrize(
    "trees",
    [RandomForestRegressor(10, random_state=0), HistGradientBoostingRegressor(max_iter=20)],
    ids=str,
)
def test_scaler_before_trees_is_repaired_by_itself(trees, matrix):
    rows, target = matrix
    table = pd.DataFrame(rows, columns=list("abcde"))

    wrapped = wrap(make_pipeline(StandardScaler(), trees).fit(table, target), table)

    assert wrapped.report.state == "proven"
    assert "64 bits" in wrapped.report.repair
    assert wrapped.converted.inputs[0].dtype == "float64"
    assert wrapped.report.sources["thresholds"] > 0


def test_trees_without_a_scaler_stay_in_32_bits(matrix):
    rows, target = matrix

    wrapped = wrap(RandomForestRegressor(5).fit(rows, target), rows)

    assert wrapped.report.repair == ""
    assert wrapped.converted.inputs[0].dtype == "float32"


def test_integers_too_large_for_32_bits_are_computed_in_64():
    random = np.random.default_rng(0)
    table = pd.DataFrame(
        {"a": random.integers(10**9, 10**9 + 1000, 300), "b": random.normal(size=300)}
    )

    wrapped = wrap(Ridge().fit(table, random.normal(size=300)), table)

    assert wrapped.report.state == "proven"
    assert "64 bits" in wrapped.report.repair


@pytest.mark.parametrize("shape", ["ovr", "ovo"])
def test_a_graph_of_labels_computes_no_scores(shape, matrix):
    rows, target = matrix
    classes = np.digitize(target, np.quantile(target, [0.2, 0.4, 0.6, 0.8]))
    wrapped = wrap(SVC(decision_function_shape=shape).fit(rows, classes), rows)

    assert wrapped.report.state == "proven"
    assert [node.op_type for node in wrapped.converted.proto.graph.node] == [
        "SVMClassifier",
        "Cast",
        "Reshape",
    ]


def test_a_conversion_of_one_s_own_stays_skl2onnx_s(matrix):
    rows = matrix[0].astype(np.float32)
    target = matrix[1] > 0
    model = make_pipeline(StandardScaler(), RandomForestClassifier(3)).fit(rows, target)

    wrap(model, rows)

    proto = to_onnx(model, rows[:1], target_opset=15)
    assert [node.op_type for node in proto.graph.node] == [
        "Scaler",
        "TreeEnsembleClassifier",
        "Cast",
        "ZipMap",
    ]
