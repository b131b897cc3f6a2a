import numpy as np
import pandas as pd
import pytest
from sklearn.compose import ColumnTransformer, make_column_transformer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from mlflow_deploy_plugin.flavor.wrap import wrap


def _columns(impute_texts: bool = False) -> ColumnTransformer:
    numbers = make_pipeline(SimpleImputer(), StandardScaler())
    texts = OneHotEncoder(handle_unknown="ignore")
    if impute_texts:
        texts = make_pipeline(SimpleImputer(strategy="most_frequent"), texts)
    return ColumnTransformer(
        [
            ("numbers", numbers, ["temperature", "humidity", "hour"]),
            ("texts", texts, ["city"]),
            ("codes", OneHotEncoder(handle_unknown="ignore"), ["weekend", "code"]),
        ],
        sparse_threshold=0,
    )


@pytest.mark.parametrize("impute", [True, False], ids=["imputed", "a category of its own"])
def test_missing_texts_are_answered_as_the_original_does(impute: bool, weather: tuple[pd.DataFrame, pd.Series]) -> None:
    table, labels = weather
    table = table.copy()
    table.loc[::7, "city"] = np.nan

    wrapped = wrap(make_pipeline(_columns(impute), LogisticRegression()).fit(table, labels), table)

    assert wrapped.report.state == "proven"
    assert wrapped.report.refused_by_original == {}
    assert next(entry for entry in wrapped.converted.inputs if entry.name == "city").missing is not None


def test_columns_may_be_unused_and_have_any_name(weather: tuple[pd.DataFrame, pd.Series]) -> None:
    table, labels = weather
    table = table.rename(columns={"city": "where (from/to)", "humidity": "label"})
    columns = make_column_transformer((StandardScaler(), ["label"]), (OneHotEncoder(), ["where (from/to)"]))

    wrapped = wrap(make_pipeline(columns, LogisticRegression()).fit(table, labels), table)

    assert wrapped.report.state == "proven"
    assert [entry.columns[0] for entry in wrapped.converted.inputs] == list(table.columns)


def test_pandas_categories_and_nullable_numbers_are_read(weather: tuple[pd.DataFrame, pd.Series]) -> None:
    table, labels = weather
    table = table.astype({"city": "category", "hour": "Int64", "humidity": "Float64", "weekend": "boolean"})

    wrapped = wrap(make_pipeline(_columns(), LogisticRegression()).fit(table, labels), table)

    assert wrapped.report.state == "proven"
    assert {spec.name: spec.type.name for spec in wrapped.signature.inputs.inputs} == {
        "city": "string",
        "temperature": "double",
        "humidity": "double",
        "hour": "long",
        "weekend": "boolean",
        "code": "long",
    }
