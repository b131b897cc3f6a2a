from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.compose import make_column_transformer
from sklearn.ensemble import GradientBoostingRegressor, VotingRegressor
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.tree import DecisionTreeRegressor

from mlflow_deploy_plugin.wrap.convert.sklearn.estimators import (
    best_estimator,
    column_names,
    column_transformers,
    encoded_columns,
    estimator_input,
    last_step,
    sub_estimators,
)
from mlflow_deploy_plugin.wrap.flavor.wrap import wrap
from tests.support.weather import weather_columns
from tests.wrap.conftest import is_proven

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
def test_columns_are_names_however_they_were_given(columns, names):
    assert column_names(columns, NAMES) == names


def test_a_pipeline_is_looked_into():
    table = pd.DataFrame({"a": [1.0, 2.0, 3.0], "c": ["x", "y", "x"]})
    columns = make_column_transformer((OneHotEncoder(), ["c"]), (StandardScaler(), ["a"]))
    model = make_pipeline(columns, LogisticRegression()).fit(table, [0, 1, 0])
    assert column_transformers(model) == [model[0]]
    assert encoded_columns(model[0]) == {"c"}
    assert last_step(model) is model[1]
    assert estimator_input(model, table) is table
    assert isinstance(
        estimator_input(make_pipeline(CountVectorizer(), LogisticRegression()), table[["c"]]),
        pd.Series,
    )


def test_a_transformer_that_was_fitted_on_an_array_reads_a_table():
    table = pd.DataFrame({"a": np.linspace(0, 1, 60), "c": [1, 2, 3] * 20})
    columns = make_column_transformer(
        (OneHotEncoder(handle_unknown="ignore"), [1]), (StandardScaler(), [0])
    )
    model = make_pipeline(columns, LogisticRegression()).fit(table.to_numpy(), [0, 1] * 30)

    assert is_proven(model, table)


@pytest.mark.parametrize("frozen", ["a scaler", "a ColumnTransformer", "its steps"])
def test_a_frozen_step_is_its_estimator(frozen):
    table = pd.DataFrame({"a": np.linspace(0, 1, 60), "c": ["x", "y", "z"] * 20})
    scaler = StandardScaler().fit(table[["a"]])
    encoder = OneHotEncoder(handle_unknown="ignore").fit(table[["c"]])
    steps: dict[str, Any] = {
        "a scaler": FrozenEstimator(scaler),
        "a ColumnTransformer": FrozenEstimator(
            make_column_transformer((scaler, ["a"]), (encoder, ["c"])).fit(table)
        ),
        "its steps": make_column_transformer(
            (FrozenEstimator(make_pipeline(FrozenEstimator(scaler))), ["a"]),
            (FrozenEstimator(encoder), ["c"]),
        ),
    }
    rows = table[["a"]] if frozen == "a scaler" else table
    model = make_pipeline(steps[frozen], LogisticRegression()).fit(rows, table.c == "x")

    assert is_proven(model, rows)


def test_the_trees_of_an_ensemble_and_the_best_of_a_search_are_found():
    rows = np.arange(20.0).reshape(10, 2)
    boosting = GradientBoostingRegressor(n_estimators=3).fit(rows, rows[:, 0])
    assert sum(hasattr(part, "tree_") for part in sub_estimators(boosting)) == 3
    search = GridSearchCV(LinearRegression(), {"fit_intercept": [True]}, cv=2).fit(rows, rows[:, 0])
    assert best_estimator(search) is search.best_estimator_


@pytest.mark.parametrize("members", [["a", "b", "c"], ["a", "drop", "c"]])
@pytest.mark.parametrize("weights", [[1, 2, 3], np.array([1, 2, 3])], ids=["a list", "an array"])
def test_the_weights_of_a_vote_are_those_of_its_members(weights, members, matrix):
    rows, target = matrix
    estimators = {
        "a": Ridge(),
        "b": Ridge(alpha=1e6),
        "c": DecisionTreeRegressor(max_depth=2),
        "drop": "drop",
    }
    model = VotingRegressor([(name, estimators[name]) for name in members], weights=weights).fit(
        rows, target
    )

    assert is_proven(model, rows)


@pytest.mark.long
@pytest.mark.parametrize("impute", [True, False], ids=["imputed", "a category of its own"])
def test_missing_texts_are_answered_as_the_original_does(impute, weather):
    table, labels = weather
    table = table.copy()
    table.loc[::7, "city"] = np.nan

    wrapped = wrap(
        make_pipeline(weather_columns(impute), LogisticRegression()).fit(table, labels), table
    )

    assert wrapped.report.state == "proven"
    assert wrapped.report.refused_by_original.keys() == {"infinite"}
    assert (
        next(entry for entry in wrapped.converted.inputs if entry.name == "city").missing
        is not None
    )


class CountedPipeline(Pipeline):
    calls = 0

    def predict(self, table: pd.DataFrame) -> Any:
        type(self).calls += 1
        return super().predict(table)


@pytest.mark.long
def test_the_original_is_asked_less_often_than_the_table_has_columns():
    random = np.random.default_rng(0)
    table = pd.DataFrame({f"c{number}": random.choice(["a", "b", "c"], 60) for number in range(80)})
    steps = [("encode", OneHotEncoder(handle_unknown="ignore")), ("predict", LogisticRegression())]

    wrapped = wrap(CountedPipeline(steps).fit(table, table.c0 == "a"), table)

    assert wrapped.report.state == "proven"
    assert wrapped.report.sources["near categories"] > 1_000
    assert CountedPipeline.calls < table.shape[1]


def test_used_columns_are_inputs_with_any_name(weather):
    table, labels = weather
    table = table.rename(columns={"city": "where (from/to)", "humidity": "label"})
    columns = make_column_transformer(
        (StandardScaler(), ["label"]), (OneHotEncoder(), ["where (from/to)"])
    )

    wrapped = wrap(make_pipeline(columns, LogisticRegression()).fit(table, labels), table)

    assert wrapped.report.state == "proven"
    used = {"label", "where (from/to)"}
    assert {entry.columns[0] for entry in wrapped.converted.inputs} == used
    assert set(wrapped.converted.unread) == set(table.columns) - used


def test_pandas_categories_and_nullable_numbers_are_read(weather):
    table, labels = weather
    table = table.astype(
        {"city": "category", "hour": "Int64", "humidity": "Float64", "weekend": "boolean"}
    )

    wrapped = wrap(make_pipeline(weather_columns(), LogisticRegression()).fit(table, labels), table)

    assert wrapped.report.state == "proven"
    assert {spec.name: spec.type.name for spec in wrapped.signature.inputs.inputs} == {
        "city": "string",
        "temperature": "double",
        "humidity": "double",
        "hour": "long",
        "weekend": "boolean",
        "code": "long",
    }
