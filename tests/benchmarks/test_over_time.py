"""Simulated streams are judged as the product judges one window after another."""

import numpy as np
import pytest

from benchmarks.over_time.levels import INDEPENDENT
from benchmarks.over_time.streams import (
    Change,
    Monitor,
    World,
    count_alarms,
    first_alarm,
    simulate,
    yearly_line,
)

_SMALL = World(columns=4, deviation=0.2, rows=60)


@pytest.mark.long
def test_all_windows_at_once_give_the_alarms_of_one_window_after_another():
    with Monitor(simulate(_SMALL, 1, 40, 14, Change(shift=5, start=4)), 1.0) as monitor:
        assert monitor.agrees()
        assert monitor.shift_alarms.any()


@pytest.mark.long
def test_a_shift_of_two_deviations_is_found_in_its_column():
    with Monitor(simulate(INDEPENDENT, 1, 90, 60, Change(shift=2, start=30)), 1.0) as monitor:
        day = first_alarm(monitor.shift_alarms)
        assert 31 <= day <= 45
        assert [item.subject for item in monitor.findings(int(day) - 1)] == [INDEPENDENT.changed]


def test_an_alarm_that_continues_is_counted_once():
    flags = np.array([True, True, False, True, False])
    assert count_alarms(flags) == 2
    assert count_alarms(flags, consecutive=2) == 1


def test_a_year_without_an_alarm_does_not_prove_a_rate_of_zero():
    line = yearly_line("quiet", [0, 0], years=1.0, most=1.5)
    assert line.outcome == "met"
    assert line.figure.endswith("0.00 to 1.84")
