"""Drift and requirements on columns, for whole windows and segments, and with bad
input.
"""

import math
import re
from dataclasses import replace
from datetime import timedelta

import numpy as np
import pyarrow as pa
import pytest

from mlflow_deploy_plugin.core.spec.parts import CaptureSpec
from mlflow_deploy_plugin.serve.inference_log.log_reader import open_log
from mlflow_deploy_plugin.watch.drift.sketches.hourly import profile_from_parquet
from mlflow_deploy_plugin.watch.drift.sketches.relations import RELATIONS
from mlflow_deploy_plugin.watch.kinds import drift
from mlflow_deploy_plugin.watch.kinds.drift import SKETCHES
from mlflow_deploy_plugin.watch.result import MonitorResult
from mlflow_deploy_plugin.watch.sequential.evidence import (
    ROWS_KEY,
    Evidence,
    JudgedWindow,
    LevelSeries,
)
from tests.support.inference_log import ENDPOINT, event_table
from tests.support.random_rows import normal_rows
from tests.support.refusals import mentions
from tests.watch.kinds.conftest import finding

from .conftest import CLASSIFIER, DAY

REFERENCE_DAYS = 40
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


def states(judged):
    return {(outcome.subject, outcome.check): outcome.state for outcome in judged.findings}


def test_a_calm_day_is_none_and_a_shifted_one_is_with_rows_for_the_report(ask, endpoint):
    calm = ask(day(100))
    shifted = ask(day(101, temp=np.random.default_rng(1).normal(6, 1, ROWS)))

    assert calm.state == "no drift"
    assert calm.rows == ROWS
    assert calm.evidence.levels[ROWS_KEY] == pytest.approx(math.log(ROWS))
    assert shifted.state == "drift"
    assert finding(shifted, "temp", "distribution").is_alarm
    assert not finding(shifted, "noise", "distribution").is_alarm
    assert {left.name for left, _ in shifted.report.pairs} == {
        "temp",
        "noise",
        "carrier",
        "prediction",
    }
    assert profile_from_parquet(shifted.report.artifacts[SKETCHES]).rows == 2 * ROWS


def test_a_day_with_an_alarm_has_the_level_of_the_column_and_then_the_accuracy_of_the_model(ask):
    accuracy = LevelSeries("accuracy, from labels", (DAY,), (0.8,))

    calm = ask(day(100), accuracy=accuracy)
    shifted = ask(day(101, temp=np.random.default_rng(1).normal(6, 1, ROWS)), accuracy=accuracy)

    assert calm.report.levels == ()
    assert [series.title for series in shifted.report.levels] == [
        "temp, mean",
        "accuracy, from labels",
    ]


def test_only_the_named_columns_are_judged(ask):
    judged = ask(day(100, temp=np.full(ROWS, 50.0)), columns=["noise", "carrier"])

    assert judged.state == "no drift"
    assert {outcome.subject for outcome in judged.findings} == {"noise", "carrier", RELATIONS}


def test_a_column_is_named_with_its_parts(ask, endpoint, reference):
    embeddings = normal_rows(len(reference), 16)
    endpoint.serve(CLASSIFIER, reference.append_column("embedding", pa.array(embeddings.tolist())))

    judged = ask(day(100, embedding=embeddings[:ROWS].tolist()), columns=["embedding"])

    assert judged.state == "no drift"
    projections = {f"embedding.projection.{number}" for number in range(8)}
    assert {outcome.subject for outcome in judged.findings} == {
        "embedding.mean",
        "embedding.std",
        RELATIONS,
        *projections,
    }


