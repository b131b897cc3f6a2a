"""The product's verdicts on public tables in which the accuracy of a model falls, and
the verdicts of other tools.
"""

import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from benchmarks.drifting.judging import Array, yearly_line
from benchmarks.drifting.streams import (
    Course,
    Stream,
    compare,
    count_alarms,
    judge,
    request_of,
    stream_of_table,
)
from benchmarks.shifting.data import NotHad
from benchmarks.shifting.sets import EARLIER, HARM, NO_HARM, SETS, Windowed, harmful_shifts
from mlflow_deploy_plugin.core.errors import Refused
from mlflow_deploy_plugin.watch.drift.effects import without_harm
from mlflow_deploy_plugin.watch.sequential.evidence import JudgedWindow, SeriesKey
from mlflow_deploy_plugin.watch.sequential.metric_shifts import (
    LABEL,
    LABELLED,
    PREDICTED,
    follow_metrics,
)
from mlflow_deploy_plugin.watch.statistics.cbpe import CbpeEstimate, LabelledWindow, estimate
from mlflow_deploy_plugin.watch.statistics.intervals import MetricInterval, wilson_interval
from mlflow_deploy_plugin.watch.statistics.metrics import ClassPredictions
from projects.environments import environment

_BUDGET = 1.0
_YEARS = 1
_YEAR = 365
_FOLLOWED = 3
"""One of so many windows follows the labels; its findings hold until the next one."""
_FULLY_JUDGED = 30
"""The red, unharmed windows of a sequence whose findings are judged; each stands for
the windows around it.
"""
_CONFIDENCE = 1 - 0.25 * _BUDGET / _YEAR
"""The confidence of a requirement: a quarter of the budget is for single windows."""
DRIFT = "ours: drift of inputs and predictions"
HARMFUL = "ours: drift with a sign of harm (default)"
ESTIMATED = "ours: estimated accuracy"
WITH_LABELS = "ours: accuracy with labels"
_OURS = (DRIFT, HARMFUL, ESTIMATED, WITH_LABELS)
_PEERS = {
    "Evidently: share of drifted columns": ("evidently", "share", DRIFT),
    "Evidently: most drifted column": ("evidently", "column", DRIFT),
    "NannyML: univariate drift": ("nannyml", "drift", DRIFT),
    "alibi-detect: KS, chi-square": ("alibi", "tests", DRIFT),
    "river: ADWIN of daily figures": ("river", "figures", DRIFT),
    "CUSUM of daily figures": ("cusum", "figures", DRIFT),
    "NannyML: CBPE": ("nannyml", "cbpe", ESTIMATED),
    "river: ADWIN of errors": ("river", "errors", WITH_LABELS),
    "CUSUM of the daily error": ("cusum", "errors", WITH_LABELS),
}
"""The tool and the score in `peers.py`, and the method of ours with the same data."""
_REQUIREMENTS = {
    "alibi": ("alibi-detect==0.13.0", "pyarrow<21"),
    "nannyml": ("nannyml==0.13.1", "pandas<3", "statsmodels"),
    "river": ("river==0.26.1", "pandas", "pyarrow"),
}
"""Of the tools that are not in this process's environment."""


@dataclass(frozen=True, eq=False)
class Judged:
    """The judged windows of a set, years that are drawn from its reference, and the CPU
    seconds for a further window.
    """

    later: Course
    calm: Sequence[Course]
    cpu: float


@dataclass(frozen=True, eq=False)
class Outcome:
    """A set, the windows of the sequences, and the result of each method."""

    windowed: Windowed
    sequences: Sequence[Array]
    judged: dict[str, Judged]


def draw_sequences(windowed: Windowed, years: int) -> list[Array]:
    """Return the judged windows, then calm years, whose windows are drawn from the
    reference's windows with the same day of the week: numbers of windows, [n] int64.
    """
    sequences = [np.arange(windowed.reference, len(windowed.windows))]
    days = np.arange(windowed.reference, windowed.reference + _YEAR) % 7
    weeks = (windowed.reference - days + 6) // 7
    for seed in range(years):
        rng = np.random.default_rng([88, seed])
        sequences.append(days + 7 * rng.integers(weeks))
    return sequences


def flags_of(red: Array) -> Course:
    """Return the course of red windows, [n] bool, each stretch of which is an alarm."""
    return Course(red & ~np.concatenate([[False], red[:-1]]), red)


def calibrate(scores: Sequence[Array], most: int) -> list[Course]:
    """Return the courses of the lowest limit such that it and all higher ones have at
    most this number of alarms in the calm years together.

    Args:
        scores: of the judged windows and of each calm year, [n] float64 each.
    """
    limits = np.unique(np.concatenate(scores[1:]))[::-1].tolist()
    chosen = limits[0]
    for limit in limits:
        if sum(count_alarms(each > limit) for each in scores[1:]) > most:
            break
        chosen = limit
    return [flags_of(each > chosen) for each in scores]


