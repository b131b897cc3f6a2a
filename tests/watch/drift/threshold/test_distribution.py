"""The null distribution: scores, threshold, and false alarms of later windows that are
judged by earlier windows.
"""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from benchmarks.drifting.judging import Judge
from benchmarks.drifting.worlds import (
    DAY_US,
    HOUR_US,
    Rows,
    churning_days,
    dependent_days,
    independent_rows,
    persistent_days,
    reference_of,
    rolling_reference_of,
    walking_days,
)
from mlflow_deploy_plugin.core.errors import Refused
from mlflow_deploy_plugin.watch.drift.threshold.distribution import (
    HoldOutAlarms,
    NullDistribution,
    Tail,
    count_alarms,
    needed_windows,
    scores,
    threshold,
)
from mlflow_deploy_plugin.watch.drift.threshold.distribution import TestResult as PositionOfWindow
from mlflow_deploy_plugin.watch.drift.verdict import DriftVerdict
from tests.support.refusals import mentions


def test_each_member_is_measured_by_all_others() -> None:
    pool = np.random.default_rng(0).normal(size=(6, 2, 4)) * 10
    pool[2, 0, 3] = np.nan

    result = scores(pool, np.zeros(4))

    remaining = np.delete(pool[:, 1, 0], 4)
    assert result[4, 1, 0] == pytest.approx((pool[4, 1, 0] - remaining.mean()) / remaining.std())
    assert result[2, 0, 3] == -np.inf
    apart = ~np.eye(6, dtype=bool)
    assert np.allclose(result, scores(pool, np.zeros(4), apart))


def test_the_threshold_leaves_the_stated_share_beyond_it() -> None:
    statistics = np.arange(39.0)

    assert threshold(statistics, 0.05) == 37.0
    assert threshold(np.arange(19.0), 0.05) == 18.0


@pytest.mark.parametrize(
    ("missing", "is_judged"),
    [(2, True), (3, False)],
)
def test_a_figure_is_judged_if_nine_in_ten_windows_have_it(missing: int, is_judged: bool) -> None:
    figures = np.random.default_rng(0).normal(size=(20, 2, 4))
    figures[:missing, 0, 3] = np.nan
    null = NullDistribution(
        "contiguous",
        figures,
        np.ones((2, 4)),
        np.full(4, 0.1),
        20,
    )
    window = np.zeros((2, 4))
    window[0, 3] = 100.0
    window[1, 0] = np.nan

    tested = null.test(window, 0.05)

    assert tested.is_drifted == (tested.scores[0, 3] > 10) == is_judged
    assert tested.scores[1, 0] == -np.inf
    mean, deviation = null.mean_and_deviation()
    assert np.allclose(
        [mean, deviation],
        [
            np.nanmean(figures, axis=0),
            np.nanstd(figures, axis=0),
        ],
    )


def test_a_rate_below_one_window_of_the_reference_comes_from_the_tail_of_its_statistics() -> None:
    rng = np.random.default_rng(0)
    # P(X > x) = (x / 2) ** -5
    tails = [Tail.fit(2 * (1 - rng.random(90)) ** -0.2) for _ in range(200)]
    thresholds = np.array([tail.threshold(0.001) for tail in tails])
    assert np.median(thresholds) == pytest.approx(2 * 0.001**-0.2, rel=0.1)
    assert all(tail.p_value(tail.threshold(0.001)) == pytest.approx(0.001) for tail in tails)


def test_correlated_windows_support_only_a_higher_threshold_for_jumps() -> None:
    figures = np.random.default_rng(0).normal(size=(90, 1, 4))
    null = NullDistribution(
        "contiguous",
        figures,
        np.ones((1, 4)),
        np.full(4, 0.1),
        90,
    )
    correlated = replace(null, persistence=9.0)
    window = np.full((1, 4), 12.0)

    assert correlated.test(window, 0.0009).threshold == null.test(window, 0.0001).threshold
    assert correlated.test(window, 0.0009).p_value == pytest.approx(
        9 * null.test(window, 0.0009).p_value,
    )
    assert correlated.test(window, 0.05).threshold == null.test(window, 0.05).threshold


