"""Exact contributions equal shap's contributions for the original model."""

from dataclasses import dataclass, replace
from itertools import permutations
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import (
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, PoissonRegressor, Ridge
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.tree import DecisionTreeRegressor

import mlflow_deploy_plugin
from mlflow_deploy_plugin.core.errors import InferenceError, InvalidArtifact, InvalidRequest
from mlflow_deploy_plugin.serve.models import exact, explainer, leaf_tables
from mlflow_deploy_plugin.serve.runtime.additive import ADDITIVE_FILE, AdditiveForm, read_additive
from mlflow_deploy_plugin.serve.runtime.feeds import Array
from mlflow_deploy_plugin.serve.runtime.model import OnnxModel
from mlflow_deploy_plugin.wrap.convert.batch import Batch
from mlflow_deploy_plugin.wrap.convert.sklearn.additive import additive_form
from tests.support.cases import long_case

lightgbm = pytest.importorskip("lightgbm")
xgboost = pytest.importorskip("xgboost")

ROWS = 400
EXPLAINED = 60


@dataclass(frozen=True)
class Explained:
    """The contributions to the first rows of a saved model, and its background rows."""

    contributions: Any
    background: Array
    model: OnnxModel
    form: AdditiveForm | None


def explain(original, rows, folder, count=EXPLAINED):
    mlflow_deploy_plugin.save_model(original, folder, input_example=rows)
    return explain_saved(rows, folder, count)


def explain_saved(rows, folder, count=EXPLAINED):
    model = OnnxModel.load(folder)
    feeds = Batch.read(rows[:count]).feeds(model.schema)
    background = explainer.read_background(model, 50, 0)
    contributions = explainer.explain_rows(model, background.feeds, feeds, 50, 0)
    features = contributions.features
    matrix = np.stack([feature.values(background.feeds) for feature in features], axis=1)
    return Explained(contributions, matrix, model, read_additive(folder))


def values_of_trees(original, background, rows):
    """Return shap's values for the first rows of the original, [N, columns, sums]."""
    import shap

    explainer = shap.TreeExplainer(
        original, background.astype(float), feature_perturbation="interventional"
    )
    values = explainer.shap_values(rows[:EXPLAINED], check_additivity=False)
    return np.reshape(values, (EXPLAINED, rows.shape[1], -1))


def numbers():
    return np.random.default_rng(0).normal(size=(ROWS, 4)).astype("float32").astype(float)


def is_high(rows):
    return (rows[:, 0] + rows[:, 1] * rows[:, 2] > 0).astype(int)


def with_gaps(rows):
    gaps = np.random.default_rng(1).random(rows.shape) < 0.1
    return np.where(gaps, np.nan, rows)


class CatBoost:
    """A model of CatBoost, which takes a second to import, until it is fitted."""

    def __init__(self, name):
        self.__name__ = name

    def fit(self, rows, target):
        import catboost

        kind = getattr(catboost, self.__name__)
        return kind(iterations=10, depth=3, verbose=0, allow_writing_files=False).fit(rows, target)


def name_of(value):
    return getattr(value, "__name__", type(value).__name__)


def add_up_to_probabilities(contributions, original, rows):
    sums = contributions.values.sum(axis=1) + contributions.base_values
    powers = np.exp(sums)
    predicted = powers / powers.sum(axis=1, keepdims=True)
    return predicted == pytest.approx(original.predict_proba(rows), abs=1e-6)


@pytest.mark.parametrize(
    ("original", "link", "prepare"),
    [
        (GradientBoostingClassifier(n_estimators=10), "logit", np.copy),
        (RandomForestClassifier(10, max_depth=5), "identity", np.copy),
        long_case(HistGradientBoostingClassifier(max_iter=10), "logit", with_gaps),
        long_case(RandomForestRegressor(10, max_depth=5), "identity", np.copy),
        (CatBoost("CatBoostClassifier"), "logit", np.copy),
        long_case(lightgbm.LGBMClassifier(n_estimators=10, verbose=-1), "logit", with_gaps),
        long_case(xgboost.XGBClassifier(n_estimators=10), "logit", with_gaps),
    ],
    ids=name_of,
)
def test_trees_match_shap(tmp_path, original, link, prepare):
    rows = prepare(numbers())
    original = original.fit(rows, is_high(numbers()))
    explained = explain(original, rows, tmp_path / "model")
    expected = values_of_trees(original, explained.background, rows)
    assert explained.contributions.method == "tree"
    assert explained.contributions.link == link
    assert explained.contributions.values == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("original", "link"),
    [(LogisticRegression(), "logit"), (Ridge(), "identity"), (PoissonRegressor(), "log")],
    ids=name_of,
)
def test_linear_models_match_shap(tmp_path, original, link):
    import shap

    rows = numbers()
    original.fit(rows, is_high(rows))
    explained = explain(original, rows, tmp_path / "model")
    masker = shap.maskers.Independent(explained.background, max_samples=50)
    expected = shap.LinearExplainer(original, masker).shap_values(rows[:EXPLAINED])
    assert explained.contributions.method == "linear"
    assert explained.contributions.link == link
    assert explained.contributions.values[:, :, 0] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    "original",
    [
        long_case(lightgbm.LGBMClassifier(n_estimators=5, verbose=-1)),
        long_case(CatBoost("CatBoostClassifier")),
        LogisticRegression(),
    ],
    ids=name_of,
)
def test_three_classes_are_explained(tmp_path, original):
    """shap refuses or crashes for some of these originals, so the sums are checked."""
    rows = numbers()
    original = original.fit(rows, np.digitize(rows[:, 0], [-0.5, 0.5]))
    contributions = explain(original, rows, tmp_path / "model").contributions
    assert contributions.outputs == [0, 1, 2]
    assert add_up_to_probabilities(contributions, original, rows[:EXPLAINED])


