"""The null distribution of independent rows: random samples of the reference's rows.

It is used only for a reference with too few windows, if the monitor's spec declares
that rows are independent, or for two files without event times. A window is compared
with the reference, and each sample of its size with a second sample as large as the
reference (Efron & Tibshirani, An Introduction to the Bootstrap, 1993, chapter 16). The
columns of a row are drawn together. A category in only one row counts as unseen (Good,
Biometrika 40, 1953).

The figures of the judged window and of the samples are standardised by the mean and
standard deviation of all others. The statistic is the largest standardised figure, and
p = (1 + #{samples with a statistic >= the judged window's}) / (samples + 1) (conformal
p-value: Vovk, Gammerman, Shafer, Algorithmic Learning in a Random World, 2005).
"""

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from mlflow_deploy_plugin.core.errors import Refused
from mlflow_deploy_plugin.serve.runtime.feeds import Array
from mlflow_deploy_plugin.watch.drift.references.windows import DriftReference
from mlflow_deploy_plugin.watch.drift.sketches.bins import Bins, OrderedBins
from mlflow_deploy_plugin.watch.drift.sketches.columns import decoded
from mlflow_deploy_plugin.watch.drift.sketches.counts import column_counts
from mlflow_deploy_plugin.watch.drift.sketches.relations import without_projections
from mlflow_deploy_plugin.watch.drift.sketches.sketch import Profile, encode_columns

DISTANCE, MISSING, UNSEEN, OUTSIDE = range(4)
FIGURES = 4
"""The number of figures: distance of the known values (`bins.py`), change of the
missing share, share of rows with a category that the other side lacks, and share of
rows with a number outside of the other side's range.
"""
MIN_COMPARED_ROWS = 30
SEED = 0
"""The seed of all random draws, so that the same reference gives the same threshold."""
_DRAWN_FLOORS = np.array([1e-6, 1e-6, 0.02, 0.02])
"""The smallest standard deviation for each figure of drawn rows, in its own units
(standard deviations or bits, shares). Drawn rows are a fair sample, so small deviations
are meaningful. The floors for unseen and out-of-range rows require about 10 % of the
rows.
"""
_DRAWS = 400
MAX_DRAWS = 2_000
_RANKS = 20
"""The intended number of samples above the threshold; fewer if more than `MAX_DRAWS`
samples would be needed.
"""
_MAX_ROWS = 5_000
_MAX_SAMPLE_CELLS = 200_000_000


@dataclass(frozen=True, eq=False)
class ColumnGroup:
    """All rows (empty `segment`) or one segment, and the columns that are judged on
    `compared` rows of each window.
    """

    segment: str
    reference: DriftReference
    window: Profile
    columns: tuple[str, ...]
    compared: int

    @property
    def own_columns(self) -> tuple[str, ...]:
        """The columns without the projections."""
        return tuple(without_projections(self.columns))


@dataclass(frozen=True, eq=False)
class WindowCounts:
    """The counts of a column in M windows. `counts` is [M, K + 1] float64 with missing
    values last; `unseen` and `outside` are [M] float64 row counts, NaN if unknown.
    """

    counts: Array
    unseen: Array
    outside: Array

    def subsampled(self, size: int, rng: np.random.Generator) -> "WindowCounts":
        """Return the windows with at most `size` rows each, sampled at random."""
        rows = self.counts.sum(axis=-1)
        return WindowCounts(
            subsample(self.counts, size, rng),
            _subsample_part(self.unseen, rows, size, rng),
            _subsample_part(self.outside, rows, size, rng),
        )

    def figures(self, bins: Bins, others: Array) -> Array:
        """Return the figures of each window, [M, FIGURES], compared with the counts
        `others`, [M, K + 1] or [K + 1].
        """
        rows = np.maximum(self.counts.sum(axis=-1), 1)
        change = np.abs(
            self.counts[..., -1] / rows
            - others[..., -1]
            / np.maximum(
                others.sum(axis=-1),
                1,
            ),
        )
        distance = bins.distance(
            self.counts[..., :-1],
            others[..., :-1],
        )
        return np.stack(
            [distance, change, self.unseen / rows, self.outside / rows],
            axis=-1,
        )


def count_windows(profiles: Sequence[Profile], name: str, bins: Bins) -> WindowCounts:
    columns = [profile.columns.get(name) for profile in profiles]
    unseen = np.array(
        [column.unseen if column else 0 for column in columns],
        np.float64,
    )
    outside = np.array(
        [column.below + column.above if column else 0 for column in columns],
        np.float64,
    )
    return WindowCounts(column_counts(profiles, name, bins), unseen, outside)


