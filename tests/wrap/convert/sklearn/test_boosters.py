"""Boosters of XGBoost, LightGBM and CatBoost answer like their libraries: as
estimators, natively, and in pipelines.
"""

from typing import Any

import catboost
import lightgbm
import numpy as np
import onnx
import pandas as pd
import pytest
import xgboost
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import make_column_transformer
from sklearn.ensemble import BaggingRegressor, VotingRegressor
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from mlflow_deploy_plugin.core.errors import ConversionError, ParityError, SchemaMismatch
from mlflow_deploy_plugin.serve.runtime.model import OnnxModel
from mlflow_deploy_plugin.wrap.convert.sklearn.boundary_values import boundary_values_of
from mlflow_deploy_plugin.wrap.flavor.save import save_model
from mlflow_deploy_plugin.wrap.flavor.wrap import wrap
from tests.support.refusals import refused
from tests.wrap.conftest import cases, is_proven, proven

ROWS = 400
HALF = 300
DRAW = np.random.default_rng(0)
FULL = pd.DataFrame({name: DRAW.normal(size=ROWS) * 10**place for place, name in enumerate("abc")})
GAPS = FULL.mask(DRAW.random(FULL.shape) < 0.1)
SCORE = (FULL["a"] + FULL["b"] / 10 + DRAW.normal(size=ROWS) * 0.3).to_numpy()
TWO = (SCORE > 0).astype(int)
THREE = np.digitize(SCORE, [-1, 1])
TEXT = np.array(["low", "middle", "high"])[THREE]
COUNTS = DRAW.poisson(np.exp(np.clip(SCORE, -2, 2)))
TARGETS = np.c_[SCORE, 2 * SCORE, -SCORE]
MANY = pd.Categorical(DRAW.choice([f"gate {number}" for number in range(40)], ROWS))
KINDS = FULL.assign(kind=pd.Categorical(TEXT), many=MANY).mask(DRAW.random((ROWS, 5)) < 0.05)
ACCENTS = KINDS.assign(
    many=KINDS["many"].cat.rename_categories(lambda name: name.replace("gate", "café"))
)
CITIES = FULL.assign(city=pd.Categorical(np.array(["Zürich", "北京", "Oslo"])[THREE]))
CODES = FULL.assign(code=pd.Categorical(THREE), kind=pd.Categorical(TEXT), count=COUNTS)
HALVES = FULL.assign(code=pd.Categorical(THREE / 2))
OF_KINDS = ((TEXT == "high") ^ (MANY.codes % 3 == 0)).astype(int)
ZEROS = FULL.round()


def xgb(kind="Classifier", **options):
    return getattr(xgboost, f"XGB{kind}")(n_estimators=5, n_jobs=1, **options)


def lgbm(kind="Classifier", **options):
    return getattr(lightgbm, f"LGBM{kind}")(
        **{"n_estimators": 5, "n_jobs": 1, "verbose": -1, **options}
    )


def cat(kind="Classifier", **options):
    return getattr(catboost, f"CatBoost{kind}")(
        iterations=5, depth=4, thread_count=1, verbose=0, allow_writing_files=False, **options
    )


EARLY = {"eval_set": [(FULL[HALF:], TWO[HALF:])]}


def native(library, rows, target, params=None, **options):
    """Return a function that trains a booster with a library's own function."""
    make = xgboost.DMatrix if library is xgboost else lightgbm.Dataset
    params = {"nthread": 1, "verbosity": -1 if library is lightgbm else 1, **(params or {})}
    return lambda: library.train(params, make(rows, target, **options), 5)


