"""The null distribution: figures of the reference's own windows, and the test of a judged window against them. It is
stored (`verdict.py`), because it does not depend on the judged window.

`hold_out` measures the real rate of false alarms: the later half of the reference is judged by the earlier half, as if
that were the whole reference. Judging each window by all others would measure nothing: floor(rate (M + 1)) of M windows
are called drifted by construction. If the earlier half does not support the rate of the spec, the next supported rate
is used. Fewer than `FEWEST_HELD_OUT` windows are not measured.

Chance explains the alarms if their number is likely under a beta-binomial distribution: of n windows, the k-th largest
lies beyond a share of all that has a beta distribution with k and n + 1 - k. Dependent windows count as their effective
number, but as no fewer than the rate needs, because the verdict reports too few windows anyway.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
from scipy.special import betaincinv
from scipy.stats import betabinom, binom

from mlflow_deploy_plugin.errors import Refused
from mlflow_deploy_plugin.runtime.feeds import Array

NullKind = Literal["contiguous", "overlapping", "bootstrap", "lagged", "rows"]
FLOORS = np.array([0.005, 0.005, 0.02, 0.02])
"""The smallest deviation that is used for each figure, in its own units (standard deviations or bits, shares). In a
constant column, 1 % of odd rows is drift. The floors for rows that are unseen or out of range require some 10 % of the
rows: on flights, half or a quarter of them raised the threshold by 20 and 40 % and found no further day."""
FEWEST_HELD_OUT = 5
UNLIKELY = 0.05
"""The p-value below which a note says that more alarms come than promised: for one in twenty calm references."""
NOT_HELD_OUT = Refused("not looked for")
_NAMED = 3


class TestResult(NamedTuple):
    """The position of a window in a null distribution, in standard deviations above its windows. `scores` is [F,
    FIGURES], with -inf where a figure is not judged; p <= the rate if the statistic is above the threshold."""

    scores: Array
    statistic: float
    threshold: float
    p_value: float

    @property
    def is_drifted(self) -> bool:
        return self.statistic > self.threshold


@dataclass(frozen=True)
class HoldOutAlarms:
    """The alarms among windows of the reference that were judged by rows that are not theirs.

    Attributes:
        windows: their number; they are worth `effective_n` independent windows.
        rate: the rate of the tests: the specified one, or the next one that so few windows support.
        p_value: the probability of this many alarms or more if that rate holds.
        columns: the columns that exceeded the threshold in most of the alarms, the worst first.
        how: the words for the tests that follow "measured" in a note.
    """

    alarms: int
    windows: int
    effective_n: float
    rate: float
    p_value: float
    columns: tuple[str, ...]
    how: str

    @property
    def share(self) -> float:
        return self.alarms / self.windows

    @property
    def is_beyond(self) -> bool:
        """True if chance does not explain so many alarms."""
        return self.p_value <= UNLIKELY

    @property
    def interval(self) -> tuple[float, float]:
        """Return the interval of 95 % for the rate with these judges (Clopper & Pearson, Biometrika 26, 1934)."""
        hits = self.share * self.effective_n
        low = betaincinv(hits, self.effective_n - hits + 1, 0.025) if self.alarms else 0.0
        high = betaincinv(hits + 1, self.effective_n - hits, 0.975) if self.alarms < self.windows else 1.0
        return float(low), float(high)

    def describe(self, rate: float) -> str:
        supports = f", at {self.rate:.3g}, the next rate that these support" if self.rate > rate + 1e-9 else ""
        low, high = self.interval
        share = f"{self.share:.1%}; 95 % interval {low:.1%} to {high:.1%}"
        return f"measured {self.how}{supports}: {self.alarms} of {self.windows} ({share})"


def count_alarms(
    tests: Sequence[TestResult],
    columns: Sequence[str],
    rate: float,
    judges: float,
    windows: int,
    how: str,
    persistence: float,
) -> HoldOutAlarms:
    """Return the alarms among windows of the reference that were tested against other rows than their own.

    Args:
        judges: the number of independent windows that judged all others; infinite: each window had its own judges.
        windows: the number of judged windows that do not overlap.
        persistence: the number of windows that are worth one independent window.
    """
    alarms = [test for test in tests if test.is_drifted]
    named = Counter(
        name
        for alarm in alarms
        for name, score in zip(columns, alarm.scores.max(axis=1), strict=True)
        if score > alarm.threshold
    )
    spacing = min(persistence, max(min(judges, windows) / needed_windows(rate), 1.0))
    effective_n = max(round(windows / spacing), 1)
    hits = math.ceil(len(alarms) / len(tests) * effective_n - 1e-9)
    if math.isinf(judges):
        chance = binom(effective_n, rate)
    else:
        last = max(math.floor(rate * (judges + 1) + 1e-9), 1)
        chance = betabinom(effective_n, last / spacing, (judges + 1 - last) / spacing)
    return HoldOutAlarms(
        alarms=len(alarms),
        windows=len(tests),
        effective_n=float(effective_n),
        rate=rate,
        p_value=float(chance.sf(hits - 1)),
        columns=tuple(f"{name} ({count})" for name, count in named.most_common(_NAMED)),
        how=how,
    )


@dataclass(frozen=True, eq=False)
class NullDistribution:
    """Figures of the reference's own windows.

    Attributes:
        figures: [M, F, FIGURES] of M windows and F columns, in the order of the groups and their columns; NaN if a
            window is too small or the figure is not known.
        scales: [F, FIGURES] divisors of a judged window's figures, which make them comparable with these.
        floors: [FIGURES] or [F, FIGURES] the smallest deviations that are used.
        widening: the weight in the p-value of each window beyond the judged one.
        block_length: mean length of a drawn stretch in seconds; 0 if nothing is drawn.
        persistence: the number of windows that are worth one independent window.
        starts: [M] the first step of each window if windows overlap, otherwise empty; `length` is in steps.
    """

    kind: NullKind
    figures: Array
    scales: Array
    floors: Array
    effective_n: float
    widening: float = 1.0
    block_length: float = 0.0
    persistence: float = 1.0
    slowest_column: str = ""
    held_out: HoldOutAlarms | Refused = NOT_HELD_OUT
    starts: Array = field(default_factory=lambda: np.empty(0, np.int64))
    length: int = 0

    @property
    def independent_n(self) -> float:
        """The number of independent windows that they are worth, since some depend on those before them."""
        return self.effective_n / self.persistence

    def test(self, window: Array, rate: float) -> TestResult:
        """Test a window of the figures [F, FIGURES] at a rate of false alarms. Overlapping windows are used only if
        contiguous ones are too few; they count as their effective number, and the threshold is their largest statistic.
        """
        # A figure is judged only if at least nine in ten of the distribution's windows have it.
        known = np.isfinite(window) & (np.isfinite(self.figures).mean(axis=0) >= 0.9)
        figures = np.where(known, np.concatenate([self.figures, (window / self.scales)[None]]), np.nan)
        disjoint = None
        if len(self.starts):  # the judged window, the last, is judged by all others
            disjoint = np.ones((len(figures), len(figures)), dtype=bool)
            disjoint[:-1, :-1] = np.abs(self.starts[:, None] - self.starts) >= self.length
            disjoint[-1, -1] = False
        standardised = scores(figures, self.floors, disjoint)  # [M + 1, F, FIGURES]
        statistics = standardised.max(axis=(1, 2))
        own, statistic = statistics[:-1], float(statistics[-1])
        beyond = int(np.count_nonzero(own >= statistic))
        if len(self.starts):
            p_value = (1 + beyond * self.effective_n / len(self.starts)) / (1 + self.effective_n)
            return TestResult(standardised[-1], statistic, float(own.max()), p_value)
        p_value = min(self.widening * (1 + beyond) / len(statistics), 1.0)
        return TestResult(standardised[-1], statistic, threshold(own, rate / self.widening), p_value)

    def mean_and_deviation(self) -> tuple[Array, Array]:
        """Return [F, FIGURES] twice: mean and deviation of the windows' figures; 0 where none is known."""
        is_known = np.isfinite(self.figures)
        count = np.maximum(is_known.sum(axis=0), 1)
        mean = np.where(is_known, self.figures, 0).sum(axis=0) / count
        squares = np.where(is_known, np.square(self.figures - mean), 0).sum(axis=0)
        return mean, np.sqrt(squares / count)


