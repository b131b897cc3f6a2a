"""Drift with and without a sign of harm: the estimated accuracy of a served version."""

from dataclasses import replace
from datetime import timedelta

import numpy as np
import pyarrow as pa
import pytest

from mlflow_deploy_plugin.watch.kinds import drift
from mlflow_deploy_plugin.watch.result import to_document
from mlflow_deploy_plugin.watch.sequential.evidence import JudgedWindow
from tests.support.inference_log import event_table
from tests.support.refusals import mentions
from tests.watch.kinds.conftest import CLASSIFIER, DAY, finding
from tests.watch.kinds.test_drift import times

ROWS = 400
REFERENCE_DAYS = 21
UNUSED = {"b": 1.5}
HARD = {"spread": 0.3}


def day(number, b=0.0, spread=1.0, missing=0.0, flipped=0.0):
    """Return rows of a day and their labels by flight: `a` decides the label, and `b`
    does not; `flipped` is the share of labels that contradict `a`.
    """
    rng = np.random.default_rng(number)
    score = rng.normal(0, spread, ROWS)
    chances = 1 / (1 + np.exp(-5 * score))
    truth = rng.random(ROWS) < np.where(rng.random(ROWS) < flipped, 1 - chances, chances)
    flights = np.arange(number * ROWS, (number + 1) * ROWS)
    columns = {
        "flight": flights,
        "a": score,
        "b": np.where(rng.random(ROWS) < missing, np.nan, rng.normal(b, 1, ROWS)),
        "prediction": (chances >= 0.5).astype(np.int64),
        "output.probabilities": [[1 - chance, chance] for chance in chances],
    }
    return columns, dict(zip(flights.tolist(), truth.astype(int).tolist(), strict=True))


@pytest.fixture
def ask(endpoint):
    """Judge days with these rows, after eight usual days with labels, and return the
    last result.
    """
    first = DAY - timedelta(days=REFERENCE_DAYS)
    tables = []
    for number in range(REFERENCE_DAYS):
        rows, labels = day(number)
        start = first + timedelta(days=number)
        tables.append(event_table({"_event_time": times(start, ROWS), **rows}))
        if number >= REFERENCE_DAYS - 8:
            endpoint.answer(rows, start)
            endpoint.label("flight", labels, f"labels-{number}")
    endpoint.serve(CLASSIFIER, pa.concat_tables(tables).drop(["output.probabilities"]))
    past = []

    def asked(*days, labelled=False, false_per_year=None, **spec):
        for changes in days:
            number = REFERENCE_DAYS + len(past)
            start = DAY + timedelta(days=len(past))
            rows, labels = day(number, **changes)
            endpoint.answer(rows, start)
            request = endpoint.ask(f"{start:%F}/1d", columns="a,b", min_rows=100, **spec)
            request = replace(request, past=tuple(past), false_per_year=false_per_year)
            judged = drift.judge(request)
            past.append(JudgedWindow(start, judged.state, judged.evidence))
            if labelled:
                endpoint.label("flight", labels, f"labels-{number}")
        return judged

    return asked


@pytest.mark.parametrize(
    ("changes", "spec", "state", "words"),
    [
        (UNUSED, {}, "changed", "accuracy is probably unchanged"),
        (UNUSED, {"alert_on": "change"}, "drift", "accuracy is probably unchanged"),
        (UNUSED, {"retrain": {"project": "."}}, "drift", "accuracy is probably unchanged"),
        (HARD, {}, "drift", "accuracy probably fell to 0.723"),
        ({"missing": 0.5}, {}, "drift", "accuracy is probably unchanged"),
        ({"b": 99.0}, {}, "drift", "accuracy is probably unchanged"),
    ],
    ids=[
        "harmless",
        "alert on change",
        "retrain",
        "harder rows",
        "missing",
        "other unit",
    ],
)
def test_drift_without_harm_is_a_change(ask, changes, spec, state, words):
    judged = ask(changes, **spec)

    assert (judged.state, judged.figures["is_drift"]) == (state, float(state == "drift"))
    assert judged.reason.startswith(judged.estimate)
    assert mentions(judged.estimate, words, "changed relation between inputs and label")
    low, high = (judged.figures[f"estimated/accuracy_{end}"] for end in ("low", "high"))
    assert low < judged.figures["estimated/accuracy"] < high
    assert (high < judged.figures["estimated/accuracy_before"]) == (changes == HARD)
    assert to_document(judged)["estimate"] == judged.estimate


def test_harm_is_measured_from_before_the_shift(ask):
    """A shift without harm is `changed` for weeks. After the labels contradict the
    model, the estimate follows them, and is compared with the days before the shift.
    """
    judged = ask(*[UNUSED] * 3, labelled=True, false_per_year=1.0)
    assert (judged.state, judged.evidence.alarms) == ("changed", ("b",))
    assert "onnxserve monitor accept" in judged.accept_command

    judged = ask(*[UNUSED | {"flipped": 0.5}] * 9, labelled=True, false_per_year=1.0)

    assert judged.state == "drift"
    assert mentions(judged.estimate, "probably fell to")
    assert judged.figures["estimated/accuracy_before"] > 0.85
    assert finding(judged, "b", "shift").state == "drift"
