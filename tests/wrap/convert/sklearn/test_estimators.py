import numpy as np
import pandas as pd
import pytest
from sklearn.compose import make_column_transformer
from sklearn.ensemble import VotingRegressor
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.tree import DecisionTreeRegressor

from mlflow_deploy_plugin.wrap.convert.sklearn.estimators import (
    column_names,
)
from tests.support.weather import weather_columns
from tests.wrap.conftest import is_proven, proven

NAMES = ["a", "b", "c"]


@pytest.mark.parametrize(
    ("columns", "names"),
    [
        ("b", ["b"]),
        (1, ["b"]),
        (slice(1, 3), ["b", "c"]),
        ([True, False, True], ["a", "c"]),
        (np.array([0, 2]), ["a", "c"]),
    ],
)
def test_columns_are_resolved_to_names(columns, names):
    assert column_names(columns, NAMES) == names


def test_transformer_of_arrays_reads_tables():
    columns = make_column_transformer(
        (OneHotEncoder(handle_unknown="ignore"), [1]), (StandardScaler(), [0])
    )
    table = pd.DataFrame({"a": np.linspace(0, 1, 60), "c": [1, 2, 3] * 20})
    model = make_pipeline(columns, LogisticRegression()).fit(table.to_numpy(), [0, 1] * 30)

    assert is_proven(model, table)


TABLE = pd.DataFrame({"a": np.linspace(0, 1, 60), "c": ["x", "y", "z"] * 20})
SCALER = StandardScaler().fit(TABLE[["a"]])
ENCODER = OneHotEncoder(handle_unknown="ignore").fit(TABLE[["c"]])
COLUMNS = make_column_transformer((SCALER, ["a"]), (ENCODER, ["c"])).fit(TABLE)
STEPS = make_column_transformer(
    (FrozenEstimator(make_pipeline(FrozenEstimator(SCALER))), ["a"]),
    (FrozenEstimator(ENCODER), ["c"]),
)


@pytest.mark.parametrize(
    "frozen",
    [STEPS, pytest.param(FrozenEstimator(COLUMNS), marks=pytest.mark.long)],
    ids=["its steps", "a ColumnTransformer"],
)
def test_frozen_step_is_its_estimator(frozen):
    assert is_proven(make_pipeline(frozen, LogisticRegression()).fit(TABLE, TABLE.c == "x"), TABLE)


@pytest.mark.parametrize(
    ("weights", "second"), [([1, 2, 3], "drop"), (np.array([1, 2, 3]), Ridge(alpha=1e6))], ids=str
)
def test_weights_of_a_vote_are_kept(weights, second, matrix):
    members = [("a", Ridge()), ("b", second), ("c", DecisionTreeRegressor(max_depth=2))]
    model = VotingRegressor(members, weights=weights).fit(*matrix)

    assert is_proven(model, matrix[0])


@pytest.mark.long
@pytest.mark.parametrize("impute", [True, False], ids=["imputed", "a category of its own"])
def test_missing_texts_are_proven(impute, weather):
    table, labels = weather
    table = table.copy()
    table.loc[::7, "city"] = np.nan
    model = make_pipeline(weather_columns(impute), LogisticRegression()).fit(table, labels)

    wrapped = proven(model, table)

    assert wrapped.report.refused_by_original.keys() == {"infinite"}
    [city] = [entry for entry in wrapped.converted.inputs if entry.name == "city"]
    assert city.missing is not None


class CountedPipeline(Pipeline):
    calls = 0

    def predict(self, table):
        type(self).calls += 1
        return super().predict(table)


@pytest.mark.long
def test_original_is_asked_few_times():
    random = np.random.default_rng(0)
    table = pd.DataFrame({f"c{number}": random.choice(["a", "b", "c"], 60) for number in range(80)})
    steps = [("encode", OneHotEncoder(handle_unknown="ignore")), ("predict", LogisticRegression())]

    wrapped = proven(CountedPipeline(steps).fit(table, table.c0 == "a"), table)

    assert wrapped.report.sources["near categories"] > 1_000
    assert CountedPipeline.calls < table.shape[1]


def test_used_columns_may_have_any_name(weather):
    table, labels = weather
    table = table.rename(columns={"city": "where (from/to)", "humidity": "label"})
    columns = make_column_transformer(
        (StandardScaler(), ["label"]), (OneHotEncoder(), ["where (from/to)"])
    )

    converted = proven(
        make_pipeline(columns, LogisticRegression()).fit(table, labels), table
    ).converted

    used = {"label", "where (from/to)"}
    assert {entry.columns[0] for entry in converted.inputs} == used
    assert set(converted.unread) == set(table.columns) - used


def test_categories_and_nullable_numbers_are_read(weather):
    table, labels = weather
    table = table.astype(
        {"city": "category", "hour": "Int64", "humidity": "Float64", "weekend": "boolean"}
    )
    model = make_pipeline(weather_columns(), LogisticRegression()).fit(table, labels)

    signature = proven(model, table).signature

    assert {spec.name: spec.type.name for spec in signature.inputs.inputs} == {
        "city": "string",
        "temperature": "double",
        "humidity": "double",
        "hour": "long",
        "weekend": "boolean",
        "code": "long",
    }
