"""Drift with the effect of each column on the predictions of a served version."""

import shutil
from dataclasses import replace
from datetime import timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mlflow_deploy_plugin.core.spec.parts import CaptureSpec
from mlflow_deploy_plugin.watch.kinds import drift
from mlflow_deploy_plugin.watch.result import to_document
from mlflow_deploy_plugin.watch.sequential.evidence import JudgedWindow
from tests.support.classifiers import write_classifier
from tests.support.inference_log import event_table
from tests.support.refusals import mentions
from tests.watch.conftest import serve
from tests.watch.kinds.conftest import DAY, finding
from tests.watch.kinds.test_drift import times

ROWS = 240
REFERENCE_DAYS = 21


def day(seed, **shifts):
    """Return rows whose columns a and b have levels that are shared by the day."""
    rng = np.random.default_rng(seed)
    columns = {}
    for name in ("a", "b"):
        level = rng.normal(shifts.get(name, 0.0), 0.3)
        columns[name] = rng.normal(level, 1, ROWS)
    columns["carrier"] = rng.choice(["UA", "AA"], ROWS).astype(object)
    columns["prediction"] = (columns["a"] > 0).astype(np.int64)
    return columns


@pytest.fixture(scope="module")
def reference():
    first = DAY - timedelta(days=REFERENCE_DAYS)
    days = [
        event_table({"_event_time": times(first + timedelta(days=number), ROWS), **day(number)})
        for number in range(REFERENCE_DAYS)
    ]
    return pa.concat_tables(days)


@pytest.fixture(scope="module")
def served_model(tmp_path_factory, reference):
    """A version that predicts 1 with the probability sigmoid(2 a); b is ignored."""
    columns = {name: reference.column(name) for name in reference.column_names}
    folder = tmp_path_factory.mktemp("effects") / "model"
    return write_classifier(folder, (2.0, 0.0), reference=columns)


@pytest.fixture
def ask(endpoint, served_model):
    """Judge days with these rows, by default without a budget of alarms, and return the
    result of the last day. Later calls judge the days after them.
    """
    serve(endpoint.state_dir, served_model)
    past = []

    def asked(*days, false_per_year=None, min_effect=0.02, capture=None, **spec):
        for rows in days:
            start = DAY + timedelta(days=len(past))
            endpoint.answer(rows, start)
            request = replace(
                endpoint.ask(f"{start:%F}/1d", min_rows=100, **spec),
                false_per_year=false_per_year,
                min_effect=min_effect,
                capture=capture or CaptureSpec(),
                past=tuple(past),
            )
            judged = drift.judge(request)
            past.append(JudgedWindow(start, judged.state, judged.evidence))
        return judged

    return asked


def test_used_column_is_an_alarm(ask):
    judged = ask(day(100, a=3.0, b=9.0))

    assert judged.state == "drift"
    used = finding(judged, "a", "distribution")
    assert used.effect == pytest.approx(0.45, abs=0.05)
    assert used.changed_classes == pytest.approx(0.5, abs=0.1)
    assert mentions(judged.reason, "changes the probability of 1 by", "on average")
    ignored = finding(judged, "b", "distribution")
    assert (ignored.state, ignored.effect) == ("no drift", 0.0)


@pytest.mark.long
def test_shift_without_effect_raises_no_alarm(ask):
    days = [day(number, b=3.0) for number in range(100, 103)]

    judged = ask(*days, false_per_year=1.0)

    shift = finding(judged, "b", "shift")
    assert shift.effect == 0
    assert mentions(shift.change, "higher")
    assert {series.column for series in judged.evidence.shifts} == {"b"}
    assert (judged.state, shift.state, shift.since) == ("no drift", "no drift", "")
    assert (judged.figures["is_drift"], judged.evidence.alarms) == (0, ())
    assert mentions(judged.reason, "b", "alarms.min_effect 0.02")
    document: Any = to_document(judged)
    assert "probability of 1" in {entry["effect_unit"] for entry in document["findings"]}


def test_largest_effect_is_first_in_the_reason(ask):
    days = [day(number, b=9.0) for number in range(100, 103)]

    judged = ask(*days, day(103, a=3.0, b=9.0), false_per_year=1.0, min_effect=None)

    alarms = [item.key for item in judged.findings if item.is_alarm]
    assert judged.reason.startswith("a: ")
    assert mentions(judged.reason, "without an effect on the predictions b")
    assert (alarms[0], alarms[-1]) == ("a", "b")
    assert [chart.key for chart in judged.report.levels] == [*dict.fromkeys(alarms)]


def test_effect_of_a_shift_is_averaged(ask):
    days = [day(number, a=2.0) for number in range(100, 103)]
    before = finding(ask(*days, false_per_year=1.0), "a", "shift")

    judged = ask(day(104, a=9.0), false_per_year=1.0)

    shift = finding(judged, "a", "shift")
    today = finding(judged, "a", "distribution").effect
    assert shift.window_effect == judged.evidence.effects["a"] == today
    assert before.effect < shift.effect < today
    assert mentions(shift.effect_text, "on average since the alarm", "in this window")


def test_effect_in_a_segment(ask):
    rows = day(100)
    rows["a"] = np.where(rows["carrier"] == "UA", rows["a"] + 9, rows["a"])

    judged = ask(rows, segment_by=["carrier"])

    in_segment = finding(judged, "a", "distribution", "carrier=UA").effect
    assert in_segment == pytest.approx(0.5, abs=0.1)
    assert finding(judged, "a", "distribution").effect == pytest.approx(in_segment / 2, abs=0.1)


@pytest.mark.parametrize(
    ("capture", "min_effect", "graph", "names"),
    [
        (CaptureSpec(mask=("a",)), 0.02, b"", ("capture.mask", "'a'")),
        (None, 3.0, b"", ("min_effect", "3", "below 1")),
        (None, 0.02, b"not a graph", ("model.onnx",)),
    ],
    ids=["masked", "no probability", "no graph"],
)
def test_unknown_effects_keep_all_alarms(
    ask, endpoint, served_model, tmp_path, capture, min_effect, graph, names
):
    if graph:
        broken = shutil.copytree(served_model, tmp_path / "broken")
        (broken / "model.onnx").write_bytes(graph)
        serve(endpoint.state_dir, broken)

    judged = ask(day(100, b=9.0), min_effect=min_effect, capture=capture)

    assert judged.state == "drift"
    assert finding(judged, "b", "distribution").effect is None
    assert any(mentions(note, "effects are unknown", *names) for note in judged.notes)
