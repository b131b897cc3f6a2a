"""The pool where rows are independent of each other: samples of rows instead of windows (`windows.py`, "rows").

Columns of one row stay together, so that the pool is joint over columns. A category that occurs once is as good as an
unseen one: how many unseen ones are to be expected follows from them (Good, The Population Frequencies of Species and
the Estimation of Population Parameters, Biometrika 40, 1953).
"""

import math
from collections.abc import Sequence

import numpy as np
from scipy.stats import chi2, norm

from mlflow_deploy_plugin.monitoring.drift.sketches.bins import Bins
from mlflow_deploy_plugin.monitoring.drift.sketches.columns import Array, ColumnValues, read_columns
from mlflow_deploy_plugin.monitoring.drift.threshold.distribution import (
    FLOORS,
    ColumnGroup,
    NullDistribution,
    column_counts,
)
from mlflow_deploy_plugin.monitoring.drift.threshold.figures import (
    FIGURES,
    WindowCounts,
    column_rng,
    out_of_reference,
)

MAX_DRAWS = 2_000
_DRAWS = 400
_RANKS = 20
"""So many samples lie beyond the threshold, as long as there are no more than `MAX_DRAWS`."""
_MAX_ROWS = 5_000
_MAX_CELLS = 200_000_000
_UNLIKELY, _MOST_RATE, _NAMED = 0.001, 0.4, 3
_SHARED = 1.5
"""Of pairs of windows each shares one with two others, with whose chi-square its own has a correlation of 1/4."""
_ROW_FLOOR = 1e-6
"""Rows are a fair sample, so that every deviation is believed."""


def draws_for(rate: float) -> int:
    """How many samples are drawn for a rate."""
    return min(max(_DRAWS, math.ceil(_RANKS / rate)), MAX_DRAWS)


