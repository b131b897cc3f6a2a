"""What the reference's own windows look like in figures: the pool that a judged window's figures stand beside.

A pool depends on the reference, the windows' length and phase, the number of rows that are compared and the rate, and
not on the judged window, so it is kept on disk (`cache.py`) and the next window of the same monitor costs its
histograms alone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from mlflow_deploy_plugin.monitoring.drift.references import DriftReference
from mlflow_deploy_plugin.monitoring.drift.sketches.bins import Bins
from mlflow_deploy_plugin.monitoring.drift.sketches.columns import Array
from mlflow_deploy_plugin.monitoring.drift.sketches.sketch import Profile
from mlflow_deploy_plugin.monitoring.drift.threshold.figures import (
    DISTANCE,
    FIGURES,
    MISSING,
    WindowCounts,
    column_rng,
    out_of_reference,
    subsample,
)
from mlflow_deploy_plugin.monitoring.drift.threshold.windows import (
    BOOTSTRAP_WIDENING,
    HoldOutAlarms,
    NullKind,
    NullWindows,
    cut_stretches,
)
from mlflow_deploy_plugin.refused import Refused

# How a window stands among others: figures in standard deviations above them, and the threshold.


def disjoint_windows(starts: Array, length: int) -> Array:
    """[M + 1, M + 1] bool: which windows of `length` steps do not overlap, one that is judged by all of them last."""
    apart = np.ones((len(starts) + 1, len(starts) + 1), dtype=bool)
    apart[:-1, :-1] = np.abs(starts[:, None] - starts) >= length
    apart[-1, -1] = False
    return apart


def scores(pool: Array, floors: Array, apart: Array | None = None) -> Array:
    """[n, F, FIGURES] standard deviations above the others: each member's figures standardised by the mean and the
    deviation of all other members; -inf where a figure is not known.

    Args:
        apart: [n, n] bool, which members count as others; None: all but the member itself. A window that overlaps
            others is much like them, and must not be measured by them.
    """
    is_known = np.isfinite(pool)
    filled = np.where(is_known, pool, 0.0)
    mean = filled.sum(axis=0) / np.maximum(is_known.sum(axis=0), 1)
    centred = np.where(is_known, filled - mean, 0.0)
    if apart is None:
        others = np.maximum(is_known.sum(axis=0) - is_known, 1)
        means = -centred / others
        squares = np.square(centred).sum(axis=0) - np.square(centred)
    else:
        weights = apart.astype(np.float64)
        others = np.maximum(np.tensordot(weights, is_known.astype(np.float64), 1), 1)
        means = np.tensordot(weights, centred, 1) / others
        squares = np.tensordot(weights, np.square(centred), 1)
    deviations = np.maximum(np.sqrt(np.maximum(squares / others - np.square(means), 0)), floors)
    standardised: Array = np.where(is_known, (centred - means) / deviations, -np.inf)
    return standardised


def threshold(statistics: Array, rate: float) -> float:
    """The statistic of the window at the last rank that the rate leaves to drift; above it p <= the rate."""
    rank = math.floor(rate * (len(statistics) + 1) + 1e-9)
    return float(np.sort(statistics)[-rank])


def mask_unknown(figures: Array, window: Array) -> Array:
    """[F, FIGURES] bool: the window has the figure, and at least nine in ten of the pool's windows have it."""
    known: Array = np.isfinite(window) & (np.isfinite(figures).mean(axis=0) >= 0.9)
    return known


FLOORS = np.array([0.005, 0.005, 0.02, 0.02])
"""Smallest deviation that is believed of each figure, in its own units (standard deviations or bits, shares): where the
windows agree to the last digit, a constant column for one, the first odd row is no drift; 1 % of odd rows is. Rows that
are unseen or out of range hardly ever occur in calm windows, so that any deviation would do: those floors ask for some
10 % of the rows; on flights half or a quarter of them lifted the threshold of all columns by 20 and 40 % and found no
day more."""
_SCALED_FLOORS = np.array([0.2, 0.2, 0.02, 0.02])
_SCALED = [DISTANCE, MISSING]
NOT_HELD_OUT = Refused("not looked for")


@dataclass(frozen=True, eq=False)
class ColumnGroup:
    """All rows, or those of a segment, with the columns that are judged.

    Attributes:
        segment: as `carrier=AA`; empty: all rows.
        compared: the number of rows that every window has or is thinned to.
    """

    segment: str
    reference: DriftReference
    window: Profile
    columns: tuple[str, ...]
    compared: int


