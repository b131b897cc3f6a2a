"""The null distribution: its parts, each with what it stands for and where it ends."""

import numpy as np
import pytest

from mlflow_deploy_plugin.monitoring.drift.sketches.bins import freeze_bins
from mlflow_deploy_plugin.monitoring.drift.sketches.columns import Array, ColumnValues
from mlflow_deploy_plugin.monitoring.drift.threshold.dependence import Dependence, dependence
from mlflow_deploy_plugin.monitoring.drift.threshold.distribution import scores, threshold
from mlflow_deploy_plugin.monitoring.drift.threshold.figures import out_of_reference, subsample
from mlflow_deploy_plugin.monitoring.drift.threshold.hold_out import needed_windows
from mlflow_deploy_plugin.monitoring.drift.threshold.stationary_bootstrap import (
    StationaryBootstrap,
    can_bootstrap,
    draw,
)
from mlflow_deploy_plugin.monitoring.drift.threshold.windows import Contiguous, Overlapping


def autoregressive(coefficient: float, count: int, seed: int = 0) -> Array:
    noise = np.random.default_rng(seed).normal(size=count + 100)
    series = np.zeros(count + 100)
    for position in range(1, len(series)):
        series[position] = coefficient * series[position - 1] + noise[position]
    return series[100:]


@pytest.mark.parametrize(("rate", "windows"), [(0.05, 19), (0.01, 99), (0.1, 9), (0.07, 14), (0.5, 1)])
def test_a_rate_needs_so_many_windows(rate: float, windows: int) -> None:
    assert needed_windows(rate) == windows
    assert 1 / (windows + 1) <= rate


def test_thinning_keeps_shares_and_takes_no_row_twice() -> None:
    rng = np.random.default_rng(0)
    counts = np.array([[600, 300, 0, 100], [2, 1, 0, 0], [0, 0, 0, 0], [50, 50, 50, 50]])

    thinned = np.stack([subsample(counts, 100, rng) for _ in range(400)])

    assert (thinned.sum(axis=2) == np.minimum(counts.sum(axis=1), 100)).all()
    assert (thinned <= counts).all()
    assert thinned[:, 0].mean(axis=0) == pytest.approx([60, 30, 0, 10], abs=1)
    # the hypergeometric distribution's, not the binomial's
    assert thinned[:, 3, 0].var() == pytest.approx(100 * 0.25 * 0.75 * 100 / 199, rel=0.3)


def test_what_is_beyond_others_is_told_by_the_bins() -> None:
    numbers = freeze_bins(ColumnValues("n", "number", np.arange(100.0)))
    counts = np.zeros((1, numbers.size + 1))
    codes = numbers.encode(ColumnValues("n", "number", np.array([-50.0, 10.0, 20.0, 300.0])))
    np.add.at(counts[0], codes, 1)
    others = np.zeros_like(counts)
    np.add.at(others[0], numbers.encode(ColumnValues("n", "number", np.arange(5.0, 90.0))), 1)

    assert out_of_reference(numbers, counts, others).outside.tolist() == [2]

    texts = freeze_bins(ColumnValues("t", "category", np.array(["a", "b", "c"], dtype=object)))
    assert out_of_reference(texts, np.array([[3.0, 1, 2, 0, 0]]), np.array([[5.0, 0, 1, 0, 0]])).unseen.tolist() == [1]
    assert np.isnan(out_of_reference(texts, np.array([[3.0, 1, 2, 0, 0]]), np.array([[5.0, 0, 1, 4, 0]])).unseen).all()


def test_dependence_is_told_of_a_series() -> None:
    independent = [dependence(autoregressive(0, 400, seed)) for seed in range(10)]
    dependent = [dependence(autoregressive(0.6, 400, seed)) for seed in range(10)]
    cycle = dependence(np.tile([0.0, 0, 0, 0, 0, 1, 1], 20))

    assert np.median([one.block_length for one in independent]) < 4
    assert np.median([one.correlation_time for one in independent]) == pytest.approx(1, abs=0.4)
    assert np.median([one.block_length for one in dependent]) > 5
    assert np.median([one.correlation_time for one in dependent]) == pytest.approx(4, abs=1.5)
    assert cycle.correlation_time < 1  # it comes round within any longer window
    assert dependence(np.ones(50)) == dependence(np.arange(5.0)) == Dependence(1.0, 1.0)


def test_drawn_series_consist_of_stretches_of_the_mean_length() -> None:
    positions = draw(np.random.default_rng(0), 200, 50, 100, 5.0)

    assert positions.shape == (200, 100)
    goes_on = (np.diff(positions, axis=1) % 50) == 1
    assert goes_on.mean() == pytest.approx(0.8, abs=0.02)
    assert np.bincount(positions.ravel(), minlength=50).min() > 200


def test_windows_of_the_reference_stand_for_as_many_as_they_are_worth() -> None:
    blocks = Contiguous.cut(np.array([100, 100, 10, 90, 60]), 100)
    steps = Overlapping.cut(np.full(60, 10), 6, 60)

    assert (blocks.effective_n, blocks.windows.argmax(axis=1).tolist()) == (4, [0, 1, 3, 4])
    assert (steps.effective_n, len(steps.windows)) == (15, 55)
    assert (steps.windows.sum(axis=1) == 6).all()
    assert (steps.windows + steps.complements == 1).all()


def test_the_bootstrap_speaks_where_windows_are_long_beside_what_their_rows_depend_on() -> None:
    calm, slow = Dependence(2.0, 3.0), Dependence(2.0, 9.0)
    steps = np.full(90, 10)

    assert can_bootstrap(steps, 30, calm)
    assert not can_bootstrap(steps, 30, slow)
    assert not can_bootstrap(steps, 50, calm)  # less than two windows
    assert not can_bootstrap(np.full(400, 10), 30, calm)  # so many windows speak for themselves

    drawn = StationaryBootstrap.cut(steps, 30, 2.0, 0)
    assert drawn.effective_n == 45
    assert (drawn.windows.sum(axis=1) == 30).all()
    assert (drawn.complements.sum(axis=1) == 90).all()
    assert (drawn.stretches.sum(axis=(1, 2)) == 90).all()


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
