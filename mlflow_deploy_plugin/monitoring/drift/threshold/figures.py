"""The figures by which a window differs from other rows, column by column, at equal size.

Distances shrink as rows grow, so both sides of every comparison with the reference's own windows have the same number
of rows: a histogram of more rows is subsampled at random. Columns are subsampled one by one, since a sketch does not
say which values belong to one row. If windows of the reference have far more rows than the judged one and the columns
depend on each other, that makes the threshold somewhat higher than necessary, never lower.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mlflow_deploy_plugin.monitoring.drift.references import DriftReference
from mlflow_deploy_plugin.monitoring.drift.sketches.bins import Bins, OrderedBins
from mlflow_deploy_plugin.monitoring.drift.sketches.columns import Array
from mlflow_deploy_plugin.monitoring.drift.sketches.sketch import Profile

DISTANCE, MISSING, UNSEEN, OUTSIDE = range(4)
FIGURES = 4
"""Distance of the known values (`bins.py`), change of the missing share, share of rows with a category that the other
side lacks, share of rows with a number beyond the other side's range."""
MIN_COMPARED_ROWS = 30
SEED = 0
"""Of all that nulls draw at random, so that the same reference has the same threshold."""


@dataclass(frozen=True, eq=False)
class ColumnGroup:
    """All rows or those of a segment, with the columns that are judged.

    Attributes:
        segment: as `carrier=AA`; empty: all rows.
        compared: the number of rows that every window has or is subsampled to.
    """

    segment: str
    reference: DriftReference
    window: Profile
    columns: tuple[str, ...]
    compared: int


@dataclass(frozen=True, eq=False)
class WindowCounts:
    """One column of M windows.

    Attributes:
        counts: [M, K + 1] float64, the missing values last.
        unseen, outside: [M] float64, rows; NaN where they are not known.
    """

    counts: Array
    unseen: Array
    outside: Array

    def subsampled(self, size: int, rng: np.random.Generator) -> "WindowCounts":
        """Return the same with at most `size` rows each."""
        rows = self.counts.sum(axis=-1)
        if not (rows > size).any():
            return self
        return WindowCounts(
            subsample(self.counts, size, rng),
            _subsample_part(self.unseen, rows, size, rng),
            _subsample_part(self.outside, rows, size, rng),
        )

    def figures(self, bins: Bins, others: Array) -> Array:
        """Return [M, FIGURES]: the figures of each window beside the counts of other rows, [M, K + 1] or [K + 1]."""
        rows = np.maximum(self.counts.sum(axis=-1), 1)
        change = np.abs(self.counts[..., -1] / rows - others[..., -1] / np.maximum(others.sum(axis=-1), 1))
        distance = bins.distance(self.counts[..., :-1], others[..., :-1])
        return np.stack([distance, change, self.unseen / rows, self.outside / rows], axis=-1)


def column_counts(profiles: Sequence[Profile], name: str, bins: Bins) -> Array:
    """Return [P, K + 1] float64: a column's histograms. Rows that lack the column count as missing values."""
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
    """Return one column of some profiles, a window each."""
    columns = [profile.columns.get(name) for profile in profiles]
    unseen = np.array([column.unseen if column else 0 for column in columns], np.float64)
    outside = np.array([column.below + column.above if column else 0 for column in columns], np.float64)
    return WindowCounts(column_counts(profiles, name, bins), unseen, outside)


def judged_figures(group: ColumnGroup, name: str, seed: int) -> Array:
    """Return [FIGURES] of one column of the judged window."""
    bins, pieces = group.reference.bins[name], group.reference.pieces
    rng = column_rng(group.segment + name, seed)
    window = count_windows([group.window], name, bins).subsampled(group.compared, rng)
    others = column_counts([pieces.others], name, bins)
    if pieces.lag_windows:  # no larger than the window, as in every pair of the null
        others = subsample(others, group.compared, rng)
    figures: Array = window.figures(bins, others)[0]
    return figures


def column_rng(name: str, seed: int = SEED) -> np.random.Generator:
    """Return random numbers that belong to a column, whatever the order of the columns is."""
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


def out_of_reference(bins: Bins, counts: Array, others: Array) -> WindowCounts:
    """Return windows of counts [M, K + 1]; the bins tell what is unseen in or out of the range of `others` [M, K + 1].

    Categories beyond the most frequent ones share a bin: if `others` have such, `unseen` is not known and NaN.
    """
    known = counts[..., :-1]
    has = others[..., :-1] > 0
    nothing = np.zeros(len(counts))
    if isinstance(bins, OrderedBins):
        positions = np.arange(known.shape[-1])
        first = np.argmax(has, axis=-1)
        last = known.shape[-1] - 1 - np.argmax(has[..., ::-1], axis=-1)
        is_beyond = (positions < first[..., None]) | (positions > last[..., None])
        return WindowCounts(counts, nothing, (known * is_beyond).sum(axis=-1))
    unseen = (known * ~has).sum(axis=-1)
    rest = others[..., -2] > 0
    return WindowCounts(counts, np.where(rest, np.nan, unseen), nothing)


def subsample(counts: Array, size: int, rng: np.random.Generator) -> Array:
    """Return a random choice of `size` rows of each histogram [M, K] that has more.

    It is a draw of the multivariate hypergeometric distribution, made for all histograms at once by halving their bins
    again and again.
    """
    histograms = counts.astype(np.int64)
    width = 1 << max(histograms.shape[1] - 1, 0).bit_length()
    levels = [np.pad(histograms, ((0, 0), (0, width - histograms.shape[1])))]
    while levels[-1].shape[1] > 1:
        levels.append(levels[-1].reshape(len(histograms), -1, 2).sum(axis=2))
    wanted = np.minimum(levels[-1], size)
    for level in levels[-2::-1]:
        left, right = level[:, 0::2], level[:, 1::2]
        got = np.maximum(wanted - right, 0)
        is_open = (wanted > 0) & (left > 0) & (right > 0) & (wanted < left + right)
        got[is_open] = rng.hypergeometric(left[is_open], right[is_open], wanted[is_open])
        wanted = np.stack([got, wanted - got], axis=2).reshape(len(histograms), -1)
    kept: Array = wanted[:, : histograms.shape[1]].astype(np.float64)
    return kept


def _subsample_part(part: Array, rows: Array, size: int, rng: np.random.Generator) -> Array:
    """Return [M]: how many of the `part` rows are among `size` of all `rows`, drawn at random."""
    is_open = (rows > size) & np.isfinite(part) & (part > 0)
    sampled: Array = part.astype(np.float64).copy()
    good = np.minimum(part[is_open], rows[is_open]).astype(np.int64)
    sampled[is_open] = rng.hypergeometric(good, rows[is_open].astype(np.int64) - good, size)
    return sampled
