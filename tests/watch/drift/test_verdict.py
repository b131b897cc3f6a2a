"""The verdict: its false alarms without drift, its detection of drift,
and its reasons.
"""

import datetime
import math
import re
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from sklearn.datasets import load_digits

from mlflow_deploy_plugin.core.spec.monitors import MonitorSpec
from mlflow_deploy_plugin.watch.drift.references.load import freeze_table
from mlflow_deploy_plugin.watch.drift.references.windows import (
    DriftReference,
    cut_pieces,
    sketch_pieces,
    window_grid,
)
from mlflow_deploy_plugin.watch.drift.sketches.bins import bins_digest
from mlflow_deploy_plugin.watch.drift.sketches.relations import RELATIONS
from mlflow_deploy_plugin.watch.drift.sketches.sketch import sketch_batches
from mlflow_deploy_plugin.watch.drift.verdict import judge_profile
from mlflow_deploy_plugin.watch.sequential.course import History
from tests.support.refusals import mentions

DAY = 86_400_000_000
HOUR = DAY // 24
DAYS = 59
ROWS = 60
LATER = 1000 * DAY


def rows_of_days(rng, days, shift=0.0, rows=ROWS) -> tuple[pa.Table, Any]:
    """Days with their own weather: rows of a day are similar, and days are
    exchangeable.
    """
    size = days * rows
    weather = np.repeat(rng.normal(0, 1, days), rows) + shift
    columns = {
        "temperature": weather + rng.normal(0, 0.3, size),
        "noise": np.where(rng.random(size) < 0.1, np.nan, rng.normal(size=size)),
        "carrier": rng.choice(["a", "b", "c"], size),
        "number": [f"id-{number}" for number in rng.integers(0, 10**9, size)],
        "constant": np.ones(size),
        "empty": pa.nulls(size, pa.float64()),
        "seen": pa.array([datetime.datetime(2013, 1, 1)] * size),
    }
    return pa.table(columns), np.repeat(np.arange(days) * DAY, rows) + rng.integers(0, DAY, size)


def reference_of(table, times, length=DAY, start=LATER):
    bins, notes = freeze_table(table, (), "the table")
    pieces = cut_pieces(bins, table, times, start, length)
    sample = (
        table
        if times is None
        else table.append_column("_event_time", pa.array(times, pa.timestamp("us", tz="UTC")))
    )
    return DriftReference(bins, bins_digest(bins), pieces, sample, notes=tuple(notes))


@pytest.fixture(scope="module")
def days():
    return reference_of(*rows_of_days(np.random.default_rng(0), DAYS))


def verdict_on(
    table, reference, start=LATER, length=DAY, segments=None, false_per_year=None, **spec
):
    profile = sketch_batches(reference.bins, [table])
    monitor = MonitorSpec(**{"min_rows": 30, **spec})
    history = History(false_per_year=false_per_year)
    return judge_profile(reference, profile, start, monitor, segments, history)


def window(seed=1, shift=0.0, rows=ROWS):
    return rows_of_days(np.random.default_rng(seed), 1, shift, rows)[0]


def replaced(table, name, values):
    return table.set_column(table.column_names.index(name), name, pa.array(values))


def found(verdict, subject, check="distribution"):
    return next(
        finding
        for finding in verdict.findings
        if (finding.subject, finding.check) == (subject, check)
    )


def test_windows_like_the_reference_are_called_drifted_at_the_stated_rate():
    alarms = 0
    for seed in range(6):
        rng = np.random.default_rng(seed)
        reference = reference_of(*rows_of_days(rng, 19))
        for number in range(10):
            table = rows_of_days(rng, 1)[0]
            verdict = verdict_on(table, reference, LATER + number, false_alarm_rate=0.1)
            alarms += verdict.state == "drift"

    assert 1 <= alarms <= 15  # 6 expected


def test_verdict_reports_the_evidence_it_is_based_on(days):
    verdict = verdict_on(window(), days)

    assert verdict.state == "no drift"
    assert verdict.figures["blocks"] == DAYS
    assert mentions(verdict.notes[0], "0.05", "59 windows")
    assert verdict.figures["drift_distance/temperature"] > 0


