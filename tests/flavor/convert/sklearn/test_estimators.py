from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.compose import make_column_transformer
from sklearn.ensemble import GradientBoostingRegressor
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from mlflow_deploy_plugin.flavor.convert.sklearn.estimators import (
    best_estimator,
    column_names,
    column_transformer,
    encoded_columns,
    last_step,
    reads_text,
    sub_estimators,
)

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
def test_columns_are_names_however_they_were_given(columns: Any, names: list[str]) -> None:
    assert column_names(columns, NAMES) == names


def test_a_pipeline_is_looked_into() -> None:
    table = pd.DataFrame({"a": [1.0, 2.0, 3.0], "c": ["x", "y", "x"]})
    columns = make_column_transformer((OneHotEncoder(), ["c"]), (StandardScaler(), ["a"]))
    model = make_pipeline(columns, LogisticRegression()).fit(table, [0, 1, 0])
    assert column_transformer(model) is model[0]
    assert encoded_columns(model[0]) == {"c"}
    assert last_step(model) is model[1]
    assert not reads_text(model)
    assert reads_text(make_pipeline(CountVectorizer(), LogisticRegression()))


def test_the_trees_of_an_ensemble_and_the_best_of_a_search_are_found() -> None:
    rows = np.arange(20.0).reshape(10, 2)
    boosting = GradientBoostingRegressor(n_estimators=3).fit(rows, rows[:, 0])
    assert sum(hasattr(part, "tree_") for part in sub_estimators(boosting)) == 3
    search = GridSearchCV(LinearRegression(), {"fit_intercept": [True]}, cv=2).fit(rows, rows[:, 0])
    assert best_estimator(search) is search.best_estimator_
