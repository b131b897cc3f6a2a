from typing import Any

import numpy as np
import pandas as pd
import pytest
from interpret.glassbox import ExplainableBoostingClassifier, ExplainableBoostingRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mlflow_deploy_plugin.core.errors import ConversionError
from mlflow_deploy_plugin.wrap.flavor.wrap import wrap
from tests.wrap.conftest import is_proven

FAST = {"max_rounds": 20, "outer_bags": 2, "n_jobs": 1}


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    """Columns of numbers and strings with gaps, numeric categories, and booleans."""
    random = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "distance": random.normal(size=300),
            "stops": random.integers(0, 2, 300),
            "city": random.choice(["oslo", "lima", "São Paulo"], 300),
            "weight": random.normal(size=300) * 1e4,
            "late": random.random(300) < 0.3,
        },
    )
    gaps = random.random((2, 300)) < 0.1
    return table.assign(
        city=table.city.mask(gaps[0]),
        distance=table.distance.mask(gaps[1]),
    )


@pytest.fixture(scope="module")
def wanted(table: pd.DataFrame) -> Any:
    return (
        table.distance.fillna(0) * 2 + table.stops * (table.city == "oslo") + table.late
    ).to_numpy()


def test_a_regression_is_proven(table: pd.DataFrame, wanted: Any) -> None:
    model = ExplainableBoostingRegressor(**FAST).fit(table, wanted)

    assert any(len(features) == 2 for features in model.term_features_)
    assert is_proven(model, table)


def test_counts_are_proven(table: pd.DataFrame, wanted: Any) -> None:
    model = ExplainableBoostingRegressor(objective="poisson_deviance", interactions=0, **FAST).fit(
        table,
        wanted**2,
    )

    assert is_proven(model, table)


@pytest.mark.parametrize(
    "edges",
    [[0.5], [-1.0, 1.0]],
    ids=["two", "three"],
)
def test_labels_and_probabilities_are_proven(
    table: pd.DataFrame,
    wanted: Any,
    edges: list[float],
) -> None:
    labels = np.array(["few", "some", "many"])[np.digitize(wanted, edges)]
    model = ExplainableBoostingClassifier(**FAST).fit(table, labels)

    assert is_proven(model, table)


def test_a_matrix_and_a_step_of_a_pipeline_are_proven(table: pd.DataFrame, wanted: Any) -> None:
    matrix = table[["distance", "weight"]].fillna(0).to_numpy()
    model = make_pipeline(StandardScaler(), ExplainableBoostingClassifier(**FAST)).fit(
        matrix,
        wanted > 0,
    )

    assert is_proven(model, matrix)


def test_another_link_has_no_graph(table: pd.DataFrame, wanted: Any) -> None:
    model = ExplainableBoostingRegressor(**FAST).fit(table[["weight"]], wanted)
    model.link_ = "vlogit"

    with pytest.raises(ConversionError, match=r"ExplainableBoostingRegressor .*'vlogit'"):
        wrap(model, table[["weight"]])
