"""The null distribution of long windows beside a short reference: series of steps drawn by the stationary bootstrap.

Politis & Romano, The Stationary Bootstrap, Journal of the American Statistical Association 89 (1994): a series that
depends on itself is resampled in stretches of random length. Both a window and a reference are drawn so.

Three months show one month's variation only through their days, so the distances are divided by those of the
reference's own stretches of half a window (the bootstrap-t: Götze & Künsch, Second-order correctness of the blockwise
bootstrap for stationary observations, Annals of Statistics 24, 1996). Measured on simulations of ten columns that
depend on the day before, at a nominal 5 %:

| what is drawn | false alarms |
|---|---|
| without the division, coefficients of 0.3 to 0.8 | 24 to 65 % |
| with it, up to 0.6 | 5 to 9 % |
| with it, 0.8, where a stretch is shorter than three correlation times | 10 % |
| with it, beside 562 references of 90 days, up to 0.6 | 6.8 % (5.6 to 8.1 %) |
| with p-values multiplied by 1.5 besides, the same months | 4.7 % (3.7 to 5.8 %) |
| the same, other months | 3.7 % (2.6 to 5.3 %) |

The false alarms that remain come from references whose series look less dependent than they are; hence the factor of
1.5. The null is refused if a stretch is shorter than three correlation times, if the reference is shorter than two
windows, if it has fewer block lengths than the rate needs, and if it has more than twelve windows, which speak for
themselves.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from mlflow_deploy_plugin.errors import Refused
from mlflow_deploy_plugin.monitoring.drift.sketches.bins import Bins
from mlflow_deploy_plugin.monitoring.drift.threshold.dependence import Dependence, dependence
from mlflow_deploy_plugin.monitoring.drift.threshold.distribution import (
    FEWEST_HELD_OUT,
    FLOORS,
    HoldOutAlarms,
    NullDistribution,
    NullKind,
    TestResult,
    count_alarms,
)
from mlflow_deploy_plugin.monitoring.drift.threshold.null import (
    DISTANCE,
    MISSING,
    SEED,
    ColumnGroup,
    GroupColumn,
    WindowCounts,
    WindowNull,
    column_names,
    out_of_reference,
    row_counts,
    smallest_deviations,
)
from mlflow_deploy_plugin.runtime import Array

FEWEST_WINDOWS, MOST_WINDOWS = 2, 12
_DRAWS = 400
_WIDENING = 1.5
"""The weight in the p-value of each drawn window beyond the judged one."""
_STRETCHES_A_WINDOW = 2
_TIMES_A_STRETCH = 3
_MAX_CELLS = 40_000_000
_SCALED_FLOORS = np.array([0.2, 0.2, 0.02, 0.02])
_SCALED = [DISTANCE, MISSING]


@dataclass(frozen=True, eq=False)
class StationaryBootstrap(WindowNull):
    """Windows and references drawn from the reference's steps.

    Attributes:
        windows: [M, S] how often each of S steps is in each of M windows.
        references: [M, S] the same for what each of them is compared with.
        first, last: the steps of the reference that it draws from.
        stretches: [M, Q, S] pieces of each drawn reference by which distances are scaled.
        block_length: mean length of a drawn stretch in steps.
    """

    windows: Array
    references: Array
    first: int
    last: int
    stretches: Array
    block_length: float

    kind: ClassVar[NullKind] = "bootstrap"
    description: ClassVar[str] = "windows drawn by the stationary bootstrap"
    is_of_steps: ClassVar[bool] = True

    @classmethod
    def cut(cls, step_rows: Array, length: int, mean_length: float) -> "StationaryBootstrap":
        """Draw windows and references from the steps between the first and the last that has rows."""
        present = np.flatnonzero(step_rows)
        first, last = int(present[0]), int(present[-1]) + 1
        count = last - first
        rng = np.random.default_rng([SEED, 1])
        windows = _weights(draw(rng, _DRAWS, count, length, mean_length), count)
        drawn = draw(rng, _DRAWS, count, count, mean_length)
        stretch = _stretch(length)
        whole = count // stretch  # those left over at the end are in none
        stretches = _weights(drawn[:, : whole * stretch].reshape(-1, stretch), count)
        return cls(
            windows=windows,
            references=_weights(drawn, count),
            effective_n=min(count / mean_length, _DRAWS / _WIDENING),
            first=first,
            last=last,
            stretches=stretches.reshape(_DRAWS, whole, count),
            block_length=mean_length,
        )

    def compare(self, groups: Sequence[ColumnGroup]) -> NullDistribution:
        made, floors = super().compare(groups), []
        for column in self.columns(groups):
            total = column.total()[0]
            rows = int(total.sum())
            floors.append(smallest_deviations(column.bins, total.nonzero()[0], rows, column.group.compared, rows))
        return replace(
            made,
            floors=np.maximum(_SCALED_FLOORS, np.stack(floors) / made.scales),
            widening=_WIDENING,
            block_length=self.block_length * (groups[0].reference.pieces.grid.step_us // 1_000_000),
        )

    def compared_windows(self, column: GroupColumn, rng: np.random.Generator) -> tuple[WindowCounts, Array]:
        steps = column.counts()[self.first : self.last]
        references = self.references @ steps
        return out_of_reference(column.bins, self.windows @ steps, references, column.unseen_share), references

    def column_figures(self, column: GroupColumn) -> tuple[Array, Array]:
        """Return the figures in deviations of the drawn reference's stretches, and as scales those of the reference's
        own stretches: the root mean squares of what they differ from it."""
        figures, scales = super().column_figures(column)
        bins, steps = column.bins, column.counts()[self.first : self.last]
        references, whole = self.references @ steps, self.stretches.shape[1]
        squares = np.zeros((len(self.stretches), len(_SCALED)))
        for number in range(whole):
            squares += np.square(_two_figures(bins, self.stretches[:, number] @ steps, references))
        figures[:, _SCALED] /= np.maximum(np.sqrt(squares / whole), FLOORS[_SCALED])
        stretch = _stretch(column.group.reference.pieces.grid.window_steps)
        own = steps[: whole * stretch].reshape(whole, stretch, -1).sum(axis=1)
        own_squares = np.square(_two_figures(bins, own, steps.sum(axis=0)))
        scales[_SCALED] = np.maximum(np.sqrt(own_squares.mean(axis=0)), FLOORS[_SCALED])
        return figures, scales

    def persistence(self, group: ColumnGroup) -> tuple[float, str]:
        """Return 1: stretches are drawn as long as they need to be."""
        return 1.0, ""

    def hold_out(self, groups: Sequence[ColumnGroup], rate: float, persistence: float) -> HoldOutAlarms | Refused:
        """Judge windows that do not overlap, each by a new draw from the steps before it; there have to be two."""
        length, count = groups[0].reference.pieces.grid.window_steps, self.last - self.first
        starts = [self.last - (number + 1) * length for number in range(count // length - FEWEST_WINDOWS)][::-1]
        if len(starts) < FEWEST_HELD_OUT:
            return Refused(f"fewer than {FEWEST_HELD_OUT} windows of the reference have {FEWEST_WINDOWS} before them")
        cells = sum(group.reference.bins[name].size for group in groups for name in group.columns)
        most = _MAX_CELLS // (len(self.windows) * (self.stretches.shape[1] + 2) * cells)
        if most < FEWEST_HELD_OUT:
            return Refused("with so many columns it would take too long")
        starts = starts[-most:]
        judges = (starts[0] - self.first) / self.block_length
        supported = max(rate, 1 / (1 + judges))
        tests = [self._test_after(groups, start, supported) for start in starts]
        how = f"forward in time, on its last {len(starts)} windows, each judged by what is drawn from those before it"
        return count_alarms(tests, column_names(groups), supported, judges, len(starts), how, persistence)

    def _test_after(self, groups: Sequence[ColumnGroup], start: int, rate: float) -> TestResult:
        """Test the window that begins at the step `start` by the steps before it."""
        length = groups[0].reference.pieces.grid.window_steps
        figures = []
        for column in self.columns(groups):
            steps, bins = column.counts(), column.bins
            sides = (steps[start : start + length], steps[self.first : start])
            window, others = (side.sum(axis=0, keepdims=True) for side in sides)
            sampled = out_of_reference(bins, window, others, column.unseen_share).subsampled(
                column.group.compared, column.rng()
            )
            figures.append(sampled.figures(bins, others)[0])
        shortened, whole = [], groups[0].reference.pieces
        for group in groups:
            before = self.aligned(whole, group.reference.pieces)[self.first : start]
            pieces = replace(group.reference.pieces, steps=before, grid=whole.grid)
            shortened.append(replace(group, reference=replace(group.reference, pieces=pieces)))
        rows = row_counts(shortened[0].reference.pieces.steps)
        null = StationaryBootstrap.cut(rows, length, self.block_length)
        return null.compare(shortened).test(np.stack(figures), rate)


def can_bootstrap(step_rows: Array, length: int, found: Dependence) -> bool:
    """Return True if the bootstrap can speak for windows of `length` steps."""
    present = np.flatnonzero(step_rows)
    count = int(present[-1] - present[0]) + 1 if len(present) else 0
    fits = FEWEST_WINDOWS * length <= count <= MOST_WINDOWS * length
    return fits and length // _STRETCHES_A_WINDOW >= _TIMES_A_STRETCH * found.correlation_time


def dependence_of(levels: Iterable[Array]) -> Dependence:
    """Return the dependence of the columns' levels: the median block length, and the longest correlation time."""
    found = [dependence(level) for level in levels if len(level) and np.ptp(level) > 0]
    if not found:
        return Dependence(1.0, 1.0)
    return Dependence(float(np.median([one.block_length for one in found])), max(one.correlation_time for one in found))