SHARED_TREES = {"multi_strategy": "multi_output_tree"}
CATEGORICAL = {"enable_categorical": True}
PROVEN = {
    "xgboost, three classes": (xgb(), GAPS, THREE),
    "xgboost, DART": (xgb(booster="dart", rate_drop=0.3), FULL, TWO),
    "xgboost, vector leaves": (xgb("Regressor", **SHARED_TREES), GAPS, TARGETS),
    "xgboost, lines of three classes": (xgb(booster="gblinear", missing=0), ZEROS, THREE),
    "xgboost, categories": (
        xgb(**CATEGORICAL, max_cat_to_onehot=2, max_cat_threshold=64),
        KINDS,
        OF_KINDS,
    ),
    "lightgbm, categories": (
        lgbm(max_cat_to_onehot=1, min_data_per_group=2, cat_smooth=0.1),
        ACCENTS,
        OF_KINDS,
    ),
    "lightgbm, codes with fractions": (
        lgbm(categorical_feature=[0], max_cat_to_onehot=1, min_data_per_group=2, cat_smooth=0.1),
        FULL.assign(a=THREE - 1.0),
        OF_KINDS,
    ),
    "catboost, texts": (cat(), GAPS, TEXT),
    "catboost, several targets": (cat("Regressor", loss_function="MultiRMSE"), FULL, TARGETS),
    "lines of columns with names in a vote": (
        VotingRegressor([("x", xgb("Regressor", booster="gblinear")), ("r", Ridge())]),
        FULL,
        SCORE,
    ),
}
SELDOM = {
    "xgboost, several targets": (xgb("Regressor"), FULL, TARGETS),
    "xgboost, another missing value": (xgb(missing=-999), GAPS.fillna(-999), TWO),
    "xgboost, a forest": (xgb("RFClassifier"), FULL, TWO),
    "xgboost, codes with fractions": (
        xgb(**CATEGORICAL, feature_types=["c", "q", "q"], max_cat_to_onehot=1),
        FULL.assign(a=THREE * 1.0).to_numpy(),
        OF_KINDS,
    ),
    "lightgbm, counts": (lgbm("Regressor", objective="poisson"), FULL, COUNTS),
    "catboost in a pipeline": (make_pipeline(StandardScaler(), cat()), FULL, TWO),
    "xgboost in a bag": (BaggingRegressor(xgb("Regressor"), 2, max_features=0.5), FULL, SCORE),
    "xgboost, calibrated cities": (CalibratedClassifierCV(xgb(**CATEGORICAL), cv=2), CITIES, TWO),
    "xgboost, vector leaves of many trees": (
        xgb(**SHARED_TREES, max_depth=3).set_params(n_estimators=40),
        GAPS,
        THREE,
    ),
    "lightgbm, linear leaves of classes": (lgbm(linear_tree=True, n_estimators=40), GAPS, THREE),
}
TRAINED = {
    "xgboost, native classes": (
        native(xgboost, FULL, THREE, {"objective": "multi:softprob", "num_class": 3}),
        FULL,
    ),
    "xgboost, native cities": (native(xgboost, CITIES, SCORE, **CATEGORICAL), CITIES),
    "lightgbm, gaps that training has not seen": (lambda: lgbm("Regressor").fit(FULL, SCORE), GAPS),
    "lightgbm, linear leaves": (
        lambda: lgbm("Regressor", linear_tree=True).fit(FULL, SCORE),
        GAPS,
    ),
    "lightgbm, native codes": (native(lightgbm, CODES[["code"]], SCORE), CODES[["code"]]),
}
SELDOM_TRAINED = {
    "xgboost, stopped early": (
        lambda: (
            xgb(early_stopping_rounds=2)
            .set_params(n_estimators=200)
            .fit(FULL[:HALF], TWO[:HALF], verbose=False, **EARLY)
        ),
        FULL,
    ),
    "xgboost, a ranker": (lambda: xgb("Ranker").fit(FULL, THREE, qid=np.arange(ROWS) // 50), FULL),
    "lightgbm, stopped early": (
        lambda: lgbm(n_estimators=200).fit(
            FULL[:HALF],
            TWO[:HALF],
            callbacks=[lightgbm.early_stopping(2, verbose=False)],
            **EARLY,
        ),
        FULL,
    ),
}


@pytest.mark.parametrize(
    ("model", "rows", "target"),
    [*cases(PROVEN), *cases(SELDOM, is_long=True)],
)
def test_booster_is_proven(model, rows, target):
    assert proven(model.fit(rows, target), rows).report.doubts == (False, 0, 0, False)


@pytest.mark.parametrize(("train", "rows"), [*cases(TRAINED), *cases(SELDOM_TRAINED, is_long=True)])
def test_trained_booster_is_proven(train, rows):
    assert proven(train(), rows).report.doubts == (False, 0, 0, False)


BONN = CITIES["city"].cat.rename_categories({"Oslo": "Bonn"})
REFUSED = {
    "xgboost, accents": (xgb(**CATEGORICAL), ACCENTS, TWO, ("non-ASCII categories",)),
    "xgboost, several labels": (xgb(), FULL, TARGETS > 0, ("several labels",)),
    "xgboost, hinge": (xgb(objective="binary:hinge"), FULL, TWO, ("binary:hinge",)),
    "lightgbm, halves": (lgbm(), HALVES, TWO, ("categories", "strings")),
    "lightgbm, zeros": (lgbm("Regressor", zero_as_missing=True), ZEROS, SCORE, ("0", "missing")),
    "lightgbm, square roots": (lgbm("Regressor", reg_sqrt=True), FULL, COUNTS, ("sqrt",)),
    "catboost, powers": (cat("Regressor", loss_function="Lq:q=2"), FULL, SCORE, ("Lq",)),
    "catboost, categories": (cat(cat_features=["kind", "code"]), CODES, TWO, ("not numbers",)),
}


@pytest.mark.parametrize(("model", "rows", "target", "words"), cases(REFUSED))
def test_unsupported_booster_is_refused(model, rows, target, words):
    with refused(ConversionError, *words):
        wrap(model.fit(rows, target), rows)


def test_other_categories_are_refused():
    model = xgb(**CATEGORICAL).fit(CITIES.assign(city=BONN), TWO)
    with refused(ConversionError, "non-ASCII categories", "example"):
        wrap(model, CITIES)


def test_saved_booster_has_its_classes(saved):
    model = lgbm().fit(GAPS, TEXT)
    loaded = saved(model, GAPS)
    assert loaded.artifact.framework == "lightgbm"
    assert loaded.artifact.classes == ("high", "low", "middle")
    outputs = loaded.run(loaded.schema.from_array(GAPS.to_numpy()))
    assert list(outputs["label"]) == list(model.predict(GAPS))
    np.testing.assert_allclose(outputs["probabilities"], model.predict_proba(GAPS), rtol=1e-5)
    graph = onnx.load(str(loaded.artifact.onnx_file)).graph
    assert [node.op_type for node in graph.node].count("TreeEnsembleRegressor") == 1


KNOWN: Any = {
    "a": [0.5, -0.5],
    "kind": ["low", "high"],
    "code": [1, 2],
    "city": ["Oslo", "北京"],
}
UNSEEN = [
    ("kind", "aaa"),
    ("kind", "lowest"),
    ("kind", "zzz"),
    ("code", -1),
    ("code", 7),
    ("city", "Zurich"),
]


@pytest.fixture(scope="module")
def of_categories(tmp_path_factory):
    """Boosters of two string columns and of an integer column,
    each with its saved form.
    """
    rows = CODES[["a", "kind", "code"]].assign(city=CITIES["city"])
    fitted = {
        "xgboost": xgb(**CATEGORICAL).fit(rows, OF_KINDS),
        "lightgbm": lgbm(min_data_per_group=2).fit(rows, OF_KINDS),
    }
    folder = tmp_path_factory.mktemp("categories")
    for name, model in fitted.items():
        save_model(model, folder / name, input_example=rows)
    return {name: (model, OnnxModel.load(folder / name)) for name, model in fitted.items()}


def _answers_as_itself(fitted, columns):
    """Return True if a saved booster answers rows like the original."""
    model, loaded = fitted
    rows = pd.DataFrame(columns).astype({"kind": "category", "code": "category"})
    rows["city"] = pd.Categorical(columns["city"], categories=CITIES["city"].cat.categories)
    probabilities = loaded.run(loaded.schema.from_columns(columns))["probabilities"]
    return probabilities == pytest.approx(model.predict_proba(rows), rel=1e-5)


@pytest.mark.parametrize(("column", "unseen"), UNSEEN)
def test_unknown_category_of_xgboost_is_refused(column, unseen, of_categories):
    """Check unknown categories, including a value before the last known category, for
    which XGBoost 3.2 is wrong.
    """
    _, loaded = of_categories["xgboost"]
    columns = {**KNOWN, column: [KNOWN[column][0], unseen]}

    with refused(SchemaMismatch, f"{column!r}, row 1", f"{unseen!r}"):
        loaded.run(loaded.schema.from_columns(columns))


@pytest.mark.parametrize(("column", "unseen"), UNSEEN)
def test_unknown_category_of_lightgbm_is_answered(column, unseen, of_categories):
    columns = {**KNOWN, column: [KNOWN[column][0], unseen]}
    assert _answers_as_itself(of_categories["lightgbm"], columns)


def test_missing_category_of_xgboost_is_answered(of_categories):
    assert _answers_as_itself(of_categories["xgboost"], {**KNOWN, "kind": ["low", None]})


def test_thresholds_are_boundary_values():
    model = xgb("Regressor", max_depth=1).fit(FULL[["a"]], SCORE)
    edges = boundary_values_of(model, ["a"]).edges["a"]
    thresholds = model.get_booster().trees_to_dataframe()["Split"].dropna().astype(np.float32)
    assert {*thresholds} <= {*edges.astype(np.float32)}


def test_shared_splits_are_written_once():
    model = cat("Regressor", loss_function="MultiRMSE").fit(FULL, TARGETS)
    [node] = [
        candidate
        for candidate in wrap(model, FULL).converted.proto.graph.node
        if candidate.op_type == "TreeEnsembleRegressor"
    ]
    lists = {attribute.name: list(attribute.ints) for attribute in node.attribute}
    assert max(lists["nodes_treeids"]) == 4
    assert sorted({*lists["target_ids"]}) == [0, 1, 2]
    assert len(lists["target_nodeids"]) == 3 * 5 * 2**4


@pytest.mark.parametrize("is_sparse", [True, pytest.param(False, marks=pytest.mark.long)])
def test_xgboost_after_sparse_steps_is_refused(is_sparse):
    table = pd.DataFrame({"letter": TEXT, "size": SCORE})
    steps = make_column_transformer(
        (OneHotEncoder(sparse_output=is_sparse), ["letter"]),
        ("passthrough", ["size"]),
        sparse_threshold=int(is_sparse),
    )
    model = make_pipeline(steps, xgb()).fit(table, TWO)

    if is_sparse:
        with refused(ParityError, "XGBoost", "sparse", "missing"):
            wrap(model, table)
    else:
        assert is_proven(model, table)