def fares():
    rng = np.random.default_rng(0)
    city = rng.choice(["Lyon", "Nice", "Paris", "Brest"], ROWS, p=[0.5, 0.3, 0.195, 0.005])
    return pd.DataFrame({"city": city, "km": rng.normal(size=ROWS), "age": rng.normal(size=ROWS)})


def pipeline(predictor):
    scaled = make_pipeline(SimpleImputer(), StandardScaler())
    encode = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
    columns = ColumnTransformer([("n", scaled, ["km", "age"]), ("c", encode, ["city"])])
    return make_pipeline(columns, predictor)


@pytest.mark.parametrize(
    "predictor",
    [
        long_case(GradientBoostingClassifier(n_estimators=10)),
        LogisticRegression(),
    ],
    ids=name_of,
)
def test_contributions_of_an_encoded_column_are_summed(tmp_path, predictor):
    import shap

    rows = fares()
    original = pipeline(predictor)
    original.fit(rows, (rows["km"] + (rows["city"] == "Lyon") > 0).astype(int))
    explained = explain(original, rows, tmp_path / "model")
    background = pd.DataFrame(explained.background, columns=rows.columns).astype(rows.dtypes)
    steps = original[:-1]
    fitted = original[-1]
    masker = shap.maskers.Independent(steps.transform(background), max_samples=50)
    kind = (
        shap.LinearExplainer if explained.contributions.method == "linear" else shap.TreeExplainer
    )
    by_feature = kind(fitted, masker).shap_values(steps.transform(rows[:EXPLAINED]))
    expected = [by_feature[:, 2:].sum(axis=1), by_feature[:, 0], by_feature[:, 1]]
    assert [feature.name for feature in explained.contributions.features] == ["city", "km", "age"]
    assert explained.contributions.values[:, :, 0] == pytest.approx(
        np.stack(expected, axis=1), abs=1e-6
    )


def shops():
    """Return rows with missing values, two columns of categories, and a number."""
    rng = np.random.default_rng(0)
    cities = pd.Categorical(rng.choice([*"abcdefgh"], ROWS))
    rows = pd.DataFrame({"city": cities, "km": rng.normal(size=ROWS)})
    rows = rows.mask(rng.random(rows.shape) < 0.05)
    return rows.assign(rooms=pd.Categorical(rng.integers(5, 9, ROWS)))


