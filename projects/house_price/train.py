"""Train a linear regression of prices on a CSV file, log it as checked ONNX and
register it.

    mlflow run projects/house_price -e house_price --env-manager local
    # or: python -m projects.house_price.train
    mlflow run projects/house_price -e house_price --env-manager local \\
        -P data=houses.csv -P target=price

Without `data`, the rows are synthetic (`generate`), so the results are only an example.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from sklearn.linear_model import LinearRegression
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error
from sklearn.pipeline import Pipeline

from projects.tables import Recipe, TableOptions, numbers, train_on_table
from projects.training import BLUE, GREY, ORANGE, option, run_command

ROWS = 4000
CONDITIONS = {"poor": -40.0, "fair": 0.0, "good": 35.0, "new": 70.0}
"""The price difference of a condition, in thousands."""


@dataclass(frozen=True)
class Training(TableOptions):
    """The options of a training."""

    registered_model: str = option("house-price", "registered model of the version")


def generate(seed: int) -> pd.DataFrame:
    """Return synthetic houses with prices in thousands: a linear formula with noise. 10
    % of the ages are missing.
    """
    random = np.random.default_rng(seed)
    district = random.integers(0, 8, ROWS)
    area = random.gamma(9, 13, ROWS).clip(25, 400).round(1)
    age = random.exponential(30, ROWS).clip(0, 150).round()
    distance = random.exponential(6, ROWS).clip(0.2, 60).round(1)
    condition = random.choice(list(CONDITIONS), ROWS, p=[0.15, 0.4, 0.3, 0.15])
    garden = random.random(ROWS) < 0.4
    price = 60 + 2.6 * area - 0.7 * age - 4 * distance + 25 * garden + 12 * district
    price += np.array([CONDITIONS[name] for name in condition]) + random.normal(0, 30, ROWS)
    return pd.DataFrame(
        {
            "area_m2": area,
            "rooms": (area / 24 + random.normal(0, 0.7, ROWS)).clip(1, 12).round(),
            "age_years": np.where(random.random(ROWS) < 0.1, np.nan, age),
            "distance_km": distance,
            "district": [f"district {number}" for number in district],
            "condition": condition,
            "garden": garden,
            "price": price.clip(20).round(1),
        },
    )


def score(pipeline: Pipeline, features: pd.DataFrame, truth: pd.Series) -> dict[str, float]:
    """Return R², root mean squared error, mean absolute error, and the mean absolute
    error of the median.
    """
    predicted = pipeline.predict(features)
    return {
        "r2": float(r2_score(truth, predicted)),
        "rmse": float(root_mean_squared_error(truth, predicted)),
        "mae": float(mean_absolute_error(truth, predicted)),
        "mae_of_median": float((truth - truth.median()).abs().mean()),
    }


def draw(axes: Any, pipeline: Pipeline, features: pd.DataFrame, truth: pd.Series) -> None:
    """Draw predicted and true values, and the largest coefficients."""
    predicted = pipeline.predict(features)
    axes[0].scatter(truth, predicted, s=6, alpha=0.4, color=BLUE)
    ends = [min(truth.min(), predicted.min()), max(truth.max(), predicted.max())]
    axes[0].plot(ends, ends, color=GREY, linewidth=1)
    axes[0].set(xlabel=f"true {truth.name}", ylabel="predicted")
    weights = (
        pd.Series(pipeline[-1].coef_, index=pipeline[0].get_feature_names_out())
        .sort_values(key=abs)
        .tail(12)
    )
    names = [name.partition("__")[2] for name in weights.index]
    axes[1].barh(names, weights, color=np.where(weights > 0, BLUE, ORANGE))
    axes[1].set(xlabel="coefficient (numbers: per standard deviation)")


RECIPE = Recipe(generate, LinearRegression, is_scaled=True, prepare=numbers, score=score, draw=draw)


def train(options: Training) -> Any:
    """Train, log and register a version; see `train_on_table`."""
    return train_on_table(options, RECIPE)


if __name__ == "__main__":
    run_command(train, Training, __doc__ or "")
