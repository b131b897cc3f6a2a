"""The null distribution: figures of the reference's own windows, and the test of a judged window beside them.

It depends on the reference, the windows' length and phase, the number of rows that are compared and the rate, and not
on the judged window. So it is kept on disk (`cache.py`), and the next window of the same monitor costs its histograms
alone.
"""

import math
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np

from mlflow_deploy_plugin.errors import Refused
from mlflow_deploy_plugin.monitoring.drift.sketches.columns import Array
from mlflow_deploy_plugin.monitoring.drift.threshold.hold_out import NOT_HELD_OUT, HoldOutAlarms

NullKind = Literal["contiguous", "overlapping", "bootstrap", "lagged", "rows"]
FLOORS = np.array([0.005, 0.005, 0.02, 0.02])
"""Smallest deviation that is believed of each figure, in its own units (standard deviations or bits, shares). Where the
windows agree to the last digit, as in a constant column, the first odd row is no drift; 1 % of odd rows is. Rows that
are unseen or out of range hardly ever occur in calm windows, so that any deviation would do: those floors ask for some
10 % of the rows; on flights half or a quarter of them lifted the threshold of all columns by 20 and 40 % and found no
day more."""


class TestResult(NamedTuple):
    """The position of a window in a null distribution.

    Attributes:
        scores: [F, FIGURES] standard deviations above the distribution's windows; -inf where a figure is not judged.
        statistic, threshold: in standard deviations; p <= the rate if the statistic is above the threshold.
    """

    scores: Array
    statistic: float
    threshold: float
    p_value: float

    @property
    def is_drifted(self) -> bool:
        return self.statistic > self.threshold


@dataclass(frozen=True, eq=False)
class NullDistribution:
    """Figures of the reference's own windows.

    Attributes:
        figures: [M, F, FIGURES] of M windows and F columns, in the order of the groups and their columns; NaN where a
            window is too small or the figure not known.
        scales: [F, FIGURES] by which a judged window's figures are divided before they stand beside these.
        floors: [FIGURES] the smallest deviations that are believed.
        effective_n: how many windows they stand for.
        widening: each of them beyond the judged one counts so many times.
        block_length: mean length of a drawn stretch in seconds; 0 if nothing is drawn.
        persistence: so many of those windows are worth one independent one; slowest_column: the column that says so.
        held_out: how many of the reference's later windows are called drifted by the earlier ones.
        starts: [M] the first step of each window if windows overlap, else empty; length: steps of each window.
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
        """Test a window of the figures [F, FIGURES] at a rate of false alarms."""
        # at least nine in ten of the distribution's windows have a figure that is judged
        known = np.isfinite(window) & (np.isfinite(self.figures).mean(axis=0) >= 0.9)
        figures = np.where(known, np.concatenate([self.figures, (window / self.scales)[None]]), np.nan)
        disjoint = disjoint_windows(self.starts, self.length) if len(self.starts) else None
        standardised = scores(figures, self.floors, disjoint)  # [M + 1, F, FIGURES]
        statistics = standardised.max(axis=(1, 2))
        return TestResult(standardised[-1], float(statistics[-1]), *self._conclude(statistics, rate))

    def _conclude(self, statistics: Array, rate: float) -> tuple[float, float]:
        """Return threshold and p-value of the last of [M + 1] statistics; p <= rate if it is above the threshold.

        Windows that overlap count as their effective number. They are used only if contiguous ones are too few, so that
        the rate leaves no window of the reference to drift, and the threshold is their largest statistic.
        """
        beyond = int(np.count_nonzero(statistics[:-1] >= statistics[-1]))
        if not len(self.starts):
            p_value = min(self.widening * (1 + beyond) / len(statistics), 1.0)
            return threshold(statistics[:-1], rate / self.widening), p_value
        p_value = (1 + beyond * self.effective_n / len(self.starts)) / (1 + self.effective_n)
        return float(statistics[:-1].max()), p_value

    def mean_and_deviation(self) -> tuple[Array, Array]:
        """Return [F, FIGURES] twice: mean and deviation of the windows' figures; 0 where none is known."""
        is_known = np.isfinite(self.figures)
        count = np.maximum(is_known.sum(axis=0), 1)
        mean = np.where(is_known, self.figures, 0).sum(axis=0) / count
        squares = np.where(is_known, np.square(self.figures - mean), 0).sum(axis=0)
        return mean, np.sqrt(squares / count)


def disjoint_windows(starts: Array, length: int) -> Array:
    """Return [M + 1, M + 1] bool: which windows of `length` steps do not overlap. The last is judged by all of them."""
    disjoint = np.ones((len(starts) + 1, len(starts) + 1), dtype=bool)
    disjoint[:-1, :-1] = np.abs(starts[:, None] - starts) >= length
    disjoint[-1, -1] = False
    return disjoint


def scores(figures: Array, floors: Array, disjoint: Array | None = None) -> Array:
    """Return [n, F, FIGURES]: each window's figures in standard deviations above the mean of all other windows.

    A figure that is not known has -inf.

    Args:
        disjoint: [n, n] bool, which windows count as others; None: all but the window itself. A window that overlaps
            others is much like them, and must not be measured by them.
    """
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
