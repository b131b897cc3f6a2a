"""Intervals contain the truth as often as promised, even if the errors of rows are
correlated.
"""

from typing import Any

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import binom, norm

from mlflow_deploy_plugin.watch.statistics.intervals import (
    Dependence,
    MetricInterval,
    Sampling,
    auc_interval,
    bootstrap_counts_interval,
    dependence,
    share_interval,
    wilson_interval,
)
from mlflow_deploy_plugin.watch.statistics.metrics import (
    regression_metrics,
)


def is_held(one, truth):
    assert isinstance(one, MetricInterval)
    return one.low <= truth <= one.high


def test_interval_of_many_rows():
    rng = np.random.default_rng(6)
    truth = rng.normal(size=60_000)
    interval = regression_metrics(truth, np.zeros(60_000), ["rmse"], Sampling(0.95))["rmse"]

    assert isinstance(interval, MetricInterval)
    assert interval.high - interval.low == pytest.approx(2 * 1.96 / np.sqrt(2 * 60_000), rel=0.2)


def test_perfect_auc_of_few_rows_is_uncertain():
    is_positive = np.arange(20) >= 10
    interval = auc_interval(is_positive[:, None], np.arange(20.0)[:, None], Sampling(0.95))

    assert interval.value == 1.0
    assert interval.high == pytest.approx(1.0)
    assert interval.low == pytest.approx(wilson_interval("", 10, 10, 0.95).low)


@pytest.mark.parametrize(("share", "rows"), [(0.01, 200), (0.01, 2_000), (0.2, 200)])
def test_share_is_missed_within_the_alarm_rate(share, rows):
    """The budget permits one miss in 1,800 windows. Wilson's interval would miss 1 % of
    200 rows 8 times as often.
    """
    hits = np.arange(rows + 1)
    rate = 1 / 1_800
    missed = [not is_held(wilson_interval("", float(hit), rows, 1 - rate), share) for hit in hits]

    assert float(binom.pmf(hits, rows, share)[missed].sum()) <= rate


def test_noisy_days_keep_the_budget():
    """In 10 years, intervals of the rows violate it 40 times."""
    rng = np.random.default_rng(0)
    confidence = 1 - 0.125 / 365
    violated = 0
    for _ in range(10):
        values = rng.binomial(460, expit(1.45 + 0.3 * rng.normal(size=365))) / 460
        for day in range(10, 365):
            interval = wilson_interval("accuracy", 460 * values[day], 460, confidence)
            violated += interval.widened(values[:day], confidence).high < 0.75

    assert violated <= 3


@pytest.mark.parametrize(
    ("noise", "before", "value", "is_violated"),
    [
        (0.3, [], 0.66, False),
        (0.3, [], 0.3, True),
        (0.0, [], 0.66, True),
        (0.0, [0.3], 0.66, True),
        (0.0, [0.66] * 30, 0.66, True),
    ],
)
def test_noise_hides_no_lasting_fall(noise, before, value, is_violated):
    rng = np.random.default_rng(0)
    calm = rng.binomial(460, expit(1.45 + noise * rng.normal(size=45))) / 460
    interval = wilson_interval("accuracy", 460 * value, 460, 0.9997)

    widened = interval.widened([*calm, *before], 0.9997)

    assert (widened.high < 0.75) is is_violated
    assert interval.high < 0.75


def test_percentiles_beyond_the_resamples_are_extrapolated():
    counts = np.array([800.0, 200.0])
    rows = 1_000
    interval = bootstrap_counts_interval(
        "", counts, lambda shares: shares[..., 0], rows, Sampling(1 - 1e-4)
    )

    half = norm.isf(0.5e-4) * np.sqrt(0.8 * 0.2 / rows)
    assert (interval.high - interval.low) / 2 == pytest.approx(half, rel=0.1)


def together(rng, stretches, rows=20):
    """Return [N]: the common effect of the rows in each stretch, with variance 1."""
    return np.repeat(rng.normal(size=stretches), rows)


def test_rows_wrong_together_count_for_fewer():
    rng = np.random.default_rng(3)
    errors = together(rng, 40) + 0.3 * rng.normal(size=800)
    orders = (None, np.arange(800), rng.permutation(800))

    intervals: list[Any] = [
        regression_metrics(errors, np.zeros(800), ["rmse"], Sampling(0.95, times))["rmse"]
        for times in orders
    ]
    plain, ordered, shuffled = intervals

    assert plain.effective_n == 800
    assert ordered.effective_n < 120
    assert shuffled.effective_n > 400  # Without an order, the rows count as independent.
    assert ordered.high - ordered.low > 2 * (plain.high - plain.low)


def test_change_within_a_window_is_not_variation():
    """28 days of 900 rows, each day with its own error rate: 0.78 are correct, and 0.44
    from the tenth day on.
    """
    rng = np.random.default_rng(0)
    is_found = []
    for _ in range(40):
        daily = np.where(np.arange(28) < 9, 0.78, 0.44) + rng.normal(0, 0.08, 28)
        hits = rng.random(28 * 900) < np.repeat(daily, 900)
        is_found.append(
            share_interval("accuracy", hits, Sampling(0.95, np.arange(28 * 900))).high < 0.75
        )
    assert np.mean(is_found) > 0.9


def autoregressive(coefficient, count, seed=0):
    noise = np.random.default_rng(seed).normal(size=count + 100)
    series = np.zeros(count + 100)
    for position in range(1, len(series)):
        series[position] = coefficient * series[position - 1] + noise[position]
    return series[100:]


@pytest.mark.parametrize(
    ("coefficient", "lengths", "correlation_time"),
    [(0, (0, 4), pytest.approx(1, abs=0.4)), (0.6, (5, 20), pytest.approx(4, abs=1.5))],
)
def test_dependence_follows_the_correlation(coefficient, lengths, correlation_time):
    estimates = [dependence(autoregressive(coefficient, 400, seed)) for seed in range(10)]

    length = np.median([estimate.block_length for estimate in estimates])
    assert lengths[0] < length < lengths[1]
    assert np.median([estimate.correlation_time for estimate in estimates]) == correlation_time


def test_cycles_and_constants_have_no_dependence():
    assert dependence(np.tile([0.0, 0, 0, 0, 0, 1, 1], 20)).correlation_time < 1
    assert dependence(np.ones(50)) == dependence(np.arange(5.0)) == Dependence(1.0, 1.0)
