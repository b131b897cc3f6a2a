"""Accuracies if labels depend on the truth, and the delay until a worse model is
reported.

The windows are judged like the windows of a monitor of kind `performance` without the
field `labels`. The method "before" doubts labels only if labelled and unlabelled rows
differ by score, answer or segment.
"""

from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from benchmarks.drifting.judging import Line, Outcome, found_line, interval, on_all_cores
from benchmarks.drifting.worlds import Array
from benchmarks.labels import CONFIDENCE, RATE, START, answers_of
from mlflow_deploy_plugin.watch.statistics.cbpe import COMPLETE, LabelledWindow, trust_labels
from mlflow_deploy_plugin.watch.statistics.intervals import MetricInterval, Sampling
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
_MECHANISMS: dict[str, Callable[[Array, Array], Array]] = {
    "90 % of positives, 20 % of negatives": lambda is_right, true: np.where(true == 1, 0.9, 0.2),
    "60 % of positives, 40 % of negatives": lambda is_right, true: np.where(true == 1, 0.6, 0.4),
    "70 % of right, 40 % of wrong answers": lambda is_right, true: np.where(is_right, 0.7, 0.4),
    "reports of positives": lambda is_right, true: np.where(true == 1, 0.5, 0.02),
    "reports of wrong answers": lambda is_right, true: np.where(is_right, 0.05, 0.5),
}
_SHARES = (0.1, 0.3, 0.5, 0.9)
_ROWS = 1_000
_STREAM_ROWS = 2_000
_EARLIER = 5
_FLIPPED = 0.3
_MARGIN = 0.05
"""The number of windows before a model becomes worse, the share of rows with the other
class afterwards, and the distance of the required accuracy from the usual accuracy.
"""


class _Partly(NamedTuple):
    """A window, and the mask of its rows with a label."""

    all_rows: LabelledWindow
    has_label: Array

    @property
    def labelled(self) -> LabelledWindow:
        rows = self.all_rows
        labels = self.has_label
        return LabelledWindow(rows.truth[labels], rows.answers.take(labels), float(labels.mean()))

    @property
    def accuracy(self) -> float:
        return float((self.all_rows.truth == self.all_rows.answers.predicted).mean())


class _Judged(NamedTuple):
    """The interval of the accuracy now and before, and True if labels raise no
    suspicion by score.
    """

    now: MetricInterval
    before: MetricInterval
    is_alike: bool


def _draw(
    rng: np.random.Generator,
    model: str,
    rows: int,
    chance: Callable[[Array, Array], Array],
    flipped: float = 0.0,
) -> _Partly:
    skill, sharper, odds = _MODELS[model]
    drawn = answers_of(rng, rows, skill, sharper, odds=odds)
    truth = np.where(rng.random(rows) < flipped, 1 - drawn.truth, drawn.truth)
    has_label = rng.random(rows) < chance(truth == drawn.answers.predicted, truth)
    return _Partly(LabelledWindow(truth, drawn.answers), has_label)


def _judge(window: _Partly, earlier: Sequence[LabelledWindow] = ()) -> _Judged:
    """Judge as `watch/kinds/performance.py` does; `earlier` are the labelled rows of
    earlier windows, the latest first.
    """
    answers = window.all_rows.answers
    rows = len(window.has_label)
    predictions = Predictions(answers, None, np.where(window.has_label, window.all_rows.truth, -1))
    moments = pa.array([START + timedelta(seconds=row) for row in range(rows)])
    labelled = weigh_labels(pa.table({"_event_time": moments}), predictions, [], RATE)
    own = window.labelled
    before = now = labelled
    if labelled.is_selected:
        complete = [past for past in earlier if past.share >= COMPLETE]
        if trust_labels(own, complete, CONFIDENCE).outcome != "fits":
            before = now = labelled.at_worst
    elif own.share < COMPLETE and trust_labels(own, earlier, CONFIDENCE).outcome == "doubted":
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

    return _Judged(accuracy(now), accuracy(before), not labelled.is_selected)


