"""The usual course of figures, estimated from simulated windows
with known parameters.
"""

import numpy as np
import pytest

from mlflow_deploy_plugin.watch.sequential.baseline import RunningBaseline, remove_cycle

_SERIES = 2_000
_WINDOWS = 91


def _levels(correlation, season):
    """Return the levels of many series without the cycle that they have in common,
    [windows, series].
    """
    rng = np.random.default_rng(5)
    values = rng.normal(size=(_WINDOWS, _SERIES))
    for now in range(1, _WINDOWS):
        values[now] = correlation * values[now - 1] + np.sqrt(1 - correlation**2) * values[now]
    phases = np.arange(_WINDOWS) % season
    return remove_cycle(values + 3 * phases[:, None], _WINDOWS, phases, season)


@pytest.mark.parametrize("season", [1, 7])
@pytest.mark.parametrize("correlation", [0.3, 0.8])
def test_correlation_is_estimated_without_bias(correlation, season):
    baseline = RunningBaseline(_levels(correlation, season), season, np.zeros(_SERIES))
    assert baseline.correlation.mean() == pytest.approx(correlation, abs=0.02)


def test_cycle_is_removed():
    assert np.abs(_levels(0.3, 7)).max() < 6