def _logged(windows: Sequence[pd.DataFrame]) -> pa.Table:
    """Return the inputs and outputs of the windows, as an inference log has them."""
    rows = pd.concat(windows).drop(columns=["truth", "window"])
    return pa.Table.from_pandas(rows, preserve_index=False)


def _stream(windowed: Windowed, sequence: Array) -> Stream:
    numbers = [*range(windowed.reference), *sequence.tolist()]
    windows = [windowed.windows[number] for number in numbers]
    counts = np.array([*map(len, windows)])
    return stream_of_table(_logged(windows), counts, windowed.reference)


def _labelled(window: pd.DataFrame, classes: tuple[str, ...]) -> LabelledWindow:
    chances = window.filter(like="probability ").to_numpy()
    if len(classes) == 2:
        chances = np.hstack([1 - chances, chances])
    answers = ClassPredictions(window["prediction"].to_numpy(), chances, classes)
    return LabelledWindow(window["truth"].to_numpy(), answers)


def _estimates(windowed: Windowed) -> list[CbpeEstimate]:
    """Return the estimate for each window, corrected by the last labels of the
    reference; later rows have no labels.
    """
    windows = [_labelled(window, windowed.classes) for window in windowed.windows]
    earlier = windows[windowed.reference - EARLIER : windowed.reference]
    estimates = [estimate(window.answers, earlier, ("accuracy",)) for window in windows]
    return [each for each in estimates if not isinstance(each, Refused)]


def _accuracy(estimated: CbpeEstimate, confidence: float) -> MetricInterval:
    interval = estimated.measure("accuracy", 0, confidence)
    assert not isinstance(interval, Refused)
    return interval


def _is_unharmed(estimated: CbpeEstimate) -> bool:
    """Return True if the estimate excludes a fall by 0.1 (docs/monitor-method.md)."""
    now = _accuracy(estimated, 0.95)
    before = float(np.mean(estimated.accuracies))
    return now.high >= before and before - now.low < 0.1


