"""The product's verdicts on public tables in which the accuracy of a model falls."""

import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

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
from benchmarks.serving.environments import environment
from benchmarks.shifting.data import NotHad
from benchmarks.shifting.sets import (
    HARM,
    NO_HARM,
    SETS,
    Windowed,
    fallen,
    harmful_stretches,
)
from mlflow_deploy_plugin.core.errors import Refused
from mlflow_deploy_plugin.watch.drift.effects import without_harm
from mlflow_deploy_plugin.watch.kinds.performance import AccuracyChange
from mlflow_deploy_plugin.watch.sequential.evidence import JudgedWindow, SeriesKey
from mlflow_deploy_plugin.watch.sequential.metric_shifts import (
    LABEL,
    LABELLED,
    PREDICTED,
    follow_metrics,
)
from mlflow_deploy_plugin.watch.statistics.cbpe import CbpeEstimate, LabelledWindow, estimate
from mlflow_deploy_plugin.watch.statistics.intervals import MetricInterval, wilson_interval

BUDGET = 1.0
_YEARS = 2
_YEAR = 365
_WEEK = 7
_EARLIER = 8
"""The windows with labels that correct an estimate, as in `kinds/performance.py`."""
_HARMLESS_FALL = 0.1
"""The fall of the accuracy that its estimate must exclude (docs/monitor-method.md)."""
_FOLLOWED = 3
"""One of so many windows follows the labels; its findings hold until the next one."""
_FULLY_JUDGED = 30
"""The red windows of a sequence whose findings are judged, if the estimate is unharmed;
each stands for the windows around it.
"""
_CONFIDENCE = 1 - 0.25 * BUDGET / 365.25
"""The confidence of a requirement: a quarter of the budget is for single windows."""

DRIFT = "ours: drift of inputs and predictions"
PREDICTIONS = "ours: drift of the predictions"
HARMFUL = "ours: drift with a sign of harm, the default"
ESTIMATED = "ours: estimated accuracy"
LABELLED_ROWS = "ours: accuracy with labels"


@dataclass(frozen=True, eq=False)
class Judged:
    """The judged windows of a set, and years that are drawn from its reference.

    Attributes:
        cpu: the CPU seconds for a further window.
    """

    later: Course
    calm: Sequence[Course]
    cpu: float


@dataclass(frozen=True, eq=False)
class Outcome:
    """A set and what each method says about it, by the name of the method.

    Attributes:
        sequences: the windows of `draw_sequences`.
        estimated: the estimated accuracy of each window, [W] float64.
    """

    windowed: Windowed
    sequences: Sequence[Array]
    judged: dict[str, Judged]
    estimated: Array


def draw_sequences(windowed: Windowed, years: int) -> list[Array]:
    """Return the judged windows in time, then calm years, whose windows are drawn from
    those of the reference with the same day of the week: numbers of windows, [n] int64.
    """
    sequences = [np.arange(windowed.reference, len(windowed.counts))]
    for seed in range(years):
        rng = np.random.default_rng([88, seed])
        days = np.arange(windowed.reference, windowed.reference + _YEAR) % _WEEK
        weeks = (windowed.reference - days + _WEEK - 1) // _WEEK
        sequences.append(days + _WEEK * rng.integers(weeks))
    return sequences


def flags_of(red: Array) -> Course:
    """Return the course of red windows, [n] bool, each stretch of which is an alarm."""
    return Course(red & ~np.concatenate([[False], red[:-1]]), red)


def _stream(windowed: Windowed, sequence: Array) -> Stream:
    windows = np.concatenate([np.arange(windowed.reference), sequence])
    rows = np.concatenate(
        [np.arange(rows.start, rows.stop) for rows in map(windowed.rows, windows.tolist())]
    )
    table = windowed.table.take(pa.array(rows))
    return stream_of_table(table, windowed.counts[windows], windowed.reference)


def _estimates(windowed: Windowed) -> list[CbpeEstimate]:
    """Return the estimate for each window, corrected by the last labels of the
    reference; later rows have no labels.
    """
    parts = [*map(windowed.rows, range(len(windowed.counts)))]
    answers = [windowed.answers.take(np.r_[rows]) for rows in parts]
    earlier = [
        LabelledWindow(windowed.truth[parts[window]], answers[window])
        for window in range(windowed.reference - _EARLIER, windowed.reference)
    ]
    estimates = [estimate(each, earlier, ("accuracy",)) for each in answers]
    return [each for each in estimates if not isinstance(each, Refused)]


