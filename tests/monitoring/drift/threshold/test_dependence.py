"""How much windows that follow each other depend on each other."""

import numpy as np
import pytest

from mlflow_deploy_plugin.monitoring.drift.sketches.columns import Array
from mlflow_deploy_plugin.monitoring.drift.threshold.dependence import persistence


def series(coefficient: float, count: int, seed: int) -> Array:
    rng = np.random.default_rng(seed)
    levels = np.empty(count)
    levels[0] = rng.normal()
    for place in range(1, count):
        levels[place] = coefficient * levels[place - 1] + np.sqrt(1 - coefficient**2) * rng.normal()
    return levels


@pytest.mark.parametrize(("coefficient", "count"), [(0.5, 60), (0.7, 60), (0.85, 90), (0.95, 200)])
def test_windows_are_worth_fewer_where_they_depend_on_the_one_before(coefficient: float, count: int) -> None:
    found = np.median([persistence(series(coefficient, count, seed)) for seed in range(40)])

    assert found == pytest.approx((1 + coefficient) / (1 - coefficient), rel=0.3)


@pytest.mark.parametrize("count", [19, 40, 90])
def test_independent_windows_count_as_they_are(count: int) -> None:
    found = [persistence(series(0, count, seed)) for seed in range(100)]

    assert sum(one > 1 for one in found) <= 8


def test_of_many_columns_no_more_are_found_by_chance() -> None:
    found = [max(persistence(series(0, 30, 50 * seed + column), 50) for column in range(50)) for seed in range(20)]

    assert sum(one > 1 for one in found) <= 2


def test_a_cycle_is_no_persistence_and_no_column_is_worth_less_than_two_windows() -> None:
    rng = np.random.default_rng(0)
    weeks = np.where(np.arange(56) % 7 >= 5, 1.5, -0.6) + rng.normal(0, 0.3, 56)
    hours = np.sin(2 * np.pi * np.arange(336) / 24) + rng.normal(0, 0.1, 336)

    assert persistence(weeks) == persistence(hours) == 1
    assert persistence(np.ones(40)) == persistence(np.arange(7.0)) == 1
    assert persistence(np.arange(40.0)) == 20