def _with_harm(stream: Stream, course: Course, unharmed: Array) -> Course:
    """Return the course of the windows whose state is `drift`: of `unharmed` windows,
    [n] bool, only windows with a finding that is itself a sign of harm.
    """
    red = course.red.copy()
    sought = np.flatnonzero(course.red & unharmed)
    for windows in np.array_split(sought, min(_FULLY_JUDGED, len(sought)) or 1):
        if not len(windows):
            continue
        compared = compare(stream, int(windows[len(windows) // 2]), _BUDGET)
        verdict = compared.verdict(())
        findings = [*compared.shifts(verdict).findings, *verdict.findings]
        red[windows] = any(item.is_alarm for item in without_harm(findings, {""}))
    return Course((course.alarms & red) | flags_of(red).alarms, red)


def _levels(window: pd.DataFrame, classes: tuple[str, ...]) -> dict[SeriesKey, float]:
    """Return the shares of the classes among the labels and the predictions of a window
    in which all rows have a label.
    """
    levels = {LABELLED: 1.0}
    for figure, column in ((LABEL, "truth"), (PREDICTED, "prediction")):
        for index, name in enumerate(classes):
            levels[SeriesKey(name, figure)] = float((window[column] == index).mean())
    return levels


def _with_labels(windowed: Windowed, stream: Stream, sequence: Array) -> Course:
    """Require the usual accuracy - 0.05 of each window, whose labels are known at once,
    and follow the accuracy and the labels over time.
    """
    past: list[JudgedWindow] = []
    values: list[float] = []
    red = []
    is_open = False
    for number in [*range(windowed.reference), *sequence.tolist()]:
        window = windowed.windows[number]
        value = float(windowed.accuracy[number])
        rows = len(window)
        day = stream.window(len(past) - windowed.reference)
        is_followed = len(past) >= windowed.reference and len(past) % _FOLLOWED == 0
        request = request_of(day, past, _BUDGET if is_followed else None)
        levels = _levels(window, windowed.classes)
        evidence, findings = follow_metrics(request, {"accuracy": value}, rows, levels)
        if is_followed:
            is_open = any(item.is_alarm for item in findings)
        interval = wilson_interval("accuracy", value * rows, rows, _CONFIDENCE)
        high = interval.widened(values, _CONFIDENCE).high
        red.append(is_open or high < windowed.usual - HARM)
        past.append(JudgedWindow(day.start, "", evidence))
        values.append(value)
    return flags_of(np.array(red[windowed.reference :]))


def _judge_set(windowed: Windowed, years: int) -> Outcome:
    """Judge the sequences by all methods of ours."""
    sequences = draw_sequences(windowed, years)
    streams = [_stream(windowed, sequence) for sequence in sequences]
    pairs = [*zip(streams, sequences, strict=True)]
    begun = time.process_time()
    estimates = _estimates(windowed)
    costs = {ESTIMATED: (time.process_time() - begun) / len(estimates)}
    bound = windowed.usual - HARM
    is_below = np.array([_accuracy(each, _CONFIDENCE).high < bound for each in estimates])
    unharmed = np.array([*map(_is_unharmed, estimates)])
    begun = time.process_time()
    courses = {WITH_LABELS: [_with_labels(windowed, *pair) for pair in pairs]}
    followed = sum(map(len, sequences)) / _FOLLOWED
    costs[WITH_LABELS] = (time.process_time() - begun) / followed
    courses[ESTIMATED] = [flags_of(is_below[sequence]) for sequence in sequences]
    courses[DRIFT] = [judge(streams[0], _BUDGET)]
    begun = time.process_time()
    compared = compare(streams[0], len(sequences[0]) - 1, _BUDGET)
    compared.shifts(compared.verdict(()))
    costs[DRIFT] = time.process_time() - begun
    courses[DRIFT] += [judge(stream, _BUDGET) for stream in streams[1:]]
    costs[HARMFUL] = costs[DRIFT] + costs[ESTIMATED]
    courses[HARMFUL] = [
        _with_harm(stream, course, unharmed[sequence])
        for (stream, sequence), course in zip(pairs, courses[DRIFT], strict=True)
    ]
    judged = {name: Judged(courses[name][0], courses[name][1:], costs[name]) for name in _OURS}
    return Outcome(windowed, sequences, judged)


def _write(outcome: Outcome, folder: Path) -> None:
    """Write the rows and the sequences of a set for `peers.py`."""
    facts = {
        "reference": outcome.windowed.reference,
        "classes": outcome.windowed.classes,
        "sequences": [sequence.tolist() for sequence in outcome.sequences],
    }
    folder.mkdir()
    outcome.windowed.rows.to_parquet(folder / "rows.parquet", index=False)
    (folder / "facts.json").write_text(json.dumps(facts))


def _run(tool: str, folders: Sequence[Path]) -> list[dict[str, Any]]:
    """Return the scores of a tool in each folder."""
    print(f"  {tool}", file=sys.stderr, flush=True)
    programs = Path(sys.executable).parent
    if tool in _REQUIREMENTS:
        programs = environment(_REQUIREMENTS[tool], installs=True)
    script = Path(__file__).parent / "peers.py"
    subprocess.run([programs / "python", script, tool, *folders], check=True)
    return [json.loads((folder / f"{tool}.json").read_text()) for folder in folders]


def judge_by_peers(outcomes: Sequence[Outcome], folder: Path) -> dict[str, list[Judged]]:
    """Return by method of a tool its result for each set, with as many alarms in the
    calm years of this set as ours.
    """
    folders = [folder / str(number) for number in range(len(outcomes))]
    for each, place in zip(outcomes, folders, strict=True):
        _write(each, place)
    found = {
        tool: _run(tool, folders) for tool in dict.fromkeys(tool for tool, *_ in _PEERS.values())
    }
    judged: dict[str, list[Judged]] = {}
    for peer, (tool, score, ours) in _PEERS.items():
        judged[peer] = []
        for outcome, scores in zip(outcomes, found[tool], strict=True):
            most = sum(count_alarms(year.alarms) for year in outcome.judged[ours].calm)
            courses = calibrate([*map(np.array, scores[score])], most)
            judged[peer].append(Judged(courses[0], courses[1:], scores["cpu"]))
    return judged


@cache
def _outcomes(share: float) -> tuple[dict[str, Outcome], list[str]]:
    """Return the outcome of each set, and the last lines of a table. A small `share`
    has one calm year, and only the first sets.
    """
    found = {}
    years = max(round(_YEARS * share), 1)
    remarks = ["", f"{years} calm years of {_YEAR} windows per set, seeds from 88, 0."]
    for name, load in [*SETS.items()][: math.ceil(len(SETS) * share)]:
        print(f"  {name}", file=sys.stderr, flush=True)
        try:
            found[name] = _judge_set(load(), years)
        except NotHad as error:
            remarks.append(f"Left out: {name}: {error}")
    return found, remarks


@dataclass(frozen=True)
class Figures:
    """The figures of a method on one or more sets.

    Attributes:
        calm: the alarms of each calm year.
        delays: the windows from the start of each harmful shift to the first alarm that
            begins in it; infinity without one.
        red: the shares of harmful and of unharmed windows that are red, the mean over
            the sets that have both; NaN without any.
        cpu: CPU seconds per window, the mean over the sets.
        alarms: the alarms in all judged windows.
    """

    calm: Sequence[int]
    delays: Array
    red: tuple[float, float]
    cpu: float
    alarms: int

    @property
    def found(self) -> int:
        return int(np.isfinite(self.delays).sum())

    @property
    def shown_red(self) -> str:
        return "–" if math.isnan(self.red[0]) else f"{self.red[0]:.0%}; {self.red[1]:.0%}"


def figures_of(pairs: Sequence[tuple[Windowed, Judged]]) -> Figures:
    calm = []
    delays = []
    red = []
    for windowed, judged in pairs:
        calm += [count_alarms(year.alarms) for year in judged.calm]
        fall = windowed.fall
        begun = flags_of(judged.later.alarms).alarms
        for shift in harmful_shifts(fall):
            alarms = np.flatnonzero(begun[shift.start : shift.stop])
            delays.append(float(alarms[0]) if len(alarms) else math.inf)
        parts = [judged.later.red[fall >= HARM], judged.later.red[fall < NO_HARM]]
        if all(map(len, parts)):
            red.append([float(part.mean()) for part in parts])
    harmful, unharmed = np.mean(red, axis=0).tolist() if red else (math.nan, math.nan)
    cpu = float(np.mean([judged.cpu for _, judged in pairs]))
    raised = sum(count_alarms(judged.later.alarms) for _, judged in pairs)
    return Figures(calm, np.array(delays), (harmful, unharmed), cpu, raised)


def better_in(peer: Figures, ours: Figures) -> str:
    """Return the ways in which a tool is better than ours; otherwise `no`."""
    parts = {
        "finds more": peer.found > ours.found,
        "sooner": bool(np.median(peer.delays) < np.median(ours.delays)),
        "red fits harm better": peer.red[0] - peer.red[1] > ours.red[0] - ours.red[1],
    }
    better = ", ".join(part for part, is_better in parts.items() if is_better)
    return f"**{better}**" if better else "no"


def table_lines(share: float) -> Iterator[str]:
    """Yield the table of the sets: false alarms per calm year, harmful shifts found,
    and red harmful and unharmed windows by each method of ours.
    """
    found, remarks = _outcomes(share)
    heads = [name.removeprefix("ours: ") for name in _OURS]
    yield f"| set | windows | accuracy, lowest mean | {' | '.join(heads)} |"
    yield f"|---|---|---|{'---|' * len(heads)}"
    for name, outcome in found.items():
        windowed = outcome.windowed
        cells = []
        for method in _OURS:
            figures = figures_of([(windowed, outcome.judged[method])])
            of_shifts = f"{figures.found} of {len(figures.delays)}"
            cells.append(f"{np.mean(figures.calm):.1f}; {of_shifts}; {figures.shown_red}")
        size = f"{windowed.reference} + {len(windowed.windows) - windowed.reference}"
        lowest = windowed.usual - windowed.fall.max()
        yield f"| {name} | {size} | {windowed.usual:.2f}, {lowest:.2f} | {' | '.join(cells)} |"
    yield from remarks


def peer_lines(share: float) -> Iterator[str]:
    """Yield the table of the methods, ours and the tools', on all sets together."""
    found, remarks = _outcomes(share)
    outcomes = [*found.values()]
    with tempfile.TemporaryDirectory(prefix="onnxserve-benchmark-") as folder:
        judged = judge_by_peers(outcomes, Path(folder))
    for method in _OURS:
        judged[method] = [outcome.judged[method] for outcome in outcomes]
    never = [flags_of(np.zeros(len(outcome.sequences[0]), bool)) for outcome in outcomes]
    judged["no alarm at all"] = [Judged(course, [course], 0.0) for course in never]
    sets = [outcome.windowed for outcome in outcomes]
    figures = {
        method: figures_of([*zip(sets, judged[method], strict=True)])
        for method in (*_OURS, *_PEERS, "no alarm at all")
    }
    yield (
        "| method | false alarms per year, 95 % | alarms | harmful shifts found | delay in "
        "windows | red: harmful; unharmed | CPU ms per window | better than ours |"
    )
    yield "|---|---|---|---|---|---|---|---|"
    for method, each in figures.items():
        low, high = yearly_line(method, each.calm, 1.0).interval
        better = "–"
        if method in _PEERS:
            better = better_in(each, figures[_PEERS[method][2]])
        delays = each.delays[np.isfinite(each.delays)]
        cells = [
            method,
            f"{np.mean(each.calm):.2f}; {low:.2f} to {high:.2f}",
            f"{each.alarms}",
            f"{each.found} of {len(each.delays)}",
            f"{np.median(delays):g}" if len(delays) else "–",
            each.shown_red,
            f"{1_000 * each.cpu:,.1f}",
            better,
        ]
        yield f"| {' | '.join(cells)} |"
    yield from remarks