class TestResult(NamedTuple):
    """Where a window stands among those of a pool.

    Attributes:
        scores: [F, FIGURES] standard deviations above them; -inf where a figure is not judged.
        statistic, threshold: in standard deviations; p <= the rate where the statistic is above the threshold.
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
        worth: how many windows they stand for.
        block_length: mean length of a drawn stretch in seconds; 0 where nothing is drawn.
        persistence: so many of those windows are worth one independent one; slowest: the column that says so.
        measured: how many of the reference's later windows are called drifted by the earlier ones; a text says why it
            is not known.
        starts: [M] the first step of each window, where windows overlap; empty: they do not.
        length: steps of each window.
    """

    kind: NullKind
    figures: Array
    scales: Array
    floors: Array
    effective_n: float
    block_length: float = 0.0
    persistence: float = 1.0
    slowest_column: str = ""
    held_out: HoldOutAlarms | Refused = NOT_HELD_OUT
    starts: Array = field(default_factory=lambda: np.empty(0, np.int64))
    length: int = 0

    def test(self, window: Array, rate: float) -> TestResult:
        """Where a window of the figures [F, FIGURES] stands."""
        known = mask_unknown(self.figures, window)
        figures = np.where(known, np.concatenate([self.figures, (window / self.scales)[None]]), np.nan)
        apart = disjoint_windows(self.starts, self.length) if len(self.starts) else None
        standardised = scores(figures, self.floors, apart)  # [M + 1, F, FIGURES]
        statistics = standardised.max(axis=(1, 2))
        return TestResult(standardised[-1], float(statistics[-1]), *self._conclude(statistics, rate))

    def _conclude(self, statistics: Array, rate: float) -> tuple[float, float]:
        """Threshold and p-value of the last of [M + 1] statistics; p <= rate where it is above the threshold.

        Windows that overlap count as the fewer that they are worth. They are asked only where contiguous ones are too
        few, so that the rate leaves no window of the reference to drift, and the threshold is their largest statistic.
        Windows drawn by the bootstrap vary a little less than they should: each beyond the judged one counts 1.5 times.
        """
        beyond = int(np.count_nonzero(statistics[:-1] >= statistics[-1]))
        if not len(self.starts):
            widening = BOOTSTRAP_WIDENING if self.kind == "bootstrap" else 1.0
            p_value = min(widening * (1 + beyond) / len(statistics), 1.0)
            return threshold(statistics[:-1], rate / widening), p_value
        return float(statistics[:-1].max()), (1 + beyond * self.effective_n / len(self.starts)) / (1 + self.effective_n)

    def mean_and_deviation(self) -> tuple[Array, Array]:
        """[F, FIGURES] and [F, FIGURES]: mean and deviation of the windows' figures; 0 where none is known."""
        is_known = np.isfinite(self.figures)
        count = np.maximum(is_known.sum(axis=0), 1)
        mean = np.where(is_known, self.figures, 0).sum(axis=0) / count
        squares = np.where(is_known, np.square(self.figures - mean), 0).sum(axis=0)
        return mean, np.sqrt(squares / count)


def column_counts(profiles: Sequence[Profile], name: str, bins: Bins) -> Array:
    """[P, K + 1] float64: a column's histograms; rows that lack the column are missing values."""
    counts = np.zeros((len(profiles), bins.size + 1))
    for position, profile in enumerate(profiles):
        column = profile.columns.get(name)
        if column is None or len(column.counts) != bins.size + 1:
            counts[position, -1] = profile.rows
        else:
            counts[position] = column.counts
            counts[position, -1] += profile.rows - column.rows
    return counts


def count_windows(profiles: Sequence[Profile], name: str, bins: Bins) -> WindowCounts:
    """One column of some profiles, a window each."""
    columns = [profile.columns.get(name) for profile in profiles]
    unseen = np.array([column.unseen if column else 0 for column in columns], np.float64)
    outside = np.array([column.below + column.above if column else 0 for column in columns], np.float64)
    return WindowCounts(column_counts(profiles, name, bins), unseen, outside)


def judged_figures(group: ColumnGroup, name: str, seed: int) -> Array:
    """[FIGURES] of one column of the judged window."""
    bins, pieces = group.reference.bins[name], group.reference.pieces
    rng = column_rng(group.segment + name, seed)
    window = count_windows([group.window], name, bins).subsampled(group.compared, rng)
    others = column_counts([pieces.others], name, bins)
    if pieces.lag_windows:  # no larger than the window, as in every pair of the null
        others = subsample(others, group.compared, rng)
    figures: Array = window.figures(bins, others)[0]
    return figures


