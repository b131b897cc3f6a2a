"""The null distribution: figures of the reference's own windows, and the test of a
judged window. The distribution is stored (`verdict.py`), because it does not depend on
the judged window.

`hold_out` measures the actual false-alarm rate: windows in the later half of the
reference are judged as if the earlier half were the whole reference. Judging each
window by all others would not measure the rate, because floor(rate (M + 1)) of M
windows are called drifted by construction. If the earlier half does not support the
specified rate, the next supported rate is used. With fewer than `FEWEST_HELD_OUT`
windows, the rate is not measured.

The number of alarms is compared with a beta-binomial distribution: the share of all
windows above the k-th largest of n windows has a beta distribution with k and n + 1 -
k. Dependent windows count as their effective number, but at least as the number that
the rate needs, because a separate note reports too few windows.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
from scipy.special import bdtrc

from mlflow_deploy_plugin.core.errors import Refused
from mlflow_deploy_plugin.serve.runtime.feeds import Array
from mlflow_deploy_plugin.wrap.evaluation.proportions import clopper_pearson_bounds

NullKind = Literal["contiguous", "overlapping", "bootstrap", "lagged", "rows"]
FLOORS = np.array([0.005, 0.005, 0.02, 0.02])
"""The smallest standard deviation for each figure, in its own units (standard
deviations or bits, shares). In a constant column, 1 % of deviating rows is drift. The
floors for unseen and out-of-range rows require about 10 % of the rows: on flights, half
or a quarter of these floors raised the threshold by 20 or 40 % and found no more days.
"""
FEWEST_HELD_OUT = 5
UNLIKELY = 0.05
"""The p-value below which a note reports more alarms than expected. By chance, 1 of 20
references gets the note.
"""
_TAIL_PART = 5
_FEWEST_IN_TAIL = 5
_SMALLEST_START = 1.0
_SMALLEST_INDEX = 0.05
NOT_HELD_OUT = Refused("not computed")
_NAMED = 3


class TestResult(NamedTuple):
    """The position of a window in a null distribution, in standard deviations. `scores`
    is [F, FIGURES], -inf if a figure is not judged; p <= the rate if the statistic is
    above the threshold.
    """

    scores: Array
    statistic: float
    threshold: float
    p_value: float

    @property
    def is_drifted(self) -> bool:
        return self.statistic > self.threshold


@dataclass(frozen=True)
class HoldOutAlarms:
    """The alarms among windows of the reference that were judged by other rows of the
    reference.

    Attributes:
        windows: the number of judged windows, which are worth `effective_n` independent
            windows.
        rate: the rate of the tests: the specified rate, or the next rate that so few
            windows support.
        p_value: the probability of at least this many alarms if the rate is correct.
        columns: the columns that exceeded the threshold in the most alarms, the most
            frequent first.
        how: a description of the tests, the words after "measured" in a note.
    """

    alarms: int
    windows: int
    effective_n: float
    rate: float
    p_value: float
    columns: Sequence[str]
    how: str

    @property
    def share(self) -> float:
        return self.alarms / self.windows

    @property
    def is_beyond(self) -> bool:
        """True if the number of alarms is not explained by chance."""
        return self.p_value <= UNLIKELY

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval for the rate, conditional on the judge windows (Clopper &
        Pearson, Biometrika 26, 1934).
        """
        return clopper_pearson_bounds(self.share * self.effective_n, self.effective_n, 0.95)

    def describe(self, rate: float) -> str:
        if self.rate > rate + 1e-9:
            rate_text = f", at {self.rate:.3g}, the next supported rate"
        else:
            rate_text = ""
        low, high = self.interval
        share = f"{self.share:.1%}; 95 % interval {low:.1%} to {high:.1%}"
        return f"measured {self.how}{rate_text}: {self.alarms} of {self.windows} ({share})"