def test_windows_that_overlap_count_as_their_effective_number() -> None:
    figures = np.random.default_rng(0).normal(size=(20, 1, 4))
    null = NullDistribution(
        "overlapping",
        figures,
        np.ones((1, 4)),
        np.full(4, 0.1),
        10,
        starts=np.arange(20),
        length=2,
    )

    assert null.test(np.full((1, 4), -100.0), 0.1).p_value == 1
    assert null.test(np.full((1, 4), 100.0), 0.1).p_value == pytest.approx(1 / 11)
    assert 1 / 11 < null.test(np.full((1, 4), 1.5), 0.1).p_value < 0.9


@pytest.mark.parametrize(
    ("judges", "alarms", "chance"),
    [
        (38.0, 0, 1.0),
        # the chance that the largest of 58 windows is among the 20 judged windows
        (
            38.0,
            1,
            20 / 58,
        ),
        (38.0, 2, 20 * 19 / (58 * 57)),
        (float("inf"), 1, 1 - 0.95**20),
    ],
)
def test_so_many_alarms_are_as_probable_as_by_chance(
    judges: float,
    alarms: int,
    chance: float,
) -> None:
    tests = [
        PositionOfWindow(
            np.full((1, 4), float(place < alarms)),
            float(place < alarms),
            0.5,
            1,
        )
        for place in range(20)
    ]

    counted = count_alarms(
        tests,
        ["x"],
        0.05,
        judges,
        len(tests),
        "",
        persistence=1,
    )

    assert counted.alarms == alarms
    assert counted.windows == 20
    assert counted.p_value == pytest.approx(chance)


DAYS = 90
ROWS = 60

WORLDS = {"churn": churning_days, "walk": walking_days}


def days_apart(rng: Any, days: int, rows: int) -> Any:
    return dependent_days(rng, (0.0, 0.0), days, rows)


def verdict_on_next_day(
    world: Callable[..., Any],
    seed: int,
    days: int = DAYS,
    lag: int = 0,
    **spec: Any,
) -> DriftVerdict:
    """Judge the day after the reference, which follows the same distribution."""
    rows = world(
        np.random.default_rng([seed, 5]),
        days + 1,
        ROWS,
    )
    past = rows.between(0, days * DAY_US)
    start = days * DAY_US
    judge = Judge(
        rolling_reference_of(past, start, DAY_US, lag)
        if lag
        else reference_of(past, start, DAY_US),
        **spec,
    )
    verdict = judge(rows.between(start, start + DAY_US).table, start)
    judge.close()
    return verdict


def alarms_of(verdict: DriftVerdict) -> HoldOutAlarms:
    assert isinstance(verdict.held_out, HoldOutAlarms)
    return verdict.held_out


def test_the_alarms_of_a_calm_reference_are_explained_by_chance() -> None:
    verdicts = [verdict_on_next_day(days_apart, seed) for seed in range(12)]

    measured = [alarms_of(verdict) for verdict in verdicts]
    assert {(summary.windows, summary.rate) for summary in measured} == {(45, 0.05)}
    # The shares vary, so the rate is not forced.
    assert 0 < np.mean([summary.share for summary in measured]) < 0.1
    assert len({summary.alarms for summary in measured}) > 1
    assert sum(summary.is_beyond for summary in measured) <= 2
    assert sum(len(verdict.notes) > 1 for verdict in verdicts) <= 2
    assert re.search(
        r"nominal 0\.05, from 90 windows of the reference; measured forward in time, on the later "
        r"45 windows judged by only the earlier 45: \d of 45 \(\d\.\d%; "
        r"95 % interval \d\.\d% to \d+\.\d%\)$",
        verdicts[0].notes[0],
    )


