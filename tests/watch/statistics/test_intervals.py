"""Intervals contain the truth as often as promised, even if the errors of rows are
correlated.
"""

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import binom, norm

from mlflow_deploy_plugin.watch.statistics.intervals import (
    RESAMPLES,
    MetricInterval,
    Sampling,
    auc_interval,
    bootstrap_counts_interval,
    share_interval,
    wilson_interval,
)
from mlflow_deploy_plugin.watch.statistics.metrics import (
    ClassPredictions,
    classification_metrics,
    regression_metrics,
)


def is_held(one, truth):
    assert isinstance(one, MetricInterval)
    return one.low <= truth <= one.high


def test_many_rows_are_resampled_without_drawing_each():
    rng = np.random.default_rng(6)
    truth = rng.normal(size=60_000)
    interval = regression_metrics(truth, np.zeros(60_000), ["rmse"], Sampling(0.95))["rmse"]

    assert isinstance(interval, MetricInterval)
    assert interval.high - interval.low == pytest.approx(2 * 1.96 / np.sqrt(2 * 60_000), rel=0.2)
    assert RESAMPLES >= 200


def test_a_perfect_order_of_few_rows_is_not_certain():
    is_positive = np.arange(20) >= 10
    interval = auc_interval(is_positive[:, None], np.arange(20.0)[:, None], Sampling(0.95))

    assert interval.value == 1.0
    assert interval.high == pytest.approx(1.0)
    assert interval.low == pytest.approx(wilson_interval("", 10, 10, 0.95).low)


@pytest.mark.parametrize(("share", "rows"), [(0.01, 200), (0.01, 2_000), (0.2, 200)])
def test_a_share_is_missed_as_rarely_as_a_budget_of_alarms_permits(share, rows):
    """The budget permits one miss in 1,800 windows. Wilson's interval would miss 1 % of
    200 rows 8 times as often.
    """
    hits = np.arange(rows + 1)
    rate = 1 / 1_800
    missed = [not is_held(wilson_interval("", float(hit), rows, 1 - rate), share) for hit in hits]

    assert float(binom.pmf(hits, rows, share)[missed].sum()) <= rate


def test_days_with_noise_violate_a_requirement_within_the_budget():
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
def test_noise_hides_no_crash_and_no_lasting_fall(noise, before, value, is_violated):
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


NAMES = ("accuracy", "recall", "f1", "roc_auc", "brier")


def answered(rng, stretches, dependence) -> tuple[np.ndarray, ClassPredictions]:
    """Return rows with errors that are correlated within stretches: the stretch shifts
    the chances of the truth, which the model does not predict.
    """
    chances = rng.uniform(0.3, 0.95, stretches * 20)
    moved = np.log(chances / (1 - chances)) + dependence * together(rng, stretches)
    truth = (rng.random(len(chances)) < 1 / (1 + np.exp(-moved))).astype(int)
    probabilities = np.stack([1 - chances, chances], axis=1)
    return truth, ClassPredictions(probabilities.argmax(axis=1), probabilities, ("no", "yes"))


@pytest.mark.long
@pytest.mark.parametrize(("dependence", "before", "least"), [(0.0, 0.85, 0.9), (3.0, 0.0, 0.85)])
def test_intervals_hold_the_truth_also_where_rows_are_wrong_together(dependence, before, least):
    rng = np.random.default_rng(0)
    windows = 60
    times = np.arange(600.0)
    many = classification_metrics(*answered(rng, 4_000, dependence), NAMES, Sampling(0.95))
    values = {
        name: interval.value
        for name, interval in many.items()
        if isinstance(interval, MetricInterval)
    }

    def held(sampling):
        draws = np.random.default_rng(1)
        samples = [
            classification_metrics(*answered(draws, 30, dependence), NAMES, sampling)
            for _ in range(windows)
        ]
        return {
            name: float(np.mean([is_held(sample[name], values[name]) for sample in samples]))
            for name in NAMES
        }

    alone = held(Sampling(0.95))
    as_they_come = held(Sampling(0.95, times))

    assert all(share >= least for share in as_they_come.values()), as_they_come
    assert all(share >= before for share in alone.values())
    if dependence:
        assert np.mean([alone["accuracy"], alone["brier"]]) < 0.75


def test_rows_that_are_wrong_together_are_worth_fewer():
    rng = np.random.default_rng(3)
    errors = together(rng, 40) + 0.3 * rng.normal(size=800)
    shuffled = rng.permutation(800)

    def rmse(times):
        interval = regression_metrics(errors, np.zeros(800), ["rmse"], Sampling(0.95, times))[
            "rmse"
        ]
        assert isinstance(interval, MetricInterval)
        return interval

    assert rmse(None).effective_n == 800
    assert rmse(np.arange(800)).effective_n < 120
    assert rmse(shuffled).effective_n > 400  # Without an order, the rows count as independent.
    assert rmse(np.arange(800)).high - rmse(np.arange(800)).low > 2 * (
        rmse(None).high - rmse(None).low
    )


def test_a_model_that_breaks_within_a_window_is_not_taken_for_one_that_varies():
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
