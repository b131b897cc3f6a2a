"""Accuracies if labels depend on the truth, and the delay until a worse model is
reported.

The windows are judged like the windows of a monitor of kind `performance`, without the
field `labels` or with `labels: late`. The method "before" doubts labels only if
labelled and unlabelled rows differ by score, answer or segment, and "weighted" never.
"""

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from benchmarks.drifting.judging import Line, Outcome, found_line, interval, on_all_cores
from benchmarks.drifting.worlds import Array
from benchmarks.labels import CONFIDENCE, RATE, START, answers_of
from mlflow_deploy_plugin.core.settings import load_settings
from mlflow_deploy_plugin.core.spec.monitors import MonitorSpec
from mlflow_deploy_plugin.serve.inference_log.windows import Window
from mlflow_deploy_plugin.watch.result import Finding, WindowRequest
from mlflow_deploy_plugin.watch.sequential.evidence import JudgedWindow, SeriesKey
from mlflow_deploy_plugin.watch.sequential.metric_shifts import (
    LABEL,
    LABELLED,
    PREDICTED,
    follow_metrics,
)
from mlflow_deploy_plugin.watch.statistics.cbpe import COMPLETE, LabelledWindow, labels_fit
from mlflow_deploy_plugin.watch.statistics.intervals import (
    MetricInterval,
    Sampling,
    wilson_interval,
)
from mlflow_deploy_plugin.watch.statistics.label_weights import (
    LabelWeights,
    weigh_labels,
    weighted_metrics,
)
from mlflow_deploy_plugin.watch.statistics.predictions import Predictions

_ODDS = -1.5  # One row in four is positive.
_MODELS = {
    "strong": (2.0, 1.0, _ODDS),
    "medium": (1.0, 1.0, _ODDS),
    "weak": (0.5, 1.0, _ODDS),
    "overconfident": (1.0, 2.0, _ODDS),
    "unbalanced": (1.5, 1.0, -3.0),
}
"""The skill of the scores, the factor by which the probabilities are too extreme, and
the log odds of the positives.
"""
_Mechanism = Callable[[Array, Array], Array]
_MECHANISMS: dict[str, _Mechanism] = {
    "90 % of positives, 20 % of negatives": lambda is_right, true: np.where(true == 1, 0.9, 0.2),
    "60 % of positives, 40 % of negatives": lambda is_right, true: np.where(true == 1, 0.6, 0.4),
    "70 % of right, 40 % of wrong answers": lambda is_right, true: np.where(is_right, 0.7, 0.4),
    "reports of positives": lambda is_right, true: np.where(true == 1, 0.5, 0.02),
    "reports of wrong answers": lambda is_right, true: np.where(is_right, 0.05, 0.5),
    "late positives": lambda is_right, true: np.where(true == 1, 0.3, 0.8),
}
_LATE = "late positives"
_SHARES = (0.1, 0.3, 0.5, 0.9)
_ROWS = 1_000
_STREAM_ROWS = 2_000
_LATE_WINDOWS = 3
_FLIPPED = 0.3
_MARGIN = 0.05
"""The number of windows in a stream of late labels, the share of rows with the other
class after a model becomes worse, and the distance of the required accuracy from the
usual accuracy.
"""
_DAY = timedelta(days=1)
_DAY_ROWS = 460
_CALM_DAYS = (20, 45, 90)
_FALL = (0.81, 0.62)
_CHANGES = {
    "labels of one class come 5 % later each day": (0.05, 0.0, 0.0),
    "30 % of the labels of one class become those of the other": (0.0, 0.3, 0.0),
    "accuracy - 10 points": (0.0, 0.0, 0.1),
}
"""The daily growth of the share of positives without a label, the share of positives
with the other label, and the loss of accuracy.
"""
_NOISE = 0.3
_REQUIRED = 0.75
_BUDGET = 0.5
_YEAR = 365
"""The deviation of a day's accuracy in log odds, which is 4.6 points, and the required
accuracy.
"""


class _Partly(NamedTuple):
    """A window, and the mask of its rows with a label."""

    all_rows: LabelledWindow
    has_label: Array

    @property
    def labelled(self) -> LabelledWindow:
        rows = self.all_rows
        return LabelledWindow(rows.truth[self.has_label], rows.answers.take(self.has_label))

    @property
    def accuracy(self) -> float:
        return float((self.all_rows.truth == self.all_rows.answers.predicted).mean())


