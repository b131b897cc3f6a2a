"""The null distribution: which windows of the reference say how far a window differs where nothing has changed.

Rows of real traffic are not independent: the weather of a day is shared by all of its flights. A test that resamples
the reference row by row calls every real day drifted (90 of 90 measured). So the windows are pieces of the reference's
own time, and how many of them there are limits the rate of false alarms that can be told: n independent windows
support no rate below 1 / (n + 1). In this order:

contiguous
    The reference's own windows of the judged window's length and phase. They count as they are; where they depend on
    each other, so that they are worth fewer (`slowest_of`), the verdict says so.
overlapping
    Where those are too few: windows that begin at every step. They are worth 1.5 times as many as fit side by side:
    the variance of an estimate from overlapping blocks is 2/3 of that from disjoint ones (Künsch, The Jackknife and the
    Bootstrap for General Stationary Observations, Annals of Statistics 17, 1989; Lahiri, Resampling Methods for
    Dependent Data, 2003, section 5). Each is measured by those alone that it does not overlap with: measured by all
    others, of which its neighbours are much like it, 21 % of calm weeks were called drifted at a nominal 5 %.
bootstrap
    Where even those are too few, as for a month beside three: series of steps drawn by the stationary bootstrap
    (`stationary.py`), both a window and a reference. Three months show one month's variation only through their days,
    so its distances are divided by those of the reference's own stretches of half a window (the bootstrap-t: Götze &
    Künsch, Second-order correctness of the blockwise bootstrap for stationary observations, Annals of Statistics 24,
    1996). Without that it gave 24 to 65 % false alarms at a nominal 5 % in simulations of ten columns that depend on
    the day before with a coefficient of 0.3 to 0.8; with it 5 to 9 % up to 0.6. What is left comes of references whose
    own series look less dependent than they are: beside 562 of 90 days with coefficients up to 0.6, 6.8 % of months
    (5.6 to 8.1 %) were called drifted. So its p-values are multiplied by 1.5, with which the same months gave 4.7 %
    (3.7 to 5.8 %) and others 3.7 % (2.6 to 5.3 %). It is refused where a stretch is shorter than three correlation
    times (at 0.8, it gave 10 %), where the reference is shorter than two windows, where it has fewer block lengths than
    the rate needs, and where it has more than twelve windows, which speak for themselves.
lagged
    Only for `rolling:`, where a window is compared with the same one so long ago: the pairs of the reference's own
    windows that lie so long apart. They count as they are.
rows
    Only where the caller says that rows are independent: two samples of rows, of the window's size and of that of what
    it is compared with (the reference; for `rolling:` one window of it), drawn from the reference's sample with
    replacement (Efron & Tibshirani, An Introduction to the Bootstrap, 1993, chapter 16), all columns of a row together.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import betaincinv

from mlflow_deploy_plugin.monitoring.drift.sketches.bins import Bins, OrderedBins
from mlflow_deploy_plugin.monitoring.drift.sketches.columns import Array
from mlflow_deploy_plugin.monitoring.drift.threshold.stationary_bootstrap import (
    Dependence,
    dependence,
    draw,
    persistence,
)

NullKind = Literal["contiguous", "overlapping", "bootstrap", "lagged", "rows"]

OVERLAP_WORTH = 1.5
MAX_WINDOWS = 500
BOOTSTRAP_DRAWS = 400
BOOTSTRAP_WIDENING = 1.5
"""Drawn windows beyond the judged one count so many times."""
STRETCHES_A_WINDOW = 2
TIMES_A_STRETCH = 3
FEWEST_WINDOWS, MOST_WINDOWS = 2, 12
UNLIKELY = 0.05
"""Of twenty calm references one is told that more alarms come than promised."""


@dataclass(frozen=True, eq=False)
class NullWindows:
    """Windows as weights of the reference's pieces (blocks or steps).

    Attributes:
        windows: [M, S] how often each of S pieces is in each of M windows.
        rests: [M, S] the same for what a window is compared with.
        worth: how many independent windows it stands for.
        first, last: the pieces that it speaks of, of those of the reference.
        stretches: [M, Q, S] pieces of each drawn reference by which distances are scaled; None: they are not.
        block_length: mean length of a drawn stretch in pieces; 0 where nothing is drawn.
    """

    kind: NullKind
    windows: Array
    complements: Array
    effective_n: float
    first: int = 0
    last: int = 0
    stretches: Array | None = None
    block_length: float = 0.0


@dataclass(frozen=True)
class HoldOutAlarms:
    """The rate at which the reference's own windows are called drifted by rows that are not theirs (`measuring.py`).

    Attributes:
        alarms: of so many `windows`, which are `worth` so many independent ones.
        rate: that they were judged at: the asked one, or the next that so few windows can tell.
        p_value: the probability of so many alarms or more where that rate holds.
        columns: that are beyond the threshold in most of the alarms, the worst first.
        how: the windows were judged, to stand behind "measured".
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
        """Chance does not explain so many alarms."""
        return self.p_value <= UNLIKELY

    @property
    def interval(self) -> tuple[float, float]:
        """Return the interval of 95 % for the rate of windows that are judged by these very others (Clopper & Pearson,
        Biometrika 26, 1934)."""
        hits = self.share * self.effective_n
        low = betaincinv(hits, self.effective_n - hits + 1, 0.025) if self.alarms else 0.0
        high = betaincinv(hits + 1, self.effective_n - hits, 0.975) if self.alarms < self.windows else 1.0
        return float(low), float(high)


