import re
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import coo_array, csr_matrix
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.cluster import KMeans
from sklearn.compose import ColumnTransformer, make_column_selector, make_column_transformer
from sklearn.ensemble import (
    BaggingRegressor,
    ExtraTreesRegressor,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    IsolationForest,
    RandomForestClassifier,
    RandomForestRegressor,
    StackingClassifier,
)
from sklearn.feature_extraction import DictVectorizer, FeatureHasher
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV, RandomizedSearchCV
from sklearn.multioutput import MultiOutputRegressor
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler
from sklearn.svm import SVC, SVR, LinearSVC
from sklearn.tree import DecisionTreeClassifier

from mlflow_deploy_plugin.core.errors import ConversionError, InvalidConfig, ParityError
from mlflow_deploy_plugin.wrap.flavor.save import load_model, save_model
from mlflow_deploy_plugin.wrap.flavor.wrap import wrap
from tests.support.weather import weather_columns

MIXED = {
    "linear": lambda: make_pipeline(weather_columns(), LogisticRegression()),
    "boosted trees": lambda: make_pipeline(
        weather_columns(), HistGradientBoostingClassifier(max_iter=10)
    ),
    "ordinals beside the rest": lambda: make_pipeline(
        ColumnTransformer(
            [
                (
                    "texts",
                    OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1),
                    ["city"],
                )
            ],
            remainder="passthrough",
        ),
        HistGradientBoostingClassifier(max_iter=10),
    ),
    "columns by selector": lambda: make_pipeline(
        make_column_transformer(
            (SimpleImputer(), make_column_selector(dtype_include="number")),
            (OneHotEncoder(), ["city"]),
            ("passthrough", ["weekend"]),
        ),
        RandomForestClassifier(5),
    ),
}


@pytest.mark.long
@pytest.mark.parametrize("make", MIXED.values(), ids=MIXED.keys())
def test_mixed_table_is_proven(make, weather):
    table, labels = weather

    wrapped = wrap(make().fit(table, labels), table)

    assert wrapped.report.state == "proven"
    assert wrapped.report.rows >= 1000
    assert wrapped.report.sources["missing"] > 0
    assert [entry.columns for entry in wrapped.converted.inputs] == [
        (name,) for name in table.columns
    ]
    assert wrapped.converted.classes == ("late", "on time")


def test_rows_that_the_original_refuses_are_dropped_and_counted(weather):
    table, labels = weather
    strict = make_column_transformer((OneHotEncoder(), ["city"]), (StandardScaler(), ["hour"]))

    report = wrap(
        make_pipeline(strict, LogisticRegression()).fit(table, labels), table[["city", "hour"]]
    ).report

    assert report.state == "proven"
    assert report.refused_by_original["unseen"] > 0
    assert report.refused_by_original["missing"] > 0


NUMERIC = {
    "forest": lambda: RandomForestClassifier(10),
    "tree with booleans": DecisionTreeClassifier,
    "grid search": lambda: GridSearchCV(
        make_pipeline(StandardScaler(), LogisticRegression()),
        {"logisticregression__C": [0.1, 1]},
        cv=2,
    ),
    "randomized search": lambda: RandomizedSearchCV(
        LogisticRegression(), {"C": [0.1, 1]}, n_iter=2, cv=2
    ),
    "no probabilities": lambda: make_pipeline(StandardScaler(), LinearSVC()),
    "naive Bayes": GaussianNB,
    "network": lambda: make_pipeline(StandardScaler(), MLPClassifier(max_iter=10)),
    "stacking": lambda: StackingClassifier(
        [("a", RandomForestClassifier(3)), ("b", LogisticRegression())], cv=2
    ),
}


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize(
    "labels", [int, str, bool, float], ids=lambda kind: f"{kind.__name__} labels"
)
@pytest.mark.parametrize(
    "make", [NUMERIC["forest"], NUMERIC["no probabilities"]], ids=["forest", "no probabilities"]
)
def test_labels_keep_their_type(make, labels, matrix):
    rows, target = matrix
    wanted = (target > 3).astype(int).astype(labels)

    wrapped = wrap(make().fit(rows, wanted), rows)

    dtype = {int: "int64", str: "str", bool: "bool", float: "float64"}[labels]
    assert wrapped.report.state == "proven"
    assert wrapped.converted.outputs[0].dtype == dtype
    assert wrapped.converted.outputs[0].role == "label"


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("make", NUMERIC.values(), ids=NUMERIC.keys())
def test_classifier_of_numbers_is_proven(make, matrix):
    rows, target = matrix

    wrapped = wrap(make().fit(rows, target > 3), rows)

    assert wrapped.report.state == "proven"
    assert [entry.shape for entry in wrapped.converted.inputs] == [(-1, 5)]


