import re
from itertools import product

import mlflow
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import coo_array, csr_matrix
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.cluster import KMeans
from sklearn.compose import (
    ColumnTransformer,
    make_column_selector,
    make_column_transformer,
)
from sklearn.ensemble import (
    BaggingClassifier,
    GradientBoostingRegressor,
    HistGradientBoostingRegressor,
    IsolationForest,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.feature_extraction import DictVectorizer, FeatureHasher
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.multioutput import MultiOutputRegressor
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import MinMaxScaler, OneHotEncoder, StandardScaler
from sklearn.svm import SVC, SVR, LinearSVC

from mlflow_deploy_plugin.core.errors import ConversionError, InvalidConfig, ParityError
from mlflow_deploy_plugin.wrap.flavor.save import save_model
from mlflow_deploy_plugin.wrap.flavor.wrap import wrap
from tests.support.random_rows import normal_rows
from tests.support.refusals import refused
from tests.support.weather import weather_columns
from tests.wrap.conftest import cases, is_proven, proven


@pytest.mark.long
def test_mixed_table_is_proven(weather):
    table, labels = weather
    columns = make_column_transformer(
        (SimpleImputer(), make_column_selector(dtype_include="number")),
        (OneHotEncoder(), ["city"]),
        ("passthrough", ["weekend"]),
    )

    wrapped = proven(make_pipeline(columns, RandomForestClassifier(5)).fit(table, labels), table)

    assert wrapped.report.rows >= 1000
    assert wrapped.report.sources["missing"] > 0
    assert [entry.columns for entry in wrapped.converted.inputs] == [(name,) for name in table]
    assert wrapped.converted.classes == ("late", "on time")


def test_refused_rows_are_dropped_and_counted(weather):
    table, labels = weather
    strict = make_column_transformer(
        (OneHotEncoder(), ["city", "code"]), (StandardScaler(), ["hour"])
    )
    rows = table[["city", "hour", "code"]].astype({"code": "category"})

    report = proven(make_pipeline(strict, LogisticRegression()).fit(rows, labels), rows).report

    assert report.refused_by_original["unseen"] > 0
    assert report.refused_by_original["missing"] > 0


LABELS = {int: "int64", str: "str", bool: "bool", float: "float64"}
SEARCH = GridSearchCV(LogisticRegression(), {"C": [0.1, 1]}, cv=2)
FOREST = RandomForestClassifier(3)
MODELS = [
    (make_pipeline(StandardScaler(), SEARCH), -1),
    (make_pipeline(StandardScaler(), MLPClassifier(max_iter=10)), -1),
    (KMeans(3, n_init=1, random_state=0), -1),
    (IsolationForest(n_estimators=5), -1),
    (Ridge(), 2),
    (RandomForestRegressor(5), 3),
    (MultiOutputRegressor(GradientBoostingRegressor(n_estimators=5)), 2),
    (make_pipeline(StandardScaler(), SVR()), 0),
]


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize(("model", "targets"), cases(MODELS))
def test_output_keeps_its_role_and_shape(model, targets, matrix):
    """A number of targets of -1 stands for labels, and 0 for one target."""
    rows, target = matrix
    several = np.column_stack([target * (n + 1) for n in range(max(targets, 1))])
    wanted = {-1: target > 3, 0: target}.get(targets, several)

    converted = proven(model.fit(rows, wanted), rows).converted

    assert [entry.shape for entry in converted.inputs] == [(-1, 3)]
    assert converted.outputs[0].role == ("label" if targets < 0 else "values")
    assert converted.outputs[0].shape == ((-1, targets) if targets > 0 else (-1,))


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize(
    ("model", "kind"),
    [
        *product([FOREST], LABELS),
        pytest.param(make_pipeline(StandardScaler(), LinearSVC()), bool, marks=pytest.mark.long),
    ],
)
def test_labels_keep_their_type(model, kind, matrix):
    rows, target = matrix
    labels = (target > 3).astype(int).astype(kind)

    assert proven(model.fit(rows, labels), rows).converted.outputs[0].dtype == LABELS[kind]


@pytest.mark.long
def test_wrong_labels_are_refused():
    rows = normal_rows(1500, 5, seed=1) * 10
    # Many neighbours have the same distance.
    model = KNeighborsClassifier(3).fit(rows.round(-2), (2 * rows[:, 0] + rows[:, 1] > 0) * 1)

    with refused(ParityError, "probabilities", "warn") as error:
        wrap(model, rows)

    cells = [re.split(r"\s{2,}", line.strip())[:4] for line in error.value.message.splitlines()]
    assert ["example", "probabilities", "[0, 1]", "[0.333333, 0.666667]"] in cells


def test_error_names_its_cause(matrix):
    rows, target = matrix
    labels = np.where(target > 0, np.uint64(2**63), np.uint64(0))

    with refused(ConversionError, "SVC", "9223372036854775808"):
        wrap(SVC().fit(rows, labels), rows)


class Mean(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    def fit(self, rows, target):
        self.learned = np.mean(target)
        return self

    def predict(self, rows):
        return np.full(len(rows), self.learned)


def test_unfitted_model_is_refused(matrix):
    for model in (RandomForestClassifier(), make_pipeline(StandardScaler(), Ridge()), Mean()):
        with refused(InvalidConfig, "not fitted"):
            wrap(model, matrix[0])
    with refused(ConversionError, "no converter"):
        wrap(Mean().fit(*matrix), matrix[0])


def test_unfit_example_is_refused(matrix):
    with refused(InvalidConfig, "input_example", "ValueError", "2 features"):
        wrap(Ridge().fit(*matrix), matrix[0][:, :2])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda rows: rows[:0], "no rows"),
        (lambda rows: pd.DataFrame(rows, columns=list("aba")), "'a'"),
        (lambda rows: rows[:, 0], "a DataFrame or an array"),
        (lambda rows: object(), "a DataFrame or an array"),
        (lambda rows: None, "needs an example"),
        (lambda rows: csr_matrix((3, 0)), "input_example"),
        (lambda rows: coo_array([1.0, 2.0]), "input_example"),
    ],
)
def test_example_without_rows_is_refused(change, words, matrix):
    with refused(InvalidConfig, words):
        wrap(Ridge().fit(*matrix), change(matrix[0]))


