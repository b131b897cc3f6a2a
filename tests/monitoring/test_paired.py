"""The verdict: how often it is wrong where nothing changed, and that it sees what changed."""

import re

import numpy as np
import pytest

from mlflow_deploy_plugin.monitoring.features import Feature
from mlflow_deploy_plugin.monitoring.paired import judge

LENGTH = 100
BLOCKS, ROWS = 60, 80


def rows(rng, days, shift=0.0, count=ROWS):
    """Days with a weather of their own: rows of a day are alike, days are exchangeable."""
    weather = np.repeat(rng.normal(0, 1, len(days)), count) + shift
    size = len(days) * count
    wet = rng.random(size) < np.repeat(rng.random(len(days)) ** 8, count)
    return [
        Feature("temperature", "number", weather + rng.normal(0, 0.3, size)),
        Feature("rain", "number", np.where(wet, rng.exponential(1, size), 0.0)),
        Feature("noise", "number", rng.normal(size=size)),
        Feature("carrier", "category", rng.choice(["a", "b", "c"], size).astype(object)),
        Feature("constant", "number", np.ones(size)),
        Feature("empty", "category", np.full(size, None, dtype=object)),
    ], np.repeat(np.asarray(days) * LENGTH, count) + rng.integers(0, LENGTH, size)


def verdict_on(current, rng, blocks=BLOCKS, rate=0.05, min_rows=10):
    reference, times = rows(rng, list(range(blocks)))
    pairs = list(zip(reference, current, strict=True))
    return judge(pairs, times, 1000 * LENGTH, LENGTH, min_rows, rate)


def test_windows_like_the_reference_are_called_drifted_at_the_stated_rate():
    rng = np.random.default_rng(1)

    alarms = sum(verdict_on(rows(rng, [0])[0], rng, rate=0.1).state == "drift" for _ in range(80))

    assert 1 <= alarms <= 17  # 8 expected; the binomial's 99.9 %


@pytest.mark.parametrize("count", [80, 40, 400])
def test_a_shift_beyond_the_days_own_spread_is_seen_whatever_the_number_of_rows(count):
    rng = np.random.default_rng(2)

    verdict = verdict_on(rows(rng, [0], shift=6, count=count)[0], rng)

    assert verdict.state == "drift"
    assert verdict.features[0].name == "temperature"
    assert [feature.name for feature in verdict.features if feature.is_drifted] == ["temperature"]
    assert verdict.compared_rows == min(count, ROWS)
    assert verdict.p_value == pytest.approx(1 / (BLOCKS + 1))


def test_features_above_the_threshold_and_the_verdict_agree():
    rng = np.random.default_rng(3)

    for shift in (0, 1, 2, 3):
        verdict = verdict_on(rows(rng, [0], shift=shift)[0], rng)
        drifted = [feature for feature in verdict.features if feature.is_drifted]
        assert (verdict.state == "drift") == bool(drifted) == (verdict.p_value <= 0.05)
        assert verdict.statistic == max(feature.score for feature in verdict.features)
        assert verdict.share_of_drifted_features == len(drifted) / 6


@pytest.mark.parametrize("name", ["temperature", "noise", "carrier", "constant"])
def test_values_that_go_missing_are_drift(name):
    rng = np.random.default_rng(4)
    current = [
        Feature(f.name, f.kind, np.full(len(f.values), np.nan if f.kind == "number" else None)) if f.name == name else f
        for f in rows(rng, [0])[0]
    ]

    verdict = verdict_on(current, rng)

    assert verdict.state == "drift"
    assert [f.name for f in verdict.features if f.is_drifted] == [name]
    assert verdict.features[0].missing == 1


def test_one_odd_row_of_a_constant_feature_is_no_drift_and_many_are():
    rng = np.random.default_rng(5)
    for odd, expected in ((1, False), (40, True)):
        current = rows(rng, [0], count=2000)[0]
        current[4].values[:odd] = 7
        reference, times = rows(rng, list(range(30)), count=2000)
        verdict = judge(list(zip(reference, current, strict=True)), times, 0, LENGTH, 10, 0.05)
        assert next(f.is_drifted for f in verdict.features if f.name == "constant") is expected


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"min_rows": 81}, "the window has 80 rows; min_rows is 81"),
        ({"count": 29, "min_rows": 5}, "the window has 29 rows; at least 30 are needed"),
        ({"blocks": 18}, "a false-alarm rate of 0.05 needs at least 19 windows .* it has 18"),
        ({"rate": 0.001}, "needs at least 999 windows"),
    ],
)
def test_what_cannot_be_supported_is_not_judged(arguments, reason):
    rng = np.random.default_rng(6)
    count = arguments.get("count", ROWS)

    verdict = verdict_on(
        rows(rng, [0], count=count)[0], rng, **{name: value for name, value in arguments.items() if name != "count"}
    )

    assert verdict.state == "not judged"
    assert verdict.p_value is verdict.threshold is None
    assert re.search(reason, verdict.reason)


def test_nineteen_windows_support_one_in_twenty():
    rng = np.random.default_rng(7)

    assert verdict_on(rows(rng, [0], shift=30)[0], rng, blocks=19).state == "drift"


def test_without_event_times_or_with_a_few_rows_a_window_nothing_is_judged():
    rng = np.random.default_rng(8)
    reference, times = rows(rng, list(range(30)), count=20)
    current = rows(rng, [0])[0]
    pairs = list(zip(reference, current, strict=True))

    assert "event_time=" in judge(pairs, None, 0, LENGTH, 10, 0.05).reason
    assert (
        "600 rows in 30 windows of this length, 20 in the middle one" in judge(pairs, times, 0, LENGTH, 10, 0.05).reason
    )
    assert "no feature in common" in judge([], times, 0, LENGTH, 10, 0.05).reason


def test_the_rate_is_measured_on_the_references_own_windows():
    rng = np.random.default_rng(9)

    verdict = verdict_on(rows(rng, [0])[0], rng, blocks=100)

    assert verdict.measured_false_alarm_rate == pytest.approx(0.05, abs=0.04)
    assert verdict_on(rows(rng, [0])[0], rng, blocks=20).measured_false_alarm_rate is None


def test_the_same_rows_give_the_same_verdict():
    first, second = (verdict_on(rows(rng, [0], count=300)[0], rng) for rng in map(np.random.default_rng, (10, 10)))

    assert first == second