class _Judged(NamedTuple):
    """The interval of the accuracy by each method."""

    now: MetricInterval
    before: MetricInterval
    late: MetricInterval
    weighted: MetricInterval
    sampled: MetricInterval


def _draw(
    rng: np.random.Generator,
    model: str,
    rows: int,
    chance: _Mechanism,
    flipped: float = 0.0,
) -> _Partly:
    skill, sharper, odds = _MODELS[model]
    drawn = answers_of(rng, rows, skill, sharper, odds=odds)
    truth = np.where(rng.random(rows) < flipped, 1 - drawn.truth, drawn.truth)
    has_label = rng.random(rows) < chance(truth == drawn.answers.predicted, truth)
    return _Partly(LabelledWindow(truth, drawn.answers), has_label)


def _judge(window: _Partly) -> _Judged:
    """Judge as `watch/kinds/performance.py` does, without earlier complete windows."""
    answers = window.all_rows.answers
    rows = len(window.has_label)
    predictions = Predictions(answers, None, np.where(window.has_label, window.all_rows.truth, -1))
    moments = pa.array([START + timedelta(seconds=row) for row in range(rows)])
    labelled = weigh_labels(pa.table({"_event_time": moments}), predictions, [], RATE)
    before = now = late = labelled
    if window.has_label.mean() < COMPLETE:
        late = labelled.at_worst
    if not labels_fit(window.labelled, [], CONFIDENCE):
        if labelled.is_selected:
            before = labelled.at_worst
        if labelled.is_selected or window.has_label.mean() < COMPLETE:
            now = labelled.at_worst

    def accuracy(labels: LabelWeights) -> MetricInterval:
        figure = weighted_metrics(
            predictions,
            labels,
            np.ones(rows, bool),
            ["accuracy"],
            Sampling(CONFIDENCE),
        )
        assert isinstance(figure["accuracy"], MetricInterval)
        return figure["accuracy"]

    return _Judged(*map(accuracy, (now, before, late, labelled, labelled.as_sample)))


def _holds(interval: MetricInterval, real: float, tolerance: float = 0.0) -> bool:
    return interval.low - tolerance <= real <= interval.high + tolerance


def _rng(part: int, model: str, mechanism: str = "") -> np.random.Generator:
    number = list(_MECHANISMS).index(mechanism) if mechanism else 0
    return np.random.default_rng([part, list(_MODELS).index(model), number])


def _dependent(task: tuple[str, str, int]) -> list[tuple[bool, ...]]:
    """Return five flags per window. The first two: does the interval contain the
    accuracy of all rows, now and before? The next two: does it exclude this accuracy by
    more than 0.03? The last: is a requirement that the model meets violated?
    """
    model, mechanism, times = task
    rng = _rng(1, model, mechanism)
    flags: list[tuple[bool, ...]] = []
    for _ in range(times):
        window = _draw(rng, model, _ROWS, _MECHANISMS[mechanism])
        judged = _judge(window)
        real = window.accuracy
        sides = (judged.now, judged.before)
        held = [_holds(side, real) for side in sides]
        wrong = [not _holds(side, real, 0.03) for side in sides]
        is_violated = judged.now.high < real - _MARGIN
        flags.append((held[0], held[1], wrong[0], wrong[1], is_violated))
    return flags


def _late(task: tuple[str, int]) -> list[tuple[bool, ...]]:
    """Return two flags per stream whose positive rows get their labels late: do the
    intervals of all its windows contain the accuracy of all rows, now and weighted?
    """
    model, times = task
    rng = _rng(2, model)
    flags: list[tuple[bool, ...]] = []
    for _ in range(times):
        windows = [_draw(rng, model, _ROWS, _MECHANISMS[_LATE]) for _ in range(_LATE_WINDOWS)]
        judged = [(_judge(window), window.accuracy) for window in windows]
        now = all(_holds(methods.late, real) for methods, real in judged)
        weighted = all(_holds(methods.weighted, real) for methods, real in judged)
        flags.append((now, weighted))
    return flags