@pytest.mark.parametrize(
    ("world", "column"),
    [("churn", "item"), ("walk", "x0")],
)
def test_slow_change_exceeds_the_promised_rate_and_names_the_column_and_a_remedy(
    world: str,
    column: str,
) -> None:
    verdicts = [verdict_on_next_day(WORLDS[world], seed) for seed in range(6)]

    beyond = [verdict for verdict in verdicts if alarms_of(verdict).is_beyond]
    assert len(beyond) >= 2
    for verdict in beyond:
        assert alarms_of(verdict).columns[0].startswith(f"{column} (")
        assert re.search(
            r"more than 5\.0% of windows are called drifted: \d+\.\d% of the reference's own, "
            rf"mostly because of {column} .*; with reference rolling:7d a window is compared with "
            r"a recent window",
            verdict.notes[-1],
        )


@pytest.mark.long
def test_weekly_lagged_reference_keeps_the_promised_false_alarm_rate() -> None:
    for world in (*WORLDS.values(), persistent_days):
        measured = [alarms_of(verdict_on_next_day(world, seed, lag=7)) for seed in range(4)]

        assert np.mean([summary.share for summary in measured]) < 0.1
        assert mentions(measured[0].how, "pairs", "the earlier pairs")


def days_that_grow_wild(rng: Any, days: int, rows: int) -> Any:
    """Return days of which the second half varies five times as much."""
    calm = dependent_days(rng, (0.0,), days, rows)
    wild = dependent_days(rng, (0.0,), days, rows)
    level = calm.table["x0"].to_numpy() + 5 * np.repeat(rng.normal(size=days), rows) * (
        calm.times > days // 2 * DAY_US
    )
    return Rows(
        wild.table.set_column(0, "x0", pa.array(level)),
        calm.times,
    )


def test_diverging_pairs_are_reported_without_proposing_a_rolling_reference() -> None:
    verdict = verdict_on_next_day(days_that_grow_wild, 0, lag=7)

    assert alarms_of(verdict).columns == ["x0 (7)"]  # The second half becomes the new normal.
    assert alarms_of(verdict).p_value < 0.02
    assert mentions(verdict.notes[-1], "5.0%", "16.7%")
    assert "rolling:" not in " ".join(verdict.notes)


def test_windows_that_are_drawn_are_measured_where_enough_have_two_before_them() -> None:
    rng = np.random.default_rng(3)
    hours = 84 * 24
    table = pa.table(
        {
            "x0": rng.normal(size=2 * hours)
            + 0.25
            * np.repeat(
                np.arange(hours) >= 70 * 24,
                2,
            )
        },
    )
    past = Rows(table, np.repeat(np.arange(hours) * HOUR_US, 2))
    start = 84 * DAY_US
    judge = Judge(reference_of(past, start, 7 * DAY_US))

    verdict = judge(table.slice(0, 336), start)

    judge.close()
    assert verdict.null == "bootstrap"
    assert alarms_of(verdict).windows == 10
    # the last two weeks, of which the second is compared with the first
    assert 1 <= alarms_of(verdict).alarms <= 3
    assert mentions(verdict.notes[0], "last 10 windows", "drawn")


def test_correlated_days_lower_the_effective_count_and_report_the_supported_rate() -> None:
    verdicts = [verdict_on_next_day(persistent_days, seed) for seed in range(6)]

    fewer = [verdict for verdict in verdicts if verdict.figures["independent_blocks"] < 19]
    assert len(fewer) >= 4
    for verdict in fewer:
        assert verdict.figures["blocks"] == 90
        supported = re.search(
            r"more than 5\.0% of windows may be called drifted: the reference's windows are "
            r"correlated, most strongly in x\d, so 90 windows are worth ([\d.]+) and support no "
            r"rate below ([\d.]+)%; with reference rolling:7d",
            verdict.notes[1],
        )
        assert supported
        assert float(supported[1]) == pytest.approx(verdict.figures["independent_blocks"], rel=0.1)
        assert float(supported[2]) == pytest.approx(
            100 / (1 + verdict.figures["independent_blocks"]),
            abs=0.1,
        )
        assert mentions(verdict.reason, "90 windows", f"worth {supported[1]}")