def judged_figures(group: ColumnGroup, name: str, seed: int) -> Array:
    """Return the figures of a column of the judged window, [FIGURES]."""
    bins = group.reference.bins[name]
    pieces = group.reference.pieces
    rng = column_rng(group.segment + name, seed)
    window = count_windows([group.window], name, bins).subsampled(group.compared, rng)
    other_counts = column_counts([pieces.others], name, bins)
    figures: Array = window.figures(bins, other_counts)[0]
    return figures


def column_rng(name: str, seed: int = SEED) -> np.random.Generator:
    """Return a random generator for a column, independent of the column order."""
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


def out_of_reference(
    bins: Bins,
    counts: Array,
    others: Array,
) -> WindowCounts:
    """Return windows with `counts` and the number of rows that are unseen or out of
    range in `others`, [M, K + 1] both. Rare categories share bins, so the number of
    unseen rows is unknown (NaN) if `others` has rare categories.
    """
    present = counts[..., :-1]
    has = others[..., :-1] > 0
    nothing = np.zeros(len(counts))
    if isinstance(bins, OrderedBins):
        if bins.tables:  # A projection has no range.
            return WindowCounts(counts, nothing, nothing)
        positions = np.arange(present.shape[-1])
        first = np.argmax(has, axis=-1)
        last = (
            present.shape[-1]
            - 1
            - np.argmax(
                has[..., ::-1],
                axis=-1,
            )
        )
        is_beyond = (positions < first[..., None]) | (positions > last[..., None])
        return WindowCounts(counts, nothing, (present * is_beyond).sum(axis=-1))
    unseen = (present * ~has).sum(axis=-1)
    rest = others[..., len(bins.codes) : -1].any(axis=-1)
    return WindowCounts(
        counts,
        np.where(rest, math.nan, unseen),
        nothing,
    )


def subsample(counts: Array, size: int, rng: np.random.Generator) -> Array:
    """Return `size` random rows of each histogram [M, K] that has more rows."""
    sampled = counts.astype(np.int64)
    for row in np.flatnonzero(sampled.sum(axis=1) > size):
        sampled[row] = rng.multivariate_hypergeometric(sampled[row], size, method="marginals")
    return sampled.astype(np.float64)


def _subsample_part(
    part: Array,
    rows: Array,
    size: int,
    rng: np.random.Generator,
) -> Array:
    """Return the number of `part` rows in a random draw of `size` from all `rows`,
    [M].
    """
    is_open = (rows > size) & np.isfinite(part) & (part > 0)
    sampled: Array = part.astype(np.float64).copy()
    good = np.minimum(part[is_open], rows[is_open]).astype(np.int64)
    sampled[is_open] = rng.hypergeometric(
        good,
        rows[is_open].astype(np.int64) - good,
        size,
    )
    return sampled


class TestResult(NamedTuple):
    """The position of a window among the samples, in standard deviations. `scores` is
    [F, FIGURES]; p <= the rate if the statistic is above the threshold.
    """

    scores: Array
    statistic: float
    threshold: float
    p_value: float


@dataclass(frozen=True, eq=False)
class SampleDistribution:
    """Figures of samples of the reference's rows.

    Attributes:
        figures: the figures of M samples and F columns, [M, F, FIGURES], in the order
            of groups and columns.
        floors: the smallest standard deviations, [F, FIGURES].
    """

    figures: Array
    floors: Array

    def test(self, window: Array, rate: float) -> TestResult:
        """Test a window with figures [F, FIGURES] at a false-alarm rate."""
        standardised = _scores(np.concatenate([self.figures, window[None]]), self.floors)
        statistics = standardised.max(axis=(1, 2))
        drawn = np.sort(statistics[:-1])
        beyond = int(np.count_nonzero(drawn >= statistics[-1]))
        rank = math.floor(rate * len(statistics) + 1e-9)
        return TestResult(
            standardised[-1],
            float(statistics[-1]),
            float(drawn[-rank]),
            (1 + beyond) / len(statistics),
        )


def _scores(figures: Array, floors: Array) -> Array:
    """Return the figures of each window, [n, F, FIGURES], in standard deviations above
    the mean of all other windows.
    """
    centred = figures - figures.mean(axis=0)
    others = len(figures) - 1
    means = -centred / others
    squares = np.square(centred).sum(axis=0) - np.square(centred)
    deviations = np.sqrt(np.maximum(squares / others - np.square(means), 0))
    scores: Array = (centred - means) / np.maximum(deviations, floors)
    return scores