def build_row_distribution(groups: Sequence[ColumnGroup], rate: float, seed: int) -> NullDistribution:
    """The figures of samples as large as the window beside samples as large as what it is compared with: the reference,
    or one window of it.

    Many columns are given fewer samples and fewer different rows, so that the time is bounded.
    """
    columns = sum(len(group.columns) for group in groups)
    draws = draws_for(rate)
    rows = min(_MAX_ROWS, max(_MAX_CELLS // (columns * draws), 500))
    figures = []
    for number, group in enumerate(groups):
        rng = np.random.default_rng([seed, 2, number])
        figures.append(_group_figures(group, draws, rows, rng))
    pool = np.concatenate(figures, axis=1)
    floors = np.full(FIGURES, _ROW_FLOOR)
    floors[2:] = FLOORS[2:]
    return NullDistribution("rows", pool, np.ones(pool.shape[1:]), floors, float(draws))


def _group_figures(group: ColumnGroup, draws: int, rows: int, rng: np.random.Generator) -> Array:
    """[draws, columns, FIGURES]"""
    sample = group.reference.sample
    if len(sample) > rows:
        sample = sample.take(np.sort(rng.choice(len(sample), rows, replace=False)))
    features = read_columns(sample)[0]
    even = np.full(len(sample), 1 / max(len(sample), 1))
    windows = rng.multinomial(group.compared, even, size=draws).astype(np.float32)
    rests = [rng.multinomial(group.reference.pieces.total.rows, even, size=draws).astype(np.float32)]
    if group.reference.pieces.lag_windows:
        rests.insert(0, rng.multinomial(group.compared, even, size=draws).astype(np.float32))
    figures = [_column(group, features[name], windows, rests, column_rng(name, draws)) for name in group.columns]
    return np.stack(figures, axis=1)


def _column(
    group: ColumnGroup, feature: ColumnValues, windows: Array, rests: Sequence[Array], rng: np.random.Generator
) -> Array:
    """[draws, FIGURES]

    Args:
        rests: weights of the rows that the windows are compared with; the last are the whole reference's, which says
            what is out of range.
    """
    bins = group.reference.bins[feature.name]
    codes = _codes(bins, feature)
    counts, *others = (_histograms(side, codes, bins.size + 1) for side in (windows, *rests))
    told = out_of_reference(bins, counts, others[-1])
    unseen = rng.binomial(group.compared, _share_of_single(feature), len(counts)).astype(np.float64)
    if feature.kind == "number":
        unseen = np.zeros(len(counts))
    return WindowCounts(counts, unseen, told.outside).figures(bins, others[0])


def _codes(bins: Bins, feature: ColumnValues) -> Array:
    """[N] int64: the bin of each value, the missing ones behind all others."""
    codes = bins.encode(feature)
    return np.where(codes < 0, bins.size, codes)


def _histograms(weights: Array, codes: Array, size: int) -> Array:
    """[M, size] float64: the weights [M, N] of the rows, summed by their codes [N]."""
    order = np.argsort(codes, kind="stable")
    present, starts = np.unique(codes[order], return_index=True)
    counts = np.zeros((len(weights), size))
    counts[:, present] = np.add.reduceat(weights[:, order], starts, axis=1)
    return counts


def _share_of_single(feature: ColumnValues) -> float:
    """The share of rows whose category no other row has."""
    if feature.kind != "category":
        return 0.0
    known = feature.values[[value is not None for value in feature.values]]
    amounts = np.unique(known.astype(str), return_counts=True)[1]
    return float(np.count_nonzero(amounts == 1) / max(len(feature.values), 1))


def contradiction(group: ColumnGroup, rate: float) -> str:
    """Return what the reference's own windows say against independent rows; empty: nothing that could be told.

    Where rows of a window are alike, by an intraclass correlation c, its counts vary 1 + (n - 1) c times as much as
    those of n independent rows (the design effect: Kish, Survey Sampling, 1965). The chi-square of each window beside
    the others says how much they do at the size that the reference's windows have (Cochran, Some Methods for
    Strengthening the Common Chi-Square Tests, Biometrics 10, 1954), and so how much at the size of the judged one. It
    is enough where it brings twice the false alarms, and chance explains it with less than `_UNLIKELY`.
    """
    pieces = group.reference.pieces
    now, before = pieces.pairs() if pieces.lag_windows else (np.arange(len(pieces.windows)), None)
    enough = (norm.isf(rate / 2) / norm.isf(rate)) ** 2 if rate < _MOST_RATE else np.inf
    found = []
    for name in group.columns:
        counts = column_counts(pieces.windows, name, group.reference.bins[name])
        coarse = counts @ _coarse(counts.sum(axis=0))
        windows = coarse[now]
        others = coarse.sum(axis=0) - windows if before is None else coarse[before]
        effect, chance = _dispersion(windows, others, group.compared, 1.0 if before is None else _SHARED)
        if effect >= enough and chance * len(group.columns) < _UNLIKELY:
            found.append((effect, name))
    if not found:
        return ""
    named = ", ".join(f"{name} {effect:.3g}" for effect, name in sorted(found, reverse=True)[:_NAMED])
    return (
        f"the reference contradicts independent_rows: its own {len(now)} windows vary more than windows of independent "
        f"rows do, those of {group.compared:,} rows by so many times the variance: {named}; so calm ones would be "
        "called drifted; say independent_rows: false, with which a window is compared with the reference's own windows"
    )


def _coarse(total: Array) -> Array:
    """Return [K + 1, G] of 0 and 1: a column's bins in at most four groups of about as many rows, neighbours together,
    and the missing values: rare bins tell little of dependence, and spoil the distribution of a chi-square."""
    known = total[:-1]
    middle = (np.cumsum(known) - known / 2) / max(known.sum(), 1)
    place = np.append(np.minimum((4 * middle).astype(np.int64), 3), 4)
    groups: Array = np.eye(5)[place][:, np.bincount(place, total, minlength=5) > 0]
    return groups


def _dispersion(windows: Array, others: Array, size: int, shared: float) -> tuple[float, float]:
    """Return how many times as much windows of `size` rows vary as of independent ones, and the chance of what is seen.

    Args:
        windows, others: [M, G] counts of each window and of what it is compared with.
        shared: so many times the variance of their sum is that of independent chi-squares.
    """
    rows, beside = windows.sum(axis=1), others.sum(axis=1)
    kept = (rows >= 2) & (beside >= 2)
    windows, others, rows, beside = windows[kept], others[kept], rows[kept], beside[kept]
    both = windows + others
    freedom = int(np.maximum(np.count_nonzero(both, axis=1) - 1, 0).sum())
    if not freedom:
        return 1.0, 1.0
    weights = np.sqrt(beside / rows)[:, None]
    total = float((np.square(weights * windows - others / weights) / np.maximum(both, 1)).sum())
    alike = max(total / freedom - 1, 0) / max(float(np.minimum(rows, beside).mean()) - 1, 1)
    return 1 + (size - 1) * alike, float(chi2.sf(total / shared, freedom / shared))
