"""Drift and requirements on columns, for whole windows and segments, and with bad
input.
"""

import math
from dataclasses import replace
from datetime import timedelta

import numpy as np
import pyarrow as pa
import pytest

from mlflow_deploy_plugin.core.spec.parts import CaptureSpec
from mlflow_deploy_plugin.serve.inference_log.windows import parse_window
from mlflow_deploy_plugin.watch.drift.sketches.relations import RELATIONS
from mlflow_deploy_plugin.watch.kinds import drift
from mlflow_deploy_plugin.watch.kinds.drift import SKETCHES
from mlflow_deploy_plugin.watch.sequential.evidence import (
    ROWS_KEY,
    Evidence,
    JudgedWindow,
    LevelSeries,
)
from tests.support.cases import long_case
from tests.support.inference_log import ENDPOINT, event_table
from tests.support.random_rows import normal_rows
from tests.support.refusals import mentions
from tests.watch.drift.sketches.test_sketch import read_profile
from tests.watch.kinds.conftest import finding

from .conftest import CLASSIFIER, DAY

REFERENCE_DAYS = 21
ROWS = 240


def day(seed, rows=ROWS, **others):
    """Return rows with a temperature that is shared by the day."""
    rng = np.random.default_rng(seed)
    temperature = rng.normal(rng.normal(0, 0.5), 1, rows)
    temperature[rng.random(rows) < 0.05] = np.nan
    columns = {
        "temp": temperature,
        "noise": rng.normal(size=rows),
        "carrier": rng.choice(["UA", "AA", "DL"], rows).astype(object),
        "prediction": (rng.random(rows) < 0.3).astype(np.int64),
    }
    return {**columns, **others}