def shapley_values(score, background, row):
    """Return the values of the columns by their definition: the mean change of the
    score over all orders of the columns.
    """
    columns = list(background)
    values = dict.fromkeys(columns, 0.0)
    orders = list(permutations(columns))
    for order in orders:
        mixed = background.copy()
        before = score(mixed).mean()
        for column in order:
            filled = row[[column]].iloc[np.zeros(len(mixed), int)]
            mixed[column] = filled[column].set_axis(mixed.index)
            after = score(mixed).mean()
            values[column] += (after - before) / len(orders)
            before = after
    return [values[column] for column in columns]


@pytest.mark.parametrize("kept_bytes", [0, 2**26])
@pytest.mark.parametrize(
    ("original", "score"),
    [
        long_case(
            lightgbm.LGBMClassifier(n_estimators=5, min_data_per_group=2, verbose=-1),
            lambda original, rows: original.predict(rows, raw_score=True),
        ),
        (
            xgboost.XGBClassifier(n_estimators=5, enable_categorical=True),
            lambda original, rows: original.predict(rows, output_margin=True),
        ),
        long_case(
            HistGradientBoostingClassifier(max_iter=5, categorical_features="from_dtype"),
            lambda original, rows: original.decision_function(rows),
        ),
        (
            lightgbm.LGBMRegressor(
                n_estimators=5, linear_tree=True, min_data_per_group=2, verbose=-1
            ),
            lambda original, rows: original.predict(rows),
        ),
    ],
    ids=name_of,
)
def test_native_forms_have_exact_contributions(tmp_path, monkeypatch, original, score, kept_bytes):
    monkeypatch.setattr(leaf_tables, "KEPT_BYTES", kept_bytes)
    rows = shops()
    is_even = rows["city"].isin([*"aceg"]) == rows["rooms"].isin([5, 7])
    original.fit(rows, (rows["km"].fillna(0) + 2 * is_even > 1).astype(int))
    explained = explain(original, rows, tmp_path / "model", count=5)
    background = pd.DataFrame(explained.background, columns=rows.columns).astype(rows.dtypes)
    assert explained.contributions.method == "tree"
    for position in range(2):
        row = rows.iloc[position : position + 1]
        expected = shapley_values(lambda mixed: score(original, mixed), background, row)
        values = explained.contributions.values[position, :, 0]
        assert values == pytest.approx(expected, abs=1e-6)


def test_other_models_use_permutations(tmp_path):
    rows = numbers()
    original = MLPRegressor(hidden_layer_sizes=(4,), max_iter=50).fit(rows, rows[:, 0])
    explained = explain(original, rows, tmp_path / "model", count=5)
    assert explained.form is None
    assert explained.contributions.method == "permutation"
    assert explained.contributions.link == "identity"


def small_forest():
    """Return the form of a forest, and its rows."""
    rows = np.resize(numbers(), (2_100, 4))
    form = additive_form(RandomForestRegressor(5, max_depth=4).fit(rows, is_high(rows)))
    assert form is not None
    return replace(form, columns=np.arange(4)), rows


@pytest.mark.parametrize("kept_bytes", [0, 2**20])
def test_contributions_are_independent_of_row_count(monkeypatch, kept_bytes):
    monkeypatch.setattr(leaf_tables, "KEPT_BYTES", kept_bytes)
    form, rows = small_forest()
    tables = exact.ExactExplainer(form, rows[:30])
    expected = tables.contributions(rows[:10], 4)
    for count in (1, 51, 2_100):
        values = tables.contributions(rows[:count], 4)
        assert values[:10] == pytest.approx(expected[:count], abs=1e-6)


@pytest.mark.parametrize("count", [1, 51])
def test_deadline_stops_the_explanation(count):
    form, rows = small_forest()
    with pytest.raises(leaf_tables.DeadlinePassed):
        exact.ExactExplainer(form, rows[:30]).contributions(rows[:count], 4, deadline=0.0)


def test_explainers_are_cached():
    form, rows = small_forest()
    kept = exact.exact_explainer(form, rows[:30].tobytes())
    assert exact.exact_explainer(form, rows[:30].copy().tobytes()) is kept
    assert exact.exact_explainer(form, rows[30:60].tobytes()) is not kept


def precise():
    """Return numbers of 64 bits, the last of which are times in seconds."""
    rows = np.random.default_rng(0).normal(size=(ROWS, 4))
    rows[:, 3] = 1.7e9 + np.round(rows[:, 3] * 100)
    return rows


