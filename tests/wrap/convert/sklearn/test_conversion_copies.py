from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.base import BaseEstimator
from sklearn.compose import ColumnTransformer, TransformedTargetRegressor, make_column_transformer
from sklearn.ensemble import BaggingClassifier, RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from sklearn.neighbors import KNeighborsRegressor
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import MinMaxScaler, OneHotEncoder, StandardScaler

from mlflow_deploy_plugin.wrap.flavor.wrap import wrap
from tests.support.random_rows import normal_rows
from tests.wrap.conftest import is_proven

NAMES = ["a", "b", "c"]


@pytest.mark.parametrize("second", [False, True])
def test_the_weights_of_a_column_transformer_are_kept(second):
    table = pd.DataFrame(normal_rows(100, 3), columns=NAMES)
    weighted = ColumnTransformer(
        [("scaled", StandardScaler(), [0, 1]), ("as it is", "passthrough", [2])],
        transformer_weights={"scaled": 2.0, "as it is": 0.5},
    )
    steps = [make_column_transformer((MinMaxScaler(), NAMES)), weighted] if second else [weighted]
    model = make_pipeline(*steps, KNeighborsRegressor()).fit(table, table.a)

    assert is_proven(model, table)


@pytest.mark.long
@pytest.mark.parametrize("is_within", [False, True], ids=["alone", "within another estimator"])
@pytest.mark.parametrize("as_table", [True, False], ids=["by names", "by positions"])
def test_two_column_transformers_in_turn_are_proven(as_table, is_within):
    random = np.random.default_rng(0)
    table = pd.DataFrame(random.normal(size=(300, 3)), columns=NAMES)
    table = table.assign(
        city=random.choice(["oslo", "rome", "lima"], 300), day=random.choice(["mo", "tu"], 300)
    )
    table = table.mask(random.random(table.shape) < 0.1)
    filled = make_column_transformer(
        (SimpleImputer(strategy="most_frequent"), ["city", "day"]),
        remainder=SimpleImputer(),
        verbose_feature_names_out=False,
    )
    encoded = make_column_transformer(
        (StandardScaler(), ["b", "a"] if as_table else [3, 2]),
        (
            OneHotEncoder(handle_unknown="ignore", sparse_output=False),
            ["city", "day"] if as_table else [0, 1],
        ),
        remainder="passthrough",
    )
    pipeline = make_pipeline(
        filled.set_output(transform="pandas" if as_table else "default"), encoded, Ridge()
    )
    model = (
        TransformedTargetRegressor(pipeline, transformer=StandardScaler())
        if is_within
        else pipeline
    )
    model.fit(table, table.a.fillna(0) + (table.city == "oslo"))

    assert is_proven(model, table)


def test_a_column_transformer_within_another_hands_on_texts_and_numbers():
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


def test_a_single_column_that_is_passed_on_is_proven():
    table = pd.DataFrame(normal_rows(100, 3), columns=NAMES)
    model = make_pipeline(make_column_transformer(("passthrough", ["b"])), Ridge())

    assert is_proven(model.fit(table, table.b), table)


class Sampler(BaseEstimator):  # type: ignore[misc]
    """A sampler like in imbalanced-learn, which its pipeline calls only in training."""

    def fit(self, rows: Any, target: Any = None) -> "Sampler":
        return self

    def fit_resample(self, rows: Any, target: Any) -> tuple[Any, Any]:
        return rows, target

    def transform(self, rows: Any) -> Any:
        return rows


class SamplingPipeline(Pipeline):  # type: ignore[misc]
    """A pipeline like in imbalanced-learn, which calls samplers only in training."""


@pytest.mark.parametrize("kind", [Pipeline, SamplingPipeline])
@pytest.mark.parametrize("steps", [[], [("scale", StandardScaler())]], ids=["first", "second"])
@pytest.mark.parametrize("predictor", [LinearRegression(), RandomForestClassifier(5)])
def test_a_sampler_in_a_pipeline_is_left_out(kind, steps, predictor):
    rows = normal_rows(100, 2)
    model = kind([*steps, ("sample", Sampler()), ("predict", predictor)])

    wrapped = wrap(model.fit(rows, rows[:, 0] > 0), rows)

    assert wrapped.report.state == "proven"
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
def test_an_ensemble_of_imbalanced_learn_answers_as_its_ancestor(model):
    rows = normal_rows(100, 2)

    assert is_proven(model.fit(rows, rows[:, 0] > 0), rows)
