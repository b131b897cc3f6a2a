"""Metrics and complaints over windows: a lasting shift for the worse is a finding."""

from datetime import UTC, datetime, timedelta
from types import MappingProxyType

import numpy as np
import pytest

from mlflow_deploy_plugin.core.settings import load_settings
from mlflow_deploy_plugin.core.spec.monitors import MonitorSpec
from mlflow_deploy_plugin.serve.inference_log.windows import Window
from mlflow_deploy_plugin.watch.result import WindowRequest
from mlflow_deploy_plugin.watch.sequential.evidence import JudgedWindow, SeriesKey
from mlflow_deploy_plugin.watch.sequential.metric_shifts import (
    COMPLAINTS,
    LABEL,
    LABELLED,
    PREDICTED,
    follow_metrics,
)

FIRST = datetime(2026, 4, 1, tzinfo=UTC)
DAY = timedelta(days=1)
ROWS = 460
REDEFINED = {("label 1", "drift"), ("accuracy", "drift")}


class Days:
    """Judges one day after another; each day sees the evidence of the days before."""

    def __init__(self, **spec):
        self.spec = MonitorSpec(kind="performance", require=("accuracy>=0.6",), **spec)
        self.past = []

    def judge(
        self,
        metrics,
        rows=ROWS,
        false_per_year=0.5,
        labels=MappingProxyType({}),
        **context,
    ):
        start = FIRST + len(self.past) * DAY
        request = WindowRequest(
            "flights",
            "hits",
            self.spec,
            Window(start, start + DAY),
            1,
            load_settings(),
            past=tuple(self.past),
            false_per_year=false_per_year,
            **context,
        )
        evidence, findings = follow_metrics(request, metrics, rows, labels)
        self.past.append(JudgedWindow(start, "cannot tell", evidence))
        return evidence, findings

    def judge_calm(self, count, **shares):
        """Judge days with these shares of `ROWS` rows, without a budget."""
        for name, share in shares.items():
            for value in share_of_days(share, count):
                self.judge({name: value}, false_per_year=None)


def share_of_days(share, count, rows=ROWS, seed=0):
    return (np.random.default_rng(seed).binomial(rows, share, count) / rows).tolist()


def days_until_found(days, values, name="accuracy"):
    """Return the number of days until the first finding; 0 without a finding."""
    for day, value in enumerate(values, start=1):
        if days.judge({name: value})[1]:
            return day
    return 0


@pytest.mark.parametrize("before", [20, 45, 99])
def test_lasting_fall_is_found_quickly(before):
    days = Days()
    days.judge_calm(before, accuracy=0.81)

    found = days_until_found(days, share_of_days(0.62, 3, seed=1))
    evidence, (shift,) = days.judge({"accuracy": 0.62})

    start = (FIRST + before * DAY).isoformat()
    assert 1 <= found <= 3
    assert (shift.subject, shift.check, shift.state) == ("accuracy", "shift", "drift")
    assert (shift.since, shift.in_a_row) == (start, found + 1)
    assert shift.since_range[0] <= start < shift.since_range[1]
    assert shift.value < -3
    usual, _, fallen, direction = shift.change.replace(",", "").split()
    assert float(usual) == pytest.approx(0.81, abs=0.03)
    assert float(fallen) == pytest.approx(0.62, abs=0.03)
    assert direction == "lower"
    assert evidence.shifts == {SeriesKey("accuracy", "metric"): start}


@pytest.mark.parametrize(
    ("name", "before", "after", "is_found"),
    [("accuracy", 0.81, 0.95, False), ("brier", 0.2, 0.4, True)],
)
def test_only_a_worse_metric_is_a_shift(name, before, after, is_found):
    days = Days()
    days.judge_calm(40, **{name: before})

    assert bool(days_until_found(days, share_of_days(after, 5, seed=1), name)) is is_found


def test_more_complaints_are_found():
    days = Days(labels="reported")
    rng = np.random.default_rng(0)
    for count in rng.poisson(2, 40):
        days.judge({COMPLAINTS: float(count)}, rows=1_000, false_per_year=None)

    findings = [days.judge({COMPLAINTS: 12.0}, rows=1_000)[1] for _ in range(4)]

    assert findings[-1][0].subject == COMPLAINTS
    assert findings[-1][0].change.endswith("→ 12, higher")