@pytest.mark.parametrize("days", [19, 28])
def test_a_short_reference_is_measured_at_the_rate_that_its_half_supports(days: int) -> None:
    measured = alarms_of(verdict_on_next_day(days_apart, 1, days=days))

    assert measured.rate == pytest.approx(1 / (1 + days // 2))
    assert measured.windows == days - days // 2


def test_windows_that_are_too_few_are_not_measured() -> None:
    verdict = verdict_on_next_day(days_apart, 1, days=9, rate=0.1)

    assert verdict.held_out == Refused("half of the reference has fewer than 5 windows")
    assert verdict.notes[0].endswith(
        "; not measured: half of the reference has fewer than 5 windows",
    )


def rows_that_depend(rng: Any, days: int, rows: int) -> Any:
    return dependent_days(rng, (0.3, 0.0), days, rows)


def rows_apart(rng: Any, days: int, rows: int) -> Any:
    times = np.repeat(np.arange(days) * DAY_US, rows) + rng.integers(0, DAY_US, days * rows)
    return Rows(independent_rows(rng, days * rows), times)


@pytest.mark.parametrize("lag", [0, 7])
def test_independent_rows_are_refused_where_the_references_own_windows_contradict_them(
    lag: int,
) -> None:
    for seed in range(3):
        verdict = verdict_on_next_day(
            rows_that_depend,
            seed,
            days=40,
            lag=lag,
            independent_rows=True,
        )

        assert verdict.state == "not judged"
        assert verdict.figures.get("p_value") is None
        assert re.match(
            r"the reference contradicts independent_rows: its own \d+ windows vary more than "
            r"windows of independent rows; for windows of 60 rows the variance is larger by these "
            r"factors: x\d [\d.]+, x\d [\d.]+; windows without drift would be called drifted; "
            r"set independent_rows: false to compare",
            verdict.reason,
        )


def test_a_column_that_is_gone_is_drift_also_where_independent_rows_are_refused() -> None:
    rows = rows_that_depend(np.random.default_rng(1), 41, ROWS)
    judge = Judge(
        reference_of(rows.between(0, 40 * DAY_US), 40 * DAY_US, DAY_US),
        independent_rows=True,
    )

    verdict = judge(
        rows.between(40 * DAY_US, 41 * DAY_US).table.drop_columns(["x1"]),
        40 * DAY_US,
    )

    judge.close()
    assert verdict.state == "drift"
    assert mentions(verdict.reason, "x1", "not in the window", "distributions are not judged")


def test_sparse_reference_reveals_that_rows_are_not_independent() -> None:
    """With two rows per hour no window could be judged; the windows are alike."""
    rng = np.random.default_rng(2)
    hours = 40 * 24
    rows = dependent_days(rng, (0.3, 0.0), 41, 48)
    judge = Judge(
        reference_of(rows.between(0, 40 * DAY_US), hours * HOUR_US, HOUR_US),
        independent_rows=True,
    )
    calm = rows.between(40 * DAY_US, 41 * DAY_US).table

    verdict = judge(calm, hours * HOUR_US)

    judge.close()
    assert verdict.state == "not judged"
    assert verdict.reason[:43] == "the reference contradicts independent_rows:"


@pytest.mark.long
def test_rows_that_are_independent_are_judged_as_such() -> None:
    verdicts = [
        verdict_on_next_day(rows_apart, seed, days=40, independent_rows=True) for seed in range(3)
    ]

    assert {verdict.null for verdict in verdicts} == {"rows"}
    for verdict in verdicts:
        assert isinstance(verdict.held_out, HoldOutAlarms)
        assert alarms_of(verdict).windows >= 20
        assert alarms_of(verdict).p_value > 0.001
    assert mentions(verdicts[0].notes[0], "measured")


@pytest.mark.parametrize(
    ("rate", "windows"),
    [
        (0.05, 19),
        (0.01, 99),
        (0.1, 9),
        (0.07, 14),
        (0.5, 1),
    ],
)
def test_a_rate_needs_so_many_windows(rate: float, windows: int) -> None:
    assert needed_windows(rate) == windows
    assert 1 / (windows + 1) <= rate