def times(start, rows):
    return [start + timedelta(seconds=86_400 * row // rows) for row in range(rows)]


@pytest.fixture(scope="module")
def reference():
    first = DAY - timedelta(days=REFERENCE_DAYS + 10)
    days = [
        event_table({"_event_time": times(first + timedelta(days=number), ROWS), **day(number)})
        for number in range(REFERENCE_DAYS)
    ]
    return pa.concat_tables(days)


@pytest.fixture
def ask(endpoint, reference):
    """Judge one day with these rows."""
    endpoint.serve(CLASSIFIER, reference)

    def asked(rows, withheld=None, accuracy=None, **spec):
        if len(next(iter(rows.values()))):
            endpoint.answer(rows)
        request = endpoint.ask(**{"min_rows": 100, **spec})
        return drift.judge(replace(request, capture=withheld or CaptureSpec(), accuracy=accuracy))

    return asked


def test_shifted_day_is_drift(ask):
    accuracy = LevelSeries("accuracy, from labels", (DAY,), (0.8,))

    calm = ask(day(100), accuracy=accuracy)
    shifted = ask(day(101, temp=np.random.default_rng(1).normal(6, 1, ROWS)), accuracy=accuracy)

    assert (calm.state, calm.rows, calm.report.levels) == ("no drift", ROWS, ())
    assert calm.evidence.levels[ROWS_KEY] == pytest.approx(math.log(ROWS))
    assert shifted.state == "drift"
    assert finding(shifted, "temp", "distribution").is_alarm
    assert not finding(shifted, "noise", "distribution").is_alarm
    titles = [series.title for series in shifted.report.levels]
    assert titles == ["temp, mean", "accuracy, from labels"]
    drawn = {left.name for left, _ in shifted.report.pairs}
    assert drawn == {"temp", "noise", "carrier", "prediction"}
    assert read_profile(shifted.report.artifacts[SKETCHES]).rows == 2 * ROWS


def test_frozen_and_repeated_rows_are_described(ask, endpoint):
    rows = day(101)
    rows["temp"] = np.where(np.arange(ROWS) % 4, rows["temp"], 21.37)
    basis = ask(rows).evidence.basis
    usual = Evidence(basis, {ROWS_KEY: math.log(ROWS)})
    past = [JudgedWindow(DAY - timedelta(days=day), "no drift", usual) for day in range(8, 0, -1)]
    endpoint.answer(rows)

    judged = drift.judge(replace(endpoint.ask(min_rows=100), past=past))

    changes = [alarm.change for alarm in judged.findings if alarm.is_alarm]
    assert "100% of the rows twice or more; rows 240 → 480, more" in changes
    assert any(change.startswith("frozen at 21.37 in 25% of the rows; ") for change in changes)


def test_vector_column_is_selected_with_its_parts(ask, endpoint, reference):
    embeddings = normal_rows(len(reference), 16)
    endpoint.serve(CLASSIFIER, reference.append_column("embedding", pa.array(embeddings.tolist())))

    judged = ask(day(100, embedding=embeddings[:ROWS].tolist()), columns=["embedding"])

    assert judged.state == "no drift"
    parts = ["mean", "std", *(f"projection.{number}" for number in range(8))]
    subjects = {outcome.subject for outcome in judged.findings}
    assert subjects == {RELATIONS, *(f"embedding.{part}" for part in parts)}


@pytest.mark.parametrize("segment", [long_case(""), "carrier=UA"])
def test_changed_relation_names_two_columns(ask, segment):
    rows = day(100)
    centred = rows["temp"] - np.nanmean(rows["temp"])
    is_changed = ~np.isnan(centred) & ((rows["carrier"] == "UA") | (segment == ""))
    rows["noise"] = np.where(is_changed, centred, rows["noise"])

    judged = ask(rows, segment_by=["carrier"], min_rows=50, false_alarm_rate=0.2)

    assert judged.state == "drift"
    alarm = next(outcome for outcome in judged.findings if outcome.segment == segment)
    assert (alarm.subject, alarm.state) == (RELATIONS, "drift")
    assert mentions(alarm.change, "correlation", "temp", "noise", "→")
    assert RELATIONS not in {left.name for left, _ in judged.report.pairs}
    stored = read_profile(judged.report.artifacts[SKETCHES]).columns
    assert stored.keys() == {"temp", "noise", "carrier", "prediction"}


def test_withheld_columns_are_not_judged(ask):
    hashes = np.array([f"h{number:064x}" for number in range(ROWS)], dtype=object)
    rows = day(102, carrier=hashes, customer_id=np.arange(ROWS))
    del rows["temp"]
    withheld = CaptureSpec(drop=("temp",), mask=("carrier",), keys=("customer_id",))

    judged = ask(rows, withheld)

    assert judged.state == "no drift"
    for name, field in (("temp", "drop"), ("carrier", "mask"), ("customer_id", "keys")):
        assert finding(judged, name).state == "not judged"
        assert mentions(finding(judged, name).reason, f"capture.{field}")
    assert {left.name for left, _ in judged.report.pairs} == {"noise", "prediction"}


def test_masked_columns_form_no_segments(ask):
    hashed = day(
        100, carrier=np.array([f"{number % 2:032x}" for number in range(ROWS)], dtype=object)
    )

    judged = ask(hashed, withheld=CaptureSpec(mask=("carrier",)), segment_by=["carrier"])

    assert not any(outcome.segment for outcome in judged.findings)
    assert any(mentions(note, "segments", "carrier", "capture.mask") for note in judged.notes)


def test_withheld_output_is_the_prediction(ask):
    rows = day(100)
    del rows["prediction"]

    judged = ask(rows, withheld=CaptureSpec(drop=("output.label",)))

    assert judged.state == "no drift"
    assert mentions(finding(judged, "prediction").reason, "capture.drop")


def test_requirement_skips_withheld_columns(ask):
    rows = day(100)
    del rows["temp"]
    withheld = CaptureSpec(drop=("temp",), mask=("carrier",))

    judged = ask(rows, withheld, require="missing<=0.05")
    required = ask({"temp": []}, withheld, require="missing(temp)<=0.05")

    assert judged.state == "no drift"
    assert {outcome.subject for outcome in judged.findings if outcome.check == "criterion"} <= {
        "missing(noise)",
        "missing(prediction)",
    }
    assert mentions(finding(required, "missing(temp)").reason, "capture.drop")
    assert required.state == "not judged"


def test_window_without_columns_is_not_judged(ask):
    judged = ask(day(100), withheld=CaptureSpec(mask=("temp", "carrier", "noise", "prediction")))

    assert judged.state == "not judged"
    assert {outcome.state for outcome in judged.findings} == {"not judged"}
    assert judged.reason.startswith("no column is left to judge: capture.drop, capture.mask")


@pytest.mark.parametrize("columns", [["prediction"], ["prediction", "output"]])
def test_only_the_named_predictions_are_judged(ask, columns):
    judged = ask(day(101, prediction=np.ones(ROWS, np.int64)), columns=columns)
    assert judged.state == "drift"
    assert {outcome.subject for outcome in judged.findings} == {"prediction"}


def test_drift_of_a_segment_is_found(ask):
    columns = day(100, rows=480)
    only = columns["carrier"] == "UA"
    columns["noise"][only] += 4

    judged = ask(columns, segment_by=["carrier", "gate"], min_rows=60)

    assert judged.state == "drift"
    assert finding(judged, "noise", "distribution", "carrier=UA").is_alarm
    assert not finding(judged, "noise", "distribution", "carrier=AA").is_alarm
    assert any(mentions(note, "segments", "'gate'") for note in judged.notes)


@pytest.mark.parametrize("left", [long_case(0), 7])
def test_lost_rows_of_a_segment_are_found(endpoint, reference, left):
    endpoint.serve(CLASSIFIER, reference)
    request = endpoint.ask(segment_by=["carrier"], min_rows=30)
    endpoint.answer(day(60), DAY - timedelta(days=1))
    calm = drift.judge(replace(request, window=parse_window("2013-03-31/1d")))
    past = [
        JudgedWindow(DAY - timedelta(days=number), calm.state, calm.evidence)
        for number in range(8, 0, -1)
    ]
    columns = day(68)
    is_lost = columns["carrier"] == "UA"
    is_lost[np.flatnonzero(is_lost)[:left]] = False
    endpoint.answer({name: values[~is_lost] for name, values in columns.items()})

    judged = drift.judge(replace(request, past=tuple(past)))

    alarm = finding(judged, "number of rows", "rows", "carrier=UA")
    assert alarm.is_alarm
    assert alarm.change.endswith(f"→ {left}, fewer")
    assert not any("number of rows" in name for name in calm.evidence.alarms)
    assert not finding(judged, "number of rows", "rows", "carrier=AA").is_alarm
    others = [item for item in judged.findings if item.segment == "carrier=UA" and item != alarm]
    assert {item.state for item in others} <= {"not judged"}


def test_quality_requirements_are_judged(ask):
    temperature = normal_rows(ROWS, seed=5)
    temperature[:120] = np.nan

    judged = ask(
        day(100, temp=temperature),
        require=[
            "missing<=0.1",
            "missing(noise)<=0.01",
            "unseen(carrier)<=1%",
            "out_of_range<=0.2",
            "missing(x)<=0.5",
        ],
    )

    assert judged.state == "violated"
    assert mentions(judged.reason, "missing(temp)", "240 rows", "since 1 April 2013")
    assert finding(judged, "missing(temp)").value == 0.5
    states = {"temp": "violated", "noise": "kept", "x": "not judged"}
    for column, state in states.items():
        assert finding(judged, f"missing({column})").state == state
    assert finding(judged, "unseen(carrier)").state == "kept"
    assert finding(judged, "temp", "missing").is_alarm


@pytest.mark.parametrize(
    ("fraction", "required", "request_rows", "state"),
    [
        (1.0, "missing(temp)<=0.48", 1, "violated"),
        (0.1, "missing(temp)<=0.48", 1, "cannot tell"),
        (0.9, "missing(temp)<=0.4", 1, "violated"),
        (0.1, "missing(temp)<=0.6", 1, "kept"),
        (0.1, "missing(temp)<=0.6", 60, "cannot tell"),
    ],
)
def test_requirement_on_a_sample_has_an_interval(endpoint, fraction, required, request_rows, state):
    temperature = np.where(np.arange(ROWS) < ROWS // 2, np.nan, 0.0)
    endpoint.serve(CLASSIFIER)
    row = np.arange(ROWS, dtype=np.int32) % request_rows
    endpoint.answer(day(100, temp=temperature, _row=row))
    request = endpoint.ask(min_rows=100, require=[required])

    judged = drift.judge(replace(request, capture=CaptureSpec(fraction=fraction)))

    (criterion,) = [outcome for outcome in judged.findings if outcome.check == "criterion"]
    assert (judged.state, criterion.state, criterion.value) == (state, state, 0.5)
    assert ("a sample, " in criterion.reason) == (fraction < 1)


def test_missing_values_need_no_reference(endpoint):
    endpoint.serve(CLASSIFIER)
    endpoint.answer(day(100))

    judged = drift.judge(endpoint.ask(min_rows=100, require=["missing<=0.2", "unseen<=0.1"]))

    assert finding(judged, "missing(temp)").state == "kept"
    assert finding(judged, "unseen").state == "not judged"
    assert "has no reference" in finding(judged, "unseen").reason


def test_requirement_shows_the_reference_value(ask):
    columns = day(100)
    columns["carrier"][:60] = "ZZ"
    columns["noise"][:30] = 99.0

    judged = ask(columns, require=["unseen<=0.1", "out_of_range<=0.1", "missing(noise)<=1"])

    for subject, change, word in (
        ("unseen(carrier)", "→ 25.0%", "more"),
        ("out_of_range(noise)", "→ 12.5%", "more"),
        ("missing(noise)", "→ 0.0%", "unchanged"),
    ):
        assert mentions(finding(judged, subject).change, "0.0% (the reference)", change, word)


def past_days(rows):
    """Return the days before DAY, one letter each: `r` with 460 rows, `-` without rows,
    `!` without rows as an alarm.
    """
    evidence = {
        "r": Evidence("bins", {ROWS_KEY: math.log(460)}),
        "-": Evidence(),
        "!": Evidence(alarms=(ROWS_KEY.column,)),
    }
    states = {"r": "no drift", "-": "not judged", "!": "drift"}
    return [
        JudgedWindow(DAY - timedelta(days=len(rows) - number), states[day], evidence[day])
        for number, day in enumerate(rows)
    ]


@pytest.mark.parametrize(
    ("past", "season", "since", "in_a_row"),
    [
        ("rrrrrrr", None, 0, 1),
        ("rrrrr--rrrrr--", "7d", 0, 1),  # DAY is a Monday.
        ("rrrrrrr!!", None, 2, 3),
        ("-" + 29 * "r", None, 0, 1),
        ("------" + 30 * "r", None, 0, 1),
    ],
)
def test_day_without_usual_rows_is_drift(endpoint, past, season, since, in_a_row):
    request = replace(endpoint.ask(season=season), past=past_days(past))

    judged = drift.judge(request)

    assert judged.state == "drift"
    alarm = finding(judged, "number of rows", "rows")
    assert alarm.change == "rows 460 → 0, fewer"
    assert alarm.since == (DAY - timedelta(days=since)).isoformat()
    assert alarm.in_a_row == in_a_row
    assert (judged.rows, judged.evidence.alarms) == (0, ("number of rows",))


@pytest.mark.parametrize(
    ("past", "spec", "reason"),
    [
        ("rrrrrr", {}, "fewer than 7 earlier windows are known"),
        ("-" * 12, {}, "0 of 12 earlier windows"),
        ("rrrrr--" * 4, {}, "20 of 28 earlier windows, one per 1d"),
        ("--rrrrr" * 4, {"season": "7d"}, "0 of 4 earlier windows, one per 7d"),
    ],
)
def test_usual_day_without_rows_is_not_judged(endpoint, past, spec, reason):
    request = replace(endpoint.ask(**spec), past=past_days(past))

    judged = drift.judge(request)

    assert judged.state == "not judged"
    assert mentions(judged.reason, reason)


def test_day_with_unreadable_file_is_not_judged(endpoint):
    folder = endpoint.log_folder / f"endpoint={ENDPOINT}" / "date=2013-04-01" / "hour=02"
    folder.mkdir(parents=True)
    (folder / "broken.parquet").write_bytes(b"PAR1 this is no Parquet PAR1")

    judged = drift.judge(replace(endpoint.ask(), past=past_days("rrrrrrr")))

    assert judged.state == "not judged"


@pytest.mark.parametrize(
    "given", ["training", "dataset:/nowhere.parquet", "window:2012-01-01/2012-02-01", "rolling:7d"]
)
def test_columns_without_a_reference_are_not_judged(endpoint, given):
    endpoint.serve(CLASSIFIER)
    endpoint.answer(day(100))

    judged = drift.judge(endpoint.ask(min_rows=100, reference=given))

    assert judged.state == "not judged"
    assert judged.reason
    assert {outcome.state for outcome in judged.findings} == {"not judged"}
    assert "prediction" in {outcome.subject for outcome in judged.findings}


def test_rows_of_another_version_are_excluded(ask, endpoint):
    endpoint.answer(day(100, rows=120, temp=np.full(120, 50.0)), version="2")

    judged = ask(day(101))

    assert judged.version == "1"
    assert judged.state == "no drift"
    assert any(mentions(note, "120 rows", "flight-delay version 2") for note in judged.notes)


@pytest.mark.parametrize("limits", [{"READ_ROWS": 80}, {"READ_ROWS": 800, "_FULL_COLUMNS": 0.5}])
def test_report_samples_a_large_or_wide_window(ask, endpoint, monkeypatch, limits):
    for name, limit in limits.items():
        monkeypatch.setattr(drift, name, limit)

    judged = ask(day(100))

    assert judged.rows == ROWS
    assert {len(right.values) for _, right in judged.report.pairs} == {80}  # one of three hours
