"""Boosters of XGBoost, LightGBM and CatBoost answer like their libraries: as
estimators, natively, and in pipelines.
"""

from collections.abc import Callable
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
from sklearn.ensemble import BaggingRegressor, StackingClassifier, VotingRegressor
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from mlflow_deploy_plugin.core.errors import ConversionError, ParityError, SchemaMismatch
from mlflow_deploy_plugin.serve.runtime.model import OnnxModel
from mlflow_deploy_plugin.wrap.convert.sklearn.boundary_values import boundary_values_of
from mlflow_deploy_plugin.wrap.flavor.save import save_model
from mlflow_deploy_plugin.wrap.flavor.wrap import wrap

ROWS = 400
HALF = 300
DRAW = np.random.default_rng(0)
FULL = pd.DataFrame({name: DRAW.normal(size=ROWS) * 10**place for place, name in enumerate("abcd")})
GAPS = FULL.mask(DRAW.random(FULL.shape) < 0.1)
SCORE = (FULL["a"] + FULL["b"] / 10 + DRAW.normal(size=ROWS) * 0.3).to_numpy()
TWO = (SCORE > 0).astype(int)
THREE = np.digitize(SCORE, [-1, 1])
TEXT = np.array(["low", "middle", "high"])[THREE]
COUNTS = DRAW.poisson(np.exp(np.clip(SCORE, -2, 2)))
TARGETS = np.c_[SCORE, 2 * SCORE, -SCORE]
MANY = pd.Categorical(DRAW.choice([f"gate {number}" for number in range(40)], ROWS))
KINDS = FULL.assign(kind=pd.Categorical(TEXT), many=MANY).mask(DRAW.random((ROWS, 6)) < 0.05)
ACCENTS = KINDS.assign(
    many=KINDS["many"].cat.rename_categories(lambda name: name.replace("gate", "café"))
)
CITIES = FULL.assign(city=pd.Categorical(np.array(["Zürich", "北京", "Oslo"])[THREE]))
CODES = FULL.assign(code=pd.Categorical(THREE), kind=pd.Categorical(TEXT), count=COUNTS)
HALVES = FULL.assign(code=pd.Categorical(THREE / 2))
OF_KINDS = ((TEXT == "high") ^ (MANY.codes % 3 == 0)).astype(int)
ZEROS = FULL.round()


def xgb(kind="Classifier", **options):
    return getattr(xgboost, f"XGB{kind}")(n_estimators=8, n_jobs=1, **options)


def lgbm(kind="Classifier", **options):
    return getattr(lightgbm, f"LGBM{kind}")(
        **{"n_estimators": 8, "n_jobs": 1, "verbose": -1, **options}
    )


def cat(kind="Classifier", **options):
    return getattr(catboost, f"CatBoost{kind}")(
        iterations=8, depth=4, thread_count=1, verbose=0, allow_writing_files=False, **options
    )


def native_xgboost(target, **options):
    return xgboost.train({"nthread": 1, **options}, xgboost.DMatrix(FULL, target), 8)


def native_lightgbm(target, **options):
    return lightgbm.train(
        {"num_threads": 1, "verbose": -1, **options}, lightgbm.Dataset(FULL, target), 8
    )


def stopped_early(model, **options):
    held_out = [(FULL[HALF:], TWO[HALF:])]
    return model.set_params(n_estimators=200).fit(
        FULL[:HALF], TWO[:HALF], eval_set=held_out, **options
    )


Fit = Callable[[], Any]

