"""The pool where rows are independent of each other: samples of rows instead of windows (`windows.py`, "rows").

Columns of one row stay together, so that the pool is joint over columns. A category that occurs once is as good as an
unseen one: how many unseen ones are to be expected follows from them (Good, The Population Frequencies of Species and
the Estimation of Population Parameters, Biometrika 40, 1953).
"""

import math
from collections.abc import Sequence

import numpy as np

from mlflow_deploy_plugin.monitoring.bins import Bins
from mlflow_deploy_plugin.monitoring.features import Array, Feature, read_features
from mlflow_deploy_plugin.monitoring.null.comparing import FIGURES, Windows, beyond, seeded
from mlflow_deploy_plugin.monitoring.null.pool import FLOORS, Group, Pool

MAX_DRAWS = 2_000
_DRAWS = 400
_RANKS = 20
"""So many samples lie beyond the threshold, as long as there are no more than `MAX_DRAWS`."""
_MAX_ROWS = 5_000
_MAX_CELLS = 200_000_000
_ROW_FLOOR = 1e-6
"""Rows are a fair sample, so that every deviation is believed."""


def draws_for(rate: float) -> int:
    """How many samples are drawn for a rate."""
    return min(max(_DRAWS, math.ceil(_RANKS / rate)), MAX_DRAWS)


def build_row_pool(groups: Sequence[Group], rate: float, seed: int) -> Pool:
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
    return Pool("rows", pool, np.ones(pool.shape[1:]), floors, float(draws))


def _group_figures(group: Group, draws: int, rows: int, rng: np.random.Generator) -> Array:
    """[draws, columns, FIGURES]"""
    sample = group.reference.sample
    if len(sample) > rows:
        sample = sample.take(np.sort(rng.choice(len(sample), rows, replace=False)))
    features = read_features(sample)[0]
    even = np.full(len(sample), 1 / max(len(sample), 1))
    windows = rng.multinomial(group.compared, even, size=draws).astype(np.float32)
    rests = [rng.multinomial(group.reference.pieces.total.rows, even, size=draws).astype(np.float32)]
    if group.reference.pieces.lag_windows:
        rests.insert(0, rng.multinomial(group.compared, even, size=draws).astype(np.float32))
    figures = [_column(group, features[name], windows, rests, seeded(name, draws)) for name in group.columns]
    return np.stack(figures, axis=1)


def _column(group: Group, feature: Feature, windows: Array, rests: Sequence[Array], rng: np.random.Generator) -> Array:
    """[draws, FIGURES]

    Args:
        rests: weights of the rows that the windows are compared with; the last are the whole reference's, which says
            what is out of range.
    """
    bins = group.reference.bins[feature.name]
    codes = _codes(bins, feature)
    counts, *others = (_histograms(side, codes, bins.size + 1) for side in (windows, *rests))
    told = beyond(bins, counts, others[-1])
    unseen = rng.binomial(group.compared, _share_of_single(feature), len(counts)).astype(np.float64)
    if feature.kind == "number":
        unseen = np.zeros(len(counts))
    return Windows(counts, unseen, told.outside).figures(bins, others[0])


def _codes(bins: Bins, feature: Feature) -> Array:
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


def _share_of_single(feature: Feature) -> float:
    """The share of rows whose category no other row has."""
    if feature.kind != "category":
        return 0.0
    known = feature.values[[value is not None for value in feature.values]]
    amounts = np.unique(known.astype(str), return_counts=True)[1]
    return float(np.count_nonzero(amounts == 1) / max(len(feature.values), 1))
