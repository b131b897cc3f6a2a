from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PowerTransformer, RobustScaler

from mlflow_deploy_plugin.flavor.wrap import wrap


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_scaled_numbers_of_either_precision_are_proven_before_boosting(
    dtype: Any, matrix: tuple[np.ndarray, np.ndarray]
) -> None:
    rows, target = matrix
    table = pd.DataFrame(rows[:300].astype(dtype), columns=list("abcde"))

    wrapped = wrap(
        make_pipeline(RobustScaler(), HistGradientBoostingRegressor(max_iter=5)).fit(table, target[:300]), table
    )

    assert wrapped.report.state == "proven"
    assert wrapped.report.outputs[0].ties == 0


@pytest.mark.parametrize("method", ["yeo-johnson", "box-cox"])
def test_powers_are_computed_in_64_bits_where_32_overflow(method: str, matrix: tuple[np.ndarray, np.ndarray]) -> None:
    rows, target = matrix
    table = pd.DataFrame(np.abs(rows[:300, :2]) ** 0.2 + 0.1, columns=["a", "b"])

    wrapped = wrap(make_pipeline(PowerTransformer(method), Ridge()).fit(table, target[:300]), table)

    assert wrapped.report.state == "proven"


def test_gaps_are_marked_by_the_imputer_s_indicator(weather: tuple[pd.DataFrame, pd.Series]) -> None:
    table, labels = weather
    numbers = table[["temperature", "humidity"]]
    model = make_pipeline(SimpleImputer(add_indicator=True), LogisticRegression()).fit(numbers, labels)

    assert wrap(model, numbers).report.state == "proven"