def _measured(estimated: CbpeEstimate, confidence: float) -> MetricInterval:
    measured = estimated.measure("accuracy", 0, confidence)
    assert not isinstance(measured, Refused)
    return measured


def _is_unharmed(estimated: CbpeEstimate) -> bool:
    """Return True if the estimate excludes a fall, as `accuracy_changes` does."""
    now = _measured(estimated, 0.95)
    change = AccuracyChange(float(np.mean(estimated.accuracies)), now)
    return not change.has_fallen and change.before - now.low < _HARMLESS_FALL


def _with_harm(stream: Stream, course: Course, unharmed: Array) -> Course:
    """Return the course of the windows whose state is `drift`: of `unharmed` windows,
    [n] bool, those with a finding that is itself a sign of harm.
    """
    red = course.red.copy()
    sought = np.flatnonzero(course.red & unharmed)
    for windows in np.array_split(sought, max(min(_FULLY_JUDGED, len(sought)), 1)):
        if not len(windows):
            continue
        compared = compare(stream, int(windows[len(windows) // 2]), BUDGET)
        verdict = compared.verdict(())
        findings = [*compared.shifts(verdict).findings, *verdict.findings]
        red[windows] = any(item.is_alarm for item in without_harm(findings, {""}))
    return Course((course.alarms & red) | flags_of(red).alarms, red)


def _label_levels(windowed: Windowed, window: int) -> dict[SeriesKey, float]:
    """Return the shares of the classes among the labels and the predictions of a window
    in which all rows have a label.
    """
    rows = windowed.rows(window)
    levels = {LABELLED: 1.0}
    for figure, classes in (
        (LABEL, windowed.truth),
        (PREDICTED, windowed.answers.predicted),
    ):
        shares = np.bincount(classes[rows], minlength=len(windowed.answers.classes))
        for name, share in zip(windowed.answers.classes, shares / shares.sum(), strict=True):
            levels[SeriesKey(name, figure)] = float(share)
    return levels


def _with_labels(windowed: Windowed, stream: Stream, sequence: Array) -> Course:
    """Judge `accuracy` >= the reference's - 0.05 on the labels of each window, which
    are known at once, and follow the accuracy and the labels over time.
    """
    past: list[JudgedWindow] = []
    values: list[float] = []
    red = []
    is_open = False
    bound = windowed.usual - HARM
    for window in [*range(windowed.reference), *sequence.tolist()]:
        value = float(windowed.accuracy[window])
        rows = int(windowed.counts[window])
        day = stream.window(len(past) - windowed.reference)
        is_followed = len(past) >= windowed.reference and len(past) % _FOLLOWED == 0
        request = request_of(day, past, BUDGET if is_followed else None)
        levels = _label_levels(windowed, window)
        evidence, findings = follow_metrics(request, {"accuracy": value}, rows, levels)
        if is_followed:
            is_open = any(item.is_alarm for item in findings)
        interval = wilson_interval("accuracy", value * rows, rows, _CONFIDENCE)
        is_violated = interval.widened(values, _CONFIDENCE).high < bound
        red.append(is_violated or is_open)
        past.append(JudgedWindow(day.start, "", evidence))
        values.append(value)
    return flags_of(np.array(red[windowed.reference :]))


def _judge_set(windowed: Windowed, years: int) -> Outcome:
    sequences = draw_sequences(windowed, years)
    streams = [_stream(windowed, sequence) for sequence in sequences]
    outputs = ("prediction", *windowed.outputs)
    begun = time.process_time()
    estimates = _estimates(windowed)
    of_estimate = (time.process_time() - begun) / len(windowed.counts)
    bound = windowed.usual - HARM
    is_below = np.array([_measured(each, _CONFIDENCE).high < bound for each in estimates])
    unharmed = np.array([*map(_is_unharmed, estimates)])
    pairs = [*zip(streams, sequences, strict=True)]
    courses = {
        DRIFT: [judge(stream, BUDGET) for stream in streams],
        PREDICTIONS: [judge(stream, BUDGET, outputs) for stream in streams],
        ESTIMATED: [flags_of(is_below[sequence]) for sequence in sequences],
    }
    courses[HARMFUL] = [
        _with_harm(stream, course, unharmed[sequence])
        for (stream, sequence), course in zip(pairs, courses[DRIFT], strict=True)
    ]
    begun = time.process_time()
    courses[LABELLED_ROWS] = [_with_labels(windowed, *pair) for pair in pairs]
    followed = sum(map(len, sequences)) / _FOLLOWED
    of_labels = (time.process_time() - begun) / followed
    costs = {ESTIMATED: of_estimate, LABELLED_ROWS: of_labels}
    for name, columns in ((DRIFT, ()), (PREDICTIONS, outputs)):
        begun = time.process_time()
        compared = compare(streams[0], len(sequences[0]) - 1, BUDGET)
        compared.shifts(compared.verdict(columns))
        costs[name] = time.process_time() - begun
    costs[HARMFUL] = costs[DRIFT] + of_estimate
    judged = {
        name: Judged(courses[name][0], courses[name][1:], costs[name])
        for name in (DRIFT, PREDICTIONS, HARMFUL, ESTIMATED, LABELLED_ROWS)
    }
    estimated = np.array([_measured(each, _CONFIDENCE).value for each in estimates])
    return Outcome(windowed, sequences, judged, estimated)


@cache
def outcomes(share: float) -> tuple[dict[str, Outcome], list[str]]:
    """Return the outcome of each set, and the reasons for those that are left out. A
    small `share` of the work has one calm year, and only the first sets.
    """
    found = {}
    reasons = []
    years = _years(share)
    chosen = [*SETS.items()][: max(math.ceil(len(SETS) * share), 1)]
    for name, load in chosen:
        begun = time.process_time()
        try:
            found[name] = _judge_set(load(), years)
        except NotHad as error:
            reasons.append(f"{name} is left out: {error}")
        print(f"  {name}: {time.process_time() - begun:.0f} s of CPU", file=sys.stderr, flush=True)
    return found, reasons


@dataclass(frozen=True)
class Peer:
    """A score of a tool in `peers.py`, and the method of ours with the same data."""

    tool: str
    score: str
    name: str
    ours: str


PEERS = (
    Peer("evidently", "share", "Evidently: share of drifted columns", DRIFT),
    Peer("evidently", "column", "Evidently: most drifted column", DRIFT),
    Peer("nannyml", "drift", "NannyML: univariate drift", DRIFT),
    Peer("alibi", "tests", "alibi-detect: KS, chi-square", DRIFT),
    Peer("river", "figures", "river: ADWIN of daily figures", DRIFT),
    Peer("cusum", "figures", "CUSUM of daily figures", DRIFT),
    Peer("", "estimate", "ours: estimate with a calibrated limit", ESTIMATED),
    Peer("nannyml", "cbpe", "NannyML: CBPE", ESTIMATED),
    Peer("river", "errors", "river: ADWIN of errors", LABELLED_ROWS),
    Peer("cusum", "errors", "CUSUM of the daily error", LABELLED_ROWS),
)
_REQUIREMENTS = {
    "alibi": ("alibi-detect==0.13.0", "pyarrow<21"),
    "nannyml": ("nannyml==0.13.1", "statsmodels"),
    "river": ("river==0.26.1", "pandas", "pyarrow"),
}
"""Of the tools that are not in this process's environment."""


def calibrate(candidates: Iterable[Sequence[Array]], most: int) -> list[Course]:
    """Return the courses of the last candidate before one has more than `most` alarms
    in the calm years together; without one, no window is red.

    Args:
        candidates: the red windows of the judged windows and of each calm year, [n]
            bool each, of the strictest limit first.
    """
    courses: list[Course] = []
    for candidate in candidates:
        looser = [*map(flags_of, candidate)]
        if courses and sum(count_alarms(each.alarms) for each in looser[1:]) > most:
            break
        courses = looser
    return courses


def _by_limits(scores: Sequence[Array]) -> Iterator[list[Array]]:
    """Yield the red windows of each limit of the scores of the calm years."""
    for limit in np.unique(np.concatenate(scores[1:]))[::-1].tolist():
        yield [each > limit for each in scores]


def _run_tool(tool: str, folder: Path) -> dict[str, Any]:
    requirements = _REQUIREMENTS.get(tool)
    programs = Path(sys.executable).parent
    if requirements:
        programs = environment(requirements, installs=True)
    script = Path(__file__).parent / "peers.py"
    print(f"    {tool}", file=sys.stderr, flush=True)
    subprocess.run([programs / "python", script, tool, folder], check=True)
    found: dict[str, Any] = json.loads((folder / f"{tool}.json").read_text())
    return found


def _judge_by_peers(outcome: Outcome) -> dict[str, Judged]:
    """Return what the tools say, with as many alarms in the calm years as ours."""
    windowed = outcome.windowed
    rows = windowed.table.append_column("truth", pa.array(windowed.truth))
    numbers = np.repeat(np.arange(len(windowed.counts)), windowed.counts)
    rows = rows.append_column("window", pa.array(numbers))
    facts = {
        "reference": windowed.reference,
        "classes": windowed.answers.classes,
        "sequences": [sequence.tolist() for sequence in outcome.sequences],
    }
    judged = {}
    with tempfile.TemporaryDirectory(prefix="onnxserve-benchmark-") as name:
        folder = Path(name)
        pq.write_table(rows, folder / "rows.parquet")
        (folder / "facts.json").write_text(json.dumps(facts))
        tools = dict.fromkeys(peer.tool for peer in PEERS if peer.tool)
        by_tool = {tool: _run_tool(tool, folder) for tool in tools}
    cpu = outcome.judged[ESTIMATED].cpu
    by_tool[""] = {"estimate": -outcome.estimated, "cpu": cpu}
    for peer in PEERS:
        found = by_tool[peer.tool][peer.score]
        if peer.tool == "river":
            candidates = iter([[*map(np.array, each)] for each in found])
        elif peer.tool == "cusum":
            candidates = _by_limits([*map(np.array, found)])
        else:
            candidates = _by_limits([np.array(found)[each] for each in outcome.sequences])
        most = sum(count_alarms(year.alarms) for year in outcome.judged[peer.ours].calm)
        later, *calm = calibrate(candidates, most)
        judged[peer.name] = Judged(later, calm, by_tool[peer.tool]["cpu"])
    return judged


@dataclass(frozen=True)
class Figures:
    """The figures of a method on one or more sets.

    Attributes:
        calm: the alarms of each calm year.
        delays: the windows from the start of each harmful shift to its alarm; NaN if
            there is none until its end.
        red: the shares of harmful and of unharmed windows that are red, the mean over
            the sets that have both; NaN without any.
        cpu: CPU seconds per window, the mean over the sets.
    """

    calm: Sequence[int]
    delays: Array
    red: tuple[float, float]
    cpu: float

    @property
    def found(self) -> int:
        return int(np.isfinite(self.delays).sum())

    @property
    def delay(self) -> float:
        """The median delay of the shifts that are found."""
        return float(np.nanmedian(self.delays)) if self.found else math.nan

    @property
    def per_year(self) -> float:
        return float(np.mean(self.calm))

    @property
    def contrast(self) -> float:
        return self.red[0] - self.red[1]


def figures_of(pairs: Sequence[tuple[Windowed, Judged]]) -> Figures:
    calm: list[int] = []
    delays: list[float] = []
    red = []
    for windowed, judged in pairs:
        calm += [count_alarms(year.alarms) for year in judged.calm]
        below = fallen(windowed)
        begun = flags_of(judged.later.alarms).alarms
        for stretch in harmful_stretches(below):
            alarms = np.flatnonzero(begun[stretch.start : stretch.stop])
            delays.append(float(alarms[0]) if len(alarms) else math.nan)
        harmful = judged.later.red[below >= HARM]
        unharmed = judged.later.red[below < NO_HARM]
        if len(harmful) and len(unharmed):
            red.append((float(harmful.mean()), float(unharmed.mean())))
    shares = np.mean(red, axis=0).tolist() if red else [math.nan, math.nan]
    cpu = float(np.mean([judged.cpu for _, judged in pairs]))
    return Figures(calm, np.array(delays), (shares[0], shares[1]), cpu)


def better_in(peer: Figures, ours: Figures) -> str:
    """Return in what the figures of a tool are better than ours; empty if in nothing.
    A shift that is not found has the longest delay.
    """
    parts = {
        "finds more": peer.found > ours.found,
        "sooner": bool(
            np.median(np.nan_to_num(peer.delays, nan=math.inf))
            < np.median(np.nan_to_num(ours.delays, nan=math.inf))
        ),
        "red fits harm better": peer.contrast > ours.contrast,
    }
    return ", ".join(part for part, is_better in parts.items() if is_better)


def _shares(red: tuple[float, float]) -> str:
    return "–" if math.isnan(red[0]) else f"{red[0]:.0%}; {red[1]:.0%}"


def table_lines(share: float) -> Iterator[str]:
    """Yield the table of the sets: what each method of ours says. `share` is that of
    the calm years and of the sets.
    """
    found, reasons = outcomes(share)
    names = (DRIFT, PREDICTIONS, HARMFUL, ESTIMATED, LABELLED_ROWS)
    yield (
        "Each cell has false alarms per calm year, harmful shifts found, and the shares of "
        "harmful and of unharmed windows that are red."
    )
    yield ""
    heads = [name.removeprefix("ours: ") for name in names]
    yield f"| set | windows | accuracy, lowest mean | shifts | {' | '.join(heads)} |"
    yield f"|{'---|' * (4 + len(names))}"
    for name, outcome in found.items():
        windowed = outcome.windowed
        below = fallen(windowed)
        count = len(harmful_stretches(below))
        cells = []
        for method in names:
            figures = figures_of([(windowed, outcome.judged[method])])
            of_shifts = f"{figures.found} of {count}" if count else "–"
            cells.append(f"{figures.per_year:.1f}; {of_shifts}; {_shares(figures.red)}")
        size = f"{windowed.reference} + {len(below)}"
        fall = f"{windowed.usual:.2f}, {windowed.usual - below.max():.2f}"
        yield f"| {name} | {size} | {fall} | {count} | {' | '.join(cells)} |"
    yield from _remarks(reasons, share)


def peer_lines(share: float) -> Iterator[str]:
    """Yield the table of the methods, ours and the tools', on all sets together."""
    found, reasons = outcomes(share)
    judged = {name: {**outcome.judged} for name, outcome in found.items()}
    for name, outcome in found.items():
        print(f"  tools: {name}", file=sys.stderr, flush=True)
        judged[name] |= _judge_by_peers(outcome)
    never = {name: np.zeros(len(outcome.sequences[0]), bool) for name, outcome in found.items()}
    counterparts = {peer.name: peer.ours for peer in PEERS}
    yield (
        "| method | false alarms per year, 95 % | harmful shifts found | delay in windows | "
        "red: harmful; unharmed | CPU ms per window | better than ours |"
    )
    yield "|---|---|---|---|---|---|---|"
    methods = [DRIFT, PREDICTIONS, HARMFUL, ESTIMATED, LABELLED_ROWS, *counterparts]
    for method in methods:
        pairs = [(found[name].windowed, judged[name][method]) for name in found]
        figures = figures_of(pairs)
        better = "–"
        if method in counterparts:
            of_ours = counterparts[method]
            ours = [(found[name].windowed, judged[name][of_ours]) for name in found]
            better = better_in(figures, figures_of(ours))
            better = f"**{better}**" if better else "no"
        yield _method_line(method, figures, better)
    empty = [(found[name].windowed, Judged(flags_of(red), [], 0.0)) for name, red in never.items()]
    yield _method_line("no alarm at all", replace(figures_of(empty), calm=[0]), "–")
    yield from _remarks(reasons, share)


def _method_line(method: str, figures: Figures, better: str) -> str:
    low, high = yearly_line(method, figures.calm, 1.0).interval
    delay = "–" if math.isnan(figures.delay) else f"{figures.delay:g}"
    cells = [
        method,
        f"{figures.per_year:.2f}; {low:.2f} to {high:.2f}",
        f"{figures.found} of {len(figures.delays)}",
        delay,
        _shares(figures.red),
        f"{1_000 * figures.cpu:,.2g}",
        better,
    ]
    return f"| {' | '.join(cells)} |"


def _remarks(reasons: Sequence[str], share: float) -> Iterator[str]:
    yield ""
    yield f"{_years(share)} calm years of {_YEAR} windows per set, seeds from 88, 0."
    yield from reasons


def _years(share: float) -> int:
    return max(round(_YEARS * share), 1)