def _dependent(task: tuple[str, str, int]) -> list[tuple[bool, ...]]:
    """Return four flags per window. The first two: does the interval contain the
    accuracy of all rows, now and before? The others: does it exclude this accuracy by
    more than 0.03?
    """
    model, mechanism, times = task
    rng = np.random.default_rng([1, list(_MODELS).index(model), list(_MECHANISMS).index(mechanism)])
    flags: list[tuple[bool, ...]] = []
    for _ in range(times):
        window = _draw(rng, model, _ROWS, _MECHANISMS[mechanism])
        judged = _judge(window)
        real = window.accuracy
        sides = (judged.now, judged.before)
        held = [side.low <= real <= side.high for side in sides]
        wrong = [side.low > real + 0.03 or side.high < real - 0.03 for side in sides]
        flags.append((held[0], held[1], wrong[0], wrong[1]))
    return flags


def _repeated(task: tuple[str, str, int]) -> list[tuple[bool, ...]]:
    """Return six flags per stream, for its windows: does the interval contain the
    accuracy of all rows? The labels depend on the truth in every window.
    """
    model, mechanism, times = task
    rng = np.random.default_rng([2, list(_MODELS).index(model), list(_MECHANISMS).index(mechanism)])
    return [
        tuple(
            judged.now.low <= real <= judged.now.high
            for judged, real in _stream(rng, model, mechanism)
        )
        for _ in range(times)
    ]


def _stream(
    rng: np.random.Generator,
    model: str,
    mechanism: str,
) -> Iterator[tuple[_Judged, float]]:
    earlier: list[LabelledWindow] = []
    for _ in range(6):
        window = _draw(rng, model, _ROWS, _MECHANISMS[mechanism])
        judged = _judge(window, earlier)
        yield judged, window.accuracy
        if judged.is_alike:
            earlier = [window.labelled, *earlier]


def _worse(task: tuple[str, float, int, int]) -> list[tuple[bool, ...]]:
    """Return five flags per stream, for the first windows of a worse model: is the
    requirement violated?
    """
    model, share, windows, times = task
    rng = np.random.default_rng([3, list(_MODELS).index(model), round(100 * share), windows])
    usual = _draw(rng, model, 50_000, lambda is_right, true: np.ones(len(true))).accuracy

    def at_random(is_right: Array, true: Array) -> Array:
        return np.full(len(true), share)

    flags = []
    for _ in range(times):
        earlier = [_draw(rng, model, _STREAM_ROWS, at_random).labelled for _ in range(windows)]
        violated = []
        for _ in range(5):
            window = _draw(rng, model, _STREAM_ROWS, at_random, _FLIPPED)
            judged = _judge(window, earlier)
            violated.append(judged.now.high < usual - _MARGIN)
            if judged.is_alike:
                earlier = [window.labelled, *earlier][:8]
        flags.append(tuple(violated))
    return flags


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
    for model in _MODELS:
        cells = on_all_cores(_dependent, [(model, mechanism, times) for mechanism in _MECHANISMS])
        now, before, wrong, wrong_before = (
            [[row[side] for row in cell] for cell in cells] for side in range(4)
        )
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
    times = max(round(60 * share), 10)
    streams = on_all_cores(
        _repeated,
        [(model, mechanism, times) for model in _MODELS for mechanism in _MECHANISMS],
    )
    for number in (4, 5):
        held = [[stream[number - 1] for stream in cell] for cell in streams]
        yield found_line(
            f"the same in every window, all models, window {number}: held or `cannot tell`",
            held,
            None,
        )
    for part in _SHARES:
        cells = on_all_cores(_worse, [(model, part, _EARLIER, times) for model in _MODELS])
        soon = [[any(stream[:2]) for stream in cell] for cell in cells]
        what = f"worse model, labels of {part:.0%} at random"
        yield found_line(
            f"{what}, {_EARLIER} windows before: `violated` within 2 windows",
            soon,
            0.95,
        )
    for part in (0.1, 0.5):
        fresh = on_all_cores(_worse, [(model, part, 0, times) for model in _MODELS])
        for within in (2, 5):
            flags = [[any(stream[:within]) for stream in cell] for cell in fresh]
            what = f"worse model, labels of {part:.0%} at random, no windows before"
            yield found_line(f"{what}: `violated` within {within} windows", flags, None)
