"""The base of all null distributions: the figures of the reference's own windows define
the normal variation.

Rows of real traffic are not independent: a test that resamples rows of the reference
calls every real day drifted (90 of 90 measured). Therefore the null windows are
contiguous pieces of the reference's time. n independent windows support no rate below 1
/ (n + 1). `verdict.py` uses the first null that supports the rate:

- `Contiguous` (`windows.py`): the reference has enough windows of the judged window's
  length.
- `Overlapping` (`windows.py`): there are too few contiguous windows.
- `StationaryBootstrap` (`drawn.py`): there are too few overlapping windows, e.g. a
  month compared with three months.
- `Lagged` (`windows.py`): always used for a reference `rolling:`.
- `IndependentRows` (`drawn.py`): always used if the monitor's spec declares that rows
  are independent.

Distances decrease as the number of rows grows, so both sides of a comparison have the
same number of rows: larger histograms are subsampled at random, column by column. If
columns are correlated and the reference's windows have far more rows than the judged
window, the threshold is somewhat higher than necessary, never lower.
"""

import math
import zlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from mlflow_deploy_plugin.core.errors import Refused
from mlflow_deploy_plugin.serve.runtime.feeds import Array
from mlflow_deploy_plugin.watch.drift.references.windows import (
    DriftReference,
    ReferencePieces,
    profiles_at,
)
from mlflow_deploy_plugin.watch.drift.sketches.bins import Bins, OrderedBins
from mlflow_deploy_plugin.watch.drift.sketches.relations import without_projections
from mlflow_deploy_plugin.watch.drift.sketches.sketch import Profile
from mlflow_deploy_plugin.watch.drift.threshold.dependence import persistence
from mlflow_deploy_plugin.watch.drift.threshold.distribution import (
    FLOORS,
    HoldOutAlarms,
    NullDistribution,
    NullKind,
)

DISTANCE, MISSING, UNSEEN, OUTSIDE = range(4)
FIGURES = 4
"""The number of figures: distance of the known values (`bins.py`), change of the
missing share, share of rows with a category that the other side lacks, and share of
rows with a number outside of the other side's range.
"""
MIN_COMPARED_ROWS = 30
SEED = 0
"""The seed of all random draws in nulls, so that the same reference gives the same
threshold.
"""
_DRAWN_FLOOR = 1e-6
"""The smallest standard deviation for drawn rows. Drawn rows are a fair sample, so
small deviations are meaningful.
"""


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


def column_counts(profiles: Sequence[Profile], name: str, bins: Bins) -> Array:
    """Return a column's histograms, [P, K + 1] float64. The values of rows without the
    column count as missing.
    """
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


@dataclass(frozen=True, eq=False)
class GroupColumn:
    """A column of a group, in the pieces of the group's reference from which windows
    are made.
    """

    group: ColumnGroup
    name: str
    pieces: Sequence[Profile]

    @property
    def bins(self) -> Bins:
        return self.group.reference.bins[self.name]

    def rng(self) -> np.random.Generator:
        return column_rng(self.group.segment + self.name)

    def counts(self) -> Array:
        """Return the histogram of each piece, [P, K + 1] float64."""
        return column_counts(self.pieces, self.name, self.bins)

    def total(self) -> Array:
        """Return the histogram of the whole reference, [1, K + 1] float64."""
        return column_counts(
            [self.group.reference.pieces.total],
            self.name,
            self.bins,
        )

    @property
    def unseen_share(self) -> float:
        """The largest share, in any reference window, of values that the other windows
        lack; NaN without windows.
        """
        columns = [window.columns.get(self.name) for window in self.group.reference.pieces.windows]
        shares = [
            column.unseen / column.rows
            for column in columns
            if column and 2 * column.rows >= self.group.compared
        ]
        return max(shares, default=math.nan)

    def windows(self, indices: Array) -> WindowCounts:
        return count_windows(
            [self.pieces[index] for index in indices],
            self.name,
            self.bins,
        )


def judged_figures(group: ColumnGroup, name: str, seed: int) -> Array:
    """Return the figures of a column of the judged window, [FIGURES]."""
    bins = group.reference.bins[name]
    pieces = group.reference.pieces
    rng = column_rng(group.segment + name, seed)
    window = count_windows([group.window], name, bins).subsampled(group.compared, rng)
    other_counts = column_counts([pieces.others], name, bins)
    # Limit the earlier window to the judged window's size, as in the null.
    if pieces.grid.lag_windows:
        other_counts = subsample(other_counts, group.compared, rng)
    figures: Array = window.figures(bins, other_counts)[0]
    return figures


def column_rng(name: str, seed: int = SEED) -> np.random.Generator:
    """Return a random generator for a column, independent of the column order."""
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


