import lightgbm
import numpy as np
import onnx
import pandas as pd
import pytest
import xgboost
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

from mlflow_deploy_plugin.wrap.convert.sklearn.boundary_values import boundary_values_of
from mlflow_deploy_plugin.wrap.flavor.wrap import wrap
from tests.support.random_rows import normal_rows
from tests.wrap.conftest import cases, is_proven, operators_of, proven

BEFORE = {
    "nothing": "passthrough",
    "standard": StandardScaler(),
    "min-max": MinMaxScaler((-1, 2), clip=True),
    "max-abs": MaxAbsScaler(),
    "robust": RobustScaler(),
    "ordinals": OrdinalEncoder(),
    "bins": KBinsDiscretizer(7, encode="ordinal", quantile_method="averaged_inverted_cdf"),
}
HISTOGRAMS = HistGradientBoostingRegressor(max_iter=5)
CLASSES = HistGradientBoostingClassifier(max_iter=5)
FOREST = RandomForestClassifier(5, max_depth=3, random_state=0, n_jobs=1)
STUMPS = AdaBoostClassifier(n_estimators=3)
TREE = DecisionTreeClassifier(max_depth=3)

RANDOM = np.random.default_rng(0)
ROWS = normal_rows(200, 4)
SUM = ROWS[:, 0] + ROWS[:, 1]
TWO = SUM > 0
THREE = np.array(["a", "b", "c"])[np.digitize(SUM, [-0.5, 0.5])]
GAPS = pd.DataFrame(ROWS[:, :2], columns=["a", "b"]).assign(count=np.arange(200) % 7)
GAPS.loc[::3, "a"] = np.nan
GONE = GAPS.a.isna()
CITIES = pd.DataFrame(
    {
        "size": ROWS[:, 0],
        "city": pd.Categorical(RANDOM.choice(["rome", "oslo", "lima", "bern", ""], 200)),
        "code": RANDOM.choice([3, 5, 7, 9], 200),
    }
)
CITIES["city"] = CITIES["city"].cat.remove_categories([""])
PRICE = CITIES["size"] + 2 * (CITIES.city == "oslo") + (CITIES.code == 7)
OF_CODES = np.column_stack([ROWS[:, 0], RANDOM.integers(0, 12, 200) * 1.5, ROWS[:, 1]])
OF_CODE = HistGradientBoostingRegressor(max_iter=5, categorical_features=[1])
SOME = pd.DataFrame({"city": pd.Categorical(["rome", "oslo", None, None] * 50), "size": ROWS[:, 0]})
KINDS = pd.DataFrame(ROWS, columns=list("abcd")).assign(
    kind=pd.Categorical(RANDOM.choice([f"gate {number}" for number in range(20)], 200))
)
KINDS = KINDS.mask(RANDOM.random(KINDS.shape) < 0.05)
VALUE = KINDS.a.fillna(0) + KINDS.kind.cat.codes % 3


def _scaled(model):
    """Scale two columns of a table with categories.

    skl2onnx would join numbers and strings to strings with eight digits.
    """
    scaled = ColumnTransformer([("scaled", StandardScaler(), ["a", "b"])], remainder="passthrough")
    return make_pipeline(scaled.set_output(transform="pandas"), model)


PROVEN = {
    "gaps of a mixed table": (FOREST, GAPS, GONE),
    "boosted classes": (CLASSES, ROWS, THREE),
    "stumps that share their leaves": (
        AdaBoostClassifier(n_estimators=12, random_state=0),
        ROWS[:, :2],
        (np.abs(ROWS[:, 0]) + ROWS[:, 1] > 1).astype(int),
    ),
    "categories": (
        HistGradientBoostingRegressor(max_iter=5, categorical_features=["city", "code"]),
        CITIES,
        PRICE,
    ),
    "categories of a matrix": (OF_CODE, OF_CODES, OF_CODES[:, 0] + OF_CODES[:, 1] % 2),
    "no category": (HISTOGRAMS, SOME, SOME.city.isna() * 3.0 + SOME["size"]),
}
SELDOM = {
    "gaps behind a scaler": (make_pipeline(StandardScaler(), TREE), GAPS, GONE),
    "gaps, calibrated": (CalibratedClassifierCV(TREE, cv=2), GAPS, GONE),
    "boosted classes, calibrated": (CalibratedClassifierCV(CLASSES, cv=2), ROWS, THREE),
    "stumps, calibrated": (CalibratedClassifierCV(STUMPS, cv=2), ROWS, TWO),
    "classes of categories": (CLASSES, CITIES, PRICE > 1),
    "categories of a scaled matrix": (
        make_pipeline(StandardScaler(), OF_CODE),
        OF_CODES,
        OF_CODES[:, 0],
    ),
    "two boosted classes, calibrated": (CalibratedClassifierCV(CLASSES, cv=2), ROWS, TWO),
    "digits of numbers": (_scaled(HISTOGRAMS), KINDS, VALUE),
    "digits of numbers, lightgbm": (
        _scaled(lightgbm.LGBMRegressor(n_estimators=8, min_data_per_group=2, n_jobs=1, verbose=-1)),
        KINDS,
        VALUE,
    ),
    "digits of numbers, xgboost": (
        _scaled(xgboost.XGBRegressor(n_estimators=8, n_jobs=1, enable_categorical=True)),
        KINDS,
        VALUE,
    ),
}


