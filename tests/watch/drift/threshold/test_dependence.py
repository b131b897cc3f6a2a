"""The autocorrelation of consecutive windows."""

import numpy as np
import pytest

from mlflow_deploy_plugin.serve.runtime.feeds import Array
from mlflow_deploy_plugin.watch.drift.threshold.dependence import (
    Dependence,
    dependence,
    persistence,
)


def series(coefficient: float, count: int, seed: int) -> Array:
    rng = np.random.default_rng(seed)
    levels = np.empty(count)
    levels[0] = rng.normal()
    for place in range(1, count):
        levels[place] = coefficient * levels[place - 1] + np.sqrt(1 - coefficient**2) * rng.normal()
    return levels


@pytest.mark.parametrize(
    ("coefficient", "count"),
    [(0.5, 60), (0.7, 60), (0.85, 90), (0.95, 200)],
)
def test_windows_are_worth_fewer_where_they_depend_on_the_one_before(
    coefficient: float,
    count: int,
) -> None:
    median = np.median([persistence(series(coefficient, count, seed)) for seed in range(40)])

    assert median == pytest.approx((1 + coefficient) / (1 - coefficient), rel=0.3)


@pytest.mark.parametrize("count", [19, 40, 90])
def test_independent_windows_count_as_they_are(count: int) -> None:
    estimates = [persistence(series(0, count, seed)) for seed in range(100)]

    assert sum(estimate > 1 for estimate in estimates) <= 8


def test_of_many_columns_no_more_are_found_by_chance() -> None:
    estimates = [
        max(
            persistence(
                series(0, 30, 50 * seed + column),
                50,
            )
            for column in range(50)
        )
        for seed in range(20)
    ]

    assert sum(estimate > 1 for estimate in estimates) <= 2


def test_persistence_ignores_cycles_and_leaves_each_column_at_least_two_windows() -> None:
    rng = np.random.default_rng(0)
    weeks = np.where(
        np.arange(56) % 7 >= 5,
        1.5,
        -0.6,
    ) + rng.normal(0, 0.3, 56)
    hours = np.sin(2 * np.pi * np.arange(336) / 24) + rng.normal(0, 0.1, 336)

    assert persistence(weeks) == persistence(hours) == 1
    assert persistence(np.ones(40)) == persistence(np.arange(7.0)) == 1
    assert persistence(np.arange(40.0)) == 20


def autoregressive(coefficient: float, count: int, seed: int = 0) -> Array:
    noise = np.random.default_rng(seed).normal(size=count + 100)
    series = np.zeros(count + 100)
    for position in range(1, len(series)):
        series[position] = coefficient * series[position - 1] + noise[position]
    return series[100:]


def test_dependence_measures_the_correlation_of_a_series() -> None:
    independent = [dependence(autoregressive(0, 400, seed)) for seed in range(10)]
    dependent = [dependence(autoregressive(0.6, 400, seed)) for seed in range(10)]
    cycle = dependence(
        np.tile(
            [0.0, 0, 0, 0, 0, 1, 1],
            20,
        )
    )

    assert np.median([estimate.block_length for estimate in independent]) < 4
    assert np.median([estimate.correlation_time for estimate in independent]) == pytest.approx(
        1, abs=0.4
    )
    assert np.median([estimate.block_length for estimate in dependent]) > 5
    assert np.median([estimate.correlation_time for estimate in dependent]) == pytest.approx(
        4, abs=1.5
    )
    assert cycle.correlation_time < 1  # Every longer window contains whole cycles.
    assert dependence(np.ones(50)) == dependence(np.arange(5.0)) == Dependence(1.0, 1.0)