REGRESSORS = {
    "linear, two targets": (Ridge, 2, (-1, 2)),
    "forest, three targets": (lambda: RandomForestRegressor(5), 3, (-1, 3)),
    "one model a target": (
        lambda: MultiOutputRegressor(GradientBoostingRegressor(n_estimators=5)),
        2,
        (-1, 2),
    ),
    "one target": (lambda: ExtraTreesRegressor(5), 0, (-1,)),
    "kernel": (lambda: make_pipeline(StandardScaler(), SVR()), 0, (-1,)),
    "bagging": (lambda: BaggingRegressor(n_estimators=3), 0, (-1,)),
}


@pytest.mark.parametrize(("make", "targets", "shape"), REGRESSORS.values(), ids=REGRESSORS.keys())
def test_regressor_keeps_its_shape(make, targets, shape, matrix):
    rows, target = matrix
    wanted = np.column_stack([target * (n + 1) for n in range(targets)]) if targets else target

    wrapped = wrap(make().fit(rows, wanted), rows)

    assert wrapped.report.state == "proven"
    assert wrapped.converted.outputs[0].shape == shape


@pytest.mark.parametrize(
    "make", [lambda: KMeans(3, n_init=1), lambda: IsolationForest(n_estimators=5)]
)
def test_models_without_target_answer_labels(make, matrix):
    rows, _ = matrix

    wrapped = wrap(make().fit(rows), rows)

    assert wrapped.report.state == "proven"
    assert wrapped.converted.outputs[0].shape == (-1,)
    assert wrapped.converted.outputs[0].role == "label"


@pytest.mark.long
def test_labels_that_the_graph_has_otherwise_are_refused(matrix):
    rows, target = matrix
    # Many neighbours have the same distance.
    model = KNeighborsClassifier(3).fit(rows.round(-2), (target > 0).astype(int))

    with pytest.raises(ParityError, match=r"probabilities: \d+ of \d+") as refused:
        wrap(model, rows)

    cells = [re.split(r"\s{2,}", line.strip())[:4] for line in refused.value.message.splitlines()]
    assert ["example", "probabilities", "[0, 1]", "[0.333333, 0.666667]"] in cells
    assert 'parity="warn"' in refused.value.message


def test_an_error_shows_the_root_cause_of_the_converter(matrix):
    rows, target = matrix
    labels = np.where(target > 0, np.uint64(2**63), np.uint64(0))

    with pytest.raises(ConversionError, match=r"SVC .*: 9223372036854775808"):
        wrap(SVC().fit(rows, labels), rows)


@pytest.mark.parametrize(
    "model", [RandomForestClassifier(), make_pipeline(StandardScaler(), Ridge())]
)
def test_an_unfitted_model_is_refused(model, matrix):
    with pytest.raises(InvalidConfig, match="not fitted"):
        wrap(model, matrix[0])


class Mean(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    def fit(self, rows: Any, target: Any) -> Any:
        self.learned = np.mean(target)
        return self

    def predict(self, rows: Any) -> Any:
        return np.full(len(rows), self.learned)


def test_an_estimator_that_predicts_counts_as_fitted_whatever_its_attributes_are(matrix):
    with pytest.raises(ConversionError, match=r"no converter .*\S+Mean"):
        wrap(Mean().fit(*matrix), matrix[0])
    with pytest.raises(InvalidConfig, match=r"Mean .*not fitted"):
        wrap(Mean(), matrix[0])


def test_an_example_that_the_model_refuses_is_a_config_error(matrix):
    rows, target = matrix

    with pytest.raises(InvalidConfig, match=r"input_example:.*ValueError:.*3 features"):
        wrap(Ridge().fit(rows, target), rows[:, :3])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[:0], "input_example has no rows"),
        (
            lambda rows: pd.DataFrame(rows, columns=list("abcda")),
            "input_example: column 'a' is duplicated",
        ),
        (lambda rows: rows[:, 0], r"needs a DataFrame or an array \[rows, columns\]"),
    ],
    ids=["empty", "doubled", "vector"],
)
def test_example_without_a_meaning_is_refused(change, message, matrix):
    rows, target = matrix

    with pytest.raises(InvalidConfig, match=message):
        wrap(Ridge().fit(rows, target), change(rows))