@pytest.mark.parametrize(
    ("model", "rows", "target"), [*cases(PROVEN), *cases(SELDOM, is_long=True)]
)
def test_trees_are_proven(model, rows, target):
    """skl2onnx would search an infinite threshold as a 64-bit float forever."""
    assert is_proven(model.fit(rows, target), rows)


BOOSTING = HistGradientBoostingRegressor(max_iter=3, max_leaf_nodes=6)
VALUES = DecisionTreeRegressor(max_depth=3)
ON_BITS = [
    *((VALUES, first) for first in ("nothing", "standard", "min-max", "bins")),
    (BOOSTING, "standard"),
]
SELDOM_ON_BITS = [
    *((VALUES, first) for first in ("max-abs", "robust", "ordinals")),
    (BOOSTING, "bins"),
]


def _rows_that_only_64_bits_tell_apart(threshold):
    single = float(np.float32(threshold))
    around = np.array([threshold, single, threshold / 2 + single / 2])
    return np.concatenate([np.nextafter(around, -np.inf), around, np.nextafter(around, np.inf)])


@pytest.mark.parametrize(
    ("trees", "first"), [*cases(ON_BITS), *cases(SELDOM_ON_BITS, is_long=True)]
)
def test_trees_decide_on_the_same_bits(trees, first, matrix, saved):
    table = pd.DataFrame(matrix[0][:100, :2], columns=["a", "b"])
    model = make_pipeline(BEFORE[first], trees).fit(table, matrix[1][:100])
    samples = [table]
    for name, edges in boundary_values_of(model, ["a", "b"]).edges.items():
        if first != "ordinals":
            tried = np.concatenate([*map(_rows_that_only_64_bits_tell_apart, edges)])
            samples.append(pd.DataFrame({"a": 0.5, "b": 0.5}, tried).assign(**{name: tried}))
    sample = pd.concat(samples)

    loaded = saved(model, table)

    columns = {str(name): sample[name].to_numpy() for name in table}
    got = loaded.run(loaded.schema.from_columns(columns))["prediction"]
    np.testing.assert_allclose(got, model.predict(sample), rtol=1e-5, atol=1e-5)


def test_boosted_trees_have_no_boolean_attributes(monkeypatch):
    """Check the graph's attributes with any protobuf version: protobuf 7 refuses
    booleans, and protobuf 6 silently converts them to integers.
    """
    booleans = []

    def make_node(*arguments, **attributes):
        for value in attributes.values():
            if isinstance(value, list):
                booleans.extend(item for item in value if isinstance(item, bool))
        return onnx.helper.make_node(*arguments, **attributes)

    monkeypatch.setattr("skl2onnx.common._container.make_node", make_node)
    model = make_pipeline(StandardScaler(), CLASSES).fit(ROWS, TWO)

    assert is_proven(model, ROWS)
    assert booleans == []


@pytest.mark.parametrize(
    "given", [{}, {"contamination": 0.2}, {"contamination": 0.5}, {"max_features": 0.5}]
)
def test_isolation_forest_is_one_operator(matrix, given):
    """Check a row whose score equals the offset, which is not an outlier."""
    rows = matrix[0][:101]
    model = IsolationForest(n_estimators=15, random_state=0, **given).fit(rows)
    wrapped = proven(model, rows)

    assert wrapped.report.sources["missing"] > 0
    assert operators_of(wrapped).count("TreeEnsembleRegressor") == 1
    assert len(operators_of(wrapped)) < 20


def test_histograms_predict_on_one_thread(monkeypatch):
    model = make_pipeline(StandardScaler(), CLASSES).fit(ROWS, TWO)
    threads = set()
    decide = HistGradientBoostingClassifier._raw_predict

    def recorded(self, *given, **named):
        threads.add(_openmp_effective_n_threads())
        return decide(self, *given, **named)

    monkeypatch.setattr(HistGradientBoostingClassifier, "_raw_predict", recorded)
    with threadpool_limits(2, "openmp"):
        wrap(model, ROWS)

    assert threads == {1}