@pytest.mark.parametrize("segment", ["", "UA"])
def test_a_change_of_only_the_relations_names_two_columns(ask, segment):
    rows = day(100)
    centred = rows["temp"] - np.nanmean(rows["temp"])
    centred = np.where(np.isnan(centred), rows["noise"], centred)
    rows["noise"] = (
        np.where(rows["carrier"] == segment, centred, rows["noise"]) if segment else centred
    )

    judged = ask(rows, segment_by=["carrier"], min_rows=50, false_alarm_rate=0.2)

    assert judged.state == "drift"
    assert judged.findings[0].subject == RELATIONS
    alarm = next(
        outcome
        for outcome in judged.findings
        if outcome.segment == (f"carrier={segment}" if segment else "")
    )
    assert alarm.subject == RELATIONS
    assert alarm.state == "drift"
    assert mentions(alarm.change, "correlation", "temp", "noise", "→")
    assert RELATIONS not in {left.name for left, _ in judged.report.pairs}
    stored = profile_from_parquet(judged.report.artifacts[SKETCHES]).columns
    assert stored.keys() == {"temp", "noise", "carrier", "prediction"}


def test_columns_withheld_from_the_log_are_not_judged_as_drift(ask):
    hashed = day(102, carrier=np.array([f"h{number:064x}" for number in range(ROWS)], dtype=object))
    del hashed["temp"]

    judged = ask(hashed, CaptureSpec(drop=("temp",), mask=("carrier",)))

    assert judged.state == "no drift"
    assert mentions(finding(judged, "temp").reason, "capture.drop")
    assert mentions(finding(judged, "carrier").reason, "capture.mask", "hashes")
    assert {finding(judged, name).state for name in ("temp", "carrier")} == {"not judged"}
    assert {left.name for left, _ in judged.report.pairs} == {"noise", "prediction"}


def test_a_key_is_not_judged_though_each_row_has_another_one(ask):
    judged = ask(day(100, customer_id=np.arange(ROWS)), CaptureSpec(keys=("customer_id",)))

    assert judged.state == "no drift"
    assert finding(judged, "customer_id").state == "not judged"
    assert "capture.keys" in finding(judged, "customer_id").reason


def test_segments_of_hashes_are_no_segments_of_training_rows(ask):
    hashed = day(
        100, carrier=np.array([f"{number % 2:032x}" for number in range(ROWS)], dtype=object)
    )

    judged = ask(hashed, withheld=CaptureSpec(mask=("carrier",)), segment_by=["carrier"])

    assert not any(outcome.segment for outcome in judged.findings)
    assert any(mentions(note, "segments", "carrier", "capture.mask") for note in judged.notes)


def test_the_only_answer_is_withheld_under_either_name(ask):
    rows = day(100)
    del rows["prediction"]

    judged = ask(rows, withheld=CaptureSpec(drop=("output.label",)))

    assert judged.state == "no drift"
    assert mentions(finding(judged, "prediction").reason, "capture.drop")


def test_a_requirement_speaks_of_the_columns_that_the_log_holds(ask):
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


def test_window_with_all_columns_withheld_is_not_judged(ask):
    judged = ask(day(100), withheld=CaptureSpec(mask=("temp", "carrier", "noise", "prediction")))

    assert judged.state == "not judged"
    assert {outcome.state for outcome in judged.findings} == {"not judged"}
    assert judged.reason.startswith("no column is left to judge: capture.drop, capture.mask")


@pytest.mark.parametrize("columns", [["prediction"], ["prediction", "output"]])
def test_drift_of_predictions_alone_is_judged_by_their_columns(ask, columns):
    warm = day(100, temp=np.full(ROWS, 50.0))

    assert ask(warm, columns=columns).state == "no drift"
    judged = ask(day(101, prediction=np.ones(ROWS, np.int64)), columns=columns)
    assert judged.state == "drift"
    assert {outcome.subject for outcome in judged.findings} == {"prediction"}


def test_segments_reveal_a_drift_hidden_in_all_rows(ask):
    columns = day(100, rows=480)
    only = columns["carrier"] == "UA"
    columns["noise"][only] += 4

    judged = ask(columns, segment_by=["carrier", "gate"], min_rows=60)

    assert judged.state == "drift"
    assert finding(judged, "noise", "distribution", "carrier=UA").is_alarm
    assert not finding(judged, "noise", "distribution", "carrier=AA").is_alarm
    assert any(mentions(note, "segments", "'gate'") for note in judged.notes)


