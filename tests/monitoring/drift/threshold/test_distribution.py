"""The null distribution: scores of windows beside all others, and the threshold."""

import numpy as np
import pytest

from mlflow_deploy_plugin.monitoring.drift.threshold.distribution import scores, threshold


def test_each_member_is_measured_by_all_others() -> None:
    pool = np.random.default_rng(0).normal(size=(6, 2, 4)) * 10
    pool[2, 0, 3] = np.nan

    result = scores(pool, np.zeros(4))

    others = np.delete(pool[:, 1, 0], 4)
    assert result[4, 1, 0] == pytest.approx((pool[4, 1, 0] - others.mean()) / others.std())
    assert result[2, 0, 3] == -np.inf
    apart = ~np.eye(6, dtype=bool)
    assert np.allclose(result, scores(pool, np.zeros(4), apart))


def test_the_threshold_leaves_the_stated_share_beyond_it() -> None:
    statistics = np.arange(39.0)

    assert threshold(statistics, 0.05) == 37.0
    assert threshold(np.arange(19.0), 0.05) == 18.0
