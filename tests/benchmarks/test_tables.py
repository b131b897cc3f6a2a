"""The calibration and the figures of the verdicts on public tables."""

import math

import numpy as np
import pandas as pd
import pytest

from benchmarks.shifting.peers import cumulative_sums
from benchmarks.shifting.sets import Windowed, harmful_shifts
from benchmarks.shifting.tables import (
    Figures,
    Judged,
    better_in,
    calibrate,
    draw_sequences,
    figures_of,
    flags_of,
)

CALM = np.array([0.0, 5.0, 0.0, 4.0, 0.0, 3.0])


def windowed(accuracies, reference):
    """Return windows of 100 rows with these accuracies."""
    numbers = np.repeat(np.arange(len(accuracies)), 100)
    wrong = np.tile(np.arange(100), len(accuracies)) >= np.repeat(100 * accuracies, 100)
    rows = pd.DataFrame({"prediction": 0, "truth": wrong.astype(int), "window": numbers})
    return Windowed(rows, ("0", "1"), reference)


@pytest.mark.parametrize(("most", "red"), [(0, [4]), (1, [3, 4]), (2, [2, 3, 4])])
def test_calibrate_permits_alarms(most, red):
    later, calm = calibrate([np.array([1.0, 2.0, 3.5, 4.5, 9.0]), CALM], most)
    assert np.flatnonzero(later.red).tolist() == red
    assert calm.alarms.sum() == most


def test_calibrate_stops_before_alarms_merge():
    # Below 3, all windows are one alarm.
    later, calm = calibrate([CALM, np.array([9.0, 3.0, 9.0, 3.0, 9.0])], 1)
    assert not later.red.any()
    assert not calm.red.any()


def test_flags_begin_an_alarm_per_stretch():
    course = flags_of(np.array([True, True, False, True]))
    assert course.alarms.tolist() == [True, False, False, True]


@pytest.mark.parametrize(
    ("fall", "shifts"),
    [
        ([0, 0.03, 0.03, 0.06, 0.03, 0.03, 0.03, 0.03, 0.01, 0.06, 0], [range(1, 8)]),
        ([0.04] * 9, []),
        ([0.06] * 6 + [0], []),
        ([0.06] * 7, [range(7)]),
    ],
)
def test_harmful_shifts_lie_between_unharmed_windows(fall, shifts):
    assert harmful_shifts(np.array(fall)) == shifts


def test_draw_sequences_keep_the_weekday():
    later, year = draw_sequences(windowed(np.full(30, 0.8), 20), 1)
    assert later.tolist() == [*range(20, 30)]
    assert len(year) == 365
    assert year.max() < 20
    assert (year % 7 == np.arange(20, 385) % 7).all()


def test_figures_of_a_fall():
    accuracies = np.concatenate([np.full(20, 0.8), np.full(20, 0.8), np.full(20, 0.6)])
    red = np.zeros(40, bool)
    red[22:] = True
    judged = Judged(flags_of(red), [flags_of(CALM > 0)], 0.5)
    figures = figures_of([(windowed(accuracies, 20), judged)])
    assert figures.calm == [3]
    assert figures.alarms == 1
    assert figures.delays.tolist() == [5]  # The mean of seven windows falls at 17.
    assert figures.red == pytest.approx((18 / 22, 0))


def test_better_in_counts_unfound_shifts_as_latest():
    ours = Figures([0], np.array([1.0, math.inf, math.inf]), (0.5, 0.1), 1, 2)
    peer = Figures([0], np.array([3.0, 3.0, math.inf]), (0.5, 0.2), 1, 2)
    assert better_in(peer, ours) == "**finds more, sooner**"
    assert better_in(ours, peer) == "**red fits harm better**"
    assert better_in(ours, ours) == "no"


def test_cumulative_sums_exceed_the_slack():
    assert cumulative_sums(np.array([[1.0, 0], [1, 0], [-2, 0], [0, 2]])) == [0.5, 1, 0, 1.5]