def _worse(task: tuple[str, float, int]) -> list[tuple[bool, ...]]:
    """Return two flags per stream: is the requirement violated within the first two
    windows of a worse model, with `labels: sampled` and without the field?
    """
    model, share, times = task
    rng = np.random.default_rng([3, list(_MODELS).index(model), round(100 * share)])
    usual = _draw(rng, model, 50_000, lambda is_right, true: np.ones(len(true))).accuracy

    def at_random(is_right: Array, true: Array) -> Array:
        return np.full(len(true), share)

    flags: list[tuple[bool, ...]] = []
    for _ in range(times):
        judged = [_judge(_draw(rng, model, _STREAM_ROWS, at_random, _FLIPPED)) for _ in range(2)]
        bound = usual - _MARGIN
        sampled = any(methods.sampled.high < bound for methods in judged)
        unknown = any(methods.now.high < bound for methods in judged)
        flags.append((sampled, unknown))
    return flags


def _request(start: datetime, past: Sequence[JudgedWindow], is_calm: bool) -> WindowRequest:
    """Return the request for a day of a monitor with the budget `_BUDGET`; a calm day
    is not judged.
    """
    return WindowRequest(
        "flights",
        "hits",
        MonitorSpec(kind="performance", require=("accuracy>=0.6",)),
        Window(start, start + _DAY),
        1,
        load_settings(),
        past=past,
        false_per_year=None if is_calm else _BUDGET,
    )


def _falls(task: tuple[int, int]) -> list[bool]:
    """Return a flag per stream: is a fall of the accuracy found within three days, with
    a budget of half an alarm per year?
    """
    calm_days, times = task
    found = []
    for number in range(times):
        rng = np.random.default_rng([4, calm_days, number])
        past: list[JudgedWindow] = []
        shares = [_FALL[0]] * calm_days + [_FALL[1]] * 3
        findings: list[Finding] = []
        for day, share in enumerate(shares):
            start = START + day * _DAY
            request = _request(start, past, is_calm=day < calm_days)
            accuracy = rng.binomial(_DAY_ROWS, share) / _DAY_ROWS
            evidence, findings = follow_metrics(request, {"accuracy": accuracy}, _DAY_ROWS)
            past.append(JudgedWindow(start, "cannot tell", evidence))
        found.append(len(findings) > 0)
    return found


def _changed(task: tuple[str, int]) -> list[tuple[bool, bool]]:
    """Return two flags per stream, for 20 days of a change after 40 calm days: is the
    accuracy called drift, and are the labels?
    """
    what, times = task
    later, redefined, worse = _CHANGES[what]
    found = []
    for number in range(times):
        rng = np.random.default_rng([5, list(_CHANGES).index(what), number])
        past: list[JudgedWindow] = []
        drifted: set[str] = set()
        for day in range(-40, 20):
            truth = rng.random(_STREAM_ROWS) < 0.3
            chance = np.where(truth, 0.95, 0.8) - worse * (day >= 0)
            predicted = truth ^ (rng.random(_STREAM_ROWS) >= chance)
            label = truth & (rng.random(_STREAM_ROWS) >= redefined * (day >= 0))
            has_label = ~label | (rng.random(_STREAM_ROWS) >= later * max(day, 0))
            positive = float(label[has_label].mean())
            answered = float(predicted.mean())
            levels = {
                LABELLED: float(has_label.mean()),
                SeriesKey("1", LABEL): positive,
                SeriesKey("0", LABEL): 1 - positive,
                SeriesKey("1", PREDICTED): answered,
                SeriesKey("0", PREDICTED): 1 - answered,
            }
            start = START + (day + 40) * _DAY
            request = _request(start, past, is_calm=day < 0)
            accuracy = float((predicted == label)[has_label].mean())
            evidence, findings = follow_metrics(
                request, {"accuracy": accuracy}, int(has_label.sum()), levels
            )
            past.append(JudgedWindow(start, "cannot tell", evidence))
            drifted |= {finding.subject for finding in findings if finding.state == "drift"}
        found.append(("accuracy" in drifted, any(name.startswith("label ") for name in drifted)))
    return found