def out_of_reference(
    bins: Bins,
    counts: Array,
    others: Array,
    unseen_share: float = math.nan,
) -> WindowCounts:
    """Return windows with `counts` and the number of rows that are unseen or out of
    range in `others`, [M, K + 1] both. Rare categories share bins, so if `others` has
    rare categories, `unseen_share` is assumed for each window.
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
        np.where(rest, unseen_share * counts.sum(axis=-1), unseen),
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


class Null(ABC):
    """Windows that show how much a window differs from the reference if nothing has
    changed. `is_of_steps` is True if the windows consist of the reference's steps, so
    that windows are correlated by construction. `compares_with_whole` is True if a
    window is compared with the whole reference.
    """

    kind: ClassVar[NullKind]
    description: ClassVar[str]
    is_of_steps: ClassVar[bool] = False
    compares_with_whole: ClassVar[bool] = True

    @abstractmethod
    def compare(self, groups: Sequence[ColumnGroup]) -> NullDistribution:
        """Return the figures of the null's windows for all groups."""

    @abstractmethod
    def hold_out(
        self,
        groups: Sequence[ColumnGroup],
        rate: float,
        persistence: float,
    ) -> HoldOutAlarms | Refused:
        """Return the alarms among the reference's own windows, each judged by other
        rows.
        """

    def persistence(self, group: ColumnGroup) -> tuple[float, str]:
        """Return the number of windows that are worth one independent window, and the
        column with this correlation.
        """
        return 1.0, ""


@dataclass(frozen=True, eq=False)
class WindowNull(Null):
    """Windows made of the reference's own windows or steps, which are worth
    `effective_n` independent windows.
    """

    effective_n: float

    def aligned(self, whole: ReferencePieces, part: ReferencePieces) -> tuple[Profile, ...]:
        """Return the pieces of `part`, a segment, at the positions of the pieces of
        `whole`.
        """
        if self.is_of_steps:
            return profiles_at(whole.step_starts_us, part.step_starts_us, part.steps)
        return part.windows_at(whole.window_starts_us)

    def columns(self, groups: Sequence[ColumnGroup]) -> list[GroupColumn]:
        """Return the columns of all groups, with pieces at the positions of the first
        group's pieces.
        """
        group_columns: list[GroupColumn] = []
        for group in groups:
            pieces = self.aligned(groups[0].reference.pieces, group.reference.pieces)
            group_columns += [GroupColumn(group, name, pieces) for name in group.columns]
        return group_columns

    @abstractmethod
    def compared_windows(
        self,
        column: GroupColumn,
        rng: np.random.Generator,
    ) -> tuple[WindowCounts, Array]:
        """Return the counts of a column in all windows, and the counts compared with
        each window, [M, K + 1].
        """

    def column_figures(self, column: GroupColumn) -> tuple[Array, Array]:
        """Return the figures of a column in all windows, [M, FIGURES], and the scales,
        [FIGURES]. Figures are NaN if the window or the other side has fewer than half
        of the compared rows.
        """
        compared = column.group.compared
        rng = column.rng()
        windows, complements = self.compared_windows(column, rng)
        figures = windows.subsampled(compared, rng).figures(column.bins, complements)
        rows = np.minimum(
            windows.counts.sum(axis=1),
            complements.sum(axis=1),
        )
        figures[2 * rows < compared] = np.nan
        return figures, np.ones(FIGURES)

    def compare(self, groups: Sequence[ColumnGroup]) -> NullDistribution:
        figures, scales = zip(
            *map(self.column_figures, self.columns(groups)),
            strict=True,
        )
        return NullDistribution(
            self.kind,
            np.stack(figures, axis=1),
            np.stack(scales),
            FLOORS,
            self.effective_n,
        )


def smallest_deviations(
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
    floors = np.array([_DRAWN_FLOOR, _DRAWN_FLOOR, *FLOORS[2:]])
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


def column_names(groups: Sequence[ColumnGroup]) -> list[str]:
    """Return display names for the columns of all groups, such as `delay of
    carrier=AA`.
    """
    return [
        f"{name} of {group.segment}" if group.segment else name
        for group in groups
        for name in group.columns
    ]


def row_counts(profiles: Sequence[Profile]) -> Array:
    """Return the number of rows of each profile, [P] int64."""
    return np.array([profile.rows for profile in profiles], dtype=np.int64)


def slowest_column(levels: Mapping[str, Array]) -> tuple[float, str]:
    """Return the number of consecutive windows that are worth one independent window,
    and the column with the largest number; 1 and an empty name without correlation.
    Levels are in order of time. Distances are not used, because their correlation is
    only the square of the correlation of levels: on simulated days with coefficients of
    0.5 to 0.95, 6 to 57 % were called drifted, while distances predicted 3 to 18 % and
    levels 4 to 69 %.
    """
    persistences = [
        (
            persistence(level, len(levels)),
            name,
        )
        for name, level in levels.items()
    ]
    longest, name = max(persistences, default=(1.0, ""))
    return (longest, name) if longest > 1 else (1.0, "")


def column_level(group: ColumnGroup, name: str, profiles: Sequence[Profile]) -> Array:
    """Return the level of a column in each profile with values: the mean, or the share
    of the most frequent bin.
    """
    bins = group.reference.bins[name]
    counts = column_counts(profiles, name, bins)[:, :-1]
    rows = counts.sum(axis=1)
    counts = counts[rows > 0]
    rows = rows[rows > 0]
    frequent = counts[:, counts.sum(axis=0).argmax()]
    level: Array = (counts @ bins.positions if isinstance(bins, OrderedBins) else frequent) / rows
    return level