@pytest.mark.parametrize(
    ("step", "rows", "message"),
    [
        (DictVectorizer(), [{"a": 1.0}, {"b": "x"}], "^DictVectorizer reads mappings"),
        (FeatureHasher(8), [{"a": 1.0}, {"b": "x"}], "^FeatureHasher reads mappings"),
        (FeatureHasher(8, input_type="string"), [["a", "b"], ["c"]], "^FeatureHasher reads"),
        (CountVectorizer(analyzer=list), [["a", "b"], ["c"]], "rows have different lengths"),
    ],
)
def test_rows_that_cannot_be_tables_are_refused(step, rows, message):
    model = make_pipeline(step, LogisticRegression()).fit(rows, [0, 1])
    with pytest.raises(InvalidConfig, match=message):
        wrap(model, rows)


def test_integers_that_pandas_has_as_categories_are_encoded(weather):
    table, labels = weather
    table = table.astype({"code": "category"})
    columns = make_column_transformer(
        (OneHotEncoder(handle_unknown="ignore"), ["code"]), (StandardScaler(), ["hour"])
    )

    assert (
        wrap(make_pipeline(columns, LogisticRegression()).fit(table, labels), table).report.state
        == "proven"
    )


def test_column_that_no_graph_can_take_is_named(weather):
    table, labels = weather
    model = make_pipeline(weather_columns(), LogisticRegression()).fit(table, labels)

    with pytest.raises(ConversionError, match=r"'when' .*datetime64"):
        wrap(model, table.assign(when=pd.Timestamp("2013-01-01")))


def test_numbers_in_an_array_of_objects_are_numbers(matrix):
    rows, target = matrix
    mixed = pd.DataFrame({0: rows[:, 0], 1: rows[:, 1] > 0, 2: [None, *rows[1:, 2]]}, dtype=object)

    wrapped = wrap(HistGradientBoostingRegressor(max_iter=3).fit(mixed.to_numpy(), target), mixed)

    assert wrapped.report.state == "proven"
    assert wrapped.converted.inputs[0].dtype != "str"


def test_sparse_rows_are_read_as_dense_ones(matrix):
    rows, target = matrix
    table = pd.DataFrame({"a": rows[:, 0], "b": pd.arrays.SparseArray(np.maximum(rows[:, 1], 0))})

    of_matrix = wrap(Ridge().fit(csr_matrix(rows), target), csr_matrix(rows))
    of_table = wrap(Ridge().fit(table, target), table)

    assert of_matrix.example.tolist() == rows[:5].tolist()
    assert [column.type.name for column in of_table.signature.inputs] == ["double", "double"]


@pytest.mark.parametrize(
    "example", [csr_matrix((3, 0)), coo_array([1.0, 2.0])], ids=["no columns", "one dimension"]
)
def test_sparse_values_that_are_no_rows_of_columns_are_refused(example, matrix):
    rows, target = matrix
    with pytest.raises(InvalidConfig):
        wrap(Ridge().fit(rows, target), example)


WORDS = ["hello world", "foo bar baz"] * 50


@pytest.mark.long
@pytest.mark.parametrize(
    "texts",
    [
        pytest.param(WORDS, id="a list"),
        pytest.param(tuple(WORDS), id="a tuple"),
        pytest.param(np.array(WORDS), id="numpy's own texts"),
        pytest.param(np.array(WORDS, dtype=object), id="objects"),
        pytest.param(
            np.array(WORDS, dtype=np.dtypes.StringDType()), id="numpy's texts of any width"
        ),
        pytest.param(pd.Index(WORDS), id="an index"),
        pytest.param(pd.Series(WORDS, name="text"), id="a series"),
    ],
)
def test_texts_of_one_dimension_are_one_column_wherever_rows_are_given(texts, tmp_path):
    model = make_pipeline(TfidfVectorizer(token_pattern="[a-zA-Z]+"), LogisticRegression()).fit(
        WORDS, [0, 1] * 50
    )

    save_model(
        model, tmp_path / "model", input_example=texts, parity_data=texts, reference_data=texts
    )

    saved = load_model(str(tmp_path / "model"))
    assert saved.artifact.parity_state == "proven"
    for words in (WORDS[:2], np.array(WORDS[:2]), np.array(WORDS[:2], dtype=object)):
        for feeds in (saved.schema.from_array(words), saved.schema.from_columns({"text": words})):
            assert saved.run(feeds)["label"].tolist() == [0, 1]


@pytest.mark.parametrize("dtype", ["U1", object])
def test_a_matrix_of_texts_answers_arrays_of_its_own_kind(dtype, tmp_path):
    matrix = np.array([["a", "b"], ["c", "d"]] * 30, dtype=dtype)
    model = make_pipeline(OneHotEncoder(handle_unknown="ignore"), LogisticRegression()).fit(
        matrix, [0, 1] * 30
    )

    save_model(model, tmp_path / "model", input_example=matrix)

    loaded = mlflow.pyfunc.load_model(str(tmp_path / "model"))
    assert loaded.predict(matrix[:2]).tolist() == [0, 1]
