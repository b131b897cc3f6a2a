"""The detector of lasting shifts: its false alarms, its delay, the onset, the end of
shifts, and accepted baselines.
"""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from mlflow_deploy_plugin.watch.sequential import detector
from mlflow_deploy_plugin.watch.sequential.detector import Windows, limit_for, track
from tests.support.cases import long_case

REFERENCE = 90
COLUMNS = 6
YEARLY = 1 / 365


def days(seed, judged, correlation=0.0, weekend=0.0):
    """Return the levels of calm days, with a standard deviation of 2 around 50."""
    rng = np.random.default_rng(seed)
    count = REFERENCE + judged
    levels = rng.normal(size=(count, COLUMNS))
    for day in range(1, count):
        levels[day] = correlation * levels[day - 1] + np.sqrt(1 - correlation**2) * levels[day]
    phases = np.arange(count) % 7
    levels += weekend * (phases >= 5)[:, None]
    season = 7 if weekend else 1
    gaps = np.ones(count, np.int64)
    floors = np.full(COLUMNS, 0.01)
    restarts = np.full(COLUMNS, count)
    return Windows(
        50 + 2 * levels,
        REFERENCE,
        phases % season,
        season,
        gaps,
        floors,
        restarts,
        np.ones(levels.shape),
        np.zeros(COLUMNS, bool),
        np.ones(COLUMNS, bool),
    )


def shifted(windows, since, by, until=None):
    values = windows.values.copy()
    values[REFERENCE + since : until and REFERENCE + until, 3] += 2 * by
    return replace(windows, values=values)


def only_column(windows):
    """Return windows whose column 3 alone is followed."""
    return replace(windows, is_followed=np.arange(COLUMNS) == 3)


def followed(windows, per_window=YEARLY):
    return track(windows, limit_for(windows, per_window))


@pytest.mark.parametrize(
    "world",
    [
        {},
        long_case({"correlation": 0.6}),
        long_case({"weekend": 5.0}),
    ],
)
def test_calm_months_keep_the_budget(world):
    alarms = [len(followed(days(seed, 120, **world), 1 / 40).alarms) for seed in range(3)]
    # Nine are expected. References differ, so that the alarms of a reference are not
    # independent.
    assert sum(alarms) <= 16


@pytest.mark.parametrize(("by", "latest"), [(2.0, 14), (-2.0, 14), (4.0, 7)])
def test_shift_has_column_sign_and_onset(by, latest):
    result = followed(shifted(days(1, 40), since=20, by=by))
    (shift,) = result.shifts
    assert 20 <= result.alarms[-1] - REFERENCE < 20 + latest
    assert shift.series == 3
    assert shift.sign == np.sign(by)
    assert shift.earliest <= REFERENCE + 20 <= shift.latest
    assert abs(shift.onset - REFERENCE - 20) <= 3


def test_weekend_is_not_a_shift():
    assert not followed(days(2, 60, weekend=6.0)).shifts
    assert [
        shift.series for shift in followed(shifted(days(2, 60, weekend=6.0), 30, 3.0)).shifts
    ] == [3]


def test_shift_is_open_until_the_return():
    lasting = followed(shifted(days(4, 150), since=10, by=2.0))
    assert [shift.series for shift in lasting.shifts] == [3]
    returned = followed(shifted(days(4, 150), since=10, by=2.0, until=40))
    assert returned.alarms
    assert not returned.shifts


def test_accepted_baseline_is_usual():
    windows = shifted(days(5, 150), since=10, by=4.0)
    restarts = windows.restarts.copy()
    restarts[3] = REFERENCE + 10
    accepted = replace(windows, restarts=restarts)
    assert not followed(accepted).shifts
    again = followed(shifted(accepted, since=100, by=-4.0))
    assert [(shift.series, shift.sign) for shift in again.shifts] == [(3, -1)]


@pytest.mark.parametrize("seed", [6, 7, 8])
def test_shift_after_acceptance_starts_in_the_baseline(seed):
    windows = shifted(days(seed, 60), since=10, by=4.0)
    windows.restarts[3] = REFERENCE + 20
    again = followed(shifted(windows, since=40, by=2.0))
    onsets = [shift.onset for shift in again.shifts if shift.series == 3]
    assert onsets == [pytest.approx(REFERENCE + 40, abs=4)]


@pytest.mark.parametrize("seed", [5, 6, 7])
def test_accepted_baseline_learns_its_deviation(seed):
    windows = days(seed, 150)
    windows.values[REFERENCE:, 3] = 80 + 3 * (windows.values[REFERENCE:, 3] - 50)
    windows.restarts[3] = REFERENCE
    assert followed(windows).alarms == []


def test_accepted_jump_is_not_explained_by_itself():
    alarms = []
    for seed in range(6):
        windows = only_column(shifted(days(seed, 200), since=40, by=50.0))
        windows.restarts[3] = REFERENCE + 40
        alarms += track(windows, limit_for(windows, YEARLY), np.full(COLUMNS, 4.5)).alarms
    assert len(alarms) <= 4


