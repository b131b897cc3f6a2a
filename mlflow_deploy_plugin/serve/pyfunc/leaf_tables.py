"""Exact Shapley values of trees: a lookup per leaf instead of a walk per background
row.

The path to a leaf is one condition per feature, an interval. A coalition takes its
features from the row and the others from a background row. So the contributions of a
leaf depend only on the conditions that the row meets and on those that each background
row meets. The table of a leaf has the contributions of its features for each set of
conditions that a row may meet, as the mean over the background rows.

Nadel and Wettenstein, From Decision Trees to Boolean Logic: A Fast and Unified SHAP
Algorithm, 2025, https://arxiv.org/abs/2511.09376.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_array
from scipy.special import beta

from mlflow_deploy_plugin.serve.runtime.additive import AdditiveForm
from mlflow_deploy_plugin.serve.runtime.feeds import Array

KEPT_BYTES = 64 * 1024 * 1024
"""The maximum bytes of a model's tables in memory."""
_MOST_TREE_BYTES = 32 * 1024 * 1024
"""The maximum bytes of a tree's tables. Their computation takes five times as much."""


class _Interval(NamedTuple):
    """The condition that the number of a feature is above `low` (NaN: any number) up to
    `high` and a set bit in `codes` (-1: all), or is missing and `has_missing` is True.
    """

    feature: int
    low: float = np.nan
    high: float = np.inf
    has_missing: bool = True
    codes: int = -1


@dataclass(frozen=True, eq=False)
class _Leaves:
    """L leaves whose paths have k conditions.

    Attributes:
        conditions: the positions of the conditions among those of the tree, [L, k].
        by_feature: 1 for the features of the conditions, [F, L * k].
        value: the summands of the leaves, [L, K].
        tables: the contributions to a summand of 1, [L, k, 2**k] float64. Bit j of the
            last position is set if the row meets condition j.
    """

    conditions: Array
    by_feature: csr_array
    value: Array
    tables: Array


class LeafTables:
    """The tables of the leaves of a tree."""

    def __init__(self, form: AdditiveForm, tree: int, background: Array) -> None:
        """Compute the tables.

        Args:
            form: the trees.
            tree: the position of the tree.
            background: the features of the background rows, [F, B].
        """
        positions: dict[_Interval, int] = {}
        nodes = defaultdict(list)
        conditions = defaultdict(list)
        for leaf, path in _paths(form, tree):
            nodes[len(path)].append(leaf)
            conditions[len(path)].append(
                [positions.setdefault(interval, len(positions)) for interval in path]
            )
        intervals = np.array(list(positions), object).reshape(-1, 5)
        self._features = intervals[:, 0].astype(int)
        self._limits = intervals[:, 1:3].astype(float).T[:, :, np.newaxis]
        self._has_missing = intervals[:, 3:4].astype(bool)
        self._codes = intervals[:, 4]
        met = self._conditions_met(background)
        self._groups = []
        for count, of_leaves in conditions.items():
            features = self._features[np.ravel(of_leaves).astype(int)]
            places = (features, np.arange(len(features)))
            self._groups.append(
                _Leaves(
                    conditions=np.array(of_leaves),
                    by_feature=csr_array(
                        (np.ones(len(features)), places), shape=(len(background), len(features))
                    ),
                    value=form.value[tree, nodes[count]],
                    tables=_tables(_sets(met, np.array(of_leaves)), count),
                )
            )

    def add_to(self, totals: Array, features: Array) -> None:
        """Add the contributions of the tree to `totals`, [K, F, N], for rows with these
        features, [F, N].
        """
        met = self._conditions_met(features)
        for leaves in self._groups:
            sets = _sets(met, leaves.conditions)[:, np.newaxis]
            shares = np.take_along_axis(leaves.tables, sets, axis=2)
            for target in np.flatnonzero(leaves.value.any(axis=0)):
                values = shares * leaves.value[:, target, np.newaxis, np.newaxis]
                totals[target] += leaves.by_feature @ values.reshape(-1, len(met.T))

    def _conditions_met(self, features: Array) -> Array:
        """Return True for the conditions, [conditions, N], that rows with these
        features, [F, N], meet.
        """
        numbers = features[self._features]
        low, high = self._limits
        met: Array = ~(numbers <= low) & (numbers <= high)
        for position in np.flatnonzero(self._codes != -1):
            met[position] &= _has_code(numbers[position], self._codes[position])
        met |= self._has_missing & np.isnan(numbers)
        return met


