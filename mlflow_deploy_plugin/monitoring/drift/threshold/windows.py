"""The null distributions that are made of the reference's own windows: contiguous, overlapping, and pairs of them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from mlflow_deploy_plugin.errors import Refused
from mlflow_deploy_plugin.monitoring.drift.references import DriftReference
from mlflow_deploy_plugin.monitoring.drift.references.out_of_reference import correct_for_rest
from mlflow_deploy_plugin.monitoring.drift.references.windows import ReferencePieces
from mlflow_deploy_plugin.monitoring.drift.sketches.columns import Array
from mlflow_deploy_plugin.monitoring.drift.sketches.sketch import Profile
from mlflow_deploy_plugin.monitoring.drift.threshold.distribution import FLOORS, NullDistribution, NullKind
from mlflow_deploy_plugin.monitoring.drift.threshold.figures import (
    ColumnGroup,
    WindowCounts,
    column_counts,
    column_rng,
    count_windows,
    out_of_reference,
    subsample,
)
from mlflow_deploy_plugin.monitoring.drift.threshold.hold_out import FEWEST_HELD_OUT, HoldOutAlarms, count_alarms
from mlflow_deploy_plugin.monitoring.drift.threshold.null import (
    MAX_WINDOWS,
    WindowNull,
    column_names,
    evenly,
    slowest_column,
)
from mlflow_deploy_plugin.runtime import EVENT_TIME

OVERLAP_WORTH = 1.5
_TOO_FEW_HALVES = Refused(f"half of the reference has fewer than {FEWEST_HELD_OUT} windows")
_MAX_FIGURES = 20_000_000
"""Held-out windows are limited to so many figures beside each other; an even choice of more windows is judged."""
_HELD_A_WINDOW = 4
"""So many overlapping windows are held out for each that fits side by side: more of them say the same again."""


@dataclass(frozen=True, eq=False)
class Contiguous(WindowNull):
    """The reference's own windows of the judged window's length and phase, each compared with the rest.

    They count as they are. If they depend on each other, so that they are worth fewer (`slowest_column`), the verdict
    says so.
    """

    kind: ClassVar[NullKind] = "contiguous"
    description: ClassVar[str] = "windows of the reference"

    @classmethod
    def cut(cls, window_rows: Array, compared: int, most: int = MAX_WINDOWS) -> "Contiguous":
        """Take the windows with at least half of the compared rows. One with fewer (cut off at an end, a gap in the
        log) is no window like the others.

        Args:
            window_rows: [B] rows of each window of the reference.
            most: of more windows an even choice is taken.
        """
        kept = evenly(np.flatnonzero(2 * window_rows >= compared), most)
        windows = np.zeros((len(kept), len(window_rows)))
        windows[np.arange(len(kept)), kept] = 1
        return cls(windows, 1 - windows, float(len(kept)))

    def compared_windows(
        self, group: ColumnGroup, name: str, profiles: Sequence[Profile], rng: np.random.Generator
    ) -> tuple[WindowCounts, Array]:
        bins = group.reference.bins[name]
        windows = count_windows([profiles[place] for place in self.starts], name, bins)
        return windows, column_counts([group.reference.pieces.total], name, bins) - windows.counts

    def hold_out(
        self, groups: Sequence[ColumnGroup], rate: float, persistence: float, seed: int
    ) -> HoldOutAlarms | Refused:
        """Judge the windows of the later half, in their order, by those of the earlier half."""
        count = len(self.windows)
        middle = count // 2
        if middle < FEWEST_HELD_OUT:
            return _TOO_FEW_HALVES
        names = column_names(groups)
        later = _affordable(np.arange(middle, count), middle, len(names))
        supported = max(rate, 1 / (1 + middle))
        until_us = groups[0].reference.pieces.window_starts_us[self.starts[middle]]
        known = [replace(group, reference=_known_until(group.reference, until_us)) for group in groups]
        halves = [
            self._half_figures(group, name, known[0], middle, later, seed) for group in known for name in group.columns
        ]
        judging, figures = (np.stack([half[side] for half in halves], axis=1) for side in (0, 1))
        distribution = NullDistribution(self.kind, judging, np.ones(judging.shape[1:]), FLOORS, float(middle))
        tests = [distribution.test(window, supported) for window in figures]
        how = f"forward in time, on its later {count - middle} windows, judged by its earlier {middle} alone"
        return count_alarms(tests, names, supported, float(middle), len(later), persistence, how)

    def _half_figures(
        self, group: ColumnGroup, name: str, whole: ColumnGroup, middle: int, later: Array, seed: int
    ) -> tuple[Array, Array]:
        """Return [E, FIGURES] of the earlier windows, each beside the others, and [L, FIGURES] of the later ones."""
        bins = group.reference.bins[name]
        profiles = self.aligned(whole.reference.pieces, group.reference.pieces)
        counts = self.windows @ column_counts(profiles, name, bins)
        total = counts[:middle].sum(axis=0)
        rng = column_rng(group.segment + name, seed)
        sampled = count_windows([profiles[place] for place in self.starts], name, bins).subsampled(group.compared, rng)

        def figures(places: Array, complements: Array) -> Array:
            chosen = WindowCounts(sampled.counts[places], sampled.unseen[places], sampled.outside[places])
            return chosen.figures(bins, complements)

        return _both_halves(figures, counts, total, np.arange(middle), later, group.compared)


@dataclass(frozen=True, eq=False)
class Overlapping(WindowNull):
    """Windows that begin at every step, each compared with the rest of the reference.

    They are worth 1.5 times as many as fit side by side: the variance of an estimate from overlapping blocks is 2/3 of
    that from disjoint ones (Künsch, The Jackknife and the Bootstrap for General Stationary Observations, Annals of
    Statistics 17, 1989; Lahiri, Resampling Methods for Dependent Data, 2003, section 5). Each is measured by those
    alone that it does not overlap with: measured by all others, of which its neighbours are much like it, 21 % of calm
    weeks were called drifted at a nominal 5 %.
    """

    kind: ClassVar[NullKind] = "overlapping"
    description: ClassVar[str] = "overlapping windows of the reference"
    counts_fewer: ClassVar[bool] = True

    @classmethod
    def cut(cls, step_rows: Array, length: int, compared: int) -> "Overlapping":
        """Take the windows of `length` steps with at least half of the compared rows.

        Args:
            step_rows: [S] rows of each step of the reference.
        """
        count = len(step_rows)
        starts = np.arange(max(count - length + 1, 0))
        inside = np.concatenate([[0], np.cumsum(step_rows)])
        starts = starts[2 * (inside[starts + length] - inside[starts]) >= compared]
        effective_n = OVERLAP_WORTH * (len(starts) + length - 1) / length if len(starts) else 0.0
        starts = evenly(starts, MAX_WINDOWS)
        places = np.arange(count)
        windows = ((places >= starts[:, None]) & (places < starts[:, None] + length)).astype(np.float64)
        return cls(windows, 1 - windows, effective_n)

    def aligned(self, whole: ReferencePieces, part: ReferencePieces) -> tuple[Profile, ...]:
        return part.steps_at(whole.step_starts_us)

    def compare(self, groups: Sequence[ColumnGroup], seed: int) -> NullDistribution:
        length = groups[0].reference.pieces.window_steps
        return replace(super().compare(groups, seed), starts=self.starts, length=length)

    def compared_windows(
        self, group: ColumnGroup, name: str, profiles: Sequence[Profile], rng: np.random.Generator
    ) -> tuple[WindowCounts, Array]:
        bins = group.reference.bins[name]
        counts = self.windows @ column_counts(profiles, name, bins)
        complements = column_counts([group.reference.pieces.total], name, bins) - counts
        return out_of_reference(bins, counts, complements), complements

    def hold_out(
        self, groups: Sequence[ColumnGroup], rate: float, persistence: float, seed: int
    ) -> HoldOutAlarms | Refused:
        """Judge windows that begin in the later half by those that end in the earlier one."""
        starts, length = self.starts, groups[0].reference.pieces.window_steps
        first, end = int(starts[0]), int(starts[-1]) + length
        middle = (first + end) // 2
        earlier, later = np.flatnonzero(starts + length <= middle), np.flatnonzero(starts >= middle)
        before, after = (middle - first) // length, (end - middle) // length
        if min(before, after) < FEWEST_HELD_OUT:
            return _TOO_FEW_HALVES
        names = column_names(groups)
        later = later[np.linspace(0, len(later) - 1, min(len(later), _HELD_A_WINDOW * after)).astype(np.int64)]
        later = _affordable(later, len(earlier), len(names))
        judges = OVERLAP_WORTH * (middle - first) / length
        supported = max(rate, 1 / (1 + judges))
        halves = [
            self._half_figures(group, name, groups[0], earlier, later, seed)
            for group in groups
            for name in group.columns
        ]
        judging, figures = (np.stack([half[side] for half in halves], axis=1) for side in (0, 1))
        # the first starts are those of the earlier windows
        scales, own_starts = np.ones(judging.shape[1:]), starts[: len(judging)]
        distribution = NullDistribution(self.kind, judging, scales, FLOORS, judges, starts=own_starts, length=length)
        tests = [distribution.test(window, supported) for window in figures]
        how = (
            f"forward in time, on {len(later)} overlapping windows of its later half, judged by its earlier half alone"
        )
        return count_alarms(tests, names, supported, judges, min(after, len(later)), persistence, how)

    def _half_figures(
        self, group: ColumnGroup, name: str, whole: ColumnGroup, earlier: Array, later: Array, seed: int
    ) -> tuple[Array, Array]:
        """Return [E, FIGURES] of the earlier windows, each beside the others, and [L, FIGURES] of the later ones."""
        bins = group.reference.bins[name]
        profiles = self.aligned(whole.reference.pieces, group.reference.pieces)
        counts = self.windows @ column_counts(profiles, name, bins)
        last = int(np.flatnonzero(self.windows[earlier].any(axis=0))[-1])
        total = column_counts(profiles[: last + 1], name, bins).sum(axis=0)
        nothing = np.zeros(len(counts))
        rng = column_rng(group.segment + name, seed)
        sampled = WindowCounts(counts, nothing, nothing).subsampled(group.compared, rng).counts

        def figures(places: Array, complements: Array) -> Array:
            return out_of_reference(bins, sampled[places], complements).figures(bins, complements)

        return _both_halves(figures, counts, total, earlier, later, group.compared)


@dataclass(frozen=True, eq=False)
class Lagged(WindowNull):
    """The pairs of the reference's own windows that lie so long apart, for `rolling:`, which compares a window with the
    same one so long ago. They count as they are."""

    kind: ClassVar[NullKind] = "lagged"
    description: ClassVar[str] = "windows of the reference, each with the one so long before it"
    compares_with_whole: ClassVar[bool] = False

    @classmethod
    def cut(cls, window_rows: Array, later: Array, earlier: Array, compared: int, most: int = MAX_WINDOWS) -> "Lagged":
        """Take the pairs of windows [P] and [P] of which both have the compared rows.

        Smaller ones differ more by chance: nights would lift the threshold of a noon.
        """
        kept = evenly(np.flatnonzero(np.minimum(window_rows[later], window_rows[earlier]) >= compared), most)
        windows = np.eye(len(window_rows))
        return cls(windows[later[kept]], windows[earlier[kept]], float(len(kept)))

    def compared_windows(
        self, group: ColumnGroup, name: str, profiles: Sequence[Profile], rng: np.random.Generator
    ) -> tuple[WindowCounts, Array]:
        bins = group.reference.bins[name]
        windows = count_windows([profiles[place] for place in self.starts], name, bins)
        return windows, subsample(self.complements @ column_counts(profiles, name, bins), group.compared, rng)

    def persistence(self, group: ColumnGroup) -> tuple[float, str]:
        windows, bins = group.reference.pieces.windows, group.reference.bins
        counts = {name: column_counts(windows, name, bins[name]) for name in group.columns}
        now, before = ({name: side @ one for name, one in counts.items()} for side in (self.windows, self.complements))
        return slowest_column(now, bins, before)

    def hold_out(
        self, groups: Sequence[ColumnGroup], rate: float, persistence: float, seed: int
    ) -> HoldOutAlarms | Refused:
        """Judge each pair of the later half by all pairs before it, as `rolling:` does."""
        count = len(self.windows)
        middle = count // 2
        if middle < FEWEST_HELD_OUT:
            return _TOO_FEW_HALVES
        names = column_names(groups)
        later = _affordable(np.arange(middle, count), middle, len(names))
        supported = max(rate, 1 / (1 + middle))
        pairs = self.compare(groups, seed)
        tests = [
            replace(pairs, figures=pairs.figures[:place], effective_n=float(place)).test(
                pairs.figures[place], supported
            )
            for place in later
        ]
        windows = min(count - middle, len(later))
        how = f"forward in time, on its later {windows} pairs, each judged by those before it"
        return count_alarms(tests, names, supported, math.inf, windows, persistence, how)


def _both_halves(
    figures: Callable[[Array, Array], Array], counts: Array, total: Array, earlier: Array, later: Array, compared: int
) -> tuple[Array, Array]:
    """Return [E, FIGURES] of the earlier windows, each beside the other earlier ones, and [L, FIGURES] of the later
    windows beside all of these; NaN for a window with fewer than half of the compared rows.

    Args:
        figures: of the windows at some places beside their complements.
        counts: [M, K + 1] of all windows; total: [K + 1] of the earlier half.
    """
    sides = []
    for places, complements in (
        (earlier, np.maximum(total - counts[earlier], 0)),
        (later, np.repeat(total[None], len(later), axis=0)),
    ):
        found = figures(places, complements)
        found[2 * counts[places].sum(axis=1) < compared] = np.nan
        sides.append(found)
    return sides[0], sides[1]


def _affordable(later: Array, earlier: int, columns: int) -> Array:
    return evenly(later, max(_MAX_FIGURES // (earlier * columns), FEWEST_HELD_OUT))


def _known_until(reference: DriftReference, until_us: int) -> DriftReference:
    """Return the reference with windows in which unseen and out of range is what the windows before a time lack."""
    pieces, sample = reference.pieces, reference.sample
    if not len(sample) or EVENT_TIME not in sample.column_names or not pieces.windows:
        return reference
    length_us = pieces.step_seconds * pieces.window_steps * 1_000_000
    windows = correct_for_rest(reference.bins, pieces.windows, pieces.window_starts_us, length_us, sample, until_us)
    return replace(reference, pieces=replace(pieces, windows=windows))
