from itertools import chain

import lightgbm
import numpy as np
import onnx
import pandas as pd
import pytest
import xgboost
from sklearn.base import is_classifier
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import (
    AdaBoostClassifier,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    IsolationForest,
    RandomForestClassifier,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import (
    KBinsDiscretizer,
    MaxAbsScaler,
    MinMaxScaler,
    OrdinalEncoder,
    RobustScaler,
    StandardScaler,
)
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor
from sklearn.utils._openmp_helpers import _openmp_effective_n_threads
from threadpoolctl import threadpool_limits

from mlflow_deploy_plugin.serve.runtime.model import OnnxModel
from mlflow_deploy_plugin.wrap.convert.sklearn.boundary_values import boundary_values_of
from mlflow_deploy_plugin.wrap.flavor.save import save_model
from mlflow_deploy_plugin.wrap.flavor.wrap import wrap
from tests.support.random_rows import normal_rows
from tests.wrap.conftest import is_proven

BEFORE = {
    "nothing": lambda: "passthrough",
    "standard": StandardScaler,
    "min-max": lambda: MinMaxScaler((-1, 2), clip=True),
    "max-abs": MaxAbsScaler,
    "robust": RobustScaler,
    "ordinals": OrdinalEncoder,
    "bins": lambda: KBinsDiscretizer(7, encode="ordinal", quantile_method="averaged_inverted_cdf"),
}


def _saved(model, example, folder):
    save_model(model, folder / "model", input_example=example)
    return OnnxModel.load(folder / "model")


def _rows_that_only_64_bits_tell_apart(threshold):
    single = float(np.float32(threshold))
    around = [threshold, single, threshold / 2 + single / 2]
    return np.array(
        list(
            chain.from_iterable(
                (np.nextafter(center, -np.inf), center, np.nextafter(center, np.inf))
                for center in around
            )
        )
    )


@pytest.mark.parametrize("before", BEFORE.values(), ids=BEFORE.keys())
@pytest.mark.parametrize(
    "trees",
    [
        HistGradientBoostingRegressor(max_iter=3, max_leaf_nodes=6),
        DecisionTreeRegressor(max_depth=3),
    ],
    ids=["boosting", "tree"],
)
def test_trees_decide_on_the_same_bits(trees, before, matrix, tmp_path):
    rows, target = matrix
    table = pd.DataFrame(rows[:300, :2], columns=["a", "b"])
    first = before()
    model = make_pipeline(first, trees).fit(table, target[:300])
    edges = boundary_values_of(model, ["a", "b"]).edges
    samples = pd.concat(
        pd.DataFrame({name: _rows_that_only_64_bits_tell_apart(edge), other: 0.5})
        for name, other in (("a", "b"), ("b", "a"))
        for edge in edges.get(name, ())
    ) if edges else table  # fmt: skip
    if isinstance(first, OrdinalEncoder):
        samples = table

    saved = _saved(model, table, tmp_path)

    got = saved.run(
        saved.schema.from_columns({str(name): samples[name].to_numpy() for name in table})
    )["prediction"]
    np.testing.assert_allclose(got, model.predict(samples[["a", "b"]]), rtol=1e-5, atol=1e-5)


def test_a_tree_that_splits_on_missing_values_is_proven_behind_a_scaler(matrix):
    rows, target = matrix
    table = pd.DataFrame(rows[:400, :2], columns=["a", "b"])
    gone = np.random.default_rng(0).random(400) < 0.3
    table.loc[gone, "a"] = np.nan
    model = make_pipeline(StandardScaler(), DecisionTreeRegressor(max_depth=4)).fit(
        table, target[:400] + 500 * gone
    )
    assert np.isinf(model[-1].tree_.threshold).any()

    assert is_proven(model, table)


@pytest.mark.long
@pytest.mark.parametrize("classes", [2, 3])
def test_boosted_classes_are_proven_under_a_calibration(classes, matrix):
    rows, target = matrix
    labels = np.array(["a", "b", "c"])[np.digitize(target, [0, 15][: classes - 1])]
    boosted = HistGradientBoostingClassifier(max_iter=5)

    assert is_proven(boosted.fit(rows[:400], labels[:400]), rows[:400])
    assert is_proven(
        CalibratedClassifierCV(boosted, cv=2).fit(rows[:400], labels[:400]), rows[:400]
    )


@pytest.mark.parametrize("trees", [HistGradientBoostingClassifier, HistGradientBoostingRegressor])
def test_boosted_trees_are_converted_with_integers_where_protobuf_7_refuses_booleans(
    trees, matrix, monkeypatch
):
    """Check the graph's attributes with any protobuf version: protobuf 6 silently
    converts booleans to integers.
    """
    rows, target = matrix
    booleans: list[str] = []

    def make_node(*arguments, **attributes):
        lists = {name: value for name, value in attributes.items() if isinstance(value, list)}
        booleans.extend(
            name for name, value in lists.items() if any(isinstance(item, bool) for item in value)
        )
        return onnx.helper.make_node(*arguments, **attributes)

    monkeypatch.setattr("skl2onnx.common._container.make_node", make_node)
    labels = target > 0 if is_classifier(trees()) else target
    wrapped = wrap(make_pipeline(StandardScaler(), trees(max_iter=5)).fit(rows, labels), rows)

    assert booleans == []
    assert wrapped.report.state == "proven"


def test_missing_values_go_their_way_in_each_tree_of_an_isolation_forest(matrix):
    rows, _ = matrix
    wrapped = wrap(IsolationForest(n_estimators=12, random_state=0).fit(rows[:200]), rows[:200])

    assert wrapped.report.state == "proven"
    assert wrapped.report.sources["missing"] > 0


@pytest.mark.parametrize(
    "given", [{}, {"contamination": 0.2}, {"contamination": 0.5}, {"max_features": 0.5}]
)
def test_an_isolation_forest_is_one_operator_and_keeps_rows_at_its_offset(matrix, given):
    """Check a row whose score equals the offset, which is not an outlier."""
    rows = matrix[0][:101]
    wrapped = wrap(IsolationForest(n_estimators=50, random_state=0, **given).fit(rows), rows)

    assert wrapped.report.state == "proven"
    assert [node.op_type for node in wrapped.converted.proto.graph.node].count(
        "TreeEnsembleRegressor"
    ) == 1
    assert len(wrapped.converted.proto.graph.node) < 20


def test_boosting_by_histograms_is_asked_on_one_thread(matrix, monkeypatch):
    rows, labels = matrix
    model = make_pipeline(StandardScaler(), HistGradientBoostingClassifier(max_iter=3)).fit(
        rows, labels > 0
    )
    threads = set()
    decide = HistGradientBoostingClassifier._raw_predict

    def recorded(self, *given, **named):
        threads.add(_openmp_effective_n_threads())
        return decide(self, *given, **named)

    monkeypatch.setattr(HistGradientBoostingClassifier, "_raw_predict", recorded)
    with threadpool_limits(2, "openmp"):
        wrap(model, rows)

    assert threads == {1}


@pytest.mark.parametrize(
    "model", [DecisionTreeClassifier(random_state=0), RandomForestClassifier(10, random_state=0)]
)
def test_trees_of_several_targets_are_proven_at_their_thresholds(model):
    rows = normal_rows(200, 4)
    targets = np.stack([rows[:, 0] > 0, rows[:, 1] + rows[:, 2] > 0], axis=1).astype(int)

    assert is_proven(model.fit(rows, targets), rows)


def test_stumps_of_true_and_false_are_proven():
    rows = normal_rows(200, 2)

    assert is_proven(AdaBoostClassifier(n_estimators=3).fit(rows, rows[:, 0] > 0), rows)


def test_calibrated_trees_are_proven_as_without_calibration():
    rows = normal_rows(300, 2)
    stumps = CalibratedClassifierCV(AdaBoostClassifier(n_estimators=3), cv=2).fit(
        rows, rows[:, 0] > 0
    )
    assert is_proven(stumps, rows)

    rows[::3, 0] = np.nan
    tree = CalibratedClassifierCV(DecisionTreeClassifier(max_depth=3), cv=2).fit(
        rows, np.isnan(rows[:, 0])
    )
    assert is_proven(tree, rows)


def test_stumps_that_differ_in_their_thresholds_alone_are_proven():
    rows = normal_rows(200, 2)
    labels = (np.abs(rows[:, 0]) + rows[:, 1] > 1).astype(int)
    model = AdaBoostClassifier(n_estimators=12, random_state=0).fit(rows, labels)

    assert is_proven(model, rows)


@pytest.mark.long
def test_histograms_with_categories_of_texts_and_codes_are_proven():
    random = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "size": random.normal(size=300),
            "city": pd.Categorical(random.choice(["rome", "oslo", "lima", "bern"], 300)),
            "code": random.choice([3, 5, 7, 9], 300),
        }
    )
    table.loc[::9, "city"] = np.nan
    target = table["size"] + 2 * (table.city == "oslo") + (table.code == 7)
    for model in (
        HistGradientBoostingRegressor(max_iter=5, categorical_features=["city", "code"]),
        HistGradientBoostingClassifier(max_iter=5),
    ):
        fitted = model.fit(
            table, target if isinstance(model, HistGradientBoostingRegressor) else target > 1
        )
        assert is_proven(fitted, table)


