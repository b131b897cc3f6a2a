"""The null distributions from random draws: stretches of steps, or samples of rows.

`StationaryBootstrap` is for windows that are long compared with the reference. An
autocorrelated series is resampled in stretches of random length (Politis & Romano, The
Stationary Bootstrap, JASA 89, 1994). In three months, only the days show how much a
month varies. To adapt to this variation, distances are divided by the distances of
stretches of half a window within the same reference (the bootstrap-t: Götze & Künsch,
Annals of Statistics 24, 1996). Simulations of ten columns with correlated days, at a
nominal 5 %:

| method | false alarms |
|---|---|
| without the division, coefficients of 0.3 to 0.8 | 24 to 65 % |
| with the division, up to 0.6 | 5 to 9 % |
| with the division, 0.8, stretches shorter than three correlation times | 10 % |
| with the division and p-values multiplied by 1.5, up to 0.6 | 3.7 to 4.7 % |

The factor 1.5 corrects for references in which the correlation is underestimated.
`StationaryBootstrap` is not used if a stretch is shorter than three correlation times,
or if the reference is shorter than two windows, has fewer block lengths than the rate
needs, or has more than twelve windows.

`IndependentRows` draws rows of the reference's sample with replacement. It is used only
if the monitor's spec declares that rows are independent (Efron & Tibshirani, An
Introduction to the Bootstrap, 1993, chapter 16). The columns of a row are drawn
together. A category in only one row counts as unseen (Good, Biometrika 40, 1953).
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pyarrow as pa
from scipy.special import chdtrc, ndtri

from mlflow_deploy_plugin.core.errors import Refused
from mlflow_deploy_plugin.serve.runtime.feeds import Array
from mlflow_deploy_plugin.watch.drift.sketches.bins import Bins
from mlflow_deploy_plugin.watch.drift.sketches.columns import decoded
from mlflow_deploy_plugin.watch.drift.sketches.sketch import encode_columns
from mlflow_deploy_plugin.watch.drift.threshold import null
from mlflow_deploy_plugin.watch.drift.threshold.dependence import Dependence, dependence
from mlflow_deploy_plugin.watch.drift.threshold.distribution import (
    FEWEST_HELD_OUT,
    FLOORS,
    HoldOutAlarms,
    NullDistribution,
    NullKind,
    TestResult,
    count_alarms,
    needed_windows,
    show_rate,
)

FEWEST_WINDOWS = 2
MOST_WINDOWS = 12
_DRAWS = 400
_WIDENING = 1.5
"""The factor on the p-value, i.e. the weight of each drawn window with a larger
statistic.
"""
_STRETCHES_A_WINDOW = 2
_TIMES_A_STRETCH = 3
_MAX_CELLS = 40_000_000
_SCALED_FLOORS = np.array([0.2, 0.2, 0.02, 0.02])
_SCALED = [null.DISTANCE, null.MISSING]
MAX_DRAWS = 2_000
_RANKS = 20
"""The intended number of samples above the threshold; fewer if more than `MAX_DRAWS`
samples would be needed.
"""
_MAX_ROWS = 5_000
_MAX_SAMPLE_CELLS = 200_000_000
_UNLIKELY = 0.001
_MOST_RATE = 0.4
_NAMED = 3
_SHARED = 1.5
"""The factor on the variance of a sum over pairs that share windows with two other
pairs each (correlation 1/4).
"""


@dataclass(frozen=True, eq=False)
class StationaryBootstrap(null.WindowNull):
    """Windows and references that are drawn from the reference's steps.

    Attributes:
        windows: the number of times that each of M windows contains each of S steps,
            [M, S].
        references: the same numbers for the drawn reference that each window is
            compared with, [M, S].
        stretches: the same numbers for Q pieces of each drawn reference, which scale
            the distances, [M, Q, S].
        block_length: the mean length of a drawn stretch in steps, which accounts for
            the correlation; steps are drawn between `first` and `last`.
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
        """Draw windows and references from the steps between the first and the last
        step with rows.
        """
        present = np.flatnonzero(step_rows)
        first = int(present[0])
        last = int(present[-1]) + 1
        count = last - first
        rng = np.random.default_rng([null.SEED, 1])
        windows = _weights(draw(rng, _DRAWS, count, length, mean_length), count)
        drawn = draw(rng, _DRAWS, count, count, mean_length)
        stretch = _stretch(length)
        whole = count // stretch  # The remaining steps at the end are unused.
        stretches = _weights(
            drawn[:, : whole * stretch].reshape(-1, stretch),
            count,
        )
        return cls(
            windows=windows,
            references=_weights(drawn, count),
            effective_n=min(count / mean_length, _DRAWS / _WIDENING),
            first=first,
            last=last,
            stretches=stretches.reshape(_DRAWS, whole, count),
            block_length=mean_length,
        )

    def compare(self, groups: Sequence[null.ColumnGroup]) -> NullDistribution:
        unwidened = super().compare(groups)
        floors = []
        for column in self.columns(groups):
            total = column.total()[0]
            rows = int(total.sum())
            floors.append(
                null.smallest_deviations(
                    column.bins,
                    total.nonzero()[0],
                    rows,
                    column.group.compared,
                    rows,
                ),
            )
        return replace(
            unwidened,
            floors=np.maximum(_SCALED_FLOORS, np.stack(floors) / unwidened.scales),
            widening=_WIDENING,
            block_length=self.block_length * (groups[0].reference.pieces.grid.step_us // 1_000_000),
        )

    def compared_windows(
        self,
        column: null.GroupColumn,
        rng: np.random.Generator,
    ) -> tuple[null.WindowCounts, Array]:
        steps = column.counts()[self.first : self.last]
        references = self.references @ steps
        return null.out_of_reference(
            column.bins,
            self.windows @ steps,
            references,
            column.unseen_share,
        ), references

    def column_figures(self, column: null.GroupColumn) -> tuple[Array, Array]:
        """Return the figures and their scales. Distances and missing shares are divided
        by their root mean squares over stretches of the drawn reference; the scales are
        the same for the actual reference.
        """
        figures, scales = super().column_figures(column)
        bins = column.bins
        steps = column.counts()[self.first : self.last]
        references = self.references @ steps
        whole = self.stretches.shape[1]
        squares = np.zeros((len(self.stretches), len(_SCALED)))
        for number in range(whole):
            squares += np.square(
                _two_figures(
                    bins,
                    self.stretches[:, number] @ steps,
                    references,
                )
            )
        figures[:, _SCALED] /= np.maximum(
            np.sqrt(squares / whole),
            FLOORS[_SCALED],
        )
        stretch = _stretch(column.group.reference.pieces.grid.window_steps)
        blocks = steps[: whole * stretch].reshape(whole, stretch, -1).sum(axis=1)
        own_squares = np.square(_two_figures(bins, blocks, steps.sum(axis=0)))
        scales[_SCALED] = np.maximum(
            np.sqrt(own_squares.mean(axis=0)),
            FLOORS[_SCALED],
        )
        return figures, scales

    def hold_out(
        self,
        groups: Sequence[null.ColumnGroup],
        rate: float,
        persistence: float,
    ) -> HoldOutAlarms | Refused:
        """Judge windows without overlap, each by new draws from at least two windows of
        earlier steps.
        """
        length = groups[0].reference.pieces.grid.window_steps
        count = self.last - self.first
        starts = [
            self.last - (number + 1) * length for number in range(count // length - FEWEST_WINDOWS)
        ][::-1]
        if len(starts) < FEWEST_HELD_OUT:
            return Refused(
                f"fewer than {FEWEST_HELD_OUT} reference windows have {FEWEST_WINDOWS} windows "
                "before them",
            )
        cells = sum(group.reference.bins[name].size for group in groups for name in group.columns)
        most = _MAX_CELLS // (len(self.windows) * (self.stretches.shape[1] + 2) * cells)
        if most < FEWEST_HELD_OUT:
            return Refused("the measurement would take too long with so many columns")
        starts = starts[-most:]
        judges = (starts[0] - self.first) / self.block_length
        supported = max(rate, 1 / (1 + judges))
        tests = [self._test_after(groups, start, supported) for start in starts]
        how = (
            f"forward in time, on the last {len(starts)} windows, each judged by draws from the "
            "earlier steps"
        )
        return count_alarms(
            tests,
            null.column_names(groups),
            supported,
            judges,
            len(starts),
            how,
            persistence,
        )

    def _test_after(
        self,
        groups: Sequence[null.ColumnGroup],
        start: int,
        rate: float,
    ) -> TestResult:
        length = groups[0].reference.pieces.grid.window_steps
        figures = []
        for column in self.columns(groups):
            steps = column.counts()
            bins = column.bins
            sides = (steps[start : start + length], steps[self.first : start])
            window, other_counts = (side.sum(axis=0, keepdims=True) for side in sides)
            sampled = null.out_of_reference(
                bins, window, other_counts, column.unseen_share
            ).subsampled(
                column.group.compared,
                column.rng(),
            )
            figures.append(sampled.figures(bins, other_counts)[0])
        shortened = []
        whole = groups[0].reference.pieces
        for group in groups:
            before = self.aligned(whole, group.reference.pieces)[self.first : start]
            pieces = replace(group.reference.pieces, steps=before, grid=whole.grid)
            shortened.append(replace(group, reference=replace(group.reference, pieces=pieces)))
        rows = null.row_counts(shortened[0].reference.pieces.steps)
        earlier = StationaryBootstrap.cut(rows, length, self.block_length)
        return earlier.compare(shortened).test(np.stack(figures), rate)


def can_bootstrap(step_rows: Array, length: int, column_dependence: Dependence) -> bool:
    present = np.flatnonzero(step_rows)
    count = int(present[-1] - present[0]) + 1 if len(present) else 0
    fits = FEWEST_WINDOWS * length <= count <= MOST_WINDOWS * length
    return (
        fits
        and length // _STRETCHES_A_WINDOW >= _TIMES_A_STRETCH * column_dependence.correlation_time
    )


def dependence_of(levels: Iterable[Array]) -> Dependence:
    """Return the dependence of the columns' levels: the median block length and the
    longest correlation time.
    """
    dependences = [dependence(level) for level in levels if len(level) and np.ptp(level) > 0]
    if not dependences:
        return Dependence(1.0, 1.0)
    return Dependence(
        float(np.median([column.block_length for column in dependences])),
        max(column.correlation_time for column in dependences),
    )


def draw(
    rng: np.random.Generator,
    draws: int,
    count: int,
    length: int,
    mean_length: float,
) -> Array:
    """Return random positions in a series of `count` items, [draws, length] int64. A
    stretch continues with the next item (the first item follows the last), and ends
    with probability 1 / mean_length.
    """
    starts = rng.integers(0, count, (draws, length))
    begins = rng.random((draws, length)) < 1 / mean_length
    begins[:, 0] = True
    positions_in_series = np.arange(length)
    latest = np.maximum.accumulate(
        np.where(begins, positions_in_series, 0),
        axis=1,
    )
    return (np.take_along_axis(starts, latest, axis=1) + positions_in_series - latest) % count


def _stretch(length: int) -> int:
    """Return the number of steps in a stretch of a drawn reference, for windows of
    `length` steps.
    """
    return max(length // _STRETCHES_A_WINDOW, 1)


def _weights(positions: Array, count: int) -> Array:
    """Return the number of times that each position occurs in each row of `positions`,
    [M, count] float64.
    """
    flat = positions + count * np.arange(len(positions))[:, None]
    return (
        np.bincount(flat.ravel(), minlength=len(positions) * count)
        .reshape(len(positions), count)
        .astype(np.float64)
    )


def _two_figures(bins: Bins, counts: Array, others: Array) -> Array:
    nothing = np.zeros(len(counts))
    return null.WindowCounts(counts, nothing, nothing).figures(bins, others)[:, _SCALED]


@dataclass(frozen=True)
class IndependentRows(null.Null):
    """Random samples of the reference's rows; `draws` is the number of samples."""

    draws: int

    kind: ClassVar[NullKind] = "rows"
    description: ClassVar[str] = "samples of rows"
    compares_with_whole: ClassVar[bool] = False

    @classmethod
    def cut(cls, group: null.ColumnGroup, rate: float) -> "IndependentRows | Refused":
        """Return the null, or a `Refused` if the rate needs too many samples or the
        reference contradicts the null.
        """
        if needed_windows(rate) > MAX_DRAWS:
            return Refused(
                f"a false-alarm rate of {rate:g} needs more than {MAX_DRAWS:,} samples, which is "
                f"the limit; the smallest supported rate is {show_rate(1 / (MAX_DRAWS + 1))}",
            )
        return contradiction(group, rate) or cls(
            min(max(_DRAWS, math.ceil(_RANKS / rate)), MAX_DRAWS),
        )

    def compare(self, groups: Sequence[null.ColumnGroup]) -> NullDistribution:
        """Return the figures of samples with the window's size, each compared with a
        second sample as large as the other side. With many columns, fewer distinct rows
        are used, to limit the time.
        """
        columns = sum(len(group.columns) for group in groups)
        rows = min(_MAX_ROWS, max(_MAX_SAMPLE_CELLS // (columns * self.draws), 500))
        parts = []
        for number, group in enumerate(groups):
            rng = np.random.default_rng([null.SEED, 2, number])
            sample = group.reference.sample
            pieces = group.reference.pieces
            if len(sample) > rows:
                sample = sample.take(np.sort(rng.choice(len(sample), rows, replace=False)))
            codes = encode_columns(group.reference.bins, sample)
            even = np.full(
                len(sample),
                1 / max(len(sample), 1),
            )
            sizes = [
                group.compared,
                pieces.total.rows,
                *([group.compared] if pieces.grid.lag_windows else []),
            ]
            sides = [
                rng.multinomial(size, even, size=self.draws).astype(np.float32) for size in sizes
            ]
            parts += [
                _drawn_figures(group, name, codes[name], sample, sides) for name in group.columns
            ]
        drawn, floors = zip(*parts, strict=True)
        figures = np.stack(drawn, axis=1)
        return NullDistribution(
            self.kind,
            figures,
            np.ones(figures.shape[1:]),
            np.stack(floors),
            float(self.draws),
        )

    def hold_out(
        self,
        groups: Sequence[null.ColumnGroup],
        rate: float,
        persistence: float,
    ) -> HoldOutAlarms | Refused:
        """Judge all windows of the reference by samples of its rows, as if rows were
        independent.
        """
        pieces = groups[0].reference.pieces
        now, before = (
            pieces.pairs()
            if pieces.grid.lag_windows
            else (
                np.arange(len(pieces.windows)),
                None,
            )
        )
        if len(now) < FEWEST_HELD_OUT:
            return Refused("the reference has too few windows with event times")
        sized = []
        columns = []
        for group in groups:
            windows = group.reference.pieces.windows_at(pieces.window_starts_us)
            rows = np.array([window.rows for window in windows])
            rows = rows[now] if before is None else np.minimum(rows[now], rows[before])
            size = min(group.compared, int(np.median(rows)))
            if size < null.MIN_COMPARED_ROWS:
                if not group.segment:
                    return Refused(
                        f"the reference's own windows have fewer than {null.MIN_COMPARED_ROWS} "
                        "rows",
                    )
                continue
            sized.append(replace(group, compared=size))
            for name in group.columns:
                figures = _window_figures(
                    null.GroupColumn(sized[-1], name, windows),
                    now,
                    before,
                )
                figures[rows < size] = np.nan
                columns.append(figures)
        samples = self.compare(sized)
        judged = np.stack(columns, axis=1)
        judged = judged[np.isfinite(judged[..., null.DISTANCE]).any(axis=1)]
        tests = [samples.test(window, rate) for window in judged]
        how = (
            f"on the reference's {len(judged)} windows, judged by samples of {sized[0].compared:,} "
            "independent rows"
        )
        return count_alarms(
            tests,
            null.column_names(sized),
            rate,
            float(self.draws),
            len(judged),
            how,
            persistence,
        )


def _window_figures(column: null.GroupColumn, now: Array, before: Array | None) -> Array:
    """Return the figures of the reference's own windows, [M, FIGURES], each compared
    like the judged window.
    """
    rng = column.rng()
    compared = column.group.compared
    windows = column.windows(now)
    if before is None:
        complements = np.maximum(column.total() - windows.counts, 0)
    else:
        complements = null.subsample(column.counts()[before], compared, rng)
    return windows.subsampled(compared, rng).figures(column.bins, complements)


def _drawn_figures(
    group: null.ColumnGroup,
    name: str,
    codes: Array,
    sample: pa.Table,
    sides: Sequence[Array],
) -> tuple[Array, Array]:
    """Return the figures of a column, [draws, FIGURES], and their smallest standard
    deviations, [FIGURES]. `codes` are the bins of the rows in `sample`, [N]. `sides`
    are row weights, [draws, N]: of the windows, of the whole reference (for the range),
    and of the compared rows.
    """
    bins = group.reference.bins[name]
    order = np.argsort(codes, kind="stable")
    present, starts = np.unique(codes[order], return_index=True)
    histograms = [np.zeros((len(weights), bins.size + 1)) for weights in sides]
    for counts, weights in zip(histograms, sides, strict=True):
        counts[:, present] = np.add.reduceat(
            weights[:, order],
            starts,
            axis=1,
        )
    windows = histograms[0]
    unseen = np.zeros(len(windows))
    # Rows are unseen with the share of rows whose category occurs once.
    if bins.kind == "category":
        amounts = decoded(sample.column(name)).drop_null().value_counts().field("counts")
        single = np.count_nonzero(amounts.to_numpy() == 1) / max(len(codes), 1)
        rng = null.column_rng(name, len(windows))
        unseen = rng.binomial(group.compared, single, len(windows)).astype(np.float64)
    outside = null.out_of_reference(bins, windows, histograms[1]).outside
    floors = null.smallest_deviations(
        bins,
        present,
        len(codes),
        group.compared,
        int(sides[-1][0].sum()),
    )
    return null.WindowCounts(windows, unseen, outside).figures(bins, histograms[-1]), floors


def contradiction(group: null.ColumnGroup, rate: float) -> Refused | None:
    """Return the evidence of the reference's own windows against independent rows, or
    None. With an intraclass correlation c, the variance of counts in a window of n rows
    is larger by the factor 1 + (n - 1) c (the design effect: Kish, Survey Sampling,
    1965). The chi-square of each window against the other windows estimates that factor
    (Cochran, Biometrics 10, 1954). The factor is evidence if it doubles the false
    alarms with p < `_UNLIKELY`.
    """
    pieces = group.reference.pieces
    now, before = (
        pieces.pairs()
        if pieces.grid.lag_windows
        else (
            np.arange(len(pieces.windows)),
            None,
        )
    )
    enough = (ndtri(rate / 2) / ndtri(rate)) ** 2 if rate < _MOST_RATE else np.inf
    evidence = []
    for name in group.columns:
        counts = null.column_counts(pieces.windows, name, group.reference.bins[name])
        # Merge neighbouring bins into up to four groups of similar size, plus missing
        # values. Rare bins have little information about dependence, and their counts
        # do not follow a chi-square distribution.
        total = counts.sum(axis=0)
        present = total[:-1]
        middle = (np.cumsum(present) - present / 2) / max(present.sum(), 1)
        group_of_bin = np.append(
            np.minimum((4 * middle).astype(np.int64), 3),
            4,
        )
        coarse = (
            counts @ np.eye(5)[group_of_bin][:, np.bincount(group_of_bin, total, minlength=5) > 0]
        )
        windows = coarse[now]
        other_counts = coarse.sum(axis=0) - windows if before is None else coarse[before]
        effect, chance = _dispersion(
            windows,
            other_counts,
            group.compared,
            1.0 if before is None else _SHARED,
        )
        if effect >= enough and chance * len(group.columns) < _UNLIKELY:
            evidence.append((effect, name))
    if not evidence:
        return None
    factors = ", ".join(
        f"{name} {effect:.3g}" for effect, name in sorted(evidence, reverse=True)[:_NAMED]
    )
    return Refused(
        f"the reference contradicts independent_rows: its own {len(now)} windows vary more than "
        f"windows of independent rows; for windows of {group.compared:,} rows the variance is "
        f"larger by these factors: {factors}; windows without drift would be called drifted; set "
        "independent_rows: false to compare with the reference's own windows",
    )


def _dispersion(
    windows: Array,
    others: Array,
    size: int,
    shared: float,
) -> tuple[float, float]:
    """Return the factor by which windows of `size` rows vary more than independent
    rows, and its p-value. `windows` and `others` are [M, G] counts; `shared` is the
    variance of the sum of chi-squares relative to independence.
    """
    rows = windows.sum(axis=1)
    other_rows = others.sum(axis=1)
    usable = (rows >= 2) & (other_rows >= 2)
    windows = windows[usable]
    others = others[usable]
    rows = rows[usable]
    other_rows = other_rows[usable]
    both = windows + others
    freedom = int(
        np.maximum(
            np.count_nonzero(both, axis=1) - 1,
            0,
        ).sum()
    )
    if not freedom:
        return 1.0, 1.0
    weights = np.sqrt(other_rows / rows)[:, None]
    total = float((np.square(weights * windows - others / weights) / np.maximum(both, 1)).sum())
    alike = max(total / freedom - 1, 0) / max(
        float(np.minimum(rows, other_rows).mean()) - 1,
        1,
    )
    return 1 + (size - 1) * alike, float(chdtrc(freedom / shared, total / shared))
