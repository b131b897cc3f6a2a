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
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import FeatureUnion, make_pipeline
from sklearn.preprocessing import SplineTransformer, StandardScaler
from sklearn.svm import SVC
from sklearn.tree import DecisionTreeRegressor

from mlflow_deploy_plugin.wrap.flavor.wrap import wrap
from tests.wrap.conftest import cases, is_proven, operators_of, proven

BOOSTED = HistGradientBoostingRegressor(max_iter=5)
TREE = DecisionTreeRegressor(max_depth=4)
MEMBERS = [("tree", DecisionTreeRegressor(max_depth=2)), ("ridge", Ridge())]
MODELS = {
    "voting": VotingRegressor(
        [("boosted", BOOSTED), ("scaled", make_pipeline(StandardScaler(), TREE))]
    ),
    "a pipeline at the end": StackingRegressor(
        MEMBERS, make_pipeline(StandardScaler(), Ridge()), cv=2
    ),
    "splines at the end": StackingRegressor(
        MEMBERS, make_pipeline(SplineTransformer(), Ridge()), cv=2
    ),
    "a part left out of a union": make_pipeline(
        FeatureUnion([("left out", "drop"), ("all", PCA(2))], transformer_weights={"all": 3.0}),
        Ridge(),
    ),
}


@pytest.mark.parametrize("model", cases(MODELS))
def test_nested_parts_are_proven(model, matrix):
    rows, target = matrix

    assert is_proven(model.fit(rows[:400], target[:400]), rows[:400])


@pytest.mark.long
def test_union_reads_texts():
    texts = ["a red fox", "blue fox", "a red hen", "blue hen and fox"] * 20
    union = FeatureUnion(
        [("words", CountVectorizer()), ("weights", TfidfVectorizer(analyzer="char"))]
    )
    model = make_pipeline(union, LogisticRegression()).fit(texts, [0, 1, 0, 1] * 20)

    assert is_proven(model, texts)


@pytest.mark.parametrize(
    "trees",
    [
        HistGradientBoostingRegressor(max_iter=20),
        pytest.param(RandomForestRegressor(10, random_state=0), marks=pytest.mark.long),
    ],
    ids=str,
)
def test_scaler_before_trees_needs_64_bits(trees, matrix):
    rows, target = matrix
    table = pd.DataFrame(rows, columns=list("abc"))

    wrapped = proven(make_pipeline(StandardScaler(), trees).fit(table, target), table)

    assert "64 bits" in wrapped.report.repair
    assert wrapped.converted.inputs[0].dtype == "float64"
    assert wrapped.report.sources["thresholds"] > 0


def test_trees_alone_need_32_bits(matrix):
    wrapped = wrap(RandomForestRegressor(5).fit(*matrix), matrix[0])

    assert wrapped.report.repair == ""
    assert wrapped.converted.inputs[0].dtype == "float32"


def test_large_integers_need_64_bits():
    random = np.random.default_rng(0)
    table = pd.DataFrame({"a": random.integers(10**9, 10**9 + 1000, 300)})

    assert "64 bits" in proven(Ridge().fit(table, random.normal(size=300)), table).report.repair


@pytest.mark.parametrize("shape", ["ovr", "ovo"])
def test_graph_of_labels_has_no_scores(shape, matrix):
    rows, target = matrix
    classes = np.digitize(target, np.quantile(target, [0.2, 0.4, 0.6, 0.8]))
    wrapped = proven(SVC(decision_function_shape=shape).fit(rows, classes), rows)

    assert operators_of(wrapped) == ["SVMClassifier", "Cast", "Reshape"]


def test_skl2onnx_itself_is_not_changed(matrix):
    rows = matrix[0].astype(np.float32)
    model = make_pipeline(StandardScaler(), RandomForestClassifier(3)).fit(rows, matrix[1] > 0)

    wrap(model, rows)

    nodes = to_onnx(model, rows[:1], target_opset=15).graph.node
    operators = [node.op_type for node in nodes]
    assert operators == ["Scaler", "TreeEnsembleClassifier", "Cast", "ZipMap"]
