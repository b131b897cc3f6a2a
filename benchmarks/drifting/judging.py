"""Judges made windows, many at a time on both cores, and says how a measured rate stands to its target."""

import math
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import pyarrow as pa
from scipy import stats

from mlflow_deploy_plugin.errors import Refused
from mlflow_deploy_plugin.monitoring.drift.references.windows import DriftReference
from mlflow_deploy_plugin.monitoring.drift.sketches.sketch import sketch_batches
from mlflow_deploy_plugin.monitoring.drift.verdict import DriftVerdict, judge_profile
from mlflow_deploy_plugin.spec import MonitorSpec

RATE = 0.05
WORKERS = 2
Task = TypeVar("Task")
Answer = TypeVar("Answer")
Flags = list[bool | None]
"""What was said of the windows that stand beside one reference; None: not judged."""
Outcome = Literal["met", "missed", "cannot be told", "–"]
_NORMAL_QUANTILE = 1.959964
"""Of intervals of 95 %."""


@dataclass(frozen=True)
class Line:
    """One figure of the table and how it stands to its target."""

    what: str
    figure: str
    target: str
    outcome: Outcome

    def __str__(self) -> str:
        return f"| {self.what} | {self.figure} | {self.target} | {self.outcome} |"


class Judge:
    """Judges windows beside one reference, whose null distribution is worked out once."""

    def __init__(self, reference: DriftReference, rate: float = RATE, independent_rows: bool = False) -> None:
        self._reference = reference
        self._spec = MonitorSpec(min_rows=30, false_alarm_rate=rate, independent_rows=independent_rows)
        self._cache = tempfile.TemporaryDirectory(prefix="onnxserve-benchmark-")

    def __call__(self, window: pa.Table, start_us: int) -> DriftVerdict:
        profile = sketch_batches(self._reference.bins, [window])
        return judge_profile(self._reference, profile, start_us, self._spec, Path(self._cache.name))

    def close(self) -> None:
        self._cache.cleanup()


def on_all_cores(function: Callable[[Task], Answer], tasks: Sequence[Task]) -> list[Answer]:
    with ProcessPoolExecutor(WORKERS) as executor:
        return list(executor.map(function, tasks))


def rate_line(what: str, groups: Sequence[Flags], rate: float = RATE) -> Line:
    """The share of judged windows that were called drifted, beside [0.5, 1.5] of the rate.

    It is met where the share lies within, missed where the whole interval lies outside, and cannot be told where the
    share lies outside and chance alone may have brought it there.

    Args:
        groups: the windows of each reference.
    """
    low, high = 0.5 * rate, 1.5 * rate
    target = f"{100 * low:.3g} to {100 * high:.3g} %"
    judged = [[flag for flag in flags if flag is not None] for flags in groups]
    judged = [flags for flags in judged if flags]
    if not judged:
        return Line(what, "none was judged", target, "cannot be told")
    count, alarms = sum(map(len, judged)), sum(map(sum, judged))
    first, last = interval(judged)
    left_out = sum(map(len, groups)) - count
    said = f", {left_out} not judged" if left_out else ""
    outcome: Outcome = "cannot be told"
    if low <= alarms / count <= high:
        outcome = "met"
    elif last < low or first > high:
        outcome = "missed"
    return Line(what, f"{alarms / count:.1%} of {count:,}{said}; {first:.1%} to {last:.1%}", target, outcome)


def found_line(what: str, groups: Sequence[Sequence[bool]], least: float | None) -> Line:
    """The share of what had to be found, at least so much; below that a miss only where chance cannot have brought it
    there. None: nothing is asked."""
    flags = [flag for group in groups for flag in group]
    first, last = interval(groups)
    share = sum(flags) / len(flags)
    outcome: Outcome = "cannot be told"
    if least is None or share >= least:
        outcome = "met" if least is not None else "–"
    elif last < least:
        outcome = "missed"
    target = f"at least {100 * least:g} %" if least is not None else "–"
    return Line(what, f"{share:.0%} of {len(flags)}; {first:.0%} to {last:.0%}", target, outcome)


def beside_line(what: str, reported: Sequence[Flags], came: Sequence[Flags]) -> Line:
    """The rate that reports measure of themselves, beside half to twice the rate that came; each of the windows of some
    references."""
    ours, theirs = ([[bool(flag) for flag in flags if flag is not None] for flags in side] for side in (reported, came))
    share, real = (sum(map(sum, side)) / sum(map(len, side)) for side in (ours, theirs))
    (first, last), (least, most) = interval(ours), interval(theirs)
    outcome: Outcome = "cannot be told"
    if real / 2 <= share <= 2 * real:
        outcome = "met"
    elif last < least / 2 or first > 2 * most:
        outcome = "missed"
    figure = f"{share:.1%} of {sum(map(len, ours)):,}; {first:.1%} to {last:.1%}"
    return Line(what, figure, f"half to twice of {real:.1%}, which came", outcome)


def forward_flags(verdict: DriftVerdict) -> Flags:
    """What the report measures by itself: of each later window of the reference, whether it is an alarm."""
    told = verdict.held_out
    return [] if isinstance(told, Refused) else [place < told.alarms for place in range(told.windows)]


def interval(groups: Sequence[Sequence[bool]]) -> tuple[float, float]:
    """Wilson's interval of 95 % for the share of the flags (Journal of the American Statistical Association 22, 1927).

    Windows beside one reference share its chance, so they count as the fewer that they are worth: their number over the
    design effect, and fewer again where references are few (Korn & Graubard, Confidence Intervals for Proportions with
    Small Expected Number of Positive Counts Estimated from Survey Data, Survey Methodology 24, 1998).
    """
    sums, sizes = np.array([sum(group) for group in groups]), np.array([len(group) for group in groups])
    count = float(sizes.sum())
    share = float(sums.sum() / count)
    alone = share * (1 - share) / count
    if len(groups) > 1 and alone > 0:
        together = len(groups) / (len(groups) - 1) * float(np.square(sums - share * sizes).sum()) / count**2
        count /= max(together / alone, 1.0)
    if len(groups) > 1:  # of few references the effect itself is told badly
        count *= float(_NORMAL_QUANTILE / stats.t.ppf(0.975, len(groups) - 1)) ** 2
    square = _NORMAL_QUANTILE**2
    middle = share + square / (2 * count)
    half = _NORMAL_QUANTILE * math.sqrt(share * (1 - share) / count + square / (4 * count**2))
    return max((middle - half) / (1 + square / count), 0.0), (middle + half) / (1 + square / count)


def is_alarm(verdict: DriftVerdict) -> bool | None:
    return None if verdict.state == "not judged" else verdict.state == "drift"