def draws_for(rate: float) -> int | Refused:
    """Return the number of samples; Refused if the rate needs too many samples."""
    if needed_windows(rate) > MAX_DRAWS:
        return Refused(
            f"a false-alarm rate of {rate:g} needs more than {MAX_DRAWS:,} samples, which is "
            f"the limit; the smallest supported rate is {_show_rate(1 / (MAX_DRAWS + 1))}",
        )
    return min(max(_DRAWS, math.ceil(_RANKS / rate)), MAX_DRAWS)


def draw_samples(groups: Sequence[ColumnGroup], draws: int) -> SampleDistribution:
    """Return the figures of samples with the window's size, each compared with a second
    sample as large as the other side. With many columns, fewer distinct rows are used,
    to limit the time.
    """
    columns = sum(len(group.columns) for group in groups)
    rows = min(_MAX_ROWS, max(_MAX_SAMPLE_CELLS // (columns * draws), 500))
    parts = []
    for number, group in enumerate(groups):
        rng = np.random.default_rng([SEED, 2, number])
        sample = group.reference.sample
        pieces = group.reference.pieces
        if len(sample) > rows:
            sample = sample.take(np.sort(rng.choice(len(sample), rows, replace=False)))
        codes = encode_columns(group.reference.bins, sample)
        even = np.full(
            len(sample),
            1 / max(len(sample), 1),
        )
        sizes = [group.compared, pieces.total.rows]
        sides = [rng.multinomial(size, even, size=draws).astype(np.float32) for size in sizes]
        parts += [_drawn_figures(group, name, codes[name], sample, sides) for name in group.columns]
    drawn, floors = zip(*parts, strict=True)
    return SampleDistribution(np.stack(drawn, axis=1), np.stack(floors))


def _drawn_figures(
    group: ColumnGroup,
    name: str,
    codes: Array,
    sample: pa.Table,
    sides: Sequence[Array],
) -> tuple[Array, Array]:
    """Return the figures of a column, [draws, FIGURES], and their smallest standard
    deviations, [FIGURES]. `codes` are the bins of the rows in `sample`, [N]. `sides`
    are row weights, [draws, N]: of the windows and of the whole reference.
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
    windows, others = histograms
    unseen = np.zeros(len(windows))
    # Rows are unseen with the share of rows whose category occurs once.
    if bins.kind == "category":
        amounts = decoded(sample.column(name)).drop_null().value_counts().field("counts")
        single = np.count_nonzero(amounts.to_numpy() == 1) / max(len(codes), 1)
        rng = column_rng(name, len(windows))
        unseen = rng.binomial(group.compared, single, len(windows)).astype(np.float64)
    outside = out_of_reference(bins, windows, others).outside
    floors = _smallest_deviations(
        bins,
        present,
        len(codes),
        group.compared,
        int(sides[-1][0].sum()),
    )
    return WindowCounts(windows, unseen, outside).figures(bins, others), floors


def _smallest_deviations(
    bins: Bins,
    present: Array,
    rows: int,
    window: int,
    others: int,
) -> Array:
    """Return the smallest standard deviations for a column, [FIGURES]. Drawn rows do
    not vary if no value or every value is missing, or if all values are equal. After N
    such rows, the next row may still differ with a probability of 1 / (N + 1)
    (Laplace's rule of succession), and a change in a window is at least one row.
    `present` are the non-empty bins of the `rows`, ascending; `window` and `others` are
    the row counts of both sides.
    """
    floors = _DRAWN_FLOORS.copy()
    odd = max(
        1 / window,
        math.sqrt((1 / window + 1 / others) / (rows + 1)),
    )
    occupied = present[present < bins.size]
    if len(occupied) == 1 and bins.size > 1:
        usual = np.eye(bins.size)[occupied[0]]
        another = np.eye(bins.size)[-1 if occupied[0] < bins.size - 1 else 0]
        floors[DISTANCE] = bins.distance(
            usual,
            (1 - odd) * usual + odd * another,
        )
    if len(occupied) == len(present) or not len(occupied):
        floors[MISSING] = odd
    return floors


def needed_windows(rate: float) -> int:
    """Return the number of independent windows that a rate needs, such as 19 for 5
    %.
    """
    return math.ceil(1 / rate - 1e-9) - 1


def _show_rate(rate: float) -> str:
    """Return the rate rounded up, so that the rounded value can be specified."""
    return f"{math.ceil(rate * 10_000) / 10_000:g}"