@pytest.mark.parametrize("rows", [30, 60, 600])
def test_a_shift_is_found_and_named_whatever_the_number_of_rows(days, rows):
    verdict = verdict_on(window(shift=8, rows=rows), days)

    assert verdict.state == "drift"
    assert verdict.findings[0].subject == "temperature"
    assert {finding.subject for finding in verdict.findings if finding.is_alarm} == {"temperature"}
    assert verdict.reason.startswith("temperature: ")
    assert verdict.figures["p_value"] <= 0.05


def test_columns_above_the_threshold_and_the_verdict_agree(days):
    for shift in (0, 2, 4, 6):
        verdict = verdict_on(window(shift=shift), days)
        ratios = [(item.value or 0) / item.threshold for item in verdict.findings if item.threshold]
        largest = verdict.figures["statistic"] / verdict.figures["threshold"]
        is_drifted = verdict.figures["share_of_drifted_columns"] > 0
        assert (verdict.state == "drift") == is_drifted == (verdict.figures["p_value"] <= 0.05)
        assert largest == pytest.approx(max(ratios))


def test_every_column_stands_there_with_its_outcome(days):
    verdict = verdict_on(window(), days)

    assert {finding.subject for finding in verdict.findings} == {*window().column_names, RELATIONS}
    assert found(verdict, "seen").state == "not judged"
    assert "timestamp" in found(verdict, "seen").reason
    # The ids are different on each day.
    assert found(verdict, "number", "unseen").state == "no drift"
    assert mentions(found(verdict, "number", "unseen").reason, "100.0%")


@pytest.mark.parametrize(
    ("name", "values", "subject", "check", "measure"),
    [
        ("noise", [9.0] * ROWS, "noise", "distribution", "mean"),
        ("carrier", ["c"] * ROWS, "carrier", "distribution", "share of 'c'"),
        ("noise", [9.0] * ROWS, RELATIONS, "distribution", "spread of a projection"),
        ("noise", [None] * 30 + [0.0] * 30, "noise", "missing", "share of missing values"),
        ("carrier", ["z"] * 20 + ["a"] * 40, "carrier", "unseen", "share of new values"),
        ("temperature", [99.0] * 50 + [0.0] * 10, "temperature", "range", "share out of range"),
    ],
)
def test_the_value_and_the_threshold_of_a_column_have_a_measure_and_its_unit(
    days, name, values, subject, check, measure
):
    verdict = verdict_on(replaced(window(), name, values), days)

    finding = found(verdict, subject, check)
    assert finding.measure == measure
    assert finding.unit == "SD"
    assert finding.threshold is not None
    assert finding.value_text.endswith(" SD")
    assert finding.threshold_text == f"{finding.threshold:.4g} SD"


@pytest.mark.parametrize(
    ("name", "values", "check", "reason"),
    [
        ("noise", [None] * 30 + [0.0] * 30, "missing", "50.0% missing"),
        ("constant", [None] * ROWS, "missing", "100.0% missing, 0.0% in the reference"),
        (
            "carrier",
            ["z"] * 20 + ["a"] * 40,
            "unseen",
            r"33.3% of rows have a value that the reference lacks \('z'\)",
        ),
        ("temperature", [99.0] * 50 + [0.0] * 10, "range", "83.3% of rows are outside of"),
        (
            "carrier",
            np.arange(ROWS),
            "type",
            "60 of 60 values have type int64; the reference has string",
        ),
        (
            "temperature",
            ["warm"] * ROWS,
            "type",
            "60 of 60 values have type string; the reference has double",
        ),
        (
            "noise",
            pa.array(["x"] * ROWS, pa.large_string()),
            "type",
            "60 of 60 values have type string; the reference has double",
        ),
    ],
)
def test_missing_unseen_out_of_range_or_mistyped_values_are_drift(
    days, name, values, check, reason
):
    verdict = verdict_on(replaced(window(), name, values), days)

    finding = found(verdict, name, check)
    assert verdict.state == finding.state == "drift"
    assert re.search(reason, finding.reason)


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        ("carrier", np.arange(ROWS), "(all other checks: p = "),
        ("temperature", np.full(ROWS, 9.0), "(p = "),
    ],
)
def test_p_value_is_attributed_only_to_checks_that_have_one(days, name, values, said):
    verdict = verdict_on(replaced(window(), name, values), days)

    assert verdict.state == "drift"
    assert said in verdict.reason