def needed_windows(rate: float) -> int:
    """So many independent windows are needed for a rate: 19 for 5 %."""
    return math.ceil(1 / rate - 1e-9) - 1


def contiguous(block_rows: Array, compared: int, most: int = MAX_WINDOWS) -> NullWindows:
    """The blocks that are at least half as large as what is compared; one that is not (cut off at an end, a gap in the
    log) is no window like the others.

    Args:
        block_rows: [B] rows of each block.
        most: of more blocks an even choice is taken.
    """
    kept = np.flatnonzero(2 * block_rows >= compared)
    if len(kept) > most:
        kept = kept[np.linspace(0, len(kept) - 1, most).astype(np.int64)]
    windows = np.zeros((len(kept), len(block_rows)))
    windows[np.arange(len(kept)), kept] = 1
    return NullWindows("contiguous", windows, 1 - windows, float(len(kept)), 0, len(block_rows))


def lagged(block_rows: Array, later: Array, earlier: Array, compared: int, most: int = MAX_WINDOWS) -> NullWindows:
    """The pairs of blocks [P] and [P] that are as large as what is compared, both of them.

    Smaller ones differ more by chance: nights would lift the threshold of a noon.
    """
    kept = np.flatnonzero(np.minimum(block_rows[later], block_rows[earlier]) >= compared)
    if len(kept) > most:
        kept = kept[np.linspace(0, len(kept) - 1, most).astype(np.int64)]
    blocks = np.eye(len(block_rows))
    return NullWindows("lagged", blocks[later[kept]], blocks[earlier[kept]], float(len(kept)), 0, len(block_rows))


def overlapping(step_rows: Array, length: int, compared: int) -> NullWindows:
    """Windows of `length` steps that begin at every step."""
    count = len(step_rows)
    starts = np.arange(max(count - length + 1, 0))
    inside = np.concatenate([[0], np.cumsum(step_rows)])
    starts = starts[2 * (inside[starts + length] - inside[starts]) >= compared]
    worth = OVERLAP_WORTH * (len(starts) + length - 1) / length if len(starts) else 0.0
    if len(starts) > MAX_WINDOWS:
        starts = starts[np.linspace(0, len(starts) - 1, MAX_WINDOWS).astype(np.int64)]
    positions = np.arange(count)
    windows = ((positions >= starts[:, None]) & (positions < starts[:, None] + length)).astype(np.float64)
    return NullWindows("overlapping", windows, 1 - windows, worth, 0, count)


