"""The rate of false alarms that comes: the reference's later windows, judged by its earlier ones alone.

A window that is held out and judged by all others, earlier and later ones, says nothing: of M such windows floor(rate
(M + 1)) are called drifted by construction, whatever the windows are. A monitor judges what comes after its reference.
So the later half of the reference is judged by the earlier half, as if that were the whole reference: what walks, what
is replaced little by little and what persists brings the alarms there that it brings later.

contiguous
    The windows in their order.
lagged
    Each pair of the later half by all pairs before it, as `rolling:` judges; what is unseen is that beside all others.
overlapping
    Windows that begin in the later half, by those that end in the earlier one.
bootstrap
    Windows that lie side by side, each by what is drawn anew from the steps before it, of at least two windows.
rows
    All windows of the reference, by samples of its rows: where rows are independent, it is a sample of them, too.

A walk is self-similar, so that the later half beside the earlier one is what a time as long as the reference is beside
the reference. The earlier half has half as many windows, and where these do not support the asked rate, it is measured
at the next one. It is not measured on fewer than `_FEWEST` windows.

Chance explains the alarms where their number is likely for windows of which none is odder than others: then it has a
beta-binomial distribution, since the earlier windows have their luck, too (of n windows the k-th largest is beyond a
share of all that has a beta distribution with k and n + 1 - k). Windows that depend on each other count as the fewer
that they are worth, yet as no fewer than the rate needs: where they are, the verdict says that by itself.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from scipy.stats import betabinom, binom

from mlflow_deploy_plugin.monitoring.drift.references import DriftReference
from mlflow_deploy_plugin.monitoring.drift.references.out_of_reference import correct_for_rest
from mlflow_deploy_plugin.monitoring.drift.references.windows import ReferencePieces
from mlflow_deploy_plugin.monitoring.drift.sketches.columns import Array
from mlflow_deploy_plugin.monitoring.drift.sketches.sketch import Profile
from mlflow_deploy_plugin.monitoring.drift.threshold.distribution import (
    FLOORS,
    ColumnGroup,
    NullDistribution,
    TestResult,
    aligned,
    build_distribution,
    column_counts,
    column_figures,
    count_windows,
)
from mlflow_deploy_plugin.monitoring.drift.threshold.figures import (
    DISTANCE,
    WindowCounts,
    column_rng,
    out_of_reference,
    subsample,
)
from mlflow_deploy_plugin.monitoring.drift.threshold.row_samples import build_row_distribution
from mlflow_deploy_plugin.monitoring.drift.threshold.sample_size import MIN_COMPARED_ROWS
from mlflow_deploy_plugin.monitoring.drift.threshold.windows import (
    FEWEST_WINDOWS,
    OVERLAP_WORTH,
    HoldOutAlarms,
    NullWindows,
    bootstrap,
    needed_windows,
)
from mlflow_deploy_plugin.refused import Refused
from mlflow_deploy_plugin.runtime import EVENT_TIME

_FEWEST = 5
_MAX_FIGURES = 20_000_000
"""So many figures may stand beside each other for it; of the windows that would take more, an even choice is judged."""
_MAX_CELLS = 40_000_000
_HELD_A_WINDOW = 4
"""Of windows that overlap, so many for each that fits side by side: more of them say the same again."""
_NAMED = 3


class _Halves(NamedTuple):
    """The windows of a null by when they are.

    Attributes:
        earlier, later: places in the null.
        before, after: how many windows fit side by side in each half.
        worth: how many independent ones the earlier half stands for.
        until_us: when the later half begins.
    """

    earlier: Array
    later: Array
    before: int
    after: int
    effective_n: float
    until_us: int


def hold_out_windows(
    groups: Sequence[ColumnGroup], null: NullWindows, rate: float, persistence: float, seed: int
) -> HoldOutAlarms | Refused:
    """Return how many of the reference's later windows are called drifted; a text says why that cannot be told.

    Args:
        persistence: so many windows are worth one independent one.
    """
    if null.kind == "bootstrap":
        return _of_bootstrap(groups, null, rate, seed)
    halves = _halves(groups[0].reference.pieces, null)
    if min(halves.before, halves.after) < _FEWEST:
        return Refused(f"half of the reference has fewer than {_FEWEST} windows")
    names = _names(groups)
    most = max(_MAX_FIGURES // (len(halves.earlier) * len(names)), _FEWEST)
    later = halves.later[np.linspace(0, len(halves.later) - 1, min(len(halves.later), most)).astype(np.int64)]
    windows = min(halves.after, len(later))
    supported = max(rate, 1 / (1 + halves.effective_n))
    if null.kind == "lagged":
        figures = _of_pairs(groups, null, seed)
        standings = [_pool(null, figures[:place], groups, place).test(figures[place], supported) for place in later]
        how = f"forward in time, on its later {windows} pairs, each judged by those before it"
        return _measured(standings, names, supported, math.inf, windows, persistence, how)
    known = [replace(group, reference=_known_until(group.reference, halves.until_us)) for group in groups]
    columns = [
        _of_halves(group, name, known[0], null, halves.earlier, later, seed)
        for group in known
        for name in group.columns
    ]
    earlier, figures = (np.stack([column[side] for column in columns], axis=1) for side in (0, 1))
    pool = _pool(null, earlier, groups, halves.effective_n)
    standings = [pool.test(window, supported) for window in figures]
    how = f"forward in time, on its later {halves.after} windows, judged by its earlier {halves.before} alone"
    if null.kind == "overlapping":
        how = (
            f"forward in time, on {len(later)} overlapping windows of its later half, judged by its earlier half alone"
        )
    return _measured(standings, names, supported, halves.effective_n, windows, persistence, how)


def hold_out_rows(groups: Sequence[ColumnGroup], rate: float, seed: int) -> HoldOutAlarms | Refused:
    """Return how many of the reference's own windows are called drifted by samples of its rows; a text says why that
    cannot be told."""
    pieces = groups[0].reference.pieces
    now, before = pieces.pairs() if pieces.lag_windows else (np.arange(len(pieces.windows)), None)
    if len(now) < _FEWEST:
        return Refused("the reference has too few windows with event times, by which it could be told")
    sized, columns = [], []
    for group in groups:
        blocks = aligned(groups[0].reference, group.reference, "contiguous")
        rows = np.array([block.rows for block in blocks])
        rows = rows[now] if before is None else np.minimum(rows[now], rows[before])
        size = min(group.compared, int(np.median(rows)))
        if size < MIN_COMPARED_ROWS:
            if not group.segment:
                return Refused(f"the reference's own windows have fewer than {MIN_COMPARED_ROWS} rows")
            continue
        sized.append(replace(group, compared=size))
        for name in group.columns:
            figures = _of_blocks(sized[-1], name, blocks, now, before, seed)
            figures[rows < size] = np.nan
            columns.append(figures)
    pool = build_row_distribution(sized, rate, seed)
    windows = np.stack(columns, axis=1)
    windows = windows[np.isfinite(windows[..., DISTANCE]).any(axis=1)]
    standings = [pool.test(window, rate) for window in windows]
    how = f"on its own {len(windows)} windows, judged by samples of {sized[0].compared:,} independent rows"
    return _measured(standings, _names(sized), rate, float(len(pool.figures)), len(windows), 1.0, how)


def _pool(null: NullWindows, figures: Array, groups: Sequence[ColumnGroup], worth: float) -> NullDistribution:
    """Return the pool of the figures [E, F, FIGURES] of the first windows of the null."""
    starts = null.windows[: len(figures)].argmax(axis=1) if null.kind == "overlapping" else np.empty(0, np.int64)
    scales, length = np.ones(figures.shape[1:]), groups[0].reference.pieces.window_steps
    return NullDistribution(null.kind, figures, scales, FLOORS, worth, starts=starts, length=length)


def _measured(
    standings: Sequence[TestResult],
    names: Sequence[str],
    rate: float,
    judges: float,
    windows: int,
    persistence: float,
    how: str,
) -> HoldOutAlarms:
    """Return the rate that the standings of windows show.

    Args:
        names: of the columns, as in the pool.
        rate: that they were judged at; judges: by so many independent windows, whose luck they share; infinite: each by
            others.
        windows: so many of the judged ones fit side by side.
    """
    alarms = [standing for standing in standings if standing.is_drifted]
    named = Counter(
        name
        for alarm in alarms
        for name, score in zip(names, alarm.scores.max(axis=1), strict=True)
        if score > alarm.threshold
    )
    apart = min(persistence, max(min(judges, windows) / needed_windows(rate), 1.0))
    worth = max(round(windows / apart), 1)
    hits = math.ceil(len(alarms) / len(standings) * worth - 1e-9)
    if math.isinf(judges):
        chance = binom(worth, rate)
    else:
        last = max(math.floor(rate * (judges + 1) + 1e-9), 1)
        chance = betabinom(worth, last / apart, (judges + 1 - last) / apart)
    return HoldOutAlarms(
        alarms=len(alarms),
        windows=len(standings),
        effective_n=float(worth),
        rate=rate,
        p_value=float(chance.sf(hits - 1)),
        columns=tuple(f"{name} ({count})" for name, count in named.most_common(_NAMED)),
        how=how,
    )


def _names(groups: Sequence[ColumnGroup]) -> list[str]:
    return [f"{name} of {group.segment}" if group.segment else name for group in groups for name in group.columns]


def _halves(pieces: ReferencePieces, null: NullWindows) -> _Halves:
    starts, count = null.windows.argmax(axis=1), len(null.windows)
    if null.kind == "overlapping":
        length = pieces.window_steps
        middle = int(starts[0] + starts[-1] + length) // 2
        earlier, later = np.flatnonzero(starts + length <= middle), np.flatnonzero(starts >= middle)
        before, after = (middle - int(starts[0])) // length, (int(starts[-1]) + length - middle) // length
        later = later[np.linspace(0, len(later) - 1, min(len(later), _HELD_A_WINDOW * after)).astype(np.int64)]
        return _Halves(earlier, later, before, after, OVERLAP_WORTH * (middle - int(starts[0])) / length, 0)
    middle = count // 2
    until_us = pieces.window_starts_us[starts[middle]] if count else 0
    return _Halves(np.arange(middle), np.arange(middle, count), middle, count - middle, float(middle), until_us)


def _known_until(reference: DriftReference, until_us: int) -> DriftReference:
    """The reference whose windows have `unseen` and out of range what those before a time lack."""
    pieces, sample = reference.pieces, reference.sample
    if not len(sample) or EVENT_TIME not in sample.column_names or not pieces.windows:
        return reference
    length_us = pieces.step_seconds * pieces.window_steps * 1_000_000
    blocks = correct_for_rest(reference.bins, pieces.windows, pieces.window_starts_us, length_us, sample, until_us)
    return replace(reference, pieces=replace(pieces, windows=blocks))


def _of_pairs(groups: Sequence[ColumnGroup], null: NullWindows, seed: int) -> Array:
    """Return [M, F, FIGURES] of all pairs: each stands beside another window, whatever is judged by it."""
    columns = []
    for group in groups:
        profiles = aligned(groups[0].reference, group.reference, null.kind)
        for name in group.columns:
            columns.append(column_figures(group, name, profiles, null, column_rng(group.segment + name, seed))[0])
    return np.stack(columns, axis=1)


def _of_halves(
    group: ColumnGroup, name: str, whole: ColumnGroup, null: NullWindows, earlier: Array, later: Array, seed: int
) -> tuple[Array, Array]:
    """Return [E, FIGURES] of the earlier windows, each beside the other ones, and [L, FIGURES] of the later ones."""
    bins = group.reference.bins[name]
    profiles = aligned(whole.reference, group.reference, null.kind)
    rng = column_rng(group.segment + name, seed)
    counts = null.windows @ column_counts(profiles, name, bins)
    if null.kind == "overlapping":
        last = int(np.flatnonzero(null.windows[earlier].any(axis=0))[-1])
        judges = column_counts(profiles[: last + 1], name, bins).sum(axis=0)
        windows = WindowCounts(counts, np.zeros(len(counts)), np.zeros(len(counts))).subsampled(group.compared, rng)
    else:
        judges = counts[earlier].sum(axis=0)
        kept = [profiles[position] for position in null.windows.argmax(axis=1)]
        windows = count_windows(kept, name, bins).subsampled(group.compared, rng)
    is_small = 2 * counts.sum(axis=1) < group.compared
    sides = []
    for places, rests in (
        (earlier, np.maximum(judges - counts[earlier], 0)),
        (later, np.repeat(judges[None], len(later), axis=0)),
    ):
        chosen = WindowCounts(windows.counts[places], windows.unseen[places], windows.outside[places])
        if null.kind == "overlapping":
            chosen = out_of_reference(bins, chosen.counts, rests)
        figures = chosen.figures(bins, rests)
        figures[is_small[places]] = np.nan
        sides.append(figures)
    return sides[0], sides[1]


def _of_blocks(
    group: ColumnGroup, name: str, blocks: Sequence[Profile], now: Array, before: Array | None, seed: int
) -> Array:
    """Return [M, FIGURES] of the reference's own windows, each beside what a window is compared with."""
    bins = group.reference.bins[name]
    rng = column_rng(group.segment + name, seed)
    windows = count_windows([blocks[place] for place in now], name, bins)
    if before is None:
        rests = np.maximum(column_counts([group.reference.pieces.total], name, bins) - windows.counts, 0)
    else:
        rests = subsample(column_counts([blocks[place] for place in before], name, bins), group.compared, rng)
    return windows.subsampled(group.compared, rng).figures(bins, rests)