@pytest.mark.parametrize(
    ("step", "rows", "words"),
    [
        (DictVectorizer(), [{"a": 1.0}, {"b": "x"}], "DictVectorizer"),
        (FeatureHasher(8), [{"a": 1.0}, {"b": "x"}], "FeatureHasher"),
        (FeatureHasher(8, input_type="string"), [["a", "b"], ["c"]], "FeatureHasher"),
        (CountVectorizer(analyzer=list), [["a", "b"], ["c"]], "different lengths"),
    ],
)
def test_rows_other_than_tables_are_refused(step, rows, words):
    model = make_pipeline(step, LogisticRegression()).fit(rows, [0, 1])
    with refused(InvalidConfig, words):
        wrap(model, rows)


def test_column_of_dates_is_named(weather):
    table, labels = weather
    model = make_pipeline(weather_columns(), LogisticRegression()).fit(table, labels)

    with refused(ConversionError, "'when'", "datetime64"):
        wrap(model, table.assign(when=pd.Timestamp("2013-01-01")))


def test_numbers_of_objects_are_numbers(matrix):
    rows, target = matrix
    mixed = pd.DataFrame({0: rows[:, 0], 1: rows[:, 1] > 0, 2: [None, *rows[1:, 2]]}, dtype=object)
    model = HistGradientBoostingRegressor(max_iter=3).fit(mixed.to_numpy(), target)

    assert proven(model, mixed).converted.inputs[0].dtype != "str"


def test_sparse_rows_are_read_as_dense(matrix):
    rows, target = matrix
    table = pd.DataFrame({"a": rows[:, 0], "b": pd.arrays.SparseArray(np.maximum(rows[:, 1], 0))})

    of_matrix = wrap(Ridge().fit(csr_matrix(rows), target), csr_matrix(rows))
    of_table = wrap(Ridge().fit(table, target), table)

    assert of_matrix.example.tolist() == rows[:5].tolist()
    assert [column.type.name for column in of_table.signature.inputs] == ["double", "double"]