def build_distribution(groups: Sequence[ColumnGroup], null: NullWindows, seed: int) -> NullDistribution:
    """The figures of the null's windows in every group."""
    figures, scales = [], []
    for group in groups:
        profiles = aligned(groups[0].reference, group.reference, null.kind)
        for name in group.columns:
            rng = column_rng(group.segment + name, seed)
            column, scale = column_figures(group, name, profiles, null, rng)
            figures.append(column)
            scales.append(scale)
    return NullDistribution(
        kind=null.kind,
        figures=np.stack(figures, axis=1),
        scales=np.stack(scales),
        floors=_SCALED_FLOORS if null.stretches is not None else FLOORS,
        effective_n=null.effective_n,
        block_length=null.block_length * groups[0].reference.pieces.step_seconds,
        starts=null.windows.argmax(axis=1) if null.kind == "overlapping" else np.empty(0, np.int64),
        length=groups[0].reference.pieces.window_steps,
    )


def aligned(whole: DriftReference, part: DriftReference, kind: NullKind) -> tuple[Profile, ...]:
    """The pieces of `part`, a segment's, in the places of the pieces of `whole`."""
    profiles, starts = _pieces(part, kind)
    if whole is part:
        return profiles
    by_start = dict(zip(starts, profiles, strict=True))
    return tuple(by_start.get(start, Profile(0, {})) for start in _pieces(whole, kind)[1])


def _pieces(reference: DriftReference, kind: NullKind) -> tuple[tuple[Profile, ...], Sequence[int]]:
    if kind in ("contiguous", "lagged"):
        return reference.pieces.windows, reference.pieces.window_starts_us
    step_us = reference.pieces.step_seconds * 1_000_000
    return reference.pieces.steps, range(
        reference.pieces.steps_start_us,
        reference.pieces.steps_start_us + len(reference.pieces.steps) * step_us,
        step_us,
    )


def column_figures(
    group: ColumnGroup, name: str, profiles: Sequence[Profile], null: NullWindows, rng: np.random.Generator
) -> tuple[Array, Array]:
    """[M, FIGURES] and the scales [FIGURES]."""
    bins = group.reference.bins[name]
    scales = np.ones(FIGURES)
    if null.kind == "contiguous":
        windows = count_windows([profiles[position] for position in null.windows.argmax(axis=1)], name, bins)
        rests = column_counts([group.reference.pieces.total], name, bins) - windows.counts
    elif null.kind == "lagged":
        windows = count_windows([profiles[position] for position in null.windows.argmax(axis=1)], name, bins)
        rests = subsample(null.complements @ column_counts(profiles, name, bins), group.compared, rng)
    elif null.stretches is None:
        counts = null.windows @ column_counts(profiles, name, bins)
        rests = column_counts([group.reference.pieces.total], name, bins) - counts
        windows = out_of_reference(bins, counts, rests)
    else:
        pieces = column_counts(profiles[null.first : null.last], name, bins)
        counts, rests = null.windows @ pieces, null.complements @ pieces
        windows = out_of_reference(bins, counts, rests)
    figures = windows.subsampled(group.compared, rng).figures(bins, rests)
    if null.stretches is not None:
        figures[:, _SCALED] /= _drawn_scales(bins, pieces, null.stretches, rests)
        scales[_SCALED] = _own_scales(bins, pieces, group.reference.pieces.window_steps)
    figures[2 * np.minimum(windows.counts.sum(axis=1), rests.sum(axis=1)) < group.compared] = np.nan
    return figures, scales


def _drawn_scales(bins: Bins, pieces: Array, stretches: Array, references: Array) -> Array:
    """[M, 2]: the root mean square of what the stretches of each drawn reference differ from it."""
    squares = np.zeros((len(stretches), 2))
    for number in range(stretches.shape[1]):
        squares += np.square(_two_figures(bins, stretches[:, number] @ pieces, references))
    scales: Array = np.maximum(np.sqrt(squares / stretches.shape[1]), FLOORS[_SCALED])
    return scales


def _own_scales(bins: Bins, pieces: Array, length: int) -> Array:
    """[2]: the same of the reference itself."""
    parts = cut_stretches(np.arange(len(pieces))[None], length)
    counts = np.stack([pieces[part[0]].sum(axis=0) for part in parts])
    squares = np.square(_two_figures(bins, counts, pieces.sum(axis=0)))
    scales: Array = np.maximum(np.sqrt(squares.mean(axis=0)), FLOORS[_SCALED])
    return scales


def _two_figures(bins: Bins, counts: Array, others: Array) -> Array:
    nothing = np.zeros(len(counts))
    return WindowCounts(counts, nothing, nothing).figures(bins, others)[:, _SCALED]
