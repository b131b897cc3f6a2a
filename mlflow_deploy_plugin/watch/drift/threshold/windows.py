"""The null distributions from the reference's own windows: contiguous windows,
overlapping windows, and pairs.
"""

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np

from mlflow_deploy_plugin.core.column_names import EVENT_TIME
from mlflow_deploy_plugin.core.errors import Refused
from mlflow_deploy_plugin.serve.runtime.feeds import Array
from mlflow_deploy_plugin.watch.drift.references.windows import (
    MAX_WINDOWS,
    correct_for_rest,
    evenly,
)
from mlflow_deploy_plugin.watch.drift.threshold import null
from mlflow_deploy_plugin.watch.drift.threshold.distribution import (
    FEWEST_HELD_OUT,
    FLOORS,
    HoldOutAlarms,
    NullDistribution,
    NullKind,
    count_alarms,
)

OVERLAP_WORTH = 1.5
_TOO_FEW_HALVES = Refused(f"half of the reference has fewer than {FEWEST_HELD_OUT} windows")
_MAX_FIGURES = 20_000_000
"""The maximum number of figures of held-out windows; if there are more, only evenly
spaced windows are judged.
"""
_HELD_A_WINDOW = 4
"""The number of overlapping held-out windows per disjoint window. More windows would be
redundant.
"""


@dataclass(frozen=True, eq=False)
class Halves:
    """The two halves of a reference: windows of the later half, `side_by_side` of which
    are disjoint, are judged by the earlier half. `earlier` and `later` are window
    indices, and `pieces` are the indices of pieces in the earlier half. The earlier
    half is worth `judges` independent windows. `how`, `starts` and `length` are as in
    `distribution.py`.
    """

    earlier: Array
    later: Array
    pieces: Array
    judges: float
    side_by_side: int
    how: str
    starts: Array = field(default_factory=lambda: np.empty(0, np.int64))
    length: int = 0


@dataclass(frozen=True, eq=False)
class WholeReferenceNull(null.WindowNull):
    """Windows that are compared with the rest of the reference. `starts` is each
    window's first piece, [M] int64.
    """

    starts: Array

    @abstractmethod
    def count(self, column: null.GroupColumn) -> null.WindowCounts:
        """Return the counts of one column in all windows."""

    def beside(
        self,
        column: null.GroupColumn,
        windows: null.WindowCounts,
        complements: Array,
    ) -> null.WindowCounts:
        """Return `windows` with the numbers of rows that are unseen or out of range in
        the rest of the reference.
        """
        return windows

    def persistence(self, group: null.ColumnGroup) -> tuple[float, str]:
        windows = group.reference.pieces.windows
        return null.slowest_column(
            {name: null.column_level(group, name, windows) for name in group.columns},
        )

    @abstractmethod
    def halve(self, columns: int) -> Halves | Refused:
        """Return the reference's halves, or the reason why halving fails. More
        `columns` allow fewer later windows.
        """

    def compared_windows(
        self,
        column: null.GroupColumn,
        rng: np.random.Generator,
    ) -> tuple[null.WindowCounts, Array]:
        windows = self.count(column)
        complements = column.total() - windows.counts
        return self.beside(column, windows, complements), complements

    def hold_out(
        self,
        groups: Sequence[null.ColumnGroup],
        rate: float,
        persistence: float,
    ) -> HoldOutAlarms | Refused:
        """Judge the windows of the later half by the windows of the earlier half."""
        names = null.column_names(groups)
        halves = self.halve(len(names))
        if isinstance(halves, Refused):
            return halves
        supported = max(rate, 1 / (1 + halves.judges))
        sides = zip(
            *(self._half_figures(column, halves) for column in self.columns(groups)),
            strict=True,
        )
        earlier, later = (np.stack(side, axis=1) for side in sides)
        scales = np.ones(earlier.shape[1:])
        worth = halves.judges
        judge = NullDistribution(
            self.kind,
            earlier,
            scales,
            FLOORS,
            worth,
            starts=halves.starts,
            length=halves.length,
        )
        tests = [judge.test(window, supported) for window in later]
        return count_alarms(
            tests,
            names,
            supported,
            halves.judges,
            halves.side_by_side,
            halves.how,
            persistence,
        )

    def _half_figures(self, column: null.GroupColumn, halves: Halves) -> list[Array]:
        """Return the figures of the earlier windows, [E, FIGURES], each compared with
        the others, and of the later windows, [L, FIGURES], compared with the earlier
        windows; NaN for fewer than half of the compared rows.
        """
        windows = self.count(column)
        compared = column.group.compared
        total = column.counts()[halves.pieces].sum(axis=0)
        sampled = windows.subsampled(compared, column.rng())
        sides = []
        for indices, complements in (
            (
                halves.earlier,
                np.maximum(total - windows.counts[halves.earlier], 0),
            ),
            (
                halves.later,
                np.repeat(total[None], len(halves.later), axis=0),
            ),
        ):
            half_counts = null.WindowCounts(
                sampled.counts[indices],
                sampled.unseen[indices],
                sampled.outside[indices],
            )
            figures = self.beside(column, half_counts, complements).figures(
                column.bins, complements
            )
            figures[2 * windows.counts[indices].sum(axis=1) < compared] = np.nan
            sides.append(figures)
        return sides