@pytest.mark.parametrize(
    ("name", "values", "check", "change"),
    [
        ("temperature", np.full(ROWS, 9.0), "distribution", r"mean -?0\.\d+ → 9, higher"),
        ("temperature", np.full(ROWS, -9.0), "distribution", r"mean -?0\.\d+ → -9, lower"),
        (
            "noise",
            np.tile([-2.5, 2.5], ROWS // 2),
            "distribution",
            r"mean .* → 0, deviation [\d.]+ → 2\.5, wider",
        ),
        (
            "noise",
            np.full(ROWS, 0.1),
            "distribution",
            r"share of the most frequent interval, .* [\d.]+ → [\d.]+, more often",
        ),
        (
            "noise",
            np.tile([-0.01, 0.01], ROWS // 2),
            "distribution",
            r"mean .* → .*, deviation .* → 0\.01, narrower",
        ),
        (
            "noise",
            [math.inf] * 6 + [-0.3, 0.3] * 27,
            "distribution",
            r"infinite values 0\.0% → 10\.0%, more often",
        ),
        (
            "noise",
            [-math.inf] * ROWS,
            "distribution",
            r"infinite values 0\.0% → 100\.0%, more often",
        ),
        ("carrier", ["b"] * ROWS, "distribution", r"'b' 3\d\.\d% → 100\.0%, more often"),
        ("carrier", ["a", "b"] * (ROWS // 2), "distribution", r"'c' 3\d\.\d% → 0\.0%, less often"),
        (
            "carrier",
            ["z"] * 6 + ["a", "b", "c"] * 18,
            "distribution",
            r"new value 'z' 0\.0% → 10\.0%, more often",
        ),
        (
            "carrier",
            ["x", "y", "z"] * 10 + ["a"] * 30,
            "distribution",
            r"new values such as 'x' 0\.0% → 50\.0%, more often",
        ),
        ("constant", [None] * ROWS, "missing", r"missing 0\.0% → 100\.0%, more"),
        (
            "carrier",
            ["z"] * 20 + ["a"] * 40,
            "unseen",
            r"values that the reference lacks 0\.0% → 33\.3%, more",
        ),
        (
            "temperature",
            [99.0] * 50 + [0.0] * 10,
            "range",
            r"out of range \d\.\d% → 83\.3%, more above",
        ),
        (
            "temperature",
            [-99.0, 99.0] * 30,
            "range",
            r"out of range \d\.\d% → 100\.0%, more on both sides",
        ),
        ("carrier", np.arange(ROWS), "type", r"string → int64"),
    ],
)
def test_alarm_describes_the_values_before_and_after_and_the_direction(
    days, name, values, check, change
):
    finding = found(verdict_on(replaced(window(), name, values), days), name, check)

    assert finding.is_alarm
    assert re.fullmatch(change, finding.change.replace(" (Wednesdays)", ""))


@pytest.mark.parametrize(
    ("later", "season", "before"),
    [
        (0, {}, r"mean 7\.\d+ \(Wednesdays\)"),
        (1, {}, r"mean -?0\.\d+ \(Thursdays\)"),
        (0, {"season": "14d"}, r"mean 7\.\d+ \(windows of the same phase\)"),
        # Only two windows of the reference are in the same phase.
        (0, {"season": "28d"}, r"mean 1\.\d+"),
    ],
)
def test_a_mean_is_compared_with_the_windows_of_the_same_phase_if_there_are_three(
    later, season, before
):
    table, times = rows_of_days(np.random.default_rng(0), 56)
    is_wednesday = (times // DAY - LATER // DAY) % 7 == 0
    reference = reference_of(
        replaced(table, "temperature", table["temperature"].to_numpy() + 7 * is_wednesday), times
    )

    judged = replaced(window(), "temperature", np.full(ROWS, 20.0))
    finding = found(
        verdict_on(judged, reference, LATER + later * DAY, **season), "temperature", "distribution"
    )

    assert re.fullmatch(before + " → 20, higher", finding.change)


def test_the_phase_follows_the_share_in_the_reference_if_a_value_has_an_arrow(days):
    judged = replaced(window(), "carrier", ["UA → AA"] * ROWS)

    finding = found(verdict_on(judged, days), "carrier", "distribution")

    assert finding.change == "new value 'UA → AA' 0.0% (Wednesdays) → 100.0%, more often"


@pytest.mark.parametrize(
    ("values", "change"),
    [
        (
            ["unknown"] * 30 + [f"id-{number}" for number in range(10**8, 10**8 + 30)],
            r"new value 'unknown' 0\.0% → 50\.0%, more often",
        ),
        ([""] * ROWS, r"constant ''"),
        (
            [f"{number:036}" for number in range(ROWS)],
            r"texts of 13 or more characters 0\.0% → 100\.0%, more often",
        ),
        (
            [f"{number:03}" for number in range(ROWS)],
            r"texts of 0 to \d+ characters 0\.0% → 100\.0%, more often",
        ),
        (
            ["id-123456789", "id-234567891"] * (ROWS // 2),
            r"new value 'id-123456789' 0\.0% → 50\.0%, more often",
        ),
    ],
)
def test_ids_that_are_ever_new_are_found_to_repeat_to_be_empty_and_to_be_of_another_form(
    days, values, change
):
    verdict = verdict_on(replaced(window(), "number", values), days)

    assert verdict.state == "drift"
    assert verdict.findings[0].subject == "number"
    assert re.fullmatch(change, verdict.findings[0].change.replace(" (Wednesdays)", ""))


def test_images_of_the_same_mean_and_spread_in_each_are_found_by_their_pattern():
    images = np.random.default_rng(0).permutation(load_digits().images)
    table = pa.table({"image": images[: 20 * ROWS].tolist()})
    reference = reference_of(table, np.repeat(np.arange(20) * DAY, ROWS))
    calm = images[20 * ROWS : 21 * ROWS]
    turned = images[20 * ROWS : 21 * ROWS].transpose(0, 2, 1)

    verdict = verdict_on(pa.table({"image": turned.tolist()}), reference)

    assert verdict_on(pa.table({"image": calm.tolist()}), reference).state == "no drift"
    assert verdict.state == "drift"
    assert {finding.subject for finding in verdict.findings if finding.is_alarm} <= {
        f"image.projection.{n}" for n in range(8)
    }


def test_a_sensor_that_is_stuck_at_a_usual_value_is_found():
    table, times = busy_days(np.random.default_rng(1), 8)
    reference = reference_of(table, times, HOUR, LATER)
    calm = table.slice(0, ROWS)

    verdict = verdict_on(replaced(calm, "level", [1.5] * ROWS), reference, length=HOUR)

    assert verdict_on(calm, reference, length=HOUR).state == "no drift"
    stuck = verdict.findings[0]
    assert verdict.state == "drift"
    assert stuck.subject == "level"
    assert stuck.check == "constant"
    assert mentions(stuck.reason, "60 values", "1.5", "192 windows")
    assert stuck.change == "constant 1.5"


def test_a_column_that_is_constant_in_some_window_of_the_reference_may_be_constant():
    rng = np.random.default_rng(1)
    rain = np.where(np.arange(20) % 9, rng.gamma(2, 1, (ROWS, 20)), 0.0).T.ravel()
    times = np.repeat(np.arange(20) * DAY, ROWS)
    reference = reference_of(pa.table({"rain": rain}), times)

    verdict = verdict_on(pa.table({"rain": np.zeros(ROWS)}), reference)

    assert [finding.check for finding in verdict.findings if finding.is_alarm] in (
        [],
        ["distribution"],
    )


def test_a_flag_that_is_seldom_set_may_be_set_nowhere():
    flag = np.zeros(40 * ROWS, bool)
    flag[::30] = True  # two in each window

    verdict = verdict_on(
        pa.table({"flag": [False] * ROWS}),
        reference_of(pa.table({"flag": flag}), np.repeat(np.arange(40) * DAY, ROWS)),
    )

    assert "constant" not in [finding.check for finding in verdict.findings]


def test_constant_flag_is_not_drift_if_the_reference_has_few_windows():
    days = np.arange(90).repeat(ROWS)
    reference = reference_of(
        pa.table({"flag": days // 20 % 2 == 0}), days * DAY, 30 * DAY, 90 * DAY
    )

    verdict = verdict_on(pa.table({"flag": [True] * (30 * ROWS)}), reference, length=30 * DAY)

    assert "constant" not in [finding.check for finding in verdict.findings]


def test_change_of_a_sensor_that_repeats_its_value_is_not_that_of_its_mean(days):
    repeated = np.where(np.arange(ROWS) % 2 == 0, 0.1, window()["noise"].fill_null(0).to_numpy())

    finding = found(verdict_on(replaced(window(), "noise", repeated), days), "noise")

    assert finding.is_alarm
    assert finding.measure.startswith("share of the most frequent interval")
    assert re.search(
        r"as a multiple of that in the reference [\d.]+ → [\d.]+, more often$", finding.change
    )


def test_column_with_few_values_is_not_called_constant(days):
    verdict = verdict_on(replaced(window(), "noise", [0.5] * 5 + [None] * (ROWS - 5)), days)

    assert found(verdict, "noise", "missing").state == "drift"
    assert "constant" not in [finding.check for finding in verdict.findings]


def test_change_is_measured_from_the_lagged_window():
    table, times = busy_days(np.random.default_rng(1), 8)
    beside = rolling_reference(table, times, 24, 7 * 24 + 14)
    now = table.filter(pa.array(times // HOUR == 7 * 24 + 14))

    finding = found(
        verdict_on(
            replaced(now, "level", now["level"].to_numpy() + 4), beside, (7 * 24 + 14) * HOUR
        ),
        "level",
    )

    assert re.match(r"change of the mean \+\S+, \S+ ± \S+ is usual", finding.reason)
    means = re.search(r"mean (\S+) → (\S+), higher", finding.change)
    assert means
    before, after = (float(text) for text in means.groups())
    # All hours have a mean of 0, and this hour has a mean of -1.5.
    assert after - before == pytest.approx(4, abs=1)


def test_columns_that_come_or_go_are_drift_and_columns_that_are_not_asked_for_are_not(days):
    changed = window().drop_columns(["carrier"]).append_column("extra", pa.array([1] * ROWS))

    verdict = verdict_on(changed, days)
    selected = verdict_on(changed, days, columns=("temperature", "noise"))

    assert verdict.state == "drift"
    assert [found(verdict, name, "presence").state for name in ("carrier", "extra")] == [
        "drift",
        "drift",
    ]
    assert mentions(found(verdict, "extra", "presence").reason, "int64")
    assert mentions(verdict.reason, "carrier", "extra")
    assert found(verdict, "carrier").state == "not judged"
    assert selected.state == "no drift"
    assert {finding.subject for finding in selected.findings} == {"temperature", "noise"}


@pytest.mark.parametrize(
    ("rows", "spec", "names"),
    [
        (0, {"min_rows": 1}, ["no rows"]),
        (1, {"min_rows": 1}, ["1 rows", "at least 30"]),
        (60, {"min_rows": 61}, ["60 rows", "min_rows is 61"]),
    ],
)
def test_a_window_with_few_rows_is_not_judged(days, rows, spec, names):
    verdict = verdict_on(window(rows=rows), days, **spec)

    assert verdict.state == "not judged"
    assert not {"p_value", "threshold"} & verdict.figures.keys()
    assert mentions(verdict.reason, *names)
    assert {finding.subject for finding in verdict.findings} == {*window().column_names, RELATIONS}


def test_windows_too_short_for_the_reference_say_that_longer_ones_are_judged():
    hours = reference_of(*rows_of_days(np.random.default_rng(3), 9), length=HOUR)

    refused = verdict_on(window(), hours)

    assert refused.state == "not judged"
    assert refused.reason.endswith("at least 30 are needed: judge longer windows (every)")


def test_one_class_without_times_and_an_empty_reference_are_outcomes():
    table, times = rows_of_days(np.random.default_rng(4), 30)
    reference = reference_of(table, None)

    assert "event_time=" in verdict_on(window(), reference).reason
    assert mentions(
        verdict_on(window(), reference_of(table.slice(0, 0), times[:0])).reason,
        "reference",
        "no rows",
    )


@pytest.mark.long
def test_one_odd_row_of_a_constant_column_is_not_drift_for_independent_rows():
    rng = np.random.default_rng(6)
    rare = {f"c{number}": (rng.random(2000) < 0.001).astype(float) for number in range(30)}
    nulls = {
        f"n{number}": np.where(rng.random(2000) < 0.001, np.nan, rng.normal(size=2000))
        for number in range(30)
    }
    table = pa.table({**rare, **nulls})
    calm = 0
    for _ in range(12):
        order = rng.permutation(len(table))
        reference = reference_of(table.take(order[1000:]), None)
        calm += (
            verdict_on(table.take(order[:1000]), reference, independent_rows=True).state != "drift"
        )

    assert calm >= 10


@pytest.mark.parametrize(
    ("values", "check"),
    [
        ([2.0] * 20 + [1.0] * 480, "distribution"),
        ([None] * 20 + [1.0] * 480, "missing"),
        ([2.0] * 500, "distribution"),
        ([None] * 500, "missing"),
    ],
)
def test_new_value_of_a_constant_column_is_drift_for_independent_rows(values, check):
    reference = reference_of(pa.table({"a": np.arange(1000.0), "constant": np.ones(1000)}), None)
    table = pa.table({"a": np.arange(0, 1000.0, 2), "constant": values})

    assert found(verdict_on(table, reference, independent_rows=True), "constant", check).is_alarm


def test_one_odd_row_of_a_constant_column_is_not_drift(days):
    one_odd = verdict_on(replaced(window(), "constant", [2.0] + [1.0] * (ROWS - 1)), days)
    many_odd = verdict_on(replaced(window(), "constant", [2.0] * 10 + [1.0] * (ROWS - 10)), days)

    assert found(one_odd, "constant").state == "no drift"
    assert found(many_odd, "constant").state == "drift"


def test_independent_rows_need_no_times():
    rng = np.random.default_rng(5)
    table = pa.table({"a": rng.normal(size=3000), "b": rng.choice(["x", "y"], 3000)})
    reference = reference_of(table, None)
    calm = [
        verdict_on(
            pa.table({"a": rng.normal(size=300), "b": rng.choice(["x", "y"], 300)}),
            reference,
            independent_rows=True,
        )
        for _ in range(8)
    ]
    shifted = pa.table({"a": rng.normal(0.5, 1, 300), "b": rng.choice(["x", "y"], 300)})

    assert sum(verdict.state == "drift" for verdict in calm) <= 2
    verdict = verdict_on(shifted, reference, independent_rows=True)
    assert verdict.state == "drift"
    assert verdict.findings[0].subject == "a"
    assert mentions(verdict.notes[0], "90 windows of random rows")


def busy_days(rng, days):
    """Hours with a level that follows a cycle of ± 3 deviations per day."""
    cycle = 3 * np.sin(2 * np.pi * np.arange(24 * days) / 24)
    level = np.repeat(cycle + rng.normal(0, 0.2, len(cycle)), ROWS)
    times = np.repeat(np.arange(len(cycle)) * HOUR, ROWS) + rng.integers(0, HOUR, len(level))
    return pa.table(
        {"level": level + rng.normal(size=len(level)), "noise": rng.normal(size=len(level))}
    ), times


def test_calm_windows_are_as_far_as_usual_from_the_lagged_window():
    rng = np.random.default_rng(2)
    hours = 7 * 24
    names = [f"item-{number}" for number in range(40)]
    table = pa.table({"item": rng.choice(names, hours * ROWS)})
    reference = rolling_reference(table, np.repeat(np.arange(hours) * HOUR, ROWS), 24, hours)

    states = [
        verdict_on(pa.table({"item": rng.choice(names, ROWS)}), reference, hours * HOUR).state
        for _ in range(20)
    ]

    # At a rate of 5 %, the probability of more than four is below 1 %.
    assert states.count("no drift") >= 16


def rolling_reference(table, times, lag, until):
    """Return the hours before `until`, each compared
    with the hour `lag` hours before.
    """
    before = times < until * HOUR
    table = table.filter(pa.array(before))
    times = times[before]
    bins = reference_of(table, times).bins
    over = window_grid(bins, until * HOUR, HOUR, int(times.min()), until * HOUR - 1, lag)
    return DriftReference(
        bins, bins_digest(bins), sketch_pieces(bins, [(table, times)], over), table
    )


def test_lagged_reference_finds_a_shift_hidden_in_the_daily_cycle():
    rng = np.random.default_rng(1)
    table, times = busy_days(rng, 8)
    hour = 7 * 24 + 14
    states = []
    for current in range(hour - 3, hour + 1):
        now = table.filter(pa.array(times // HOUR == current))
        beside = rolling_reference(table, times, 24, current)
        states.append(verdict_on(now, beside, current * HOUR).state)
    shifted = replaced(now, "level", now["level"].to_numpy() + 1.5)

    verdict = verdict_on(shifted, beside, hour * HOUR)

    all_hours = reference_of(table[: hour * ROWS], times[: hour * ROWS], HOUR, hour * HOUR)
    assert states.count("drift") <= 1
    assert verdict.state == "drift"
    assert verdict.findings[0].subject == "level"
    assert verdict_on(shifted, all_hours, hour * HOUR).state == "no drift"
    assert mentions(verdict.notes[0], "158 windows")


def test_missing_lagged_window_is_not_judged():
    table, times = busy_days(np.random.default_rng(1), 3)
    gap = times // HOUR != 24
    reference = rolling_reference(table.filter(pa.array(gap)), times[gap], 24, 48)
    young = rolling_reference(table, times, 24, 24)

    verdict = verdict_on(table.slice(48 * ROWS, ROWS), reference, 48 * HOUR)

    assert verdict.state == "not judged"
    assert mentions(verdict.reason, "24 windows before", "0 rows")
    assert mentions(
        verdict_on(table.slice(24 * ROWS, ROWS), young, 24 * HOUR).reason, "the log is too short"
    )


@pytest.mark.long
def test_segments_share_the_rate_and_are_named():
    rng = np.random.default_rng(7)
    table, times = rows_of_days(rng, 39, rows=150)
    table = table.select(["temperature", "carrier"])
    current = window(8, rows=150).select(["temperature", "carrier"])
    is_b = np.array(current["carrier"].to_pylist()) == "b"
    current = replaced(current, "temperature", current["temperature"].to_numpy() + 9 * is_b)
    segments = {}
    for item in "abc":
        in_segment, now = (
            np.array(rows["carrier"].to_pylist()) == item for rows in (table, current)
        )
        part = reference_of(table.filter(pa.array(in_segment)), times[in_segment])
        rows = current.filter(pa.array(now)).slice(0, 20 if item == "c" else 150)
        segments[f"carrier={item}"] = part, sketch_batches(part.bins, [rows])

    verdict = verdict_on(current, reference_of(table, times), segments=segments)

    alarms = {(item.segment, item.subject) for item in verdict.findings if item.is_alarm}
    assert ("carrier=b", "temperature") in alarms
    assert not any(segment in ("carrier=a", "carrier=c") for segment, _ in alarms)
    left_out = [item.reason for item in verdict.findings if item.segment == "carrier=c"]
    assert left_out == ["the window has 20 rows; min_rows is 30"] * 2


@pytest.mark.parametrize("columns", [50, pytest.param(1000, marks=pytest.mark.long)])
def test_one_of_many_columns_is_found(columns):
    rng = np.random.default_rng(9)

    def wide(count, shift):
        return pa.table(
            {
                f"c{number}": rng.normal(shift if number == 7 else 0, 1, count)
                for number in range(columns)
            }
        )

    reference = reference_of(wide(20 * 40, 0), np.repeat(np.arange(20) * DAY, 40))

    verdict = verdict_on(wide(40, 9), reference)

    assert verdict.state == "drift"
    assert verdict.findings[0].subject == "c7"
    assert len({finding.subject for finding in verdict.findings} - {RELATIONS}) == columns


@pytest.mark.parametrize(("shift", "state"), [(2.5, "no drift"), (15.0, "drift")])
def test_a_budget_of_alarms_raises_the_thresholds(days, shift, state):
    verdict = verdict_on(window(shift=shift), days, false_per_year=1.0)
    assert verdict.state == state
    own = found(verdict, "temperature").threshold or 0
    assert own > (found(verdict_on(window(), days), "temperature").threshold or 0)
    assert mentions(verdict.notes[0], "single windows", "0.00068")