def scores(figures: Array, floors: Array, disjoint: Array | None = None) -> Array:
    """Return [n, F, FIGURES]: each window's figures in standard deviations above the mean of all other windows; -inf
    for a figure that is not known. `disjoint` is [n, n] bool, the windows that count as others (None: all but the
    window itself). A window that overlaps the window is much like it and must not count."""
    is_known = np.isfinite(figures)
    filled = np.where(is_known, figures, 0.0)
    mean = filled.sum(axis=0) / np.maximum(is_known.sum(axis=0), 1)
    centred = np.where(is_known, filled - mean, 0.0)
    if disjoint is None:
        others = np.maximum(is_known.sum(axis=0) - is_known, 1)
        means = -centred / others
        squares = np.square(centred).sum(axis=0) - np.square(centred)
    else:
        weights = disjoint.astype(np.float64)
        others = np.maximum(np.tensordot(weights, is_known.astype(np.float64), 1), 1)
        means = np.tensordot(weights, centred, 1) / others
        squares = np.tensordot(weights, np.square(centred), 1)
    deviations = np.maximum(np.sqrt(np.maximum(squares / others - np.square(means), 0)), floors)
    standardised: Array = np.where(is_known, (centred - means) / deviations, -np.inf)
    return standardised


def threshold(statistics: Array, rate: float) -> float:
    """Return the statistic at the last rank that the rate leaves to drift; above it p <= the rate."""
    rank = math.floor(rate * (len(statistics) + 1) + 1e-9)
    return float(np.sort(statistics)[-rank])


def needed_windows(rate: float) -> int:
    """Return how many independent windows a rate needs: 19 for 5 %."""
    return math.ceil(1 / rate - 1e-9) - 1


def show_rate(rate: float) -> str:
    """Return the rate, rounded up so that it can be specified."""
    return f"{math.ceil(rate * 10_000) / 10_000:g}"
