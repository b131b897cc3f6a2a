"""The stationary bootstrap: its draws, and the references that it supports."""

import numpy as np
import pytest

from mlflow_deploy_plugin.watch.drift.threshold.dependence import Dependence
from mlflow_deploy_plugin.watch.drift.threshold.drawn import (
    StationaryBootstrap,
    can_bootstrap,
    draw,
)


def test_drawn_series_consist_of_stretches_of_the_mean_length() -> None:
    positions = draw(np.random.default_rng(0), 200, 50, 100, 5.0)

    assert positions.shape == (200, 100)
    goes_on = (np.diff(positions, axis=1) % 50) == 1
    assert goes_on.mean() == pytest.approx(0.8, abs=0.02)
    assert np.bincount(positions.ravel(), minlength=50).min() > 200


def test_bootstrap_needs_windows_longer_than_the_correlation_time() -> None:
    calm = Dependence(2.0, 3.0)
    slow = Dependence(2.0, 9.0)
    steps = np.full(90, 10)

    assert can_bootstrap(steps, 30, calm)
    assert not can_bootstrap(steps, 30, slow)
    assert not can_bootstrap(steps, 50, calm)  # less than two windows
    assert not can_bootstrap(np.full(400, 10), 30, calm)  # There are enough contiguous windows.

    drawn = StationaryBootstrap.cut(steps, 30, 2.0)
    assert drawn.effective_n == 45
    assert (drawn.windows.sum(axis=1) == 30).all()
    assert (drawn.references.sum(axis=1) == 90).all()
    assert (drawn.stretches.sum(axis=(1, 2)) == 90).all()