def _numbers_and_kinds():
    random = np.random.default_rng(0)
    table = pd.DataFrame(random.normal(size=(400, 4)), columns=list("abcd"))
    table["kind"] = pd.Categorical(random.choice([f"gate {number}" for number in range(40)], 400))
    table = table.mask(random.random(table.shape) < 0.05)
    return table, table.a.fillna(
        0
    ).to_numpy() + table.kind.cat.codes.to_numpy() % 3 + random.normal(size=400) / 9


def _scaled_as_a_table():
    scaled = [("scaled", StandardScaler(), ["a", "b"])]
    return ColumnTransformer(scaled, remainder="passthrough").set_output(transform="pandas")


@pytest.mark.long
def test_numbers_keep_all_digits_in_a_table_with_categories():
    """Check a table of numbers and strings, which skl2onnx would join to strings with
    eight digits.
    """
    table, target = _numbers_and_kinds()
    for model in (
        HistGradientBoostingRegressor(max_iter=20),
        lightgbm.LGBMRegressor(n_estimators=8, min_data_per_group=2, n_jobs=1, verbose=-1),
        xgboost.XGBRegressor(n_estimators=8, n_jobs=1, enable_categorical=True),
    ):
        pipeline = make_pipeline(_scaled_as_a_table(), model).fit(table, target)

        assert is_proven(pipeline, table)