def _of_bootstrap(groups: Sequence[ColumnGroup], null: NullWindows, rate: float, seed: int) -> HoldOutAlarms | Refused:
    length, count = groups[0].reference.pieces.window_steps, null.last - null.first
    starts = [null.last - (number + 1) * length for number in range(count // length - FEWEST_WINDOWS)][::-1]
    if len(starts) < _FEWEST:
        return Refused(f"fewer than {_FEWEST} windows of the reference have {FEWEST_WINDOWS} before them")
    cells = sum(group.reference.bins[name].size for group in groups for name in group.columns)
    assert null.stretches is not None
    most = _MAX_CELLS // (len(null.windows) * (null.stretches.shape[1] + 2) * cells)
    if most < _FEWEST:
        return Refused("with so many columns it would take too long")
    starts = starts[-most:]
    judges = (starts[0] - null.first) / null.block_length
    supported = max(rate, 1 / (1 + judges))
    standings = [_stand_after(groups, null, start, supported, seed) for start in starts]
    how = f"forward in time, on its last {len(starts)} windows, each judged by what is drawn from those before it"
    return _measured(standings, _names(groups), supported, judges, len(starts), 1.0, how)


def _stand_after(groups: Sequence[ColumnGroup], null: NullWindows, start: int, rate: float, seed: int) -> TestResult:
    """Return where the window that begins at the step `start` stands beside the steps before it."""
    length = groups[0].reference.pieces.window_steps
    rests, figures = [], []
    for group in groups:
        steps = aligned(groups[0].reference, group.reference, null.kind)
        held, rest = steps[start : start + length], steps[null.first : start]
        pieces = replace(group.reference.pieces, steps=rest, steps_start_us=0)
        rests.append(replace(group, reference=replace(group.reference, pieces=pieces)))
        figures += [_of_column(group, name, held, rest, seed) for name in group.columns]
    rows = np.array([step.rows for step in rests[0].reference.pieces.steps])
    pool = build_distribution(rests, bootstrap(rows, length, null.block_length, seed), seed)
    return pool.test(np.stack(figures), rate)


def _of_column(group: ColumnGroup, name: str, held: Sequence[Profile], rest: Sequence[Profile], seed: int) -> Array:
    """[FIGURES]"""
    bins = group.reference.bins[name]
    window, others = (column_counts(side, name, bins).sum(axis=0, keepdims=True) for side in (held, rest))
    thinned = out_of_reference(bins, window, others).subsampled(group.compared, column_rng(group.segment + name, seed))
    figures: Array = thinned.figures(bins, others)[0]
    return figures