def _violated_days(task: tuple[float, int]) -> list[tuple[int, int]]:
    """Return two numbers per stream of a year: the days on which a requirement is
    violated by the rows only, and with the noise of earlier days.
    """
    noise, times = task
    confidence = 1 - _BUDGET / 4 / _YEAR
    days = []
    for number in range(times):
        rng = np.random.default_rng([6, round(10 * noise), number])
        usual = np.log(_FALL[0] / (1 - _FALL[0]))
        shares = 1 / (1 + np.exp(-usual - noise * rng.normal(size=_YEAR)))
        values: list[float] = []
        by_rows = now = 0
        for right in rng.binomial(_DAY_ROWS, shares).tolist():
            of_rows = wilson_interval("accuracy", right, _DAY_ROWS, confidence)
            by_rows += of_rows.high < _REQUIRED
            now += of_rows.widened(values, confidence).high < _REQUIRED
            values.append(of_rows.value)
        days.append((by_rows, now))
    return days


def _at_most(what: str, groups: Sequence[Sequence[bool]], most: float) -> Line:
    first, last = interval(groups)
    flags = [flag for group in groups for flag in group]
    share = sum(flags) / len(flags)
    outcome: Outcome = "met" if share <= most else "missed" if first > most else "uncertain"
    return Line(
        what,
        f"{share:.0%} of {len(flags):,}; {first:.0%} to {last:.0%}",
        f"at most {100 * most:g} %",
        outcome,
    )


def lines(share: float) -> Iterator[Line]:
    times = max(round(200 * share), 20)
    violated = []
    for model in _MODELS:
        cells = on_all_cores(_dependent, [(model, mechanism, times) for mechanism in _MECHANISMS])
        now, before, wrong, wrong_before, violated_now = (
            [[row[side] for row in cell] for cell in cells] for side in range(5)
        )
        violated += violated_now
        what = f"labels depend on the truth, {model} model"
        yield found_line(
            f"{what}: held or `cannot tell` (before: {np.mean(before):.0%})",
            now,
            0.85,
        )
        yield _at_most(
            f"{what}: wrong by more than 0.03 (before: {np.mean(wrong_before):.0%})",
            wrong,
            0.1,
        )
    yield _at_most(
        "the same, all models: `violated` although the model is as usual", violated, 0.01
    )
    times = max(round(60 * share), 10)
    late = on_all_cores(_late, [(model, times) for model in _MODELS])
    weighted = np.mean([stream[1] for cell in late for stream in cell])
    yield found_line(
        f"`labels: late`, 30 % of positives and 80 % of negatives so far, {_LATE_WINDOWS} windows: "
        f"all held or `cannot tell` (weighted: {weighted:.0%})",
        [[stream[0] for stream in cell] for cell in late],
        0.92,
    )
    for part in _SHARES:
        cells = on_all_cores(_worse, [(model, part, times) for model in _MODELS])
        what = f"worse model, labels of {part:.0%} at random: `violated` within 2 windows"
        sampled, unknown = (
            [[stream[side] for stream in cell] for cell in cells] for side in (0, 1)
        )
        yield found_line(f"{what}, `labels: sampled`", sampled, 0.95)
        yield found_line(f"{what}, no field", unknown, None)
    falls = on_all_cores(_falls, [(days, times) for days in _CALM_DAYS])
    yield found_line(
        f"accuracy of {_DAY_ROWS} rows falls from {_FALL[0]} to {_FALL[1]} after 20, 45 or 90 "
        "days, budget 0.5: `drift` within 3 days",
        falls,
        0.95,
    )
    streams = max(round(40 * share), 10)
    changed = on_all_cores(_changed, [(what, streams) for what in _CHANGES])
    for what, flags in zip(_CHANGES, changed, strict=True):
        yield found_line(f"{what}: accuracy `drift`", [[flag[0] for flag in flags]], None)
        yield found_line(f"{what}: labels `drift`", [[flag[1] for flag in flags]], None)
    noises = (0.0, _NOISE, 2 * _NOISE)
    for noise, years in zip(
        noises, on_all_cores(_violated_days, [(noise, streams) for noise in noises]), strict=True
    ):
        by_rows, now = np.mean(years, axis=0)
        yield Line(
            f"days a year that violate `accuracy>={_REQUIRED}`, accuracy {_FALL[0]}, noise of days "
            f"{noise:g} (by the rows only: {by_rows:.1f})",
            f"{now:.2f} in {streams} years",
            f"at most {_BUDGET:g}",
            "met" if now <= _BUDGET else "missed",
        )