@pytest.mark.parametrize("value", [3.0, 0.1, 1e4 / 3])
def test_small_shift_of_an_accepted_constant_is_found(value):
    windows = only_column(days(0, 160))
    levels = [value, value + 2.1, value + 2.13]
    windows.values[:, 3] = np.repeat(levels, [REFERENCE + 60, 80, 20])
    windows.restarts[3] = REFERENCE + 60
    (shift,) = followed(windows).shifts
    assert (shift.series, shift.onset) == (3, REFERENCE + 140)


def test_gaps_are_no_shifts():
    windows = days(6, 60)
    values = windows.values.copy()
    gaps = windows.gaps.copy()
    values[REFERENCE + 5 : REFERENCE + 9] = np.nan
    gaps[REFERENCE + 20] = 10
    assert not followed(replace(windows, values=values, gaps=gaps)).shifts


def test_accepted_baseline_ignores_unknown_windows():
    windows = shifted(days(1, 8), 0, by=8)
    windows.values[REFERENCE : REFERENCE + 4, 3] = np.nan
    windows.values[-1, 3] = np.nan
    windows.restarts[3] = REFERENCE

    assert np.abs(track(windows, np.inf).innovations[:, 3]).max() < 4


@pytest.mark.parametrize(("cells", "stored"), [(1, np.nan), (7 * COLUMNS, 1e9), (1_000_000, -1.0)])
def test_limit_is_the_same_in_blocks(monkeypatch, cells, stored):
    """A stored limit that no simulation returns is not used."""
    windows = days(12, 0, weekend=2.0)
    expected = limit_for(windows, YEARLY)
    monkeypatch.setattr(detector, "known_limits", dict.fromkeys(detector.known_limits, stored))
    monkeypatch.setattr(detector, "_BLOCK_CELLS", cells)

    assert limit_for(windows, YEARLY) == expected


@pytest.mark.long
def test_limit_of_wide_tables_takes_little_memory():
    narrow = days(13, 0)
    wide = replace(
        narrow,
        values=np.tile(narrow.values, 100),
        scales=np.tile(narrow.scales, 100),
        floors=np.tile(narrow.floors, 100),
        is_upward=np.tile(narrow.is_upward, 100),
        is_followed=np.tile(narrow.is_followed, 100),
    )
    tracemalloc.start()
    limit_for(wide, YEARLY)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert peak < 150e6  # All simulations together take 1,200 MB.


def test_smaller_budget_has_a_higher_limit():
    windows = days(7, 0)
    assert limit_for(windows, 1 / 36500) > limit_for(windows, 1 / 30) + 1


def test_constant_figure_has_a_floor():
    windows = days(9, 40)
    values = windows.values.copy()
    values[:, 3] = 0.0
    constant = replace(windows, values=values)
    assert not followed(constant).shifts
    values = values.copy()
    values[REFERENCE + 20 :, 3] = 0.05
    assert [shift.series for shift in followed(replace(windows, values=values)).shifts] == [3]


def test_single_unusual_window_is_not_a_shift():
    windows = shifted(days(10, 60), since=20, by=12.0, until=21)
    tracking = track(windows, limit_for(windows, YEARLY), np.full(COLUMNS, 5.0))

    assert np.abs(tracking.innovations[REFERENCE + 20, 3]) > 5
    assert not tracking.alarms
    assert tracking.baseline.deviation[3] == pytest.approx(2.0, rel=0.2)


def test_windows_with_few_rows_keep_the_budget():
    """Every third window has a ninth of the rows, and therefore three times the
    deviation.
    """
    alarms = 0
    for seed in range(2):
        windows = days(seed, 180)
        scales = np.ones(windows.values.shape)
        scales[::3] = 3.0
        values = 50 + (windows.values - 50) * scales
        alarms += len(followed(replace(windows, values=values, scales=scales)).alarms)

    # One is expected. Without the scales of the judged windows, there are 9.
    assert alarms <= 4


def test_column_that_is_normal_again_is_not_shifted():
    windows = days(11, 30)
    windows.values[REFERENCE + 6 :, 3] = 50 + 2 * np.resize([0, 0, 1.5], 24)
    windows.values[REFERENCE + 6, 3] += 60
    windows.values[REFERENCE + 16 :, 4] += 8

    shifts = track(windows, limit=4.0).shifts

    assert [(shift.series, shift.onset) for shift in shifts] == [(4, REFERENCE + 16)]


def test_brief_shift_is_not_confirmed():
    brief = shifted(days(11, 60), since=10, by=3.0, until=15)
    tracking = followed(brief)

    assert tracking.alarms
    assert not tracking.shifts
    assert len(tracking.red) < 20


@pytest.mark.parametrize(
    ("factor", "yearly", "has_alarm"),
    [(0.85, 1.0, False), (1.0, 1.25, False), (0.7, 1.0, True)],
)
def test_row_count_shift_exceeds_a_factor(factor, yearly, has_alarm):
    windows = days(15, 365)
    rows = (
        0.07 * (windows.values - 50) / 2
        + np.log(yearly) * np.arange(REFERENCE + 365)[:, None] / 365
    )
    rows[REFERENCE + 20 :, 3] += np.log(factor)

    result = followed(
        replace(windows, values=rows, floors=np.full(COLUMNS, 0.07), least=np.log(1.2))
    )

    assert {shift.series for shift in result.shifts} == ({3} if has_alarm else set())