@pytest.fixture(
    scope="module",
    params=[
        HistGradientBoostingClassifier(max_iter=10),
        long_case(lightgbm.LGBMRegressor(n_estimators=10, verbose=-1)),
        long_case(HistGradientBoostingRegressor(max_iter=10)),
        long_case(CatBoost("CatBoostRegressor")),
    ],
    ids=name_of,
)
def fitted_to_times(request, tmp_path_factory):
    """Return a model of rows with gaps and times, its rows, and the folder with it."""
    rows = with_gaps(precise())
    target = precise()[:, 0] * 100 + (precise()[:, 3] > 1.7e9) * 50
    is_classifier = hasattr(request.param, "predict_proba")
    original = request.param.fit(rows, np.digitize(target, [-40, 80]) if is_classifier else target)
    folder = tmp_path_factory.mktemp("times") / "model"
    mlflow_deploy_plugin.save_model(original, folder, input_example=rows)
    return original, rows, folder


@pytest.mark.parametrize("kept_bytes", [0, 2**26])
def test_contributions_add_up_to_the_prediction(monkeypatch, fitted_to_times, kept_bytes):
    monkeypatch.setattr(leaf_tables, "KEPT_BYTES", kept_bytes)
    exact.exact_explainer.cache_clear()
    original, rows, folder = fitted_to_times
    explained = explain_saved(rows, folder).contributions
    if hasattr(original, "predict_proba"):
        assert add_up_to_probabilities(explained, original, rows[:EXPLAINED])
    else:
        sums = explained.values.sum(axis=1) + explained.base_values
        assert sums[:, 0] == pytest.approx(original.predict(rows[:EXPLAINED]), rel=1e-6, abs=1e-4)


def test_large_trees_are_explained():
    rows = np.arange(17_000.0)[:, np.newaxis]
    form = additive_form(DecisionTreeRegressor().fit(rows, rows[:, 0]))
    assert form is not None
    tables = exact.ExactExplainer(replace(form, columns=np.zeros(1, int)), rows[:10])
    sums = tables.contributions(rows[-2:], 1)[:, 0, 0] + tables.base_values
    assert sums == pytest.approx(rows[-2:, 0])


def nested(depth):
    """Return the nodes of a tree whose right children are leaves."""
    nodes = np.arange(2 * depth + 1)
    is_inner = (nodes % 2 == 0) & (nodes < 2 * depth)
    arrays = {name: np.zeros((1, len(nodes)), int) for name in ("feature", "threshold")}
    return arrays | {
        "left": np.where(is_inner, nodes + 2, -1)[np.newaxis],
        "right": np.where(is_inner, nodes + 1, -1)[np.newaxis],
        "membership": np.full((1, len(nodes)), -1),
        "missing_left": np.zeros((1, len(nodes)), bool),
        "value": np.zeros((1, len(nodes), 1)),
    }


@pytest.mark.parametrize(
    ("error", "change"),
    [
        (InferenceError, lambda form: {"base": form.base + 1}),
        (InferenceError, lambda form: {"base": form.base * np.nan}),
        (InvalidRequest, lambda form: {"columns": form.columns + 10**10}),
        (InvalidArtifact, lambda form: {"value": form.value.repeat(2, axis=2)}),
        (InvalidArtifact, lambda form: {"slope_features": np.array([-1])}),
        (InvalidArtifact, lambda form: nested(300)),
        (
            InvalidArtifact,
            lambda form: {"membership": form.left * 0, "members": np.ones((2, 2**23), bool)},
        ),
    ],
)
def test_hostile_form_is_refused(tmp_path, error, change):
    rows = numbers()
    original = HistGradientBoostingRegressor(max_iter=10).fit(rows, rows[:, 0])
    folder = tmp_path / "model"
    mlflow_deploy_plugin.save_model(original, folder, input_example=rows)
    form = read_additive(folder)
    assert form is not None
    model = OnnxModel.load(folder)
    (folder / ADDITIVE_FILE).write_bytes(replace(form, **change(form)).to_bytes())
    feeds = Batch.read(rows[:2]).feeds(model.schema)
    with pytest.raises(error):
        explainer.explain_rows(model, feeds, feeds, 50, 0)