def count_alarms(
    tests: Sequence[TestResult],
    columns: Sequence[str],
    rate: float,
    judges: float,
    windows: int,
    how: str,
    persistence: float,
) -> HoldOutAlarms:
    """Return the alarms among windows of the reference that were tested against other
    rows.

    Args:
        judges: the number of independent windows that judged all others; infinite if
            each window had separate judges.
        windows: the number of judged windows without overlap.
        persistence: the number of windows that are worth one independent window.
    """
    alarms = [test for test in tests if test.is_drifted]
    columns_of_alarms = Counter(
        name
        for alarm in alarms
        for name, score in zip(columns, alarm.scores.max(axis=1), strict=True)
        if score > alarm.threshold
    )
    spacing = min(
        persistence,
        max(min(judges, windows) / needed_windows(rate), 1.0),
    )
    effective_n = max(round(windows / spacing), 1)
    hits = math.ceil(len(alarms) / len(tests) * effective_n - 1e-9)
    if math.isinf(judges):
        p_value = float(bdtrc(hits - 1, effective_n, rate))
    else:
        from scipy.stats import betabinom  # The import takes 0.8 s and 48 MB.

        last = max(math.floor(rate * (judges + 1) + 1e-9), 1)
        p_value = float(
            betabinom.sf(
                hits - 1,
                effective_n,
                last / spacing,
                (judges + 1 - last) / spacing,
            ),
        )
    return HoldOutAlarms(
        alarms=len(alarms),
        windows=len(tests),
        effective_n=float(effective_n),
        rate=rate,
        p_value=p_value,
        columns=[f"{name} ({count})" for name, count in columns_of_alarms.most_common(_NAMED)],
        how=how,
    )