@pytest.mark.parametrize("left", [0, 7])
def test_rows_of_a_segment_are_judged_whatever_its_size(endpoint, reference, left):
    endpoint.serve(CLASSIFIER, reference)
    past: list[JudgedWindow] = []
    results: list[MonitorResult] = []
    for number in range(9):
        start = DAY - timedelta(days=8 - number)
        columns = day(60 + number)
        is_kept = columns["carrier"] != "UA"
        lost = np.flatnonzero(~is_kept)
        is_kept[lost[: left if start == DAY else None]] = True
        endpoint.answer({name: values[is_kept] for name, values in columns.items()}, start)
        request = endpoint.ask(f"{start:%Y-%m-%d}/1d", segment_by=["carrier"], min_rows=30)
        results.append(drift.judge(replace(request, past=tuple(past))))
        past.append(JudgedWindow(start, results[-1].state, results[-1].evidence))

    before, last = results[-2:]
    alarm = finding(last, "number of rows", "rows", "carrier=UA")
    assert alarm.is_alarm
    assert alarm.change.endswith(f"→ {left}, fewer")
    assert not finding(before, "number of rows", "rows", "carrier=UA").is_alarm
    assert not finding(last, "number of rows", "rows", "carrier=AA").is_alarm


def test_quality_is_judged_by_the_reference_and_the_requirements(ask):
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
    assert judged.reason.startswith(
        "missing(temp): 4.9% (the reference) → 50.0%, more; 50.00% of 240 rows"
    )
    assert "; since 1 April 2013" in judged.reason
    assert finding(judged, "missing(temp)").value == 0.5
    assert finding(judged, "missing(temp)").state == "violated"
    assert finding(judged, "missing(noise)").state == "kept"
    assert finding(judged, "unseen(carrier)").state == "kept"
    assert finding(judged, "missing(x)").state == "not judged"
    assert finding(judged, "temp", "missing").is_alarm


