"""Judge simulated windows, many at a time on both cores, and compare a measured rate
with its target.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
import pyarrow as pa
from scipy import stats

from mlflow_deploy_plugin.core.spec.monitors import MonitorSpec
from mlflow_deploy_plugin.watch.drift.references.windows import DriftReference
from mlflow_deploy_plugin.watch.drift.sketches.sketch import sketch_batches
from mlflow_deploy_plugin.watch.drift.verdict import DriftVerdict, judge_profile
from mlflow_deploy_plugin.wrap.evaluation.proportions import wilson_bounds

RATE = 0.05
WORKERS = 2
Task = TypeVar("Task")
Answer = TypeVar("Answer")
Flags = list[bool | None]
"""The verdicts on the windows of one reference; None means that the window was not
judged.
"""
Outcome = Literal["met", "missed", "uncertain", "–"]


@dataclass(frozen=True)
class Line:
    """A figure of the table, with the target and the outcome."""

    what: str
    figure: str
    target: str
    outcome: Outcome

    def __str__(self) -> str:
        return f"| {self.what} | {self.figure} | {self.target} | {self.outcome} |"


class Judge:
    """Judges windows by one reference."""

    def __init__(
        self,
        reference: DriftReference,
        rate: float = RATE,
        independent_rows: bool = False,
    ) -> None:
        self._reference = reference
        self._spec = MonitorSpec(
            min_rows=30,
            false_alarm_rate=rate,
            independent_rows=independent_rows,
        )

    def __call__(self, window: pa.Table, start_us: int) -> DriftVerdict:
        profile = sketch_batches(self._reference.bins, [window])
        return judge_profile(self._reference, profile, start_us, self._spec)


def on_all_cores(function: Callable[[Task], Answer], tasks: Sequence[Task]) -> list[Answer]:
    with ProcessPoolExecutor(WORKERS) as executor:
        return list(executor.map(function, tasks))


def rate_line(what: str, groups: Sequence[Flags], rate: float = RATE) -> Line:
    """Return the share of judged windows that were called drifted, with the target
    [0.5, 1.5] of the rate.

    The target is met if the share is inside it, and missed if the whole interval is
    outside. The outcome is uncertain if the share is outside, but may be so by chance.

    Args:
        groups: the windows of each reference.
    """
    low = 0.5 * rate
    high = 1.5 * rate
    target = f"{100 * low:.3g} to {100 * high:.3g} %"
    judged = [[flag for flag in flags if flag is not None] for flags in groups]
    judged = [flags for flags in judged if flags]
    if not judged:
        return Line(what, "none judged", target, "uncertain")
    count = sum(map(len, judged))
    alarms = sum(map(sum, judged))
    first, last = interval(judged)
    left_out = sum(map(len, groups)) - count
    said = f", {left_out} not judged" if left_out else ""
    outcome: Outcome = "uncertain"
    if low <= alarms / count <= high:
        outcome = "met"
    elif last < low or first > high:
        outcome = "missed"
    return Line(
        what,
        f"{alarms / count:.1%} of {count:,}{said}; {first:.1%} to {last:.1%}",
        target,
        outcome,
    )


def found_line(what: str, groups: Sequence[Sequence[bool]], least: float | None) -> Line:
    """Return the share of windows in which the change was found. The target is at least
    `least`, and it is missed only if chance does not explain the lower share. None
    means that there is no target.
    """
    flags = [flag for group in groups for flag in group]
    first, last = interval(groups)
    share = sum(flags) / len(flags)
    outcome: Outcome = "uncertain"
    if least is None or share >= least:
        outcome = "met" if least is not None else "–"
    elif last < least:
        outcome = "missed"
    target = f"at least {100 * least:g} %" if least is not None else "–"
    return Line(what, f"{share:.0%} of {len(flags)}; {first:.0%} to {last:.0%}", target, outcome)


def interval(groups: Sequence[Sequence[bool]]) -> tuple[float, float]:
    """Return Wilson's 95 % interval for the share of the flags (Journal of the American
    Statistical Association 22, 1927).

    Windows with the same reference depend on each other, so the number of independent
    windows is smaller: the number over the design effect, and smaller again if there
    are few references (Korn & Graubard, Confidence Intervals for Proportions with Small
    Expected Number of Positive Counts Estimated from Survey Data, Survey Methodology
    24, 1998).
    """
    sums = np.array([sum(group) for group in groups])
    sizes = np.array([len(group) for group in groups])
    count = float(sizes.sum())
    share = float(sums.sum() / count)
    alone = share * (1 - share) / count
    if len(groups) > 1 and alone > 0:
        together = (
            len(groups)
            / (len(groups) - 1)
            * float(np.square(sums - share * sizes).sum())
            / count**2
        )
        count /= max(together / alone, 1.0)
    if len(groups) > 1:  # The effect itself is imprecise with few references.
        count *= float(stats.norm.ppf(0.975) / stats.t.ppf(0.975, len(groups) - 1)) ** 2
    return wilson_bounds(share, count, 0.95)


def is_alarm(verdict: DriftVerdict) -> bool | None:
    if verdict.state == "not judged":
        return None
    return verdict.state == "drift"
