"""Starts of shifts in public series whose changes five people marked (van den Burg &
Williams 2020, arXiv 2003.06222), next to three public methods.

Each value is the mean of a window of 100 rows. The first quarter of the windows, 20 to
90, is the reference, and marks inside it are left out. A person accepts each shift that
is still open 14 windows after its alarm. No cycle is removed, and the budget is a false
alarm in 365 windows.
"""

import itertools
import json
import math
import subprocess
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from scipy import special, stats

from benchmarks.drifting.judging import Array, on_all_cores
from benchmarks.drifting.streams import Stream, follow, stream_of_table
from benchmarks.shifting.data import NotHad, public_file, public_files
from mlflow_deploy_plugin.core.spec.monitors import MonitorSpec
from mlflow_deploy_plugin.watch.sequential import budget
from mlflow_deploy_plugin.watch.sequential.detector import Tracking, limit_for
from mlflow_deploy_plugin.watch.sequential.shifts import shown_shifts
from projects.environments import NotInstalled, environment

MARGIN = 5
_ROWS = 100
_ACCEPTED_AFTER = 14
_LENGTH = timedelta(days=2)
"""A week, whose cycle is removed by default, is not a multiple of this length."""
_SPEC = MonitorSpec.model_validate({"every": "2d", "min_rows": 30})
_PER_YEAR = 0.5
_HAZARD = 1 / 365
_RUPTURES = "ruptures==1.1.10"
_PELT = """
import json, sys
import numpy as np, ruptures
for values in json.load(sys.stdin):
    print(json.dumps(ruptures.Pelt(model="rbf").fit(np.array(values)).predict(pen=5)))
"""


class Start(NamedTuple):
    """The first window of a shift, and the window in which it was found."""

    start: int
    found: int


@dataclass(frozen=True, eq=False)
class Series:
    """A series, [n] float64, of which the `first` values are the reference; `marks` are
    the changes that each annotator sees in the judged values.
    """

    name: str
    values: Array
    first: int
    marks: Sequence[Collection[int]]

    @property
    def scaled(self) -> Array:
        """The values in standard deviations of the reference."""
        reference = self.values[: self.first]
        scaled: Array = (self.values - reference.mean()) / reference.std(ddof=1)
        return scaled


def f1_score(marks: Sequence[Collection[int]], starts: Collection[int], first: int) -> float:
    """Return F1 with a margin of 5 by the rule of the data set: the precision compares
    with the marks of all annotators, and the recall is the mean over them. The `first`
    value begins a segment for all.
    """
    found = {first, *starts}
    total = {first}.union(*marks)
    precision = _matches(total, found) / len(found)
    recall = float(np.mean([_matches({first, *one}, found) / len({first, *one}) for one in marks]))
    return 2 * precision * recall / (precision + recall)


def _matches(marks: Collection[int], starts: Collection[int]) -> int:
    """Return how many marks have a start within the margin that no other mark has."""
    free = set(starts)
    for mark in sorted(marks):
        near = [start for start in free if abs(start - mark) <= MARGIN]
        if near:
            free.remove(min(near, key=lambda start: (abs(start - mark), start)))
    return len(starts) - len(free)


def covering(
    marks: Sequence[Collection[int]], starts: Collection[int], first: int, end: int
) -> float:
    """Return the mean over the annotators of the share of windows, from `first` to
    `end`, that the most similar segment covers (Jaccard index, weighted by length).
    """
    found = _segments(starts, first, end)
    covers = []
    for one in marks:
        cover = 0.0
        for low, high in _segments(one, first, end):
            shared = [max(min(high, to) - max(low, since), 0) for since, to in found]
            unions = [max(high, to) - min(low, since) for since, to in found]
            cover += (high - low) * max(np.divide(shared, unions))
        covers.append(cover / (end - first))
    return float(np.mean(covers))


def _segments(starts: Collection[int], first: int, end: int) -> list[tuple[int, int]]:
    edges = sorted({first, *starts, end})
    return list(itertools.pairwise(edges))


def agreed_changes(marks: Sequence[Collection[int]]) -> list[int]:
    """Return the changes that at least three annotators mark within the margin: their
    median marks, ascending.
    """
    changes: list[int] = []
    for mark in sorted(set().union(*marks)):
        near = [[other for other in one if abs(other - mark) <= MARGIN] for one in marks]
        chosen = [min(some, key=lambda other: abs(other - mark)) for some in near if some]
        if len(chosen) >= 3 and (not changes or mark - changes[-1] > 2 * MARGIN):
            changes.append(int(np.median(chosen)))
    return changes