@pytest.mark.parametrize(
    ("fraction", "required", "state"),
    [
        (1.0, "missing(temp)<=0.48", "violated"),
        (0.1, "missing(temp)<=0.48", "cannot tell"),
        (0.1, "missing(temp)<=0.52", "cannot tell"),
        (0.9, "missing(temp)<=0.4", "violated"),
        (0.1, "missing(temp)<=0.6", "kept"),
    ],
)
def test_the_share_of_a_sample_has_an_interval(endpoint, fraction, required, state):
    temperature = np.zeros(ROWS)
    temperature[: ROWS // 2] = np.nan
    endpoint.serve(CLASSIFIER)
    endpoint.answer(day(100, temp=temperature))
    request = endpoint.ask(min_rows=100, require=[required])

    judged = drift.judge(replace(request, capture=CaptureSpec(fraction=fraction)))

    assert judged.state == state
    (criterion,) = [outcome for outcome in judged.findings if outcome.check == "criterion"]
    assert criterion.state == state
    assert criterion.value == 0.5
    assert ("a sample, " in criterion.reason) == (fraction < 1)


def test_rows_of_one_request_of_a_sample_count_as_one(endpoint):
    temperature = np.zeros(ROWS)
    temperature[: ROWS // 2] = np.nan
    endpoint.serve(CLASSIFIER)
    endpoint.answer(day(100, temp=temperature, _row=np.arange(ROWS, dtype=np.int32) % (ROWS // 4)))
    request = endpoint.ask(min_rows=100, require=["missing(temp)<=0.6"])

    judged = drift.judge(replace(request, capture=CaptureSpec(fraction=0.1)))

    assert judged.state == "cannot tell"


def test_quality_requirements_on_rows_alone_need_no_reference(endpoint):
    endpoint.serve(CLASSIFIER)
    endpoint.answer(day(100))

    judged = drift.judge(endpoint.ask(min_rows=100, require=["missing<=0.2", "unseen<=0.1"]))

    assert finding(judged, "missing(temp)").state == "kept"
    assert finding(judged, "unseen").state == "not judged"
    assert "has no reference" in finding(judged, "unseen").reason


def test_violated_column_shows_its_value_in_the_reference(ask):
    columns = day(100)
    columns["temp"][: ROWS // 2] = np.nan
    columns["carrier"][:60] = "ZZ"
    columns["noise"][:30] = 99.0

    judged = ask(
        columns, require=["missing<=0.2", "unseen<=0.1", "out_of_range<=0.1", "missing(noise)<=1"]
    )

    assert re.fullmatch(
        r"[45]\.\d% \(the reference\) → 5\d\.\d%, more", finding(judged, "missing(temp)").change
    )
    for subject, change, word in (
        ("unseen(carrier)", "→ 25.0%", "more"),
        ("out_of_range(noise)", "→ 12.5%", "more"),
        ("missing(noise)", "→ 0.0%", "unchanged"),
    ):
        assert mentions(finding(judged, subject).change, "0.0%", change, word)


def test_missing_column_is_drift(ask):
    columns = day(100)
    del columns["prediction"]

    judged = ask(columns)

    assert judged.state == "drift"
    assert states(judged)["prediction", "presence"] == "drift"


def test_column_of_another_type_is_drift(ask):
    columns = day(100, prediction=np.array(["late"] * ROWS, dtype=object))

    judged = ask(columns)

    assert judged.state == "drift"
    assert states(judged)["prediction", "type"] == "drift"


def test_columns_without_any_value_are_drift(ask):
    judged = ask({name: [None] * ROWS for name in day(0)})

    assert judged.state == "drift"
    assert states(judged)["prediction", "missing"] == "drift"


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
def test_a_day_without_rows_is_drift_where_rows_are_usual(endpoint, past, season, since, in_a_row):
    request = replace(endpoint.ask(season=season), past=past_days(past))

    judged = drift.judge(request)

    assert judged.state == "drift"
    alarm = finding(judged, "number of rows", "rows")
    assert alarm.change == "rows 460 → 0, fewer"
    assert alarm.since == (DAY - timedelta(days=since)).isoformat()
    assert alarm.in_a_row == in_a_row
    assert judged.evidence.alarms == ("number of rows",)
    assert judged.rows == 0


@pytest.mark.parametrize(
    ("past", "spec", "reason"),
    [
        ("rrrrrr", {}, "fewer than 7 earlier windows are known"),
        ("-" * 12, {}, "0 of 12 earlier windows"),
        ("rrrrr--" * 4, {}, "20 of 28 earlier windows, one per 1d"),
        ("--rrrrr" * 4, {"season": "7d"}, "0 of 4 earlier windows, one per 7d"),
    ],
)
def test_a_day_without_rows_is_not_judged_where_this_may_be_usual(endpoint, past, spec, reason):
    request = replace(endpoint.ask(**spec), past=past_days(past))

    judged = drift.judge(request)

    assert judged.state == "not judged"
    assert mentions(judged.reason, reason)


def test_days_below_min_rows_show_that_rows_are_usual(endpoint):
    past: list[JudgedWindow] = []
    for number in range(7):
        start = DAY - timedelta(days=7 - number)
        endpoint.answer(day(number, rows=20), start)
        judged = drift.judge(replace(endpoint.ask(f"{start:%Y-%m-%d}/1d"), past=tuple(past)))
        past.append(JudgedWindow(start, judged.state, judged.evidence))

    judged = drift.judge(replace(endpoint.ask(), past=tuple(past)))

    assert past[-1].state == "not judged"
    assert finding(judged, "number of rows", "rows").change == "rows 20 → 0, fewer"


def test_an_unreadable_file_may_have_the_rows_of_a_day(endpoint):
    folder = endpoint.log_folder / f"endpoint={ENDPOINT}" / "date=2013-04-01" / "hour=02"
    folder.mkdir(parents=True)
    (folder / "broken.parquet").write_bytes(b"PAR1 this is no Parquet PAR1")

    judged = drift.judge(replace(endpoint.ask(), past=past_days("rrrrrrr")))

    assert judged.state == "not judged"


@pytest.mark.parametrize("rows", [0, 1])
def test_no_row_and_one_row_are_not_judged(ask, rows):
    judged = ask(day(100, rows=rows))

    assert judged.state == "not judged"
    assert judged.reason.startswith(
        "the window has 1 rows; min_rows is 100" if rows else "the window has no rows"
    )


@pytest.mark.parametrize(
    "given", ["training", "dataset:/nowhere.parquet", "window:2012-01-01/2012-02-01", "rolling:7d"]
)
def test_without_a_reference_every_column_says_so(endpoint, given):
    endpoint.serve(CLASSIFIER)
    endpoint.answer(day(100))

    judged = drift.judge(endpoint.ask(min_rows=100, reference=given))

    assert judged.state == "not judged"
    assert judged.reason
    assert {outcome.state for outcome in judged.findings} == {"not judged"}
    assert "prediction" in {outcome.subject for outcome in judged.findings}


def test_a_corrupt_file_of_the_log_is_passed_over_and_named(ask, endpoint):
    ask(day(100))
    folder = endpoint.log_folder / f"endpoint={ENDPOINT}" / "date=2013-04-01" / "hour=02"
    (folder / "broken.parquet").write_bytes(b"PAR1 this is no Parquet PAR1")

    judged = drift.judge(endpoint.ask(min_rows=100))

    assert judged.state == "no drift"
    assert judged.rows == ROWS
    assert any(mentions(note, "broken.parquet") for note in judged.notes)


@pytest.mark.long
def test_a_hundred_thousand_different_texts_are_judged(ask):
    rows = 100_000
    columns = day(
        100, rows=rows, carrier=np.array([f"carrier {row}" for row in range(rows)], dtype=object)
    )

    judged = ask(columns, require=["unseen(carrier)<=0.1"])

    assert finding(judged, "unseen(carrier)").value == 1
    assert finding(judged, "carrier", "unseen").is_alarm


@pytest.mark.long
def test_a_thousand_columns_are_judged(endpoint):
    rng = np.random.default_rng(0)
    names = [f"x{number}" for number in range(1_000)]
    first = DAY - timedelta(days=60)
    rows = 50 * 50
    numbers = rng.normal(size=(rows, len(names)))
    moments = [first + timedelta(days=row // 50, seconds=row % 50) for row in range(rows)]
    endpoint.serve(
        CLASSIFIER,
        event_table({"_event_time": moments, **dict(zip(names, numbers.T, strict=True))}),
    )
    window = rng.normal(size=(100, len(names)))
    window[:, 7] += 5
    endpoint.answer(dict(zip(names, window.T, strict=True)))

    judged = drift.judge(endpoint.ask(min_rows=50))

    assert judged.state == "drift"
    assert judged.findings[0].subject == "x7"
    assert {outcome.subject for outcome in judged.findings} == {*names, RELATIONS}


def test_rows_that_another_version_answered_are_left_out(ask, endpoint):
    endpoint.answer(day(100, rows=120, temp=np.full(120, 50.0)), version="2")

    judged = ask(day(101))

    assert judged.version == "1"
    assert judged.state == "no drift"
    assert any(mentions(note, "120 rows", "flight-delay version 2") for note in judged.notes)


def test_a_log_that_is_not_there_has_no_rows(endpoint):
    assert mentions(drift.judge(endpoint.ask()).reason, "no rows")
    assert open_log(endpoint.settings.inference_log).endpoints() == []


def test_of_a_large_window_the_report_shows_the_rows_of_some_hours(ask, endpoint, monkeypatch):
    monkeypatch.setattr(drift, "READ_ROWS", 80)

    judged = ask(day(100))

    assert judged.rows == ROWS
    assert {len(right.values) for _, right in judged.report.pairs} == {80}  # one of three hours


@pytest.mark.long
def test_the_days_before_are_a_reference_by_segment_too(endpoint):
    endpoint.serve(CLASSIFIER)
    for number in range(1, 41):
        endpoint.answer(day(number), DAY - timedelta(days=number))
    columns = day(100)
    columns["noise"][columns["carrier"] == "UA"] += 5
    endpoint.answer(columns)

    judged = drift.judge(
        endpoint.ask(
            reference="rolling:20d", segment_by=["carrier"], min_rows=60, columns=["temp", "noise"]
        )
    )

    assert judged.state == "drift"
    assert finding(judged, "noise", "distribution", "carrier=UA").is_alarm
    assert not finding(judged, "noise", "distribution", "carrier=AA").is_alarm
    assert not finding(judged, "temp", "distribution").is_alarm