def draw(rng: np.random.Generator, draws: int, count: int, length: int, mean_length: float) -> Array:
    """Return [draws, length] int64: the positions, in a series of `count` items, of each drawn series.

    A stretch continues with the next item, at the end with the first, and ends with the probability 1 / mean_length.
    """
    starts = rng.integers(0, count, (draws, length))
    begins = rng.random((draws, length)) < 1 / mean_length
    begins[:, 0] = True
    places = np.arange(length)
    latest = np.maximum.accumulate(np.where(begins, places, 0), axis=1)
    positions: Array = (np.take_along_axis(starts, latest, axis=1) + places - latest) % count
    return positions


def _stretch(length: int) -> int:
    """Return the steps of a stretch: half a window."""
    return max(length // _STRETCHES_A_WINDOW, 1)


def _weights(positions: Array, count: int) -> Array:
    """Return [M, count] float64: how often each position occurs in each row of [M, L]."""
    flat = positions + count * np.arange(len(positions))[:, None]
    return np.bincount(flat.ravel(), minlength=len(positions) * count).reshape(len(positions), count).astype(np.float64)


def _two_figures(bins: Bins, counts: Array, others: Array) -> Array:
    nothing = np.zeros(len(counts))
    return WindowCounts(counts, nothing, nothing).figures(bins, others)[:, _SCALED]
