"""The judged window alone: the number of rows, values that are far away or repeated,
and columns with an accepted baseline.
"""

from datetime import timedelta

import numpy as np
import pyarrow as pa
import pytest

from mlflow_deploy_plugin.core.spec.monitors import MonitorSpec
from mlflow_deploy_plugin.serve.inference_log.windows import microseconds
from mlflow_deploy_plugin.watch.drift.sketches.sketch import sketch_batches
from mlflow_deploy_plugin.watch.drift.verdict import judge_profile
from mlflow_deploy_plugin.watch.sequential.evidence import ROWS_KEY, SeriesKey
from mlflow_deploy_plugin.watch.sequential.levels import ROWS as NUMBER_OF_ROWS
from tests.watch.sequential.conftest import FIRST, REFERENCE_DAYS, ROWS, Stream, rows_of

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
def test_half_of_the_rows_and_every_row_twice_are_found_on_their_first_day(
    stream, change, direction
):
    calm = stream.judge(range(CALM))
    judged = stream.judge([CALM], change)

    assert not alarms(calm)
    (found,) = [item for item in judged.alone if item.subject == NUMBER_OF_ROWS]
    assert found.is_alarm
    assert found.check == "rows"
    assert found.change.startswith("rows 8") or found.change.startswith("rows 7")
    assert found.change.endswith(direction)


def test_rows_are_judged_and_kept_below_min_rows(reference):
    stream = Stream(reference, min_rows=ROWS + 1)
    calm = stream.judge(range(CALM))
    judged = stream.judge([CALM], lambda rows: first(rows, ROWS // 10))

    assert {finding.state for finding in calm.alone if finding.subject != NUMBER_OF_ROWS} == {
        "not judged"
    }
    assert np.exp(calm.evidence.levels[ROWS_KEY]) == pytest.approx(ROWS)
    assert alarms(judged) == {(NUMBER_OF_ROWS, "rows")}


def test_windows_below_min_rows_say_nothing_about_an_open_shift(reference):
    stream = Stream(reference)
    found = stream.judge(range(12), lambda rows: {**rows, "temp": rows["temp"] + 1})
    later = stream.judge(range(12, 40), lambda rows: first(rows, 29))

    assert [finding.subject for finding in found.findings] == ["temp"]
    assert {finding.subject: finding.value for finding in later.findings}["temp"] == pytest.approx(
        found.findings[0].value, abs=0.2
    )


def test_a_reference_that_is_a_sample_of_the_traffic_has_other_rows(stream):
    stream.judge(range(CALM), twice)
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
def test_sentinels_and_a_sensor_that_repeats_its_value_are_found(stream, change):
    stream.judge(range(CALM))

    assert "temp" in {subject for subject, _ in alarms(stream.judge([CALM], change))}


def test_every_check_of_an_accepted_column_continues(stream):
    def warmer(rows):
        return {**rows, "temp": rows["temp"] + 3}

    def all_null(rows):
        return {**rows, "temp": np.full(ROWS, np.nan)}

    accepted = {"temp": FIRST + timedelta(days=REFERENCE_DAYS + 5)}
    stream.judge(range(5))
    usual = stream.judge(range(5, 20), warmer, baseline=accepted)
    empty = stream.judge([20], all_null, baseline=accepted)

    assert not alarms(usual)
    assert ("temp", "missing") in alarms(empty)


def test_distances_are_shown_in_their_unit(reference):
    window = sketch_batches(reference.bins, [pa.table(rows_of(REFERENCE_DAYS))])
    start_us = microseconds(FIRST + timedelta(days=REFERENCE_DAYS))
    verdict = judge_profile(reference, window, start_us, MonitorSpec(min_rows=30))
    of_temp = SeriesKey("temp", "distance")
    assert verdict.course

    (test,) = [test for test in verdict.course.tests() if test.series.series_key == of_temp]

    assert test.value == pytest.approx(verdict.evidence.levels[of_temp], rel=0.01)
    assert test.usual == pytest.approx(0.45, abs=0.2)
    assert test.deviation == pytest.approx(0.3, abs=0.15)
