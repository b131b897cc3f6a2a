"""The rate of false alarms that a null really has: the reference's own windows, each held out and judged by the rest.

contiguous
    One by one, or in ten parts where that would take long.
lagged
    In ten stretches of time, with all pairs that share a window with one of them.
overlapping
    With all windows that overlap it: they are much like it, and would not be there if it were new.
bootstrap
    The windows that lie side by side in the reference, for each of which windows are drawn anew from the other steps.
    They are few; that the bootstrap is right on many references says `benchmarks/drift.py`.

The rest is a little shorter than the reference, and may support a rate a little larger than the asked one alone; then
it is measured at that.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mlflow_deploy_plugin.monitoring.bins import Bins
from mlflow_deploy_plugin.monitoring.features import Array
from mlflow_deploy_plugin.monitoring.null.comparing import Windows, beyond, seeded
from mlflow_deploy_plugin.monitoring.null.pool import (
    FLOORS,
    Group,
    aligned,
    build_pool,
    column_counts,
    column_figures,
    windows_of,
)
from mlflow_deploy_plugin.monitoring.null.scoring import apart_of, mask_unknown, scores, threshold
from mlflow_deploy_plugin.monitoring.null.windows import FEWEST_WINDOWS, OVERLAP_WORTH, Measured, Null, bootstrap
from mlflow_deploy_plugin.monitoring.sketch import Profile

_PARTS = 10
_MAX_CELLS = 40_000_000
"""So many counts may be compared for it."""
_HELD_A_WINDOW = 4
"""Of windows that overlap, so many for each that fits side by side: more of them say the same again."""
_TOO_LONG = "with so many columns it would take too long"
_TOO_FEW = "too few windows of the reference could be judged by others that they do not overlap with"


@dataclass(frozen=True, eq=False)
class _Fold:
    """Windows of the null that are held out at once, and those that judge each of them.

    Attributes:
        held, others: [H] and [O] positions in the null.
        rate: that the others support.
    """

    held: Array
    others: Array
    rate: float


def measure(groups: Sequence[Group], null: Null, rate: float, seed: int) -> Measured | str:
    """How many of the reference's windows are called drifted; a text says why that cannot be told."""
    if null.kind == "bootstrap":
        return _of_bootstrap(groups, null, rate, seed)
    cells = sum(group.reference.bins[name].size for group in groups for name in group.columns)
    folds = _folds(null, rate, cells, groups[0].reference.pieces.window_steps, seed)
    if isinstance(folds, str):
        return folds
    columns = [_held_out(group, name, groups[0], null, folds, seed) for group in groups for name in group.columns]
    starts = null.windows.argmax(axis=1)
    alarms = 0
    for fold in folds:
        parts = [next(column) for column in columns]
        others, held = (np.stack([part[side] for part in parts], axis=1) for side in (0, 1))
        apart = None
        if null.kind == "overlapping":
            apart = apart_of(starts[fold.others], groups[0].reference.pieces.window_steps)
        alarms += sum(_is_alarm(others, window, fold.rate, apart) for window in held)
    with_others = " with all that overlap it" if null.kind == "overlapping" else " and judged by the rest"
    how = f"on them, each held out{with_others}"
    if null.kind == "lagged":
        how = "on them, held out in stretches of time"
    return Measured(alarms, sum(len(fold.held) for fold in folds), max(fold.rate for fold in folds), how)


def _is_alarm(others: Array, window: Array, rate: float, apart: Array | None) -> bool:
    """As `Pool.stand` says it."""
    known = mask_unknown(others, window)
    figures = np.where(known, np.concatenate([others, window[None]]), np.nan)
    statistics = scores(figures, FLOORS, apart).max(axis=(1, 2))
    limit = statistics[:-1].max() if apart is not None else threshold(statistics[:-1], rate)
    return bool(statistics[-1] > limit)


