"""The rate of false alarms that a contiguous null really has: each of the reference's own windows, held out and judged
by the others."""

import math
from collections.abc import Iterator, Sequence

import numpy as np

from mlflow_deploy_plugin.monitoring.features import Array
from mlflow_deploy_plugin.monitoring.null.comparing import Windows, seeded
from mlflow_deploy_plugin.monitoring.null.pool import (
    FLOORS,
    Group,
    aligned,
    column_counts,
    scores,
    threshold,
    windows_of,
)
from mlflow_deploy_plugin.monitoring.null.windows import Null

_FOLDS = 10
_MAX_CELLS = 40_000_000
"""So many counts may be compared for it: one by one where that is enough, else ten folds, else not at all."""


def measure(groups: Sequence[Group], null: Null, rate: float, seed: int) -> float | None:
    """The share of the windows that are called drifted, each held out of the reference and judged by the rest: one by
    one, or in ten folds where that would take long. None where the rest is too few windows for the rate, or where even
    ten folds would take long."""
    count = len(null.windows)
    cells = count * sum(group.reference.bins[name].size for group in groups for name in group.columns)
    folds = count if count * cells <= _MAX_CELLS else _FOLDS
    kept = count - math.ceil(count / folds)
    if null.kind != "contiguous" or folds * cells > 2 * _MAX_CELLS or math.floor(rate * (kept + 1) + 1e-9) < 1:
        return None
    fold_of = np.random.default_rng(seed).permutation(count) % folds
    columns = [_held_out(group, name, groups[0], null, fold_of, seed) for group in groups for name in group.columns]
    alarms = 0
    for fold in range(folds):
        parts = [next(column) for column in columns]
        others = np.stack([part[fold_of != fold] for part in parts], axis=1)
        held = np.stack([part[fold_of == fold] for part in parts], axis=1)
        for window in held:
            statistics = scores(np.concatenate([others, window[None]]), FLOORS).max(axis=(1, 2))
            alarms += int(statistics[-1] > threshold(statistics[:-1], rate))
    return alarms / count


def _held_out(group: Group, name: str, whole: Group, null: Null, fold_of: Array, seed: int) -> Iterator[Array]:
    """For one fold after the other [M, FIGURES]: each window's figures where the fold's windows are no reference."""
    bins = group.reference.bins[name]
    profiles = aligned(whole.reference, group.reference, null.kind)
    kept = [profiles[position] for position in null.windows.argmax(axis=1)]
    counts = column_counts(kept, name, bins)
    windows = windows_of(kept, name, bins)
    thinned = windows.thinned(group.compared, seeded(group.segment + name, seed))
    total = column_counts([group.reference.pieces.total], name, bins)
    is_small = 2 * counts.sum(axis=1) < group.compared
    for fold in range(int(fold_of.max()) + 1):
        held = fold_of == fold
        rests = total - counts[held].sum(axis=0) - np.where(held[:, None], 0, counts)
        figures = Windows(thinned.counts, thinned.unseen, thinned.outside).figures(bins, np.maximum(rests, 0))
        figures[is_small] = np.nan
        yield figures