@dataclass(frozen=True, eq=False)
class Contiguous(WholeReferenceNull):
    """The reference's windows with the length and phase of the judged window, each
    compared with the others. A window counts as one window even if windows are
    correlated; the verdict reports the correlation (`slowest_column`).
    """

    kind: ClassVar[NullKind] = "contiguous"
    description: ClassVar[str] = "windows of the reference"

    @classmethod
    def cut(cls, window_rows: Array, compared: int, most: int = MAX_WINDOWS) -> "Contiguous":
        """Choose at most `most` windows (`window_rows`, [B]) that have at least half of
        the compared rows. Smaller windows, at an end or in a gap of the log, are not
        representative.
        """
        positions = evenly(np.flatnonzero(2 * window_rows >= compared), most)
        return cls(float(len(positions)), positions)

    def count(self, column: null.GroupColumn) -> null.WindowCounts:
        return column.windows(self.starts)

    def halve(self, columns: int) -> Halves | Refused:
        count = len(self.starts)
        middle = count // 2
        if middle < FEWEST_HELD_OUT:
            return _TOO_FEW_HALVES
        later = _affordable(np.arange(middle, count), middle, columns)
        how = (
            f"forward in time, on the later {count - middle} windows judged by only the earlier "
            f"{middle}"
        )
        return Halves(
            np.arange(middle),
            later,
            self.starts[:middle],
            float(middle),
            len(later),
            how,
        )

    def hold_out(
        self,
        groups: Sequence[null.ColumnGroup],
        rate: float,
        persistence: float,
    ) -> HoldOutAlarms | Refused:
        """Judge the windows of the later half by the earlier half. A value is unseen or
        out of range if it does not occur before the end of the earlier half.
        """
        pieces = groups[0].reference.pieces
        until_us = pieces.window_starts_us[self.starts[len(self.starts) // 2]]
        corrected = []
        for group in groups:
            reference, group_pieces = group.reference, group.reference.pieces
            if len(reference.sample) and EVENT_TIME in reference.sample.column_names:
                windows = correct_for_rest(
                    reference.bins,
                    group_pieces.windows,
                    group_pieces.window_starts_us,
                    pieces.grid.length_us,
                    reference.sample,
                    until_us,
                )
                reference = replace(reference, pieces=replace(group_pieces, windows=windows))
            corrected.append(replace(group, reference=reference))
        return super().hold_out(corrected, rate, persistence)


@dataclass(frozen=True, eq=False)
class Overlapping(WholeReferenceNull):
    """Windows that begin at every step, each compared with only the windows that do not
    overlap it. With overlapping comparisons, 21 % of weeks without drift were called
    drifted at a nominal 5 %. Overlapping windows are worth 1.5 times the number of
    disjoint windows (Künsch, Annals of Statistics 17, 1989; Lahiri, Resampling Methods
    for Dependent Data, 2003, section 5).
    """

    length: int

    kind: ClassVar[NullKind] = "overlapping"
    description: ClassVar[str] = "overlapping windows of the reference"
    is_of_steps: ClassVar[bool] = True

    @classmethod
    def cut(cls, step_rows: Array, length: int, compared: int) -> "Overlapping":
        """Choose the windows of `length` steps (`step_rows`, [S]) with at least half of
        the compared rows.
        """
        starts = np.arange(max(len(step_rows) - length + 1, 0))
        inside = np.concatenate([[0], np.cumsum(step_rows)])
        starts = starts[2 * (inside[starts + length] - inside[starts]) >= compared]
        effective_n = OVERLAP_WORTH * (len(starts) + length - 1) / length if len(starts) else 0.0
        return cls(effective_n, evenly(starts, MAX_WINDOWS), length)

    def compare(self, groups: Sequence[null.ColumnGroup]) -> NullDistribution:
        return replace(
            super().compare(groups),
            starts=self.starts,
            length=self.length,
        )

    def count(self, column: null.GroupColumn) -> null.WindowCounts:
        until = np.cumsum(
            np.pad(
                column.counts(),
                ((1, 0), (0, 0)),
            ),
            axis=0,
        )
        counts = until[self.starts + self.length] - until[self.starts]
        nothing = np.zeros(len(counts))
        return null.WindowCounts(counts, nothing, nothing)

    def beside(
        self,
        column: null.GroupColumn,
        windows: null.WindowCounts,
        complements: Array,
    ) -> null.WindowCounts:
        return null.out_of_reference(column.bins, windows.counts, complements, column.unseen_share)

    def halve(self, columns: int) -> Halves | Refused:
        starts = self.starts
        length = self.length
        first = int(starts[0])
        end = int(starts[-1]) + length
        middle = (first + end) // 2
        earlier = np.flatnonzero(starts + length <= middle)
        later = np.flatnonzero(starts >= middle)
        before = (middle - first) // length
        after = (end - middle) // length
        if min(before, after) < FEWEST_HELD_OUT:
            return _TOO_FEW_HALVES
        later = _affordable(evenly(later, _HELD_A_WINDOW * after), len(earlier), columns)
        return Halves(
            earlier=earlier,
            later=later,
            pieces=np.arange(starts[earlier[-1]] + length),
            judges=OVERLAP_WORTH * (middle - first) / length,
            side_by_side=min(after, len(later)),
            how=(
                f"forward in time, on {len(later)} overlapping windows of the later half, judged "
                "by only the earlier"
            ),
            starts=starts[earlier],
            length=length,
        )


@dataclass(frozen=True, eq=False)
class Lagged(null.WindowNull):
    """Pairs of windows, `later` and `earlier` [M] int64, at the lag of `rolling:`. Each
    pair counts as one window.
    """

    later: Array
    earlier: Array

    kind: ClassVar[NullKind] = "lagged"
    description: ClassVar[str] = "window pairs of the reference at the same lag"
    compares_with_whole: ClassVar[bool] = False

    @classmethod
    def cut(
        cls,
        window_rows: Array,
        later: Array,
        earlier: Array,
        compared: int,
        most: int = MAX_WINDOWS,
    ) -> "Lagged":
        """Choose the pairs (`later`, `earlier`, [P] each) in which both windows have
        the compared rows. Smaller windows differ more by chance, so pairs at night
        would raise the threshold at noon.
        """
        positions = evenly(
            np.flatnonzero(np.minimum(window_rows[later], window_rows[earlier]) >= compared),
            most,
        )
        return cls(float(len(positions)), later[positions], earlier[positions])

    def compared_windows(
        self,
        column: null.GroupColumn,
        rng: np.random.Generator,
    ) -> tuple[null.WindowCounts, Array]:
        return column.windows(self.later), null.subsample(
            column.counts()[self.earlier],
            column.group.compared,
            rng,
        )

    def persistence(self, group: null.ColumnGroup) -> tuple[float, str]:
        windows = group.reference.pieces.windows
        levels = {}
        sides = [[windows[index] for index in side] for side in (self.later, self.earlier)]
        for name in group.columns:
            now, before = (null.column_level(group, name, side) for side in sides)
            if len(now) == len(before):
                levels[name] = np.abs(now - before)
        return null.slowest_column(levels)

    def hold_out(
        self,
        groups: Sequence[null.ColumnGroup],
        rate: float,
        persistence: float,
    ) -> HoldOutAlarms | Refused:
        """Judge each pair in the later half by all earlier pairs, as a window is judged
        with `rolling:`.
        """
        count = len(self.later)
        middle = count // 2
        if middle < FEWEST_HELD_OUT:
            return _TOO_FEW_HALVES
        names = null.column_names(groups)
        later = _affordable(np.arange(middle, count), middle, len(names))
        supported = max(rate, 1 / (1 + middle))
        pairs = self.compare(groups)
        figures = pairs.figures
        befores = (
            replace(
                pairs,
                figures=figures[:place],
                effective_n=float(place),
            )
            for place in later
        )
        tests = [
            before.test(figures[index], supported)
            for index, before in zip(later, befores, strict=True)
        ]
        how = f"forward in time, on the later {len(later)} pairs, each judged by the earlier pairs"
        return count_alarms(tests, names, supported, math.inf, len(later), how, persistence)


def _affordable(later: Array, earlier: int, columns: int) -> Array:
    return evenly(later, max(_MAX_FIGURES // (earlier * columns), FEWEST_HELD_OUT))