PROVEN: dict[str, tuple[Fit, pd.DataFrame]] = {
    "xgboost, two classes": (lambda: xgb().fit(GAPS, TWO), GAPS),
    "xgboost, three classes": (lambda: xgb().fit(GAPS, THREE), GAPS),
    "xgboost, a regressor": (lambda: xgb("Regressor").fit(GAPS, SCORE), GAPS),
    "xgboost, several targets": (lambda: xgb("Regressor").fit(FULL, TARGETS), FULL),
    "xgboost, counts": (
        lambda: xgb("Regressor", objective="count:poisson").fit(FULL, COUNTS),
        FULL,
    ),
    "xgboost, a base score": (lambda: xgb("Regressor", base_score=7.5).fit(FULL, SCORE), FULL),
    "xgboost, another missing value": (
        lambda: xgb(missing=-999).fit(GAPS.fillna(-999), TWO),
        GAPS.fillna(-999),
    ),
    "xgboost, stopped early": (
        lambda: stopped_early(xgb(early_stopping_rounds=2), verbose=False),
        FULL,
    ),
    "xgboost, DART": (lambda: xgb(booster="dart", rate_drop=0.3).fit(FULL, TWO), FULL),
    "xgboost, vector leaves": (
        lambda: xgb("Regressor", multi_strategy="multi_output_tree").fit(GAPS, TARGETS),
        GAPS,
    ),
    "xgboost, vector leaves of many trees": (
        lambda: (
            xgb(multi_strategy="multi_output_tree", max_depth=3)
            .set_params(n_estimators=40)
            .fit(GAPS, THREE)
        ),
        GAPS,
    ),
    "xgboost, a line": (lambda: xgb("Regressor", booster="gblinear").fit(GAPS, SCORE), GAPS),
    "xgboost, lines of three classes": (
        lambda: xgb(booster="gblinear", missing=0).fit(ZEROS, THREE),
        ZEROS,
    ),
    "xgboost, a forest": (lambda: xgb("RFClassifier").fit(FULL, TWO), FULL),
    "xgboost, a ranker": (lambda: xgb("Ranker").fit(FULL, THREE, qid=np.arange(ROWS) // 50), FULL),
    "xgboost, native": (
        lambda: xgboost.train(
            {"objective": "reg:gamma", "nthread": 1}, xgboost.DMatrix(FULL, COUNTS + 1), 8
        ),
        FULL,
    ),
    "xgboost, native classes": (
        lambda: native_xgboost(THREE, objective="multi:softprob", num_class=3),
        FULL,
    ),
    "xgboost, categories": (
        lambda: xgb(enable_categorical=True, max_cat_to_onehot=2, max_cat_threshold=64).fit(
            KINDS, OF_KINDS
        ),
        KINDS,
    ),
    "xgboost, codes": (lambda: xgb(enable_categorical=True).fit(CODES, OF_KINDS), CODES),
    "xgboost in a pipeline": (
        lambda: make_pipeline(StandardScaler(), xgb()).fit(FULL, THREE),
        FULL,
    ),
    "xgboost in a search": (
        lambda: GridSearchCV(
            make_pipeline(SimpleImputer(), xgb()), {"xgbclassifier__max_depth": [2, 3]}, cv=2
        ).fit(GAPS, TWO),
        GAPS,
    ),
    "lightgbm, two classes": (lambda: lgbm().fit(GAPS, TWO), GAPS),
    "lightgbm, texts": (lambda: lgbm().fit(GAPS, TEXT), GAPS),
    "lightgbm, one against all": (lambda: lgbm(objective="multiclassova").fit(GAPS, TEXT), GAPS),
    "lightgbm, a regressor": (lambda: lgbm("Regressor").fit(GAPS, SCORE), GAPS),
    "lightgbm, gaps that training has not seen": (lambda: lgbm("Regressor").fit(FULL, SCORE), GAPS),
    "lightgbm, linear leaves": (lambda: lgbm("Regressor", linear_tree=True).fit(FULL, SCORE), GAPS),
    "lightgbm, linear leaves of classes": (
        lambda: lgbm(linear_tree=True, n_estimators=40).fit(GAPS, THREE),
        GAPS,
    ),
    "lightgbm, counts": (lambda: lgbm("Regressor", objective="poisson").fit(FULL, COUNTS), FULL),
    "lightgbm, a forest": (
        lambda: lgbm("Regressor", boosting_type="rf", bagging_freq=1, bagging_fraction=0.5).fit(
            FULL, SCORE
        ),
        FULL,
    ),
    "lightgbm, stopped early": (
        lambda: stopped_early(lgbm(), callbacks=[lightgbm.early_stopping(2, verbose=False)]),
        FULL,
    ),
    "lightgbm, native": (lambda: native_lightgbm(TWO, objective="binary"), FULL),
    "lightgbm, categories": (
        lambda: lgbm(max_cat_to_onehot=1, min_data_per_group=2, cat_smooth=0.1).fit(
            ACCENTS, OF_KINDS
        ),
        ACCENTS,
    ),
    "xgboost, cities": (lambda: xgb(enable_categorical=True).fit(CITIES, THREE), CITIES),
    "xgboost, native cities": (
        lambda: xgboost.train({}, xgboost.DMatrix(CITIES, SCORE, enable_categorical=True), 4),
        CITIES,
    ),
    "xgboost, calibrated cities": (
        lambda: CalibratedClassifierCV(xgb(enable_categorical=True), cv=2).fit(CITIES, TWO),
        CITIES,
    ),
    "lightgbm, codes": (lambda: lgbm(min_data_per_group=2).fit(CODES, OF_KINDS), CODES),
    "lightgbm, native codes": (
        lambda: lightgbm.train(
            {"verbose": -1, "num_threads": 1}, lightgbm.Dataset(CODES[["code"]], SCORE), 5
        ),
        CODES[["code"]],
    ),
    "lightgbm, calibrated": (lambda: CalibratedClassifierCV(lgbm(), cv=2).fit(FULL, TWO), FULL),
    "lightgbm in a pipeline": (
        lambda: make_pipeline(StandardScaler(), lgbm()).fit(FULL, THREE),
        FULL,
    ),
    "catboost, two classes": (lambda: cat().fit(GAPS, TWO), GAPS),
    "catboost, texts": (lambda: cat().fit(GAPS, TEXT), GAPS),
    "catboost, missing is the largest": (
        lambda: cat("Regressor", nan_mode="Max").fit(GAPS, SCORE),
        GAPS,
    ),
    "catboost, counts": (lambda: cat("Regressor", loss_function="Poisson").fit(FULL, COUNTS), FULL),
    "catboost, several targets": (
        lambda: cat("Regressor", loss_function="MultiRMSE").fit(FULL, TARGETS),
        FULL,
    ),
    "catboost, trees of other shapes": (
        lambda: cat(grow_policy="Lossguide").fit(GAPS, THREE),
        GAPS,
    ),
    "catboost in a pipeline": (lambda: make_pipeline(StandardScaler(), cat()).fit(FULL, TWO), FULL),
    "xgboost in a bag": (
        lambda: BaggingRegressor(xgb("Regressor"), 2, max_features=0.5).fit(FULL, SCORE),
        FULL,
    ),
    "both in a stack": (
        lambda: StackingClassifier([("x", xgb()), ("l", lgbm())], LogisticRegression(), cv=2).fit(
            FULL, TWO
        ),
        FULL,
    ),
    "lines of columns with names in a vote": (
        lambda: VotingRegressor([("x", xgb("Regressor", booster="gblinear")), ("r", Ridge())]).fit(
            FULL, SCORE
        ),
        FULL,
    ),
}


@pytest.mark.parametrize("case", PROVEN.values(), ids=PROVEN.keys())
def test_a_booster_is_proven(case):
    fit, example = case
    report = wrap(fit(), example).report
    assert report.state == "proven"
    assert report.doubts == (False, 0, 0, False)


REFUSED: dict[str, tuple[Fit, str]] = {
    "xgboost, accents": (
        lambda: xgb(enable_categorical=True).fit(ACCENTS, TWO),
        "non-ASCII categories that XGBoost itself mixes up",
    ),
    "xgboost, other cities": (
        lambda: xgb(enable_categorical=True).fit(
            CITIES.assign(city=CITIES["city"].cat.rename_categories({"Oslo": "Bonn"})), TWO
        ),
        "non-ASCII categories that are not those of the example",
    ),
    "xgboost, several labels": (lambda: xgb().fit(FULL, TARGETS > 0), "several labels per row"),
    "xgboost, hinge": (
        lambda: xgb(objective="binary:hinge").fit(FULL, TWO),
        "the objective binary:hinge",
    ),
    "lightgbm, codes": (lambda: lgbm().fit(HALVES, TWO), "categories that are neither strings"),
    "lightgbm, zeros": (
        lambda: lgbm("Regressor", zero_as_missing=True).fit(ZEROS, SCORE),
        "0 counts as missing",
    ),
    "lightgbm, square roots": (
        lambda: lgbm("Regressor", reg_sqrt=True).fit(FULL, COUNTS),
        "regression sqrt",
    ),
    "catboost, powers": (
        lambda: cat("Regressor", loss_function="Lq:q=2").fit(FULL, SCORE),
        "the loss Lq",
    ),
    "catboost, categories": (
        lambda: cat(cat_features=["kind", "code"]).fit(CODES, TWO),
        "features that are not numbers",
    ),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED.keys())
def test_an_unsupported_booster_gives_a_reason_and_an_alternative(case, tmp_path):
    fit, reason = case
    rows = {"of the example": CITIES, "ASCII": ACCENTS, "neither": HALVES, "not numbers": CODES}
    example = next((rows[word] for word in rows if word in reason), FULL)
    with pytest.raises(ConversionError, match=rf"{reason}.*served as pyfunc"):
        save_model(fit(), tmp_path / "model", input_example=example)


def test_a_saved_booster_names_its_library_and_predicts_classes(tmp_path):
    model = lgbm().fit(GAPS, TEXT)
    save_model(model, tmp_path / "model", input_example=GAPS)
    loaded = OnnxModel.load(tmp_path / "model")
    assert loaded.artifact.framework == "lightgbm"
    assert loaded.artifact.classes == ("high", "low", "middle")
    outputs = loaded.run(loaded.schema.from_array(GAPS.to_numpy()))
    assert list(outputs["label"]) == list(model.predict(GAPS))
    np.testing.assert_allclose(outputs["probabilities"], model.predict_proba(GAPS), rtol=1e-5)
    graph = onnx.load(str(loaded.artifact.onnx_file)).graph
    assert [node.op_type for node in graph.node].count("TreeEnsembleRegressor") == 1


KNOWN: dict[str, list[Any]] = {
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
        "xgboost": xgb(enable_categorical=True).fit(rows, OF_KINDS),
        "native xgboost": xgboost.train(
            {}, xgboost.DMatrix(rows, OF_KINDS, enable_categorical=True), 4
        ),
        "lightgbm": lgbm(min_data_per_group=2).fit(rows, OF_KINDS),
    }
    folder = tmp_path_factory.mktemp("categories")
    for name, model in fitted.items():
        save_model(model, folder / name, input_example=rows)
    return {name: (model, OnnxModel.load(folder / name)) for name, model in fitted.items()}


@pytest.mark.parametrize("library", ["xgboost", "native xgboost"])
@pytest.mark.parametrize(("column", "unseen"), UNSEEN)
def test_a_category_that_xgboost_has_not_learned_is_refused_with_its_row_and_column(
    library, column, unseen, of_categories
):
    """Check unknown categories, including a value before the last known category, for
    which XGBoost 3.2 is wrong.
    """
    _, saved = of_categories[library]
    columns = {**KNOWN, column: [KNOWN[column][0], unseen]}

    with pytest.raises(SchemaMismatch, match=f"{column!r}, row 1:.*{unseen!r}"):
        saved.run(saved.schema.from_columns(columns))


@pytest.mark.parametrize(("column", "unseen"), UNSEEN)
def test_a_category_that_lightgbm_has_not_learned_is_answered_as_by_itself(
    column, unseen, of_categories
):
    model, saved = of_categories["lightgbm"]
    columns = {**KNOWN, column: [KNOWN[column][0], unseen]}
    categories = {name: pd.Categorical(values) for name, values in columns.items() if name != "a"}

    probabilities = saved.run(saved.schema.from_columns(columns))["probabilities"]

    np.testing.assert_allclose(
        probabilities, model.predict_proba(pd.DataFrame(columns).assign(**categories)), rtol=1e-5
    )


def test_a_missing_category_is_answered_as_by_xgboost_itself(of_categories):
    model, saved = of_categories["xgboost"]
    columns: dict[str, Any] = {**KNOWN, "kind": ["low", None]}
    rows = pd.DataFrame(columns).assign(
        **{name: pd.Categorical(columns[name]) for name in ("kind", "code")},
        city=pd.Series(columns["city"], dtype=CITIES["city"].dtype),
    )

    probabilities = saved.run(saved.schema.from_columns(columns))["probabilities"]

    np.testing.assert_allclose(probabilities, model.predict_proba(rows), rtol=1e-5)


def test_the_thresholds_of_a_booster_are_boundary_values():
    model = xgb("Regressor", max_depth=1).fit(FULL[["a"]], SCORE)
    edges = boundary_values_of(model, ["a"]).edges["a"]
    thresholds = model.get_booster().trees_to_dataframe()["Split"].dropna().astype(np.float32)
    assert {*thresholds} <= {*edges.astype(np.float32)}


def test_trees_that_differ_in_their_leaves_alone_are_written_once():
    model = cat("Regressor", loss_function="MultiRMSE").fit(FULL, TARGETS)
    [node] = [
        candidate
        for candidate in wrap(model, FULL).converted.proto.graph.node
        if candidate.op_type == "TreeEnsembleRegressor"
    ]
    lists = {attribute.name: list(attribute.ints) for attribute in node.attribute}
    assert max(lists["nodes_treeids"]) == 7
    assert sorted({*lists["target_ids"]}) == [0, 1, 2]
    assert len(lists["target_nodeids"]) == 3 * 8 * 2**4


def test_xgboost_after_a_sparse_matrix_names_the_cause_and_the_correction():
    random = np.random.default_rng(0)
    table = pd.DataFrame(
        {"letter": random.choice(["a", "b", "c"], 200), "size": random.normal(size=200)}
    )
    target = (table["size"] > 0) | (table.letter == "a")
    encoders = (OneHotEncoder(), OneHotEncoder(sparse_output=False))
    sparse, dense = (
        make_pipeline(
            make_column_transformer(
                (encoder, ["letter"]), ("passthrough", ["size"]), sparse_threshold=threshold
            ),
            xgboost.XGBClassifier(n_estimators=5),
        ).fit(table, target)
        for encoder, threshold in zip(encoders, (1, 0), strict=True)
    )

    with pytest.raises(
        ParityError,
        match=r"^XGBoost takes the zeros of a sparse matrix for missing .*sparse_output=F",
    ):
        wrap(sparse, table)
    assert wrap(dense, table).report.state == "proven"
