"""Cuts a reference into its own contiguous windows: blocks of the judged window's length and phase, and finer steps."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from mlflow_deploy_plugin.inference_log import HOUR_US
from mlflow_deploy_plugin.monitoring.drift.references.out_of_reference import count_out_of_rest
from mlflow_deploy_plugin.monitoring.drift.sketches.bins import Bins
from mlflow_deploy_plugin.monitoring.drift.sketches.columns import Array
from mlflow_deploy_plugin.monitoring.drift.sketches.sketch import Profile, merge, sketch_groups

MAX_BLOCKS = 500
_FEW_BLOCKS = 100
_STEPS_A_WINDOW = 24
_MAX_STEPS = 10_000
_MAX_CELLS = 16_000_000
"""Counts that all steps together may hold, and all blocks beyond the first hundred: 128 MB."""
_MERGED_AT = 16


@dataclass(frozen=True, eq=False)
class ReferencePieces:
    """A reference in windows of one length, in the phase of the judged one.

    Attributes:
        blocks: the reference's own windows that have rows, in the order of time; of more than `MAX_BLOCKS` (in pairs,
            of twice as many) an even choice. What a block has `unseen`, `below` and `above` is measured against the
            rest of the reference where its rows are at hand: what a block alone has is new to it.
        block_starts_us: [B] when each begins, microseconds since 1970.
        steps: finer contiguous pieces of equal length without a gap from `steps_start_us` on, in the phase of the
            blocks; one without rows has no columns. So many of them as `window_steps` make a window. Empty where the
            reference is longer than can be held so.
        total: all rows of the reference, also those that are in none of the blocks.
        lag_windows: where a window is compared with the one so many windows before it; 0: with all others.
        lagged: the one that the judged window is compared with then; without rows where there is none.
        most_pairs: that are kept then, however old the log is.
    """

    windows: tuple[Profile, ...]
    window_starts_us: tuple[int, ...]
    steps: tuple[Profile, ...]
    steps_start_us: int
    step_seconds: int
    window_steps: int
    total: Profile
    lag_windows: int = 0
    lagged: Profile | None = None
    max_pairs: int = 0

    @property
    def others(self) -> Profile:
        """What the judged window is compared with."""
        return self.total if self.lagged is None else self.lagged

    @property
    def step_starts_us(self) -> range:
        step_us = self.step_seconds * 1_000_000
        return range(self.steps_start_us, self.steps_start_us + len(self.steps) * step_us, step_us)

    def windows_at(self, starts_us: Iterable[int]) -> tuple[Profile, ...]:
        """Return the windows that begin at these times; an empty profile for each that is not there."""
        return _profiles_at(starts_us, self.window_starts_us, self.windows)

    def steps_at(self, starts_us: Iterable[int]) -> tuple[Profile, ...]:
        """Return the steps that begin at these times, as `windows_at`."""
        return _profiles_at(starts_us, self.step_starts_us, self.steps)

    def pairs(self) -> tuple[Array, Array]:
        """[P] and [P] int64: the blocks that have one so long before them, and these."""
        if not self.windows:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        length_us = self.step_seconds * self.window_steps * 1_000_000
        numbers = (np.array(self.window_starts_us) - self.window_starts_us[0]) // length_us
        _, later, earlier = np.intersect1d(numbers - self.lag_windows, numbers, return_indices=True)
        return later, earlier


def _profiles_at(starts_us: Iterable[int], known_us: Iterable[int], profiles: Iterable[Profile]) -> tuple[Profile, ...]:
    by_start = dict(zip(known_us, profiles, strict=True))
    return tuple(by_start.get(start, Profile(0, {})) for start in starts_us)


@dataclass(frozen=True, eq=False)
class DriftReference:
    """A reference, ready to be compared with windows of one length.

    Attributes:
        bins: frozen on the reference, by column.
        bins_key: names the bins (`bins.bins_digest`).
        sample: rows of the reference, bounded, for the report.
        model_id: the logged model, for links in MLflow; empty where it was never logged.
        notes: what the reader has to know of it.
    """

    bins: Mapping[str, Bins]
    bins_key: str
    pieces: ReferencePieces
    sample: pa.Table
    model_id: str = ""
    notes: tuple[str, ...] = ()


class WindowGrid(NamedTuple):
    """Windows of equal length, one after another, each of `window_steps` steps.

    Attributes:
        start_us: of the first; length_us: of each; windows: how many there are.
        max_blocks: how many of them are kept.
        keeps_steps: whether the steps are, too.
        lag_windows: those kept make pairs, so many windows apart, and have the one of the window after the last; 0:
            they need not.
    """

    start_us: int
    length_us: int
    windows: int
    window_steps: int
    max_blocks: int
    keeps_steps: bool
    lag_windows: int = 0

    @property
    def step_us(self) -> int:
        return self.length_us // self.window_steps

    @property
    def steps(self) -> int:
        return self.windows * self.window_steps if self.keeps_steps else 0

    @property
    def max_pairs(self) -> int:
        """So many pairs are kept of more windows than `max_blocks`, or some more: the window after the last has its one
        besides."""
        return self.max_blocks // 2 - 1 if self.lag_windows else 0

    def choose(self, count: int) -> Array:
        """The places of at most `max_blocks` of so many windows, evenly."""
        if self.lag_windows and count > self.max_blocks:
            later = np.linspace(self.lag_windows, count - 1, self.max_pairs).astype(np.int64)
            return np.union1d(np.append(later, count - self.lag_windows), later - self.lag_windows)
        if count <= self.max_blocks:
            return np.arange(count)
        chosen: Array = np.linspace(0, count - 1, self.max_blocks).astype(np.int64)
        return chosen

    def starts_us(self, numbers: Array) -> tuple[int, ...]:
        starts: list[int] = (self.start_us + numbers * self.length_us).tolist()
        return tuple(starts)


def window_grid(
    bins: Mapping[str, Bins], start_us: int, length_us: int, first_us: int, last_us: int, lag_windows: int = 0
) -> WindowGrid:
    """The grid over the times from `first_us` to `last_us`, both included, in the phase of the window at `start_us`."""
    first, last = (first_us - start_us) // length_us, (last_us - start_us) // length_us
    windows = last - first + 1
    cells = max(sum(one.size + 1 for one in bins.values()), 1)
    fitting = min(_MAX_STEPS, _MAX_CELLS // cells)
    most = _steps_of(length_us)
    steps = next((count for count in range(most, 1, -1) if most % count == 0 and windows * count <= fitting), 1)
    blocks = min(max(fitting, _FEW_BLOCKS), 2 * MAX_BLOCKS if lag_windows else MAX_BLOCKS)
    keeps_steps = windows * steps <= fitting and not lag_windows
    return WindowGrid(start_us + first * length_us, length_us, windows, steps, blocks, keeps_steps, lag_windows)


def cut_pieces(
    bins: Mapping[str, Bins], table: pa.Table, times: Array | None, start_us: int, length_us: int
) -> ReferencePieces:
    """The pieces of rows that are at hand.

    Args:
        times: [N] int64, microseconds since 1970; None: they are not known, and there is nothing but the total.
        start_us, length_us: of the window to be judged.
    """
    total = sketch_groups(bins, table, np.zeros(len(table), np.int64), 1)[0]
    if times is None or not len(times):
        steps = _steps_of(length_us)
        return ReferencePieces((), (), (), start_us, length_us // steps // 1_000_000, steps, total)
    over = window_grid(bins, start_us, length_us, int(times.min()), int(times.max()))
    present, groups = np.unique((times - over.start_us) // length_us, return_inverse=True)
    chosen = over.choose(len(present))
    places = np.full(len(present), -1)
    places[chosen] = np.arange(len(chosen))
    inside = places[groups] >= 0
    blocks = sketch_groups(bins, table.filter(pa.array(inside)), places[groups[inside]], len(chosen))
    alone = count_out_of_rest(bins, table, groups, len(present))
    blocks = [
        Profile(block.rows, {name: replace(column, **alone[name][at]) for name, column in block.columns.items()})
        for at, block in zip(chosen.tolist(), blocks, strict=True)
    ]
    return ReferencePieces(
        windows=tuple(blocks),
        window_starts_us=over.starts_us(present[chosen]),
        steps=_steps(bins, table, (times - over.start_us) // over.step_us, over),
        steps_start_us=over.start_us,
        step_seconds=over.step_us // 1_000_000,
        window_steps=over.window_steps,
        total=total,
    )


def assemble_pieces(over: WindowGrid, parts: Iterable[tuple[int, Profile]]) -> ReferencePieces:
    """The pieces of what was sketched already.

    Args:
        parts: profiles in the order of time, each with its beginning (microseconds); each lies in one step.
    """
    steps: dict[int, list[Profile]] = {}
    windows: dict[int, list[Profile]] = {}
    total: dict[int, list[Profile]] = {}
    is_block = set(over.choose(over.windows).tolist())
    for begin_us, profile in parts:
        if not profile.rows:
            continue
        number = (begin_us - over.start_us) // over.step_us
        _add(total, 0, profile)
        if over.keeps_steps:
            _add(steps, number, profile)
        if number // over.window_steps in is_block:
            _add(windows, number // over.window_steps, profile)
    chosen = np.array(sorted(windows), np.int64)
    empty = Profile(0, {})
    return ReferencePieces(
        windows=tuple(merge(windows[number]) for number in chosen.tolist()),
        window_starts_us=over.starts_us(chosen),
        steps=tuple(merge(steps[number]) if number in steps else empty for number in range(over.steps)),
        steps_start_us=over.start_us,
        step_seconds=over.step_us // 1_000_000,
        window_steps=over.window_steps,
        total=merge(total.get(0, [])),
        lag_windows=over.lag_windows,
        lagged=merge(windows.get(over.windows - over.lag_windows, [])) if over.lag_windows else None,
        max_pairs=over.max_pairs,
    )


def _add(held: dict[int, list[Profile]], number: int, profile: Profile) -> None:
    parts = held.setdefault(number, [])
    parts.append(profile)
    if len(parts) >= _MERGED_AT:  # so that what is held does not grow with what comes by
        held[number] = [merge(parts)]


def sketch_pieces(
    bins: Mapping[str, Bins], batches: Iterable[tuple[pa.Table, Array]], over: WindowGrid
) -> ReferencePieces:
    """As `cut`, of rows that come by in batches with their times: [N] int64, microseconds since 1970."""
    parts: list[tuple[int, Profile]] = []
    for table, times in batches:
        numbers = (times - over.start_us) // over.step_us
        present, groups = np.unique(numbers, return_inverse=True)
        profiles = sketch_groups(bins, table, groups, len(present))
        begins = (over.start_us + present * over.step_us).tolist()
        parts += zip(begins, profiles, strict=True)
    return assemble_pieces(over, parts)


def _steps_of(length_us: int) -> int:
    """How many steps make a window: at most 24, each a whole number of seconds and at least an hour; else one."""
    for count in range(_STEPS_A_WINDOW, 1, -1):
        if length_us % (count * 1_000_000) == 0 and length_us // count >= HOUR_US:
            return count
    return 1


def _steps(bins: Mapping[str, Bins], table: pa.Table, numbers: Array, over: WindowGrid) -> tuple[Profile, ...]:
    if not over.keeps_steps:
        return ()
    present, groups = np.unique(numbers, return_inverse=True)
    profiles = [Profile(0, {})] * over.steps
    for number, profile in zip(present.tolist(), sketch_groups(bins, table, groups, len(present)), strict=True):
        profiles[number] = profile
    return tuple(profiles)
