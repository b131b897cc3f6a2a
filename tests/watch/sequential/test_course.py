"""The judged window alone: the number of rows, values that are far away or repeated,
and columns with an accepted baseline.
"""

from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest

from mlflow_deploy_plugin.watch.sequential.detector import known_limits
from mlflow_deploy_plugin.watch.sequential.evidence import ROWS_KEY
from mlflow_deploy_plugin.watch.sequential.levels import ROWS as NUMBER_OF_ROWS
from tests.watch.sequential.conftest import FIRST, REFERENCE_DAYS, ROWS, Stream

CALM = 10


def alarms(judged):
    return {(finding.subject, finding.check) for finding in judged.alone if finding.is_alarm}


def first(rows, count):
    return {name: values[:count] for name, values in rows.items()}


def twice(rows):
    return {name: np.concatenate([values, values]) for name, values in rows.items()}


@pytest.mark.parametrize(
    ("change", "direction"), [(lambda rows: first(rows, ROWS // 2), "fewer"), (twice, "more")]
)
def test_halved_or_doubled_rows_are_found(stream, change, direction):
    calm = stream.judge(range(CALM))
    judged = stream.judge([CALM], change)

    assert not alarms(calm)
    (found,) = [item for item in judged.alone if item.subject == NUMBER_OF_ROWS]
    assert found.is_alarm
    assert found.check == "rows"
    assert found.change.startswith("rows 8") or found.change.startswith("rows 7")
    assert found.change.endswith(direction)


def test_row_count_is_judged_below_min_rows(reference):
    stream = Stream(reference, min_rows=ROWS + 1)
    calm = stream.judge(range(CALM))
    judged = stream.judge([CALM], lambda rows: first(rows, ROWS // 10))

    assert {finding.state for finding in calm.alone if finding.subject != NUMBER_OF_ROWS} == {
        "not judged"
    }
    assert np.exp(calm.evidence.levels[ROWS_KEY]) == pytest.approx(ROWS)
    assert alarms(judged) == {(NUMBER_OF_ROWS, "rows")}


def test_small_windows_keep_shifts_open(reference):
    stream = Stream(reference)
    found = stream.judge(range(12), lambda rows: {**rows, "temp": rows["temp"] + 1})
    later = stream.judge(range(12, 40), lambda rows: first(rows, 29))

    assert [finding.subject for finding in found.findings] == ["temp"]
    assert {finding.subject: finding.value for finding in later.findings}["temp"] == pytest.approx(
        found.findings[0].value, abs=0.2
    )


def test_row_count_follows_earlier_windows(stream):
    stream.follow(range(CALM), twice)
    judged = stream.judge([CALM], twice)

    assert (NUMBER_OF_ROWS, "rows") not in alarms(judged)
    assert (NUMBER_OF_ROWS, "rows") in alarms(
        stream.judge([CALM + 1], lambda rows: first(rows, 40))
    )


def with_sentinels(rows):
    return {**rows, "temp": np.where(np.arange(ROWS) % 10 == 0, -999.0, rows["temp"])}


def stuck(rows):
    is_stuck = np.arange(ROWS) % 2 == 0
    return {**rows, "temp": np.where(is_stuck, rows["temp"][0], rows["temp"])}


@pytest.mark.parametrize("change", [with_sentinels, stuck])
def test_sentinels_and_repeated_values_are_found(stream, change):
    stream.follow(range(CALM))

    assert "temp" in {subject for subject, _ in alarms(stream.judge([CALM], change))}


def test_accepted_column_is_still_checked(stream):
    def warmer(rows):
        return {**rows, "temp": rows["temp"] + 3}

    def all_null(rows):
        return {**rows, "temp": np.full(ROWS, np.nan)}

    accepted = {"temp": FIRST + timedelta(days=REFERENCE_DAYS + 5)}
    stream.follow(range(5))
    usual = stream.judge(range(5, 20), warmer, baseline=accepted)
    empty = stream.judge([20], all_null, baseline=accepted)

    assert not usual.findings
    assert not alarms(usual)
    assert ("temp", "missing") in alarms(empty)


def test_limit_of_the_window_before_is_used(stream):
    def warmer(rows):
        return {**rows, "temp": rows["temp"] + 3}

    found = stream.judge(range(12), warmer).findings
    limits = dict.fromkeys(known_limits, 99.0)
    stream.past[-1] = replace(
        stream.past[-1], evidence=replace(stream.past[-1].evidence, limits=limits)
    )
    silenced = stream.judge([12], warmer).findings
    known_limits.clear()

    assert [finding.subject for finding in found] == ["temp"]
    assert not silenced