def test_a_split_between_missing_and_all_categories_is_proven():
    table = pd.DataFrame(
        {"city": pd.Categorical(["rome", "oslo", None] * 100), "size": np.arange(300.0) % 7}
    )
    model = HistGradientBoostingRegressor(max_iter=5).fit(
        table, table["city"].isna() * 3.0 + table["size"]
    )

    assert is_proven(model, table)


def test_histograms_with_categories_in_a_matrix_are_proven():
    random = np.random.default_rng(0)
    rows = np.column_stack(
        [random.normal(size=300), random.integers(0, 12, 300) * 1.5, random.normal(size=300)]
    )
    model = HistGradientBoostingRegressor(max_iter=5, categorical_features=[1]).fit(
        rows, rows[:, 0] + (rows[:, 1] % 2)
    )

    assert is_proven(model, rows)
    assert is_proven(make_pipeline(StandardScaler(), model).fit(rows, rows[:, 0]), rows)


@pytest.mark.timeout(60)
def test_a_split_between_missing_and_present_in_a_mixed_table_is_proven(matrix):
    """Check an infinite threshold, for which skl2onnx would search a 64-bit float
    forever.
    """
    table = pd.DataFrame(matrix[0][:300, :2], columns=["a", "b"]).assign(count=np.arange(300) % 7)
    table.loc[::3, "a"] = np.nan
    forest = RandomForestClassifier(5, max_depth=3, random_state=0, n_jobs=1).fit(
        table, table["a"].isna()
    )
    assert any(np.isinf(tree.tree_.threshold).any() for tree in forest.estimators_)
    assert is_proven(forest, table)
    # The original is not changed.
    assert any(np.isinf(tree.tree_.threshold).any() for tree in forest.estimators_)
