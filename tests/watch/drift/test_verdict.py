"""The verdict: its false alarms without drift, its detection of drift,
and its reasons.
"""

import datetime
import math
import re
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from mlflow_deploy_plugin.core.settings import load_settings
from mlflow_deploy_plugin.core.spec.monitors import MonitorSpec
from mlflow_deploy_plugin.core.spec.types import EPOCH
from mlflow_deploy_plugin.serve.inference_log.windows import Window
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
from mlflow_deploy_plugin.watch.result import WindowRequest
from tests.support.refusals import mentions

DAY = 86_400_000_000
HOUR = DAY // 24
DAYS = 59
ROWS = 60
LATER = 1000 * DAY


def rows_of_days(rng, days, shift=0.0, rows=ROWS):
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


def reference_of(table, times=None, length=DAY, start=LATER):
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
    begin = EPOCH + datetime.timedelta(microseconds=start)
    window = Window(begin, begin + datetime.timedelta(microseconds=length))
    request = WindowRequest("flights", "daily", monitor, window, 1, load_settings())
    request = replace(request, false_per_year=false_per_year)
    return judge_profile(request, reference, profile, segments or {})


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


@pytest.mark.long
def test_false_alarms_have_the_stated_rate():
    alarms = 0
    for seed in range(3):
        rng = np.random.default_rng(seed)
        reference = reference_of(*rows_of_days(rng, 19))
        for number in range(8):
            table = rows_of_days(rng, 1)[0]
            verdict = verdict_on(table, reference, LATER + number, false_alarm_rate=0.25)
            alarms += verdict.state == "drift"

    assert 1 <= alarms <= 12  # 6 expected


def test_verdict_reports_its_figures(days):
    verdict = verdict_on(window(), days)

    assert verdict.state == "no drift"
    assert verdict.figures["blocks"] == DAYS
    assert mentions(verdict.notes[0], "0.05", "59 windows")
    assert verdict.figures["drift_distance/temperature"] > 0


@pytest.mark.parametrize("rows", [30, 60, 600])
def test_shift_is_found_for_any_row_count(days, rows):
    verdict = verdict_on(window(shift=8, rows=rows), days)

    assert verdict.state == "drift"
    assert verdict.findings[0].subject == "temperature"
    assert {finding.subject for finding in verdict.findings if finding.is_alarm} == {"temperature"}
    assert verdict.figures["p_value"] <= 0.05


def test_every_column_has_an_outcome(days):
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
        ("temperature", [99.0] * 50 + [0.0] * 10, "temperature", "range", "share out of range"),
    ],
)
def test_findings_have_a_measure_and_unit(days, name, values, subject, check, measure):
    verdict = verdict_on(replaced(window(), name, values), days)

    finding = found(verdict, subject, check)
    assert finding.measure == measure
    assert finding.unit == "SD"
    assert finding.value_text.endswith(" SD")
    assert finding.threshold_text == f"{finding.threshold:.4g} SD"