def read_series(name: str) -> Series:
    """Return a series; unknown values are interpolated."""
    document = json.loads(public_file(f"series {name}").read_bytes())
    values = np.array(document["series"][0]["raw"], np.float64)
    known = np.flatnonzero(np.isfinite(values))
    values = np.interp(np.arange(len(values)), known, values[known])
    first = int(np.clip(len(values) // 4, 20, 90))
    annotated = json.loads(public_file("annotations").read_bytes())[name].values()
    return Series(name, values, first, [[at for at in one if at >= first] for one in annotated])


def find_by_monitor(series: Series, seed: int = 0) -> list[tuple[Start, bool]]:
    """Return the shifts of the product, and whether each was confirmed. The rows of a
    window have the reference's deviation around its value, which is their mean.
    """
    rows = np.random.default_rng(seed).normal(size=(len(series.values), _ROWS))
    rows -= rows.mean(axis=1, keepdims=True)
    rows = series.values[:, None] + series.values[: series.first].std() * rows
    counts = np.full(len(rows), _ROWS)
    stream = stream_of_table(pa.table({"value": rows.ravel()}), counts, series.first, _LENGTH)
    found: list[tuple[Start, bool]] = []
    baseline: dict[str, datetime] = {}
    now = series.first
    while now < len(rows):
        now, baseline = _until_accepted(stream, now, baseline, found)
    return found


def _until_accepted(
    stream: Stream,
    begin: int,
    baseline: Mapping[str, datetime],
    found: list[tuple[Start, bool]],
) -> tuple[int, dict[str, datetime]]:
    """Add the shifts that are found from window `begin` on, until a person accepts one;
    return the next window and the new baseline.
    """
    course = follow(stream, _PER_YEAR, _SPEC, baseline)
    limit = limit_for(course.windows, budget.lasting_rate(_SPEC, _PER_YEAR))
    tracking = Tracking(course.windows, limit, course.limits)
    alarm = None
    for now in range(stream.first, len(course.starts)):
        tracking.add(now)
        if now < begin or not tracking.shifts:
            alarm = None
            continue
        if alarm is None:
            alarm = now
            seen = replace(stream, profiles=stream.profiles[: now + 1 - stream.first])
            shown = shown_shifts(follow(seen, _PER_YEAR, _SPEC, baseline))
            found.append((Start(shown[0].onset, now), False))
        if any(shift.is_confirmed for shift in tracking.shifts):
            found[-1] = (found[-1][0], True)
        if now - alarm == _ACCEPTED_AFTER:
            last = max(tracking.shifts, key=lambda shift: shift.onset)
            return now + 1, {course.series[last.series].key: course.starts[last.onset]}
    return len(course.starts), {}


def find_by_cusum(series: Series) -> list[Start]:
    """Return the shifts of a CUSUM with k = 0.5 and h = 5 (Page 1954; Montgomery's
    defaults), whose mean a person sets to the new level 14 windows after an alarm.
    """
    found = []
    mean = 0.0
    sums = np.zeros(2)
    since = np.full(2, series.first)
    now = series.first
    while now < len(series.values):
        above = series.scaled[now] - mean
        sums += np.array([above, -above]) - 0.5
        since[sums <= 0] = now + 1
        sums = sums.clip(0)
        if sums.max() > 5:
            start = int(since[sums.argmax()])
            found.append(Start(start, now))
            now += _ACCEPTED_AFTER
            mean = float(series.scaled[start : now + 1].mean())
            sums[:] = 0
            since[:] = now + 1
        now += 1
    return found


def find_by_bocpd(series: Series) -> list[Start]:
    """Return the starts of the most probable runs, as each was first known, of Bayesian
    online change point detection (Adams & MacKay 2007). The values are normal with an
    unknown mean and variance, of a normal-inverse-gamma prior (0, 1, 1, 1), and a
    change is expected in 365 windows.
    """
    found = []
    last = 0
    mean, count, shape, scale = (np.array([value]) for value in (0.0, 1.0, 1.0, 1.0))
    logs = np.zeros(1)
    for now, value in enumerate(series.scaled):
        width = np.sqrt(scale * (count + 1) / (shape * count))
        logs = logs + stats.t.logpdf(value, 2 * shape, mean, width)
        logs -= special.logsumexp(logs)
        logs = np.append(math.log(_HAZARD), math.log1p(-_HAZARD) + logs)
        scale = np.append(1.0, scale + count * np.square(value - mean) / (2 * (count + 1)))
        mean = np.append(0.0, (count * mean + value) / (count + 1))
        count = np.append(1.0, count + 1)
        shape = np.append(1.0, shape + 0.5)
        start = now + 1 - int(logs.argmax())
        if start > last:
            last = start
            found.append(Start(start, now))
    return [one for one in found if one.start >= series.first]


def find_by_pelt(all_series: Sequence[Series]) -> list[list[Start]]:
    """Return the changes of PELT (ruptures; kernel rbf, penalty 5), which sees the
    whole series.
    """
    python = environment((_RUPTURES,), installs=True) / "python"
    values = json.dumps([series.scaled.tolist() for series in all_series])
    done = subprocess.run(
        [python, "-c", _PELT], input=values, capture_output=True, text=True, check=True
    )
    changes = [json.loads(line) for line in done.stdout.splitlines()]
    return [
        [Start(at, len(series.values) - 1) for at in one[:-1] if at >= series.first]
        for series, one in zip(all_series, changes, strict=True)
    ]


def series_lines(share: float = 1.0) -> Iterator[str]:
    """Yield the table of a share of the series."""
    names = [name.removeprefix("series ") for name in public_files() if name.startswith("series")]
    try:
        all_series = [read_series(name) for name in names[: math.ceil(share * len(names))]]
    except NotHad as error:
        yield f"Left out: annotated series: {error}"
        return
    marked = np.mean([[len(one) for one in series.marks] for series in all_series])
    changes = sum(len(agreed_changes(series.marks)) for series in all_series)
    unmarked = sum(not any(series.marks) for series in all_series)
    yield (
        f"| {len(all_series)} series; annotators mark {marked:.1f} changes per series | F1 "
        "(margin 5); 95 % interval | covering | starts per series | starts in the "
        f"{unmarked} series without a mark | found of {changes} changes that 3 of 5 mark | "
        "windows from mark to alarm, median |"
    )
    yield "|---|---|---|---|---|---|---|"
    ours = on_all_cores(find_by_monitor, all_series)
    methods: dict[str, Sequence[Sequence[Start]]] = {
        "onnxserve, every alarm": [[start for start, _ in one] for one in ours],
        "onnxserve, confirmed shifts only": [
            [start for start, is_confirmed in one if is_confirmed] for one in ours
        ],
        "onnxserve, first alarm only": [[start for start, _ in one[:1]] for one in ours],
        "CUSUM, k 0.5, h 5": [*map(find_by_cusum, all_series)],
        "BOCPD, normal values": [*map(find_by_bocpd, all_series)],
        "no change at all": [[] for _ in all_series],
    }
    without = ""
    try:
        methods["PELT, kernel rbf, penalty 5 (sees the whole series)"] = find_by_pelt(all_series)
    except NotInstalled as error:
        without = f"\nLeft out: PELT: {error}"
    for name, found in methods.items():
        yield _line(name, all_series, found)
    if without:
        yield without


def _line(name: str, all_series: Sequence[Series], found: Sequence[Sequence[Start]]) -> str:
    scores = []
    covers = []
    delays = []
    unmarked = 0
    for series, starts in zip(all_series, found, strict=True):
        places = [start.start for start in starts]
        scores.append(f1_score(series.marks, places, series.first))
        covers.append(covering(series.marks, places, series.first, len(series.values)))
        if not any(series.marks):
            unmarked += len(starts)
        for change in agreed_changes(series.marks):
            near = [start for start in starts if abs(start.start - change) <= MARGIN]
            delays += [near[0].found - change] if near else []
    mean = np.mean(scores)
    half = stats.sem(scores) * stats.t.ppf(0.975, len(scores) - 1)
    per_series = np.mean([*map(len, found)])
    delay = f"{np.median(delays):g}" if delays and "sees" not in name else "–"
    return (
        f"| {name} | {mean:.2f}; {mean - half:.2f} to {mean + half:.2f} | {np.mean(covers):.2f} | "
        f"{per_series:.1f} | {unmarked} | {len(delays)} | {delay} |"
    )