def bootstrap(step_rows: Array, length: int, mean_length: float, seed: int) -> NullWindows:
    """Windows and references drawn from the steps between the first and the last that has rows."""
    present = np.flatnonzero(step_rows)
    first, last = int(present[0]), int(present[-1]) + 1
    count = last - first
    rng = np.random.default_rng([seed, 1])
    windows = _weights(draw(rng, BOOTSTRAP_DRAWS, count, length, mean_length), count)
    drawn = draw(rng, BOOTSTRAP_DRAWS, count, count, mean_length)
    return NullWindows(
        kind="bootstrap",
        windows=windows,
        complements=_weights(drawn, count),
        effective_n=min(count / mean_length, BOOTSTRAP_DRAWS / BOOTSTRAP_WIDENING),
        first=first,
        last=last,
        stretches=np.stack([_weights(part, count) for part in cut_stretches(drawn, length)], axis=1),
        block_length=mean_length,
    )


def cut_stretches(positions: Array, length: int) -> list[Array]:
    """The columns of [M, S] in stretches of half a window; what is left over at the end is in none."""
    stretch = max(length // STRETCHES_A_WINDOW, 1)
    whole = positions.shape[1] // stretch
    return [positions[:, number * stretch : (number + 1) * stretch] for number in range(whole)]


def dependence_of(steps: Mapping[str, Array], bins: Mapping[str, Bins]) -> Dependence:
    """That of the columns' levels: the middle one of their block lengths, the longest of their correlation times.

    Args:
        steps: [S, K + 1] counts of each column, the missing values last.
    """
    found = [dependence(level) for level in _levels(steps, bins).values() if len(level) and np.ptp(level) > 0]
    if not found:
        return Dependence(1.0, 1.0)
    return Dependence(float(np.median([one.block_length for one in found])), max(one.correlation_time for one in found))


def slowest_column(
    windows: Mapping[str, Array], bins: Mapping[str, Bins], before: Mapping[str, Array] | None = None
) -> tuple[float, str]:
    """Return how many windows that follow each other are worth one independent one, by the levels of the column that
    depends most on the window before, and its name; 1 and no name where none does.

    The levels tell it, not the distances: those have the square of the coefficient, and on made days that depend on
    the day before with one of 0.5 to 0.95 they promised 3 to 18 % where 6 to 57 % came; the levels 4 to 69 %. Of pairs
    the distances tell it, since none stands beside all others.

    Args:
        windows: [M, K + 1] counts of each column, in the order of time.
        before: the same of what each of them is compared with, where that is one window.
    """
    levels = _levels(windows, bins)
    if before is not None:
        earlier = _levels(before, bins)
        both = [name for name, level in levels.items() if len(level) == len(earlier[name])]
        levels = {name: np.abs(levels[name] - earlier[name]) for name in both}
    found = [(persistence(level, len(levels)), name) for name, level in levels.items()]
    longest, name = max(found, default=(1.0, ""))
    return (longest, name) if longest > 1 else (1.0, "")


def _levels(pieces: Mapping[str, Array], bins: Mapping[str, Bins]) -> dict[str, Array]:
    """Return, of the pieces with values of a column, [S, K + 1] counts, the mean or the share of the first category."""
    levels = {}
    for name, counts in pieces.items():
        known = counts[:, :-1]
        rows = known.sum(axis=1)
        known, rows = known[rows > 0], rows[rows > 0]
        column = bins[name]
        levels[name] = (known @ column.positions if isinstance(column, OrderedBins) else known[:, 0]) / rows
    return levels


def can_bootstrap(step_rows: Array, length: int, found: Dependence) -> bool:
    """Whether the bootstrap can speak for windows of `length` steps."""
    present = np.flatnonzero(step_rows)
    count = int(present[-1] - present[0]) + 1 if len(present) else 0
    fits = FEWEST_WINDOWS * length <= count <= MOST_WINDOWS * length
    return fits and length // STRETCHES_A_WINDOW >= TIMES_A_STRETCH * found.correlation_time


def _weights(positions: Array, count: int) -> Array:
    """[M, count] float64: how often each position occurs in each row of [M, L]."""
    flat = positions + count * np.arange(len(positions))[:, None]
    return np.bincount(flat.ravel(), minlength=len(positions) * count).reshape(len(positions), count).astype(np.float64)
