from typing import Any

import numpy as np
import pandas as pd
import pytest
from feature_engine import (
    creation,
    discretisation,
    encoding,
    imputation,
    outliers,
    scaling,
    selection,
    transformation,
)
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from mlflow_deploy_plugin.core.errors import ConversionError
from mlflow_deploy_plugin.wrap.flavor.wrap import wrap
from tests.wrap.conftest import is_proven


def _numbers() -> pd.DataFrame:
    random = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "a": random.normal(size=300),
            "b": random.gamma(2, size=300) + 0.1,
            "c": random.random(300),
        },
    )


NUMBERS = _numbers()
TABLE = NUMBERS.assign(
    city=np.random.default_rng(1).choice(
        ["oslo", "lima", "rome", "ulm"],
        300,
        p=[0.5, 0.3, 0.17, 0.03],
    ),
    sex=np.random.default_rng(2).choice(["m", "f"], 300),
).mask(np.random.default_rng(3).random((300, 5)) < 0.1)
TARGET = NUMBERS.a * 2 + NUMBERS.b - (TABLE.city == "oslo")


@pytest.mark.long
@pytest.mark.parametrize(
    "step",
    [
        outliers.Winsorizer(capping_method="iqr", tail="both", fold=0.5),
        outliers.ArbitraryOutlierCapper(max_capping_dict={"a": 1.0}, min_capping_dict={"b": 0.5}),
        discretisation.EqualFrequencyDiscretiser(q=5),
        discretisation.EqualWidthDiscretiser(variables=["b"]),
        discretisation.ArbitraryDiscretiser({"a": [-9, 0, 0.5, 9]}),
        transformation.LogTransformer(variables=["b"], base="10"),
        transformation.LogCpTransformer(),
        transformation.ReciprocalTransformer(variables=["b"]),
        transformation.PowerTransformer(variables=["b", "c"]),
        transformation.BoxCoxTransformer(variables=["b"]),
        transformation.YeoJohnsonTransformer(),
        transformation.ArcSinhTransformer(loc=0.5, scale=2.0),
        scaling.MeanNormalizationScaler(),
        selection.DropFeatures(["b"]),
        creation.CyclicalFeatures(variables=["a"], drop_original=True),
        creation.MathFeatures(
            variables=["a", "b"],
            func=["sum", "mean", "std", "var", "min", "max", "prod"],
        ),
        creation.RelativeFeatures(
            variables=["a", "c"],
            reference=["b"],
            func=["add", "sub", "mul", "div"],
        ),
        creation.RelativeFeatures(
            variables=["b"],
            reference=["b", "c"],
            func=["pow", "mod"],
            fill_value=0.0,
        ),
        transformation.ArcsinTransformer(variables=["c"]),
    ],
    ids=lambda step: type(step).__name__,
)
def test_a_step_of_numbers_is_proven(step: Any) -> None:
    rows = NUMBERS.clip(-5, 5) if isinstance(step, discretisation.ArbitraryDiscretiser) else NUMBERS
    model = make_pipeline(step, Ridge()).fit(rows, TARGET)

    assert is_proven(model, rows)


@pytest.mark.long
def test_the_edges_of_intervals_are_asked_in_64_bits() -> None:
    rows = NUMBERS.clip(-5, 5)
    model = make_pipeline(
        discretisation.ArbitraryDiscretiser({"a": [-5, 0, 0.1, 5]}),
        Ridge(),
    ).fit(
        rows,
        TARGET,
    )

    wrapped = wrap(model, rows)

    assert 0.1 in wrapped.converted.boundary_values.edges["a"]
    assert "64 bits" in wrapped.report.repair


@pytest.mark.long
@pytest.mark.parametrize(
    "encoder",
    [
        encoding.OrdinalEncoder(encoding_method="arbitrary", unseen="encode"),
        encoding.OneHotEncoder(),
    ],
    ids=lambda encoder: type(encoder).__name__,
)
def test_a_pipeline_of_a_table_is_one_step_a_column(encoder: Any) -> None:
    model = make_pipeline(
        imputation.MeanMedianImputer(),
        imputation.CategoricalImputer(),
        encoding.RareLabelEncoder(tol=0.05, n_categories=2),
        encoder,
        outliers.Winsorizer(variables=["a"]),
        discretisation.EqualFrequencyDiscretiser(variables=["b"]),
        selection.DropFeatures(["c"]),
        HistGradientBoostingRegressor(max_iter=10, random_state=0),
    ).fit(TABLE, TARGET)

    assert is_proven(model, TABLE)


@pytest.mark.long
def test_the_least_number_with_a_logarithm_has_one() -> None:
    model = make_pipeline(transformation.LogTransformer(variables=["b"]), Ridge()).fit(
        NUMBERS,
        TARGET,
    )

    report = wrap(model, NUMBERS).report

    assert report.state == "proven"
    assert "64 bits" in report.repair


def test_a_row_with_a_missing_value_is_answered_if_the_original_answers_it() -> None:
    step = creation.RelativeFeatures(
        variables=["a"],
        reference=["b"],
        func=["div"],
        missing_values="ignore",
    )
    rows = TABLE[["a", "b", "c"]]
    model = make_pipeline(step, HistGradientBoostingRegressor(max_iter=5, random_state=0)).fit(
        rows,
        TARGET,
    )

    assert is_proven(model, rows)


@pytest.mark.parametrize(
    ("step", "option"),
    [
        (
            discretisation.EqualWidthDiscretiser(return_boundaries=True),
            "return_boundaries=True returns strings",
        ),
        (creation.MathFeatures(variables=["a", "b"], func="median"), "func='median'"),
        (
            creation.RelativeFeatures(
                variables=["a"],
                reference=["b"],
                func=["floordiv"],
            ),
            "func='floordiv'",
        ),
        (
            encoding.RareLabelEncoder(variables=["a"], ignore_format=True),
            "its categories are not strings",
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_option_without_a_graph_is_named(step: Any, option: str) -> None:
    model = make_pipeline(step, encoding.OrdinalEncoder(ignore_format=True), Ridge()).fit(
        NUMBERS,
        TARGET,
    )

    with pytest.raises(ConversionError, match=f"step {type(step).__name__} .*{option}"):
        wrap(model, NUMBERS)


def test_a_column_transformer_may_read_created_columns_and_texts() -> None:
    columns = make_column_transformer(
        (StandardScaler(), ["a", "b"]),
        (OneHotEncoder(handle_unknown="ignore"), ["sex"]),
    )
    step = creation.MathFeatures(variables=["a", "b"], func="sum")
    rows = NUMBERS.assign(sex=["m", "f"] * 150)

    assert is_proven(
        make_pipeline(step, columns, Ridge()).fit(rows, TARGET),
        rows,
    )


@pytest.mark.parametrize(
    "step",
    [outliers.Winsorizer(add_indicators=True), imputation.RandomSampleImputer()],
    ids=lambda step: type(step).__name__,
)
def test_another_form_has_no_graph(step: Any) -> None:
    with pytest.raises(
        ConversionError,
        match=f"no converter .*feature_engine.*{type(step).__name__}",
    ):
        wrap(make_pipeline(step, Ridge()).fit(NUMBERS, TARGET), NUMBERS)
