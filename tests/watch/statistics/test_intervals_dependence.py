"""The autocorrelation of a series of rows."""

import numpy as np
import pytest

from mlflow_deploy_plugin.watch.statistics.intervals import Dependence, dependence


def autoregressive(coefficient, count, seed=0):
    noise = np.random.default_rng(seed).normal(size=count + 100)
    series = np.zeros(count + 100)
    for position in range(1, len(series)):
        series[position] = coefficient * series[position - 1] + noise[position]
    return series[100:]


def test_dependence_measures_the_correlation_of_a_series():
    independent = [dependence(autoregressive(0, 400, seed)) for seed in range(10)]
    dependent = [dependence(autoregressive(0.6, 400, seed)) for seed in range(10)]
    cycle = dependence(np.tile([0.0, 0, 0, 0, 0, 1, 1], 20))

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