@pytest.mark.parametrize(
    ("name", "values", "check", "change"),
    [
        ("temperature", np.full(ROWS, 9.0), "distribution", r"mean -?0\.\d+ → 9, higher"),
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
            r"the most frequent values are [\d.]+ times as frequent as in the reference",
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
def test_alarm_describes_the_change(days, name, values, check, change):
    verdict = verdict_on(replaced(window(), name, values), days)

    finding = found(verdict, name, check)
    assert verdict.state == finding.state == "drift"
    assert re.fullmatch(change, finding.change.replace(" (Wednesdays)", ""))


@pytest.fixture(scope="module")
def warm_wednesdays():
    table, times = rows_of_days(np.random.default_rng(0), 56)
    is_wednesday = (times // DAY - LATER // DAY) % 7 == 0
    warm = replaced(table, "temperature", table["temperature"].to_numpy() + 7 * is_wednesday)
    return reference_of(warm, times)


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
def test_mean_is_compared_with_the_same_phase(warm_wednesdays, later, season, before):
    judged = replaced(window(), "temperature", np.full(ROWS, 20.0))
    verdict = verdict_on(judged, warm_wednesdays, LATER + later * DAY, **season)
    finding = found(verdict, "temperature", "distribution")

    assert re.fullmatch(before + " → 20, higher", finding.change)


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
    ],
)
def test_changed_ids_are_described(days, values, change):
    verdict = verdict_on(replaced(window(), "number", values), days)

    assert verdict.state == "drift"
    assert verdict.findings[0].subject == "number"
    assert re.fullmatch(change, verdict.findings[0].change.replace(" (Wednesdays)", ""))


def test_stuck_sensor_is_found(busy):
    table, times = busy
    reference = reference_of(table, times, HOUR, LATER)
    calm = table.slice(0, ROWS)

    verdict = verdict_on(replaced(calm, "level", [1.5] * ROWS), reference, length=HOUR)

    assert verdict_on(calm, reference, length=HOUR).state == "no drift"
    stuck = verdict.findings[0]
    assert verdict.state == "drift"
    assert (stuck.subject, stuck.check, stuck.change) == ("level", "constant", "constant 1.5")
    assert mentions(stuck.reason, "60 values", "1.5", "192 windows")


RAIN = np.random.default_rng(1).gamma(2, 1, (20, ROWS)) * (np.arange(20) % 9 > 0)[:, None]


@pytest.mark.parametrize(
    ("reference", "length", "values"),
    [
        (RAIN.ravel(), DAY, np.zeros(ROWS)),
        (np.arange(40 * ROWS) % 30 == 0, DAY, np.zeros(ROWS, bool)),
        (np.arange(90 * ROWS) // (20 * ROWS) % 2 == 0, 30 * DAY, np.ones(30 * ROWS, bool)),
    ],
    ids=["constant in some windows", "a rare flag", "few windows"],
)
def test_usual_constant_raises_no_alarm(reference, length, values):
    times = np.arange(len(reference)) // ROWS * DAY
    of_reference = reference_of(pa.table({"x": reference}), times, length)

    verdict = verdict_on(pa.table({"x": values}), of_reference, length=length)

    assert "constant" not in [finding.check for finding in verdict.findings]


def test_few_values_are_not_constant(days):
    verdict = verdict_on(replaced(window(), "noise", [0.5] * 5 + [None] * (ROWS - 5)), days)

    assert found(verdict, "noise", "missing").state == "drift"
    assert "constant" not in [finding.check for finding in verdict.findings]


def test_new_and_missing_columns_are_drift(days):
    changed = window().drop_columns(["carrier"]).append_column("extra", pa.array([1] * ROWS))

    verdict = verdict_on(changed, days)
    selected = verdict_on(changed, days, columns=("temperature", "noise"))

    assert verdict.state == "drift"
    for name in ("carrier", "extra"):
        assert found(verdict, name, "presence").state == "drift"
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
def test_few_rows_are_not_judged(days, rows, spec, names):
    verdict = verdict_on(window(rows=rows), days, **spec)

    assert verdict.state == "not judged"
    assert not {"p_value", "threshold"} & verdict.figures.keys()
    assert mentions(verdict.reason, *names)
    assert {finding.subject for finding in verdict.findings} == {*window().column_names, RELATIONS}


def test_too_short_windows_are_not_judged():
    table, times = rows_of_days(np.random.default_rng(3), 9)
    hours = reference_of(table, times, HOUR)

    refused = verdict_on(window(), hours)

    assert refused.state == "not judged"
    assert refused.reason.endswith("at least 30 are needed: judge longer windows (every)")


def test_reference_without_times_or_rows_is_named():
    table, times = rows_of_days(np.random.default_rng(4), 30)
    reference = reference_of(table, None)

    assert "event_time=" in verdict_on(window(), reference).reason
    assert mentions(
        verdict_on(window(), reference_of(table.slice(0, 0), times[:0])).reason,
        "reference",
        "no rows",
    )


@pytest.mark.parametrize(
    ("values", "check"),
    [
        ([2.0] * 20 + [1.0] * 480, "distribution"),
        ([None] * 20 + [1.0] * 480, "missing"),
        ([2.0] * 500, "distribution"),
        ([None] * 500, "missing"),
    ],
)
def test_new_value_of_constant_is_drift(values, check):
    reference = reference_of(pa.table({"a": np.arange(1000.0), "constant": np.ones(1000)}), None)
    table = pa.table({"a": np.arange(0, 1000.0, 2), "constant": values})

    assert found(verdict_on(table, reference, independent_rows=True), "constant", check).is_alarm


def test_one_odd_row_is_not_drift(days):
    one_odd = verdict_on(replaced(window(), "constant", [2.0] + [1.0] * (ROWS - 1)), days)
    many_odd = verdict_on(replaced(window(), "constant", [2.0] * 10 + [1.0] * (ROWS - 10)), days)

    assert found(one_odd, "constant").state == "no drift"
    assert found(many_odd, "constant").state == "drift"


def independent_rows(rng, rows, mean=0.0):
    return pa.table(
        {"number": rng.normal(mean, 1, rows), "name": rng.choice(["a", "b", "c"], rows)}
    )


def test_independent_rows_need_no_times():
    rng = np.random.default_rng(5)
    reference = reference_of(independent_rows(rng, 3000))

    calm, shifted = (
        verdict_on(independent_rows(rng, 300, mean), reference, independent_rows=True)
        for mean in (0.0, 0.5)
    )

    assert (calm.state, shifted.state) == ("no drift", "drift")
    assert shifted.findings[0].subject == "number"
    assert mentions(shifted.notes[0], "90 windows of random rows")


@pytest.mark.parametrize(("share", "state"), [(0.002, "no drift"), (0.05, "drift")])
def test_rare_flags_of_independent_rows(share, state):
    rng = np.random.default_rng(2)

    def flags(rows, of_rows):
        return pa.table({"fraud": rng.random(rows) < of_rows})

    reference = reference_of(flags(20_000, 0.002))
    states = [
        verdict_on(flags(500, share), reference, independent_rows=True).state for _ in range(20)
    ]
    assert states.count(state) >= 19


@pytest.fixture(scope="module")
def busy():
    """Hours of eight days, whose level follows a daily cycle of ± 3 deviations."""
    rng = np.random.default_rng(1)
    cycle = 3 * np.sin(2 * np.pi * np.arange(24 * 8) / 24)
    level = np.repeat(cycle + rng.normal(0, 0.2, len(cycle)), ROWS)
    times = np.repeat(np.arange(len(cycle)) * HOUR, ROWS) + rng.integers(0, HOUR, len(level))
    return pa.table(
        {"level": level + rng.normal(size=len(level)), "noise": rng.normal(size=len(level))}
    ), times


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


def test_lagged_reference_finds_a_hidden_shift(busy):
    table, times = busy
    hour = 7 * 24 + 14
    now = table.filter(pa.array(times // HOUR == hour))
    shifted = replaced(now, "level", now["level"].to_numpy() + 2)
    lagged = rolling_reference(table, times, 24, hour)

    verdict = verdict_on(shifted, lagged, hour * HOUR)

    all_hours = reference_of(table[: hour * ROWS], times[: hour * ROWS], HOUR, hour * HOUR)
    assert verdict.state == "drift"
    assert verdict.findings[0].subject == "level"
    assert verdict_on(shifted, all_hours, hour * HOUR).state == "no drift"
    assert verdict_on(now, lagged, hour * HOUR).state == "no drift"
    assert mentions(verdict.notes[0], "158 windows")
    # All hours have a mean of 0, and this hour has a mean of -1.5.
    means = re.match(r"mean (\S+) → (\S+), higher", verdict.findings[0].change)
    assert means
    assert float(means[2]) - float(means[1]) == pytest.approx(2, abs=1)


def test_missing_lagged_window_is_not_judged(busy):
    table, times = busy
    gap = times // HOUR != 24
    reference = rolling_reference(table.filter(pa.array(gap)), times[gap], 24, 48)
    young = rolling_reference(table, times, 24, 24)

    verdict = verdict_on(table.slice(48 * ROWS, ROWS), reference, 48 * HOUR)
    of_young = verdict_on(table.slice(24 * ROWS, ROWS), young, 24 * HOUR)

    assert verdict.state == of_young.state == "not judged"
    assert mentions(verdict.reason, "24 windows before", "0 rows")
    assert mentions(of_young.reason, "the log is too short")


@pytest.mark.parametrize(("shift", "state"), [(2.5, "no drift"), (15.0, "drift")])
def test_alarm_budget_raises_the_thresholds(days, shift, state):
    verdict = verdict_on(window(shift=shift), days, false_per_year=1.0)
    assert verdict.state == state
    own = found(verdict, "temperature").threshold or 0
    assert own > (found(verdict_on(window(), days), "temperature").threshold or 0)
    assert mentions(verdict.notes[0], "single windows", "0.00068")


@pytest.mark.long
@pytest.mark.parametrize(("reference_rows", "rows"), [(150, 50), (400, 400), (2_000, 200)])
def test_calm_independent_rows_are_rarely_drift(reference_rows, rows):
    rng = np.random.default_rng(0)
    states = []
    for _ in range(60):
        reference = reference_of(independent_rows(rng, reference_rows))
        verdict = verdict_on(independent_rows(rng, rows), reference, independent_rows=True)
        states.append(verdict.state)

    # At a rate of 5 %, the probability of more than eight is below 1 %.
    assert states.count("drift") <= 8
    assert states.count("not judged") == 0
