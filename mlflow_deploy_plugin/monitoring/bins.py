"""Bins, frozen on the reference, and the distance of two histograms over them.

Numbers are compared by the Wasserstein distance (the mean way the mass has to move), in units of the reference's
standard deviation. It goes on growing beyond the range of the reference, where the Jensen–Shannon distance of
quantile bins saturates: on real weather a warm winter's day and a summer's day fill the same last bin. At the same
false-alarm rate it called 71 to 94 % of the days from June to August drifted, and 5 to 16 % when they were compared at
250 rows; this one calls 98 to 100 % of them (`benchmarks/drift.py`). Text, booleans and numbers that are nearly
constant are compared by the Jensen–Shannon distance (base 2, 0 to 1) over the reference's most frequent values.

No bin is reserved for what the reference lacks: its own windows could never reach it, and every fresh value would be
an alarm. New categories fall in with the rare ones, numbers out of range into an even continuation of the grid.
Numbers are clipped three ranges beyond the reference's middle 99 %, so that a sentinel such as -9999 has a bounded
weight.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlflow_deploy_plugin.monitoring.features import Array, Feature

_GRID = 256
_BEYOND = 64
_CATEGORIES = 50
_RANGES_BEYOND = 3.0
_WIDEST = 1e150  # beyond, squares are not finite
_MISSING = -1


@dataclass(frozen=True, eq=False)
class OrderedBins:
    """Bins of numbers.

    Attributes:
        positions: [K] float64, ascending; a value belongs to the nearest.
        scale: the reference's standard deviation, within its middle 99 %.
    """

    positions: Array
    scale: float

    @property
    def size(self) -> int:
        return len(self.positions)

    def encode(self, feature: Feature) -> Array:
        """[N] int64: the bin of each value, -1 where it is missing."""
        edges = (self.positions[1:] + self.positions[:-1]) / 2
        codes = np.searchsorted(edges, feature.values, side="right")
        return np.where(np.isnan(feature.values), _MISSING, codes)

    def distance(self, left: Array, right: Array) -> Array:
        """Wasserstein distance of counts [B, K] and [B, K] (or [K]), row by row: [B]; 0 where a side is empty."""
        gaps = np.diff(self.positions) / self.scale
        apart = np.abs(np.cumsum(_shares(left) - _shares(right), axis=-1))[..., :-1] @ gaps
        return _where_known(apart, left, right)


@dataclass(frozen=True, eq=False)
class CategoryBins:
    """Bins of the most frequent categories; the last one takes all others."""

    codes: dict[str | float, int]

    @property
    def size(self) -> int:
        return len(self.codes) + 1

    def encode(self, feature: Feature) -> Array:
        """[N] int64: the bin of each value, -1 where it is missing."""
        other = len(self.codes)
        if feature.kind == "number":
            values, inverse = np.unique(feature.values, return_inverse=True)
            table = [_MISSING if np.isnan(value) else self.codes.get(float(value), other) for value in values]
            return np.array(table, dtype=np.int64)[inverse]
        known: dict[str | None, int] = {None: _MISSING, **{str(key): code for key, code in self.codes.items()}}
        return np.array([known.get(value, other) for value in feature.values], dtype=np.int64)

    def distance(self, left: Array, right: Array) -> Array:
        """Jensen–Shannon distance of counts [B, K] and [B, K] (or [K]), row by row: [B]; 0 where a side is empty."""
        first, second = _shares(left), _shares(right)
        middle = (first + second) / 2
        divergence = (_entropy(middle) * 2 - _entropy(first) - _entropy(second)) / 2
        return _where_known(np.sqrt(np.maximum(divergence, 0)), left, right)


Bins = OrderedBins | CategoryBins


def freeze_bins(reference: Feature) -> Bins:
    """The bins of a feature, from the reference's values alone."""
    if reference.kind == "category":
        return _categories([value for value in reference.values if value is not None])
    known = reference.values[~np.isnan(reference.values)]
    finite = np.sort(known[np.isfinite(known)])
    low, high = np.quantile(finite, [0.005, 0.995]) if len(finite) else (0.0, 0.0)
    if not low < high or max(-low, high) > _WIDEST or len(_distinct(finite)) <= 2:
        return _categories(known.tolist())
    return _grid(finite, float(low), float(high))


def _grid(finite: Array, low: float, high: float) -> OrderedBins:
    """The bins of ascending numbers whose middle 99 % lies from `low` to `high`."""
    reach = _RANGES_BEYOND * (high - low)
    lowest, highest = low - reach, high + reach
    clipped = np.clip(finite, lowest, highest)
    distinct = _distinct(clipped)
    inner = distinct if len(distinct) <= _GRID else _distinct(np.quantile(clipped, np.linspace(0, 1, _GRID)))
    below = np.linspace(lowest, inner[0], _BEYOND + 1)[:-1]
    above = np.linspace(inner[-1], highest, _BEYOND + 1)[1:]
    positions = _distinct(np.concatenate([below, inner, above]))
    return OrderedBins(positions, float(np.std(np.clip(finite, low, high))))


def _distinct(ascending: Array) -> Array:
    kept: Array = ascending[np.diff(ascending, prepend=-np.inf) > 0]
    return kept


def _categories(values: Sequence[Any]) -> CategoryBins:
    """The most frequent first; among equals by name, so that the bins do not depend on the order of the rows."""
    frequent = sorted(Counter(values).items(), key=lambda entry: (-entry[1], entry[0]))[:_CATEGORIES]
    return CategoryBins({value: code for code, (value, _) in enumerate(frequent)})


def _shares(counts: Array) -> Array:
    shares: Array = counts / np.maximum(counts.sum(axis=-1, keepdims=True), 1)
    return shares


def _entropy(shares: Array) -> Array:
    logs = np.log2(shares, out=np.zeros_like(shares), where=shares > 0)
    entropy: Array = -(shares * logs).sum(axis=-1)
    return entropy


def _where_known(distance: Array, left: Array, right: Array) -> Array:
    return np.where((left.sum(axis=-1) > 0) & (right.sum(axis=-1) > 0), distance, 0.0)