def _has_code(numbers: Array, codes: int) -> Array:
    """Return True for the numbers of the set bits of `codes`."""
    if codes < 0:
        return ~_has_code(numbers, ~codes)
    return np.isin(numbers, [code for code in range(codes.bit_length()) if codes >> code & 1])


def fits(form: AdditiveForm, most_bytes: int) -> bool:
    """Return True if the tables of the trees have at most this number of bytes. A leaf
    with k features has 8 * k * 2**k bytes.
    """
    total = 0
    for tree in range(len(form.left)):
        of_tree = sum(8 * len(path) * 2 ** len(path) for _, path in _paths(form, tree))
        total += of_tree
        if of_tree > _MOST_TREE_BYTES or total > most_bytes:
            return False
    return True


def _paths(form: AdditiveForm, tree: int) -> Iterator[tuple[int, tuple[_Interval, ...]]]:
    """Yield the leaves of the tree, and the conditions of their paths."""
    nodes: list[tuple[int, dict[int, _Interval]]] = [(0, {})]
    while nodes:
        node, path = nodes.pop()
        if form.left[tree, node] < 0:
            yield node, tuple(path.values())
            continue
        feature = int(form.feature[tree, node])
        interval = path.get(feature, _Interval(feature))
        threshold = form.threshold[tree, node]
        missing_left = bool(form.missing_left[tree, node])
        left = interval._replace(has_missing=interval.has_missing and missing_left)
        right = interval._replace(has_missing=interval.has_missing and not missing_left)
        if np.isnan(threshold):  # The threshold of categories is NaN.
            members = np.flatnonzero(form.members[form.membership[tree, node]]).tolist()
            codes = sum(1 << position for position in members)
            left = left._replace(codes=left.codes & codes)
            right = right._replace(codes=right.codes & ~codes)
        else:
            left = left._replace(high=min(left.high, float(threshold)))
            right = right._replace(low=float(np.fmax(right.low, threshold)))
        nodes.append((form.left[tree, node], path | {feature: left}))
        nodes.append((form.right[tree, node], path | {feature: right}))


def _sets(met: Array, conditions: Array) -> Array:
    """Return the sets of conditions that rows meet, [L, N]: bit j is condition j.

    Args:
        met: True for the conditions of the tree that a row meets, [conditions, N].
        conditions: the positions of the conditions of L leaves, [L, k].
    """
    sets = np.zeros((len(conditions), met.shape[1]), np.uint32)
    for bit, positions in enumerate(conditions.T):
        sets |= met[positions].astype(np.uint32) << bit
    return sets.astype(np.intp)


def _tables(background: Array, count: int) -> Array:
    """Return the tables of L leaves, [L, k, 2**k].

    A row of the background counts if the explained row meets all conditions that it
    does not meet. With s such conditions, and c conditions that the explained row does
    not meet, the Shapley value of each of the s features is (s - 1)! c! / (s + c)!, and
    that of each of the c features is -s! (c - 1)! / (s + c)!.

    Args:
        background: the sets of conditions that the background rows meet, [L, B].
        count: the number k of conditions.
    """
    sets = np.arange(2**count)
    sizes = np.arange(count + 1)[:, np.newaxis]
    unmet = count - np.bitwise_count(sets)
    gained = beta(np.maximum(sizes, 1), unmet + 1)
    lost = beta(sizes + 1, np.maximum(unmet, 1))
    shares = _shares_within(sets[-1] ^ background, count)
    loss = np.einsum("sx,lsx->lx", lost, shares)
    tables = np.empty((len(background), count, len(sets)))
    for bit in range(count):
        is_met = sets >> bit & 1
        with_bit = shares - shares[:, :, sets & ~(1 << bit)]
        gain = np.einsum("sx,lsx->lx", gained, with_bit)
        tables[:, bit] = np.where(is_met, gain, -loss)
    return tables


def _shares_within(missed: Array, count: int) -> Array:
    """Return the shares of background rows, [L, k + 1, 2**k], that miss as many
    conditions as the second position, all of which are in the set of the third
    position.

    Args:
        missed: the sets of conditions that the background rows do not meet, [L, B].
        count: the number k of conditions.
    """
    leaves, rows = missed.shape
    shape = leaves, count + 1, 2**count
    numbers = np.arange(leaves)[:, np.newaxis]
    cells = np.ravel_multi_index((numbers, np.bitwise_count(missed), missed), shape)
    counts = np.bincount(cells.ravel(), minlength=np.prod(shape)) / rows
    by_bit = counts.reshape(leaves, count + 1, *[2] * count)
    for axis in range(2, by_bit.ndim):
        by_bit = by_bit.cumsum(axis)
    shares: Array = by_bit.reshape(shape)
    return shares
