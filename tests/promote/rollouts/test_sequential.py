"""The sequential test keeps its level under repeated evaluation, and detects relevant
differences.
"""

import numpy as np
import pytest

from mlflow_deploy_plugin.promote.rollouts.sequential import (
    SequentialTest,
    growth,
    log_evidence,
    upper_limit,
)

ROLLOUTS = 500
STEPS = (1, 10, 50, 100)
LOOKS = 60
REQUESTS = 500
"""Requests to both versions between two checks: 100 per second for five minutes per
step.
"""
BEFORE = 10_000
"""Requests of the current version before the rollout."""
LEVEL = 0.05


def aborted(candidate, current, threshold, seed):
    """Return the share of simulated rollouts that are aborted, judged as in
    `promote/rollouts/evidence.py`.
    """
    generator = np.random.default_rng(seed)
    ended = np.zeros(ROLLOUTS, bool)
    history = generator.binomial(BEFORE, current, ROLLOUTS)
    totals = np.full(ROLLOUTS, BEFORE)
    for weight in STEPS:
        level = LEVEL / len(STEPS)
        limit = np.full(ROLLOUTS, threshold)
        if weight == 100:
            level /= 2
            limits = [
                upper_limit(*counts, level)
                for counts in zip(history.tolist(), totals.tolist(), strict=True)
            ]
            limit = np.maximum(limits, threshold)
        test = SequentialTest(limit, level, against_current=weight < 100)
        for _ in range(LOOKS):
            requests = generator.binomial(REQUESTS, weight / 100, ROLLOUTS)
            errors = generator.binomial(requests, candidate)
            current_errors = generator.binomial(REQUESTS - requests, current)
            test.look(errors, requests, current_errors, REQUESTS - requests)
            history = history + current_errors
            totals = totals + REQUESTS - requests
            ended |= test.rejects
    return float(ended.mean())


@pytest.mark.parametrize("rate", [0.005, 0.01, 0.02, 0.3])
def test_false_alarms_stay_below_the_level(rate):
    assert aborted(rate, rate, threshold=0.01, seed=1) <= LEVEL


@pytest.mark.parametrize("rate", [0.01, 0.05])
def test_doubled_errors_are_detected(rate):
    assert aborted(2 * rate, rate, threshold=0.01, seed=2) >= 0.95


def test_candidate_below_the_threshold_passes():
    assert aborted(0.008, 0.002, threshold=0.01, seed=3) <= LEVEL


def test_common_outage_rejects_neither():
    generator = np.random.default_rng(4)
    test = SequentialTest(0.01, LEVEL)
    ended = np.zeros(ROLLOUTS, bool)
    for look in range(LOOKS):
        rate = 0.5 if 20 <= look < 30 else 0.001
        # The candidate's share of the requests also changes, so pooled counts would
        # make it look far worse.
        requests = generator.binomial(REQUESTS, 0.5 if rate > 0.1 else 0.1, ROLLOUTS)
        errors = generator.binomial(requests, rate)
        test.look(
            errors, requests, generator.binomial(REQUESTS - requests, rate), REQUESTS - requests
        )
        ended |= test.rejects
    assert ended.mean() <= LEVEL


def test_evidence_has_mean_one_under_null_hypothesis():
    events = np.arange(11)
    binomial = (
        np.array([1, 10, 45, 120, 210, 252, 210, 120, 45, 10, 1])
        * 0.2**events
        * 0.8 ** (10 - events)
    )

    mean = (binomial * np.exp(log_evidence(growth(events, 10, 0.2)))).sum()

    assert mean == pytest.approx(1)


def test_no_requests_give_no_evidence():
    test = SequentialTest(0.01, LEVEL)

    test.look(0, 0, 3, 100)
    test.look(0, 0, 0, 0)

    assert test.log_evidence == pytest.approx(0)
    assert not test.rejects


@pytest.mark.parametrize(("events", "trials"), [(0, 100), (5, 1000), (999, 1000)])
def test_upper_limit_holds_for_most_samples(events, trials):
    limit = upper_limit(events, trials, 0.05)

    samples = np.random.default_rng(5).binomial(trials, limit, 20_000)
    assert events / trials < limit <= 1
    # With 0 events, the share is 0.05 plus the noise of the samples.
    assert (samples <= events).mean() <= 0.055


def test_upper_limit_without_requests_is_one():
    assert upper_limit(0, 0, 0.05) == 1.0