def _folds(null: Null, rate: float, cells: int, length: int, seed: int) -> list[_Fold] | str:
    count = len(null.windows)
    if null.kind == "overlapping":
        starts = null.windows.argmax(axis=1)
        affordable = _MAX_CELLS // (count * cells)
        most = min(count, _HELD_A_WINDOW * (starts[-1] // length + 1), affordable)
        chosen = np.linspace(0, count - 1, most).astype(np.int64)
        left = max(rate, 1 / (1 + null.worth - OVERLAP_WORTH))
        folds = [_Fold(np.array([one]), np.flatnonzero(abs(starts - starts[one]) >= length), left) for one in chosen]
        folds = [fold for fold in folds if len(fold.others)]
        if len(folds) < _PARTS:
            return _TOO_LONG if affordable < _PARTS else _TOO_FEW
        return folds
    if null.kind == "lagged":
        return _stretches(null, rate)
    parts = count if count * count * cells <= _MAX_CELLS else _PARTS
    kept = count - math.ceil(count / parts)
    if not kept:
        return "the reference has no other window"
    if parts * count * cells > 2 * _MAX_CELLS:
        return _TOO_LONG
    part_of = np.random.default_rng(seed).permutation(count) % parts
    left = max(rate, 1 / (1 + kept))
    return [_Fold(np.flatnonzero(part_of == one), np.flatnonzero(part_of != one), left) for one in range(parts)]


def _stretches(null: Null, rate: float) -> list[_Fold] | str:
    """One stretch of time after the other; pairs that share a window with the held ones do not judge them."""
    is_in = (null.windows + null.rests) > 0
    folds = []
    for held in np.array_split(np.arange(len(is_in)), min(_PARTS, len(is_in))):
        others = np.flatnonzero(~is_in[:, is_in[held].any(axis=0)].any(axis=1))
        if len(others):
            folds.append(_Fold(held, others, max(rate, 1 / (1 + len(others)))))
    return folds or "every pair of the reference shares a window with another"


def _held_out(
    group: Group, name: str, whole: Group, null: Null, folds: Sequence[_Fold], seed: int
) -> Iterator[tuple[Array, Array]]:
    """For one fold after the other the figures [O, FIGURES] and [H, FIGURES] of its others and of those held out."""
    bins = group.reference.bins[name]
    profiles = aligned(whole.reference, group.reference, null.kind)
    if null.kind == "lagged":
        figures = column_figures(group, name, profiles, null, seeded(group.segment + name, seed))[0]
        yield from ((figures[fold.others], figures[fold.held]) for fold in folds)
        return
    counts = null.windows @ column_counts(profiles, name, bins)
    rng = seeded(group.segment + name, seed)
    if null.kind == "overlapping":
        windows = Windows(counts, np.zeros(len(counts)), np.zeros(len(counts))).thinned(group.compared, rng)
    else:
        kept = [profiles[position] for position in null.windows.argmax(axis=1)]
        windows = windows_of(kept, name, bins).thinned(group.compared, rng)
    total = column_counts([group.reference.pieces.total], name, bins)
    is_small = 2 * counts.sum(axis=1) < group.compared
    for fold in folds:
        rest = np.maximum(total - counts[fold.held].sum(axis=0), 0)
        yield tuple(  # type: ignore[misc]  # a pair, whichever side
            _figures(windows, places, bins, rests, is_small, null.kind == "overlapping")
            for places, rests in (
                (fold.others, np.maximum(rest - counts[fold.others], 0)),
                (fold.held, np.repeat(rest, len(fold.held), axis=0)),
            )
        )


def _figures(windows: Windows, places: Array, bins: Bins, rests: Array, is_small: Array, is_told: bool) -> Array:
    """[P, FIGURES] of the windows at `places`.

    Args:
        is_told: the bins tell what is unseen or out of range.
    """
    counts = windows.counts[places]
    chosen = (
        beyond(bins, counts, rests) if is_told else Windows(counts, windows.unseen[places], windows.outside[places])
    )
    figures = chosen.figures(bins, rests)
    figures[is_small[places]] = np.nan
    return figures


def _of_bootstrap(groups: Sequence[Group], null: Null, rate: float, seed: int) -> Measured | str:
    length, count = groups[0].reference.pieces.window_steps, null.last - null.first
    if count - length < FEWEST_WINDOWS * length:
        return "without one of its windows the reference is shorter than two"
    cells = sum(group.reference.bins[name].size for group in groups for name in group.columns)
    assert null.stretches is not None
    most = _MAX_CELLS // (len(null.windows) * (null.stretches.shape[1] + 2) * cells)
    if not most:
        return _TOO_LONG
    starts = [null.last - (number + 1) * length for number in range(count // length)][:most]
    left = max(rate, null.block_length / (null.block_length + count - length))
    alarms = sum(_is_called(groups, null, start, left, seed) for start in starts)
    how = f"on {len(starts)} windows of the reference, each held out and judged by what is drawn from the rest"
    return Measured(alarms, len(starts), left, how)


def _is_called(groups: Sequence[Group], null: Null, start: int, rate: float, seed: int) -> bool:
    """Whether the window that begins at the step `start` is called drifted by the other steps."""
    length = groups[0].reference.pieces.window_steps
    rests, figures = [], []
    for group in groups:
        steps = aligned(groups[0].reference, group.reference, null.kind)
        held, rest = steps[start : start + length], (*steps[null.first : start], *steps[start + length : null.last])
        pieces = replace(group.reference.pieces, steps=rest, steps_start_us=0)
        rests.append(replace(group, reference=replace(group.reference, pieces=pieces)))
        figures += [_of_column(group, name, held, rest, seed) for name in group.columns]
    rows = np.array([step.rows for step in rests[0].reference.pieces.steps])
    pool = build_pool(rests, bootstrap(rows, length, null.block_length, seed), seed)
    return pool.stand(np.stack(figures), rate).is_drifted


def _of_column(group: Group, name: str, held: Sequence[Profile], rest: Sequence[Profile], seed: int) -> Array:
    """[FIGURES]"""
    bins = group.reference.bins[name]
    window, others = (column_counts(side, name, bins).sum(axis=0, keepdims=True) for side in (held, rest))
    thinned = beyond(bins, window, others).thinned(group.compared, seeded(group.segment + name, seed))
    figures: Array = thinned.figures(bins, others)[0]
    return figures