@pytest.mark.parametrize("dtype", ["U1", object])
def test_matrix_of_texts_is_answered(dtype, tmp_path):
    matrix = np.array([["a", "b"], ["c", "d"]] * 30, dtype=dtype)
    encoder = OneHotEncoder(handle_unknown="ignore")
    model = make_pipeline(encoder, LogisticRegression()).fit(matrix, [0, 1] * 30)

    save_model(model, tmp_path / "model", input_example=matrix)

    loaded = mlflow.pyfunc.load_model(str(tmp_path / "model"))
    assert loaded.predict(matrix[:2]).tolist() == [0, 1]


NAMES = ["a", "b", "c"]


TABLE = pd.DataFrame(normal_rows(100, 3), columns=NAMES)


def test_transformer_weights_are_kept():
    weighted = ColumnTransformer(
        [("scaled", StandardScaler(), [0, 1]), ("as it is", "passthrough", [2])],
        transformer_weights={"scaled": 2.0, "as it is": 0.5},
    )
    first = make_column_transformer((MinMaxScaler(), NAMES))
    model = make_pipeline(first, weighted, KNeighborsRegressor()).fit(TABLE, TABLE.a)

    assert is_proven(model, TABLE)


def test_nested_column_transformers_are_proven():
    random = np.random.default_rng(0)
    table = pd.DataFrame(
        {"a": random.normal(size=300), "city": random.choice(["oslo", "rome"], 300)}
    )
    inner = make_column_transformer(
        (SimpleImputer(strategy="most_frequent"), ["city"]), (SimpleImputer(), ["a"])
    )
    outer = make_column_transformer((inner, ["a", "city"]))
    encoded = make_column_transformer((OneHotEncoder(), [0]), remainder="passthrough")

    model = make_pipeline(outer, encoded, Ridge()).fit(table, table.a + (table.city == "oslo"))

    assert is_proven(model, table)


def test_single_passed_column_is_proven():
    model = make_pipeline(make_column_transformer(("passthrough", ["b"])), Ridge())

    assert is_proven(model.fit(TABLE, TABLE.b), TABLE)


class Sampler(BaseEstimator):  # type: ignore[misc]
    """A sampler like in imbalanced-learn, which its pipeline calls only in training."""

    def fit(self, rows, target=None):
        return self

    def fit_resample(self, rows, target):
        return rows, target

    def transform(self, rows):
        return rows


class SamplingPipeline(Pipeline):  # type: ignore[misc]
    """A pipeline like in imbalanced-learn, which calls samplers only in training."""


@pytest.mark.parametrize(
    ("kind", "steps", "predictor"),
    [
        (Pipeline, [("scale", StandardScaler())], LinearRegression()),
        (SamplingPipeline, [], LinearRegression()),
        (SamplingPipeline, [("scale", StandardScaler())], RandomForestClassifier(5)),
    ],
)
def test_sampler_is_left_out(kind, steps, predictor):
    rows = normal_rows(100, 2)
    model = kind([*steps, ("sample", Sampler()), ("predict", predictor)])

    wrapped = proven(model.fit(rows, rows[:, 0] > 0), rows)

    assert wrapped.converted.files  # The files of the exact explanations.


class BalancedForest(RandomForestClassifier):  # type: ignore[misc]
    """An ensemble like in imbalanced-learn, which trains differently but predicts like
    scikit-learn's ensemble.
    """

    __module__ = "imblearn.ensemble._forest"


class BalancedBagging(BaggingClassifier):  # type: ignore[misc]
    """An ensemble whose members draw their training rows with a sampler."""

    __module__ = "imblearn.ensemble._bagging"


@pytest.mark.parametrize(
    "model",
    [
        BalancedForest(5),
        BalancedBagging(
            make_pipeline(Sampler(), make_pipeline(StandardScaler(), LogisticRegression())), 3
        ),
    ],
    ids=["forest", "bagging"],
)
def test_ensemble_of_imbalanced_learn_is_proven(model):
    rows = normal_rows(100, 2)

    assert is_proven(model.fit(rows, rows[:, 0] > 0), rows)