@pytest.mark.parametrize(
    ("before", "context"),
    [(19, {}), (40, {"false_per_year": None}), (40, {"follows_levels": False})],
)
def test_metrics_need_budget_and_twenty_windows(before, context):
    days = Days()
    days.judge_calm(before, accuracy=0.81)

    for _ in range(5):
        evidence, findings = days.judge({"accuracy": 0.3}, **context)
        days.past = days.past[:before]
        assert findings == []
    assert evidence.levels == {SeriesKey("accuracy", "metric"): 0.3, SeriesKey("", "rows"): ROWS}


def test_other_metrics_or_labels_are_not_compared():
    days = Days()
    days.judge_calm(40, accuracy=0.81)

    assert not days_until_found(days, [0.3] * 4, "f1")
    days.spec = days.spec.model_copy(update={"labels": "sampled"})
    assert not days_until_found(days, [0.3] * 4)


def test_accepted_level_is_usual():
    days = Days()
    days.judge_calm(40, accuracy=0.81)
    days_until_found(days, share_of_days(0.62, 5, seed=1))

    _, findings = days.judge({"accuracy": 0.62}, baseline={"accuracy": FIRST + 40 * DAY})

    assert findings == []


def test_metric_of_few_rows_is_uncertain():
    few = Days()
    many = Days()
    for days in (few, many):
        days.judge_calm(40, accuracy=0.81)

    fall = [0.73] * 6
    found = [bool(few.judge({"accuracy": value}, rows=20)[1]) for value in fall]

    assert days_until_found(many, fall) > 0
    assert not any(found)


@pytest.mark.long
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("change", "late", "found", "words"),
    [
        ({}, {1: 0.05}, {("accuracy", "cannot tell")}, "can explain all"),
        ({"worse": 0.25}, {0: 0.02, 1: 0.02}, {("accuracy", "drift")}, "cannot explain all"),
        ({"redefined": 0.3}, {}, REDEFINED, "differently"),
        ({"redefined": 0.4}, {0: 0.02, 1: 0.02}, REDEFINED, "differently"),
        ({"worse": 0.15}, {}, {("accuracy", "drift")}, ""),
        ({"missed": 0.5}, {}, {("accuracy", "drift")}, "labels have not changed, and the model"),
    ],
)
def test_late_labels_excuse_only_their_share(change, late, found, words):
    """Labels come later each day; labels of 1 become 0; answers are worse or miss 1."""
    rng = np.random.default_rng(0)
    days = Days()
    outcomes = set()
    reasons = ""
    for day in range(-30, 15):
        now = change if day >= 0 else {}
        truth = rng.random(2_000) < 0.3
        right = rng.random(2_000) < np.where(truth, 0.95, 0.8) - now.get("worse", 0)
        right &= ~truth | (rng.random(2_000) >= now.get("missed", 0))
        predicted = np.where(right, truth, ~truth)
        label = truth & (rng.random(2_000) >= now.get("redefined", 0))
        lost = np.where(label, late.get(1, 0), late.get(0, 0)) * max(day, 0)
        has_label = rng.random(2_000) >= lost
        levels = {
            LABELLED: has_label.mean(),
            SeriesKey("1", LABEL): label[has_label].mean(),
            SeriesKey("0", LABEL): 1 - label[has_label].mean(),
            SeriesKey("1", PREDICTED): predicted.mean(),
            SeriesKey("0", PREDICTED): 1 - predicted.mean(),
        }
        accuracy = (predicted == label)[has_label].mean()
        _, findings = days.judge(
            {"accuracy": accuracy},
            rows=int(has_label.sum()),
            false_per_year=0.5 if day >= 0 else None,
            labels=levels,
        )
        outcomes |= {(finding.subject, finding.state) for finding in findings}
        reasons += "".join(finding.reason for finding in findings)

    assert outcomes == found
    assert words in reasons


@pytest.mark.long
@pytest.mark.parametrize("name", ["mae", "rmse"])
def test_heavy_errors_keep_the_budget(name):
    rng = np.random.default_rng(0)
    days = Days()
    found = []
    for day in range(60):
        errors = np.abs(rng.standard_t(1.5, 300)) * (1 + (day >= 50))
        figure = errors.mean() if name == "mae" else np.sqrt(np.square(errors).mean())
        found.append(bool(days.judge({name: float(figure)}, false_per_year=0.5 * (day > 30))[1]))

    assert not any(found[:50])
    assert any(found[50:])