@dataclass(frozen=True, eq=False)
class NullDistribution:
    """Figures of the reference's own windows.

    Attributes:
        figures: the figures of M windows and F columns, [M, F, FIGURES], in the order
            of groups and columns; NaN if unknown, or if the window is too small.
        scales: the divisors that make the figures of a judged window comparable with
            `figures`, [F, FIGURES].
        floors: the smallest standard deviations, [FIGURES] or [F, FIGURES].
        widening: the factor on the p-value.
        block_length: the mean length of a drawn stretch in seconds; 0 without draws.
        persistence: the number of windows that are worth one independent window.
        starts: the first step of each window if windows overlap, [M]; otherwise empty.
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
        """The number of independent windows that the possibly correlated null windows
        are worth.
        """
        return self.effective_n / self.persistence

    def test(self, window: Array, rate: float) -> TestResult:
        """Test a window with figures [F, FIGURES] at a false-alarm rate. Overlapping
        windows (used only if there are too few contiguous windows) count as their
        effective number; the threshold is their largest statistic.
        """
        is_usable = np.isfinite(window) & (np.isfinite(self.figures).mean(axis=0) >= 0.9)
        figures = np.where(
            is_usable,
            np.concatenate([self.figures, (window / self.scales)[None]]),
            np.nan,
        )
        disjoint = None
        # The judged window, in the last row, is compared with all other windows.
        if len(self.starts):
            disjoint = np.ones((len(figures), len(figures)), dtype=bool)
            disjoint[:-1, :-1] = np.abs(self.starts[:, None] - self.starts) >= self.length
            disjoint[-1, -1] = False
        standardised = scores(figures, self.floors, disjoint)  # M windows, then the judged window
        statistics = standardised.max(axis=(1, 2))
        null_statistics = statistics[:-1]
        statistic = float(statistics[-1])
        beyond = int(np.count_nonzero(null_statistics >= statistic))
        if len(self.starts):
            p_value = (1 + beyond * self.effective_n / len(self.starts)) / (1 + self.effective_n)
            return TestResult(standardised[-1], statistic, float(null_statistics.max()), p_value)
        p_value = min(self.widening * (1 + beyond) / len(statistics), 1.0)
        if rate < 1 / len(statistics):
            # Later windows leave the range of correlated windows more often.
            tail = Tail.fit(null_statistics)
            beyond_tail = min(self.persistence * tail.p_value(statistic), p_value)
            return TestResult(
                standardised[-1],
                statistic,
                tail.threshold(rate / self.persistence),
                beyond_tail,
            )
        return TestResult(
            standardised[-1],
            statistic,
            threshold(null_statistics, rate / self.widening),
            p_value,
        )

    def mean_and_deviation(self) -> tuple[Array, Array]:
        """Return the mean and the standard deviation of the windows' figures, [F,
        FIGURES] each; 0 if none is known.
        """
        is_known = np.isfinite(self.figures)
        count = np.maximum(is_known.sum(axis=0), 1)
        mean = np.where(is_known, self.figures, 0).sum(axis=0) / count
        squares = np.where(
            is_known,
            np.square(self.figures - mean),
            0,
        ).sum(axis=0)
        return mean, np.sqrt(squares / count)


@dataclass(frozen=True)
class Tail:
    """A Pareto tail of the largest statistics, for rates that the number of windows
    does not support. The tail index is Hill's (Annals of Statistics 3, 1975).
    Statistics with a lighter tail get a threshold that is too high, never lower.

    Attributes:
        start: the statistic at which the tail begins; it is exceeded by the `share` of
            windows.
        index: the mean logarithm of the excess ratio.
    """

    start: float
    share: float
    index: float

    @classmethod
    def fit(cls, statistics: Array) -> "Tail":
        """Fit the tail to the largest fifth of the statistics, [M], at least five."""
        largest = np.sort(statistics)[::-1]
        count = min(
            max(len(largest) // _TAIL_PART, _FEWEST_IN_TAIL),
            len(largest) - 1,
        )
        start = max(float(largest[count]), _SMALLEST_START)
        index = float(np.log(np.maximum(largest[:count], start) / start).mean())
        return cls(start, count / len(largest), max(index, _SMALLEST_INDEX))

    def threshold(self, rate: float) -> float:
        return float(self.start * (self.share / rate) ** self.index)

    def p_value(self, statistic: float) -> float:
        return float(self.share * (max(statistic, self.start) / self.start) ** (-1 / self.index))


def scores(figures: Array, floors: Array, disjoint: Array | None = None) -> Array:
    """Return the figures of each window in standard deviations above the mean of all
    other windows, [n, F, FIGURES]; -inf if unknown. `disjoint` is [n, n] bool, the
    windows that count as others (None: all but the window). Overlapping windows are
    similar and must not count.
    """
    is_known = np.isfinite(figures)
    filled = np.where(is_known, figures, 0.0)
    mean = filled.sum(axis=0) / np.maximum(is_known.sum(axis=0), 1)
    centred = np.where(is_known, filled - mean, 0.0)
    if disjoint is None:
        counts = np.maximum(is_known.sum(axis=0) - is_known, 1)
        means = -centred / counts
        squares = np.square(centred).sum(axis=0) - np.square(centred)
    else:
        weights = disjoint.astype(np.float64)
        counts = np.maximum(
            np.tensordot(weights, is_known.astype(np.float64), 1),
            1,
        )
        means = np.tensordot(weights, centred, 1) / counts
        squares = np.tensordot(weights, np.square(centred), 1)
    deviations = np.maximum(
        np.sqrt(
            np.maximum(
                squares / counts - np.square(means),
                0,
            )
        ),
        floors,
    )
    return np.where(is_known, (centred - means) / deviations, -np.inf)


def threshold(statistics: Array, rate: float) -> float:
    """Return the statistic at the rank that corresponds to the rate; above this
    statistic, p <= the rate.
    """
    rank = math.floor(rate * (len(statistics) + 1) + 1e-9)
    return float(np.sort(statistics)[-rank])


def needed_windows(rate: float) -> int:
    """Return the number of independent windows that a rate needs, such as 19 for 5
    %.
    """
    return math.ceil(1 / rate - 1e-9) - 1


def show_rate(rate: float) -> str:
    """Return the rate rounded up, so that the rounded value can be specified."""
    return f"{math.ceil(rate * 10_000) / 10_000:g}"
