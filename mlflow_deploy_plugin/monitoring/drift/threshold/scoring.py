"""How a window stands among others: figures in standard deviations above them, and the threshold."""

import math

import numpy as np

from mlflow_deploy_plugin.monitoring.drift.sketches.columns import Array


def disjoint_windows(starts: Array, length: int) -> Array:
    """[M + 1, M + 1] bool: which windows of `length` steps do not overlap, one that is judged by all of them last."""
    apart = np.ones((len(starts) + 1, len(starts) + 1), dtype=bool)
    apart[:-1, :-1] = np.abs(starts[:, None] - starts) >= length
    apart[-1, -1] = False
    return apart


def scores(pool: Array, floors: Array, apart: Array | None = None) -> Array:
    """[n, F, FIGURES] standard deviations above the others: each member's figures standardised by the mean and the
    deviation of all other members; -inf where a figure is not known.

    Args:
        apart: [n, n] bool, which members count as others; None: all but the member itself. A window that overlaps
            others is much like them, and must not be measured by them.
    """
    is_known = np.isfinite(pool)
    filled = np.where(is_known, pool, 0.0)
    mean = filled.sum(axis=0) / np.maximum(is_known.sum(axis=0), 1)
    centred = np.where(is_known, filled - mean, 0.0)
    if apart is None:
        others = np.maximum(is_known.sum(axis=0) - is_known, 1)
        means = -centred / others
        squares = np.square(centred).sum(axis=0) - np.square(centred)
    else:
        weights = apart.astype(np.float64)
        others = np.maximum(np.tensordot(weights, is_known.astype(np.float64), 1), 1)
        means = np.tensordot(weights, centred, 1) / others
        squares = np.tensordot(weights, np.square(centred), 1)
    deviations = np.maximum(np.sqrt(np.maximum(squares / others - np.square(means), 0)), floors)
    standardised: Array = np.where(is_known, (centred - means) / deviations, -np.inf)
    return standardised


def threshold(statistics: Array, rate: float) -> float:
    """The statistic of the window at the last rank that the rate leaves to drift; above it p <= the rate."""
    rank = math.floor(rate * (len(statistics) + 1) + 1e-9)
    return float(np.sort(statistics)[-rank])


def mask_unknown(figures: Array, window: Array) -> Array:
    """[F, FIGURES] bool: the window has the figure, and at least nine in ten of the pool's windows have it."""
    known: Array = np.isfinite(window) & (np.isfinite(figures).mean(axis=0) >= 0.9)
    return known
