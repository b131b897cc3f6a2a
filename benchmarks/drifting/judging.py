"""Compare measured rates with their targets, and simulate on both cores."""

import argparse
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from scipy import stats

from mlflow_deploy_plugin.wrap.evaluation.proportions import wilson_bounds

Array = npt.NDArray[Any]
WORKERS = 2
Task = TypeVar("Task")
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Line:
    """A figure with its 95 % interval. The target is met if the figure is inside it,
    and missed if the whole interval is outside; otherwise the outcome is uncertain.
    """

    what: str
    shown: str
    figure: float
    interval: tuple[float, float]
    target: tuple[float, float] | None = None

    def __str__(self) -> str:
        low, high = self.interval
        outcome = "–"
        if self.target is not None:
            least, most = self.target
            is_outside = high < least or low > most
            outcome = "missed" if is_outside else "uncertain"
            if least <= self.figure <= most:
                outcome = "met"
        target = "–" if self.target is None else f"{self.target[0]:g} to {self.target[1]:g}"
        return f"| {self.what} | {self.shown}; {low:.3g} to {high:.3g} | {target} | {outcome} |"


def part_options(description: str | None, parts: Collection[str]) -> argparse.Namespace:
    """Return the options of a script that runs its `parts` in this order: `only` (None:
    all), and `share`.
    """
    parser = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", nargs="+", choices=[*parts], help="run only these parts")
    parser.add_argument("--share", type=float, default=1.0, help="share of the work")
    return parser.parse_args()


def on_all_cores(function: Callable[[Task], Answer], tasks: Sequence[Task]) -> list[Answer]:
    with ProcessPoolExecutor(WORKERS) as executor:
        return list(executor.map(function, tasks))


def share_line(
    what: str,
    groups: Sequence[Sequence[bool]] | Sequence[Array],
    target: tuple[float, float] | None = None,
) -> Line:
    """Return the share of flags in percent; windows of a group depend on each other."""
    share = float(np.mean(np.concatenate([np.asarray(group, bool) for group in groups])))
    low, high = interval(groups)
    count = sum(map(len, groups))
    shown = f"{share:.1%} of {count:,}"
    return Line(what, shown, 100 * share, (100 * low, 100 * high), target)


def interval(groups: Sequence[Sequence[bool]] | Sequence[Array]) -> tuple[float, float]:
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
        squares = float(np.square(sums - share * sizes).sum())
        together = len(groups) / (len(groups) - 1) * squares / count**2
        count /= max(together / alone, 1.0)
    if len(groups) > 1:  # The effect itself is imprecise with few references.
        count *= float(stats.norm.ppf(0.975) / stats.t.ppf(0.975, len(groups) - 1)) ** 2
    return wilson_bounds(share, count, 0.95)


def yearly_line(what: str, counts: Sequence[int], years: float, most: float | None = None) -> Line:
    """Return the alarms per year; each count is that of one stream of `years`.

    The interval is exact for a Poisson distribution (Garwood, Biometrika 28, 1936).
    Streams differ by chance, so the years are divided by the ratio of the variance
    between streams and the mean.
    """
    total = sum(counts)
    exposure = years * len(counts)
    effect = 1.0
    if len(counts) > 1 and total:
        effect = max(float(np.var(counts, ddof=1)) / (total / len(counts)), 1.0)
    events = total / effect
    low = float(stats.chi2.ppf(0.025, 2 * events)) / 2 * effect / exposure if total else 0.0
    high = float(stats.chi2.ppf(0.975, 2 * events + 2)) / 2 * effect / exposure
    shown = f"{total / exposure:.2f} in {exposure:.0f} years"
    return Line(what, shown, total / exposure, (low, high), None if most is None else (0, most))


def median_line(what: str, values: Collection[float], most: float) -> Line:
    """Return the median with its interval from order statistics; infinite values are
    alarms that were not raised.
    """
    ordered = np.sort(np.array([*values]))
    count = len(values)
    low, high = stats.binom.ppf([0.025, 0.975], count, 0.5).astype(int)
    middle = float(ordered[(count - 1) // 2])
    bounds = float(ordered[max(low - 1, 0)]), float(ordered[min(high, count - 1)])
    return Line(what, f"median {middle:g} of {count}", middle, bounds, (0, most))
