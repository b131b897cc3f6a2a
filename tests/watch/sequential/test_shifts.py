"""Lasting shifts of real rows: what a finding says, which windows count, and what the
store and the report receive.
"""

from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial

import numpy as np
import pytest

from mlflow_deploy_plugin.watch.sequential.evidence import SeriesKey
from tests.support.refusals import mentions
from tests.watch.sequential.conftest import (
    DAY_US,
    FIRST,
    REFERENCE_DAYS,
    Stream,
    reference_of,
)


def warmer(rows):
    return {**rows, "temp": rows["temp"] + 1.5}


def test_shift_has_column_direction_size_and_start(stream):
    stream.follow(range(20))
    verdict = stream.judge(range(20, 32), warmer)
    finding = verdict.findings[0]
    assert (finding.subject, finding.check, finding.state) == ("temp", "shift", "drift")
    assert finding.measure == "mean"
    assert finding.value_text == f"{finding.value:+.4g} SD"
    assert finding.value == pytest.approx(3, abs=1)
    assert "higher" in finding.change
    start = (FIRST + timedelta(days=REFERENCE_DAYS + 20)).isoformat()
    assert finding.since_range[0] <= start <= finding.since_range[1]
    assert verdict.evidence.shifts[SeriesKey("temp", "level")] == finding.since
    chart = verdict.charts[0]
    assert chart.title.startswith("temp")
    assert chart.onset
    assert len(chart.starts) == len(chart.values) == len(chart.usual)


@pytest.fixture(scope="module")
def reference_of_three_days():
    return reference_of(120, 3 * DAY_US)


@pytest.mark.long
@pytest.mark.parametrize("first_shifted", [90, 91, 92])
def test_interval_holds_any_day_of_a_window(reference_of_three_days, first_shifted):
    stream = Stream(reference_of_three_days, days_per_window=3, every="3d")
    stream.follow(range(60, 90, 3))

    finding = stream.judge(range(90, 102, 3), warmer, changed_from=first_shifted).findings[0]

    shifted = FIRST + timedelta(days=REFERENCE_DAYS + first_shifted)
    earliest, latest = map(datetime.fromisoformat, finding.since_range or ())
    assert earliest <= shifted < latest
    assert latest - earliest >= timedelta(days=3)
    start, end = map(datetime.fromisoformat, (finding.since, finding.since_end))
    assert end - start == timedelta(days=3)


def test_interval_includes_a_gap_before_the_shift(stream):
    stream.follow(range(20))

    finding = stream.judge(range(25, 35), warmer).findings[0]

    assert finding.since_range[0] <= (FIRST + timedelta(days=REFERENCE_DAYS + 20)).isoformat()


@pytest.mark.parametrize(
    ("change", "subject", "words", "measure"),
    [
        (
            lambda rows: {
                **rows,
                "carrier": np.where(np.arange(80) % 4 == 0, "DL", rows["carrier"]),
            },
            "carrier",
            "UA",
            "share of 'UA'",
        ),
        (
            lambda rows: {**rows, "delay": np.where(np.arange(80) % 5 == 0, np.nan, rows["delay"])},
            "delay",
            "missing",
            "share of missing values",
        ),
        (
            lambda rows: {**rows, "temp": np.where(np.arange(80) % 20 == 0, np.nan, rows["temp"])},
            "temp",
            "missing",
            "share of missing values",
        ),
        (lambda rows: {**rows, "temp": 10 + 2 * (rows["temp"] - 10)}, "temp", "wider", "deviation"),
        (lambda rows: {**rows, "temp": 1.8 * rows["temp"] + 32}, "temp", "49.72", "mean"),
        (
            lambda rows: {**rows, "temp": np.rint(rows["temp"])},
            "temp",
            "times as frequent as in the reference",
            "frequency of the most frequent values (1 in the reference)",
        ),
    ],
)
def test_shares_spreads_and_rounded_values_are_followed(stream, change, subject, words, measure):
    stream.follow(range(10))
    finding = stream.judge(range(10, 35), change).findings[0]
    assert finding.subject == subject
    assert mentions(finding.change, words)
    assert finding.measure == measure


def test_windows_without_a_budget_have_only_evidence(stream):
    verdict = stream.judge(range(30), warmer, per_year=None)
    assert not verdict.findings
    assert verdict.evidence.levels[SeriesKey("temp", "level")] == pytest.approx(11.5, abs=1.5)
    stream.follow([29], warmer)
    assert stream.past[-1].evidence == verdict.evidence


def test_windows_of_another_reference_are_ignored(stream):
    stream.follow(range(30), warmer)
    stream.past = [
        replace(window, evidence=replace(window.evidence, basis="other")) for window in stream.past
    ]
    assert not stream.judge([30], warmer).findings


@pytest.mark.parametrize(("has_default_budget", "is_alarm"), [(True, True), (False, False)])
def test_short_reference_replaces_the_default_budget(has_default_budget, is_alarm):
    def slightly_warmer(rows):
        return {**rows, "temp": rows["temp"] + 2.5}

    stream = Stream(reference_of(10))
    judged = stream.judge([0], slightly_warmer, has_default_budget=has_default_budget)

    assert any(finding.is_alarm for finding in judged.alone) == is_alarm
    assert not judged.findings
    assert mentions(judged.notes[0], "false_per_year", "20", "10")
    assert ("0.05 of the windows" in judged.notes[0]) == has_default_budget


def test_three_single_alarms_are_noted(stream):
    def empty(rows):
        return {**rows, "temp": np.where(np.arange(80) % 3, np.nan, rows["temp"])}

    for alarms, day in enumerate((2, 12, 22), 1):
        stream.follow(range(day - 2, day))
        stream.follow([day], empty)
        verdict = stream.judge(range(day + 1, day + 8))
        noted = [note for note in verdict.notes if mentions(note, "temp", "accept", "3 times")]
        assert len(noted) == alarms // 3


@pytest.mark.parametrize(("windows", "is_named"), [(39, False), (60, True)])
def test_long_open_shifts_are_noted(stream, windows, is_named):
    verdict = stream.judge(range(windows), warmer)

    assert any(mentions(note, "open shift", "temp", "accept") for note in verdict.notes) is is_named
    assert not any(mentions(note, "open shift", "all the time") for note in verdict.notes)


@pytest.fixture(scope="module")
def warming_reference():
    return reference_of(change=warming)


def warming(rows, day, slope=0.3):
    return {**rows, "temp": rows["temp"] + 0.3 * min(day, CHANGED) + slope * max(day - CHANGED, 0)}


CHANGED = REFERENCE_DAYS + 20


@pytest.mark.parametrize(("slope", "shifts"), [(0.3, []), (0.0, ["temp"]), (0.9, ["temp"])])
def test_slope_change_of_a_trend_is_found(warming_reference, slope, shifts):
    stream = Stream(warming_reference)
    for day in range(44):
        stream.follow([day], partial(warming, day=REFERENCE_DAYS + day, slope=slope))

    judged = stream.judge([44], partial(warming, day=REFERENCE_DAYS + 44, slope=slope))

    assert [finding.subject for finding in judged.findings] == shifts
    assert not [finding for finding in judged.alone if finding.is_alarm and not shifts]
    assert any(mentions(note, "trend", "temp", "temp/mean +0.305") for note in judged.notes)
    for finding in judged.findings:
        # A gradual change is dated by the days on which it shows.
        assert finding.since_range[0] <= (FIRST + timedelta(days=CHANGED + 3)).isoformat()
        before, after = map(float, finding.change.split("1d ")[1].split(" → "))
        assert (before, after) == pytest.approx((0.3, slope), abs=0.1)
