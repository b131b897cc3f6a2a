"""Exact Shapley values of trees: a lookup per leaf instead of a walk per background
row.

The path to a leaf is one condition per feature, an interval. A coalition takes its
features from the row and the others from a background row. So the contributions of a
leaf depend only on the conditions that the row meets and on the conditions that each
background row meets. The table of a leaf has the contributions of its features for each
set of conditions that a row may meet, as the mean over the background rows. The
contributions of leaves without a table are computed for each row, in the same way.

Nadel and Wettenstein, From Decision Trees to Boolean Logic: A Fast and Unified SHAP
Algorithm, 2025, https://arxiv.org/abs/2511.09376.
"""

import math
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import zip_longest
from operator import itemgetter
from typing import NamedTuple

import numpy as np

from mlflow_deploy_plugin.serve.runtime.additive import AdditiveForm
from mlflow_deploy_plugin.serve.runtime.feeds import Array

KEPT_BYTES = 64 * 1024 * 1024
"""The maximum bytes of a model's tables in memory. Leaves with few conditions come
first.
"""
_MOST_CONDITIONS = 9
"""The maximum number of conditions of a leaf with a table. The contributions of all
pairs of sets of conditions, which tables are computed from, have 19 MB.
"""
_MOST_LEAVES = 2048
"""The maximum number of leaves without a table that are computed at once."""


class DeadlinePassed(Exception):
    """The deadline of an explain request has passed."""


class _Interval(NamedTuple):
    """The condition that the number of a feature is above `low` (NaN: any number) up to
    `high` and a set bit in `codes` (-1: all), or is missing and `has_missing` is True.
    """

    feature: int
    low: float = np.nan
    high: float = np.inf
    has_missing: bool = True
    codes: int = -1


class _Leaf(NamedTuple):
    """A leaf whose path has k conditions.

    Attributes:
        conditions: the positions of the conditions, [k].
        values: the summands of several sums; empty for one sum.
        line: the summand of one sum: a constant, and with slopes the slope of each
            condition's feature, [1 or 1 + k]. It is 1 for several sums.
    """

    conditions: list[int]
    values: Sequence[float]
    line: list[float]


class LeafTables:
    """The leaves of all trees of a form, with their tables."""

    def __init__(self, form: AdditiveForm, background: Array, deadline: float = math.inf) -> None:
        """Compute the tables for the features of the background rows, [B, F]. Raises
        DeadlinePassed after `deadline`, a time of `time.monotonic`.
        """
        positions = {_Interval(0): 0}  # All rows meet condition 0.
        # Leaves with the same sums and numbers of conditions and slopes. Leaves that
        # only missing values reach, as in LightGBM's linear trees, are the last.
        kinds: dict[tuple[bool, int, bool, tuple[int, ...]], list[_Leaf]] = defaultdict(list)
        for tree, left in enumerate(form.left):
            if time.monotonic() > deadline:
                raise DeadlinePassed
            values = form.value[tree].reshape(len(left), -1, len(form.base))
            targets = tuple(np.flatnonzero(values.any(axis=(0, 1))).tolist())
            for node, path in _paths(form, tree):
                conditions = [positions.setdefault(item, len(positions)) for item in path]
                needs_missing = any(item.low == np.inf for item in path)
                constants, *by_feature = values[node]
                if len(targets) > 1 and not np.any(by_feature):
                    leaf = _Leaf(conditions, constants[[*targets]], [1.0])
                    kinds[needs_missing, len(path), False, targets].append(leaf)
                    continue
                path_features = np.reshape([item.feature for item in path], (-1, 1))
                is_multiplied = path_features == form.slope_features
                for target in targets:
                    line = [constants[target]]
                    if has_slopes := any(slopes[target] for slopes in by_feature):
                        line += (is_multiplied @ values[node, 1:, target]).tolist()
                    leaf = _Leaf(conditions, [], line)
                    kinds[needs_missing, len(path), has_slopes, (target,)].append(leaf)
        self._conditions = _Conditions([*positions])
        rows = _Background(self._conditions, form.columns, background)
        is_complete = not np.isnan(background).any()
        kept_bytes = KEPT_BYTES
        self._groups: list[_Leaves] = []
        self._missing_groups: list[_Leaves] = []  # No background row reaches their leaves.
        others: dict[tuple[bool, bool, tuple[int, ...]], list[_Leaf]] = defaultdict(list)
        for kind, leaves in sorted(kinds.items(), key=itemgetter(0)):
            needs_missing, count, has_slopes, targets = kind
            is_missing = needs_missing and is_complete
            leaf_bytes = 8 * count * 2**count * (1 + count * has_slopes)
            if not leaf_bytes:
                continue  # The only leaf of a tree contributes nothing.
            fitting = 0
            if count <= _MOST_CONDITIONS and not is_missing:
                fitting = min(kept_bytes // leaf_bytes, len(leaves))
            kept_bytes -= leaf_bytes * fitting
            if fitting:
                self._groups.append(_Leaves(targets, leaves[:fitting], rows))
                self._groups[-1].tabulate()
            others[is_missing, has_slopes, targets] += leaves[fitting:]
        for (is_missing, _, targets), leaves in others.items():
            groups = self._missing_groups if is_missing else self._groups
            for start in range(0, len(leaves), _MOST_LEAVES):
                part = leaves[start : start + _MOST_LEAVES]
                groups.append(_Leaves(targets, part, rows))

    def add_to(self, totals: Array, row: Array) -> None:
        """Add the contributions to `totals`, [columns, K], for the features of a row,
        [F].
        """
        met = self._conditions.met(row)
        groups = self._groups
        if np.isnan(row).any():
            groups = groups + self._missing_groups
        for leaves in groups:
            leaves.add_to(totals, met, row)


class _Conditions:
    """The distinct conditions of all paths."""

    def __init__(self, intervals: list[_Interval]) -> None:
        fields = np.array(intervals, object)
        self.features = fields[:, 0].astype(int)
        self.low, self._high = fields[:, 1:3].astype(float).T
        self._has_missing = fields[:, 3].astype(bool)
        # The conditions of categories, and the codes that each of them has.
        self._coded = np.flatnonzero(fields[:, 4] != -1)
        codes = fields[self._coded, 4].tolist()
        size = 1 + max(map(int.bit_length, codes), default=0) // 8
        packed = b"".join(code.to_bytes(size, "little", signed=True) for code in codes)
        bits = np.unpackbits(np.frombuffer(packed, np.uint8), bitorder="little")
        self._has_code = bits.reshape(-1, 8 * size).astype(bool)

    def met(self, rows: Array) -> Array:
        """Return True for the conditions, [..., conditions], that rows with these
        features, [..., F], meet.
        """
        numbers = rows[..., self.features]
        met: Array = ~(numbers <= self.low) & (numbers <= self._high)
        if len(self._coded):
            codes = np.nan_to_num(numbers[..., self._coded])
            # Unknown codes, also those below 0, have the last place.
            places = codes.clip(-1, self._has_code.shape[1] - 1).astype(np.intp)
            met[..., self._coded] &= self._has_code[np.arange(len(self._coded)), places]
        met |= self._has_missing & np.isnan(numbers)
        return met


class _Background:
    """B background rows.

    Attributes:
        features: the features of all conditions, [conditions].
        columns: the columns of the features, [conditions].
        met: True for the conditions that a row meets, [conditions, B].
        numbers: the features of the rows, [F, B], with 0 for a missing value.
        rows: the bits of all rows, [words] uint64.
        rows_meeting: the bits of the rows that meet a condition, [conditions, words].
    """

    def __init__(self, conditions: _Conditions, columns: Array, rows: Array) -> None:
        """Read rows with these features, [B, F], whose columns are `columns`, [F]."""
        self.features = conditions.features
        self.columns = columns[self.features]
        self.met = conditions.met(rows).T
        self.numbers = np.where(np.isnan(rows), 0.0, rows).T
        padded = np.pad(self.met, ((0, 0), (0, -len(rows) % 64)))
        self.rows_meeting = np.packbits(padded, axis=1).view(np.uint64)
        self.rows = self.rows_meeting[0]


class _Leaves:
    """L leaves whose paths have at most k conditions."""

    def __init__(
        self, targets: tuple[int, ...], leaves: Sequence[_Leaf], background: _Background
    ) -> None:
        """Collect leaves.

        Args:
            targets: the sums that the leaves change.
            leaves: the leaves.
            background: the background rows.
        """
        paths, values, lines = zip(*leaves, strict=True)
        self._targets = targets
        # Shorter paths end with conditions that all rows meet.
        self._conditions = np.array([*zip_longest(*paths, fillvalue=0)])  # [k, L]
        self._lines = np.array([*zip_longest(*lines, fillvalue=0.0)])  # [1 or 1 + k, L]
        self._values = np.array(values).T[..., np.newaxis]  # [targets, L, 1]
        self._features = background.features[self._conditions]
        self._columns = np.ascontiguousarray(background.columns[self._conditions].T)  # [L, k]
        self._background = background
        # A row must meet a condition that no background row meets.
        is_needed = ~np.logical_or.reduce(background.met, axis=1)[self._conditions]
        self._needed = (self._conditions * is_needed).max(axis=0)
        self._bits = 1 << np.arange(len(self._conditions))
        self._first = np.zeros(0, np.intp)  # The first line of each leaf in the table.
        self._table: Array | None = None

    def tabulate(self) -> None:
        """Compute the table: the parts of the contributions, [L * 2**k, parts, k], for
        each set of conditions that a row may meet.
        """
        background = self._background
        count, leaves = self._conditions.shape
        of_pairs = _values_of_pairs(count)
        sets = np.arange(2**count)
        self._first = np.arange(leaves) << count
        met = np.tensordot(self._bits, background.met[self._conditions], 1)  # [L, B]

        def summed(met: Array, weights: Array) -> Array:
            """Return the contributions, [L, 2**k, k], to rows with weights, [L, B]."""
            cells = (self._first[:, np.newaxis] + met).ravel()
            by_set = np.bincount(cells, weights.ravel(), leaves << count)
            return (by_set.reshape(leaves, -1) @ of_pairs).reshape(leaves, -1, count)

        constant, *slopes = self._lines[:, :, np.newaxis] / np.ones(met.shape)
        parts = [summed(met, constant)]
        for bit, slope, features in zip(self._bits, slopes, self._features, strict=False):
            of_background = summed(met, slope * background.numbers[features])
            parts[0] += of_background[:, sets & ~bit]
            parts.append(summed(met & ~bit, slope))
        self._table = np.stack(parts, axis=2).reshape(-1, len(parts), count) / met.shape[1]

    def add_to(self, totals: Array, met: Array, row: Array) -> None:
        """Add the contributions to `totals`, [columns, K].

        Args:
            totals: the contributions.
            met: True for the conditions that the row meets, [conditions].
            row: the features of the row, [F].
        """
        leaves: Array | slice
        if self._table is None:
            leaves, parts = self._parts(met)
        else:
            leaves = slice(None)
            sets = self._bits @ met[self._conditions]
            parts = self._table.take(self._first + sets, axis=0)
        shares = parts[:, 0]
        if len(self._lines) > 1:
            numbers = np.where(np.isnan(row), 0.0, row)[self._features[:, leaves]]
            shares = shares + np.einsum("lpk,pl->lk", parts[:, 1:], numbers)
        columns = self._columns[leaves].ravel()
        for position, target in enumerate(self._targets):
            weights = shares
            if len(self._values):
                weights = shares * self._values[position, leaves]
            totals[:, target] += np.bincount(columns, weights.ravel(), len(totals))

    def _parts(self, met: Array) -> tuple[Array, Array]:
        """Return the leaves that contribute to a row, [n], and the parts of their
        contributions, [n, parts, k].

        A slope multiplies the number of the row, as if no background row met its
        condition, or the number of a background row, as if the row did not meet it.

        Args:
            met: True for the conditions that the row meets, [conditions].
        """
        background = self._background
        leaves = np.flatnonzero(met[self._needed])
        conditions = self._conditions[:, leaves]
        is_lacking = ~met[conditions]
        # A row counts if it meets all conditions that the explained row lacks.
        meeting = background.rows_meeting[conditions]
        required = np.where(is_lacking[..., np.newaxis], meeting, background.rows)
        counting = np.bitwise_and.reduce(required, axis=0)
        members, rows = np.nonzero(np.unpackbits(counting.view(np.uint8), axis=1))
        lacks = is_lacking[:, members]
        misses = ~background.met[conditions[:, members], rows]
        constant, *slopes = self._lines[:, leaves[members]]
        numbers = background.numbers[self._features[:, leaves[members]], rows]
        parts = [constant * _shapley_values(lacks, misses)]
        for position, slope in enumerate(slopes):
            is_position = np.arange(len(lacks))[:, np.newaxis] == position
            of_background = _shapley_values(lacks | is_position, misses)
            parts[0] += of_background * (slope * numbers[position] * ~misses[position])
            of_row = _shapley_values(lacks, misses | is_position)
            parts.append(of_row * (slope * ~lacks[position]))
        present, starts = np.unique(members, return_index=True)
        summed = np.add.reduceat(np.stack(parts), starts, axis=2).transpose(2, 0, 1)
        return leaves[present], summed / len(background.numbers.T)


def _shapley_values(lacks: Array, misses: Array) -> Array:
    """Return the contributions of k conditions, [k, ...], to the product of all
    conditions, for pairs of rows that meet all conditions together.

    If only the explained row meets s conditions, and only the background row meets c
    conditions, each of the s conditions contributes (s - 1)! c! / (s + c)!, and each of
    the c conditions contributes -s! (c - 1)! / (s + c)!.

    Args:
        lacks: True for the conditions that the explained row does not meet, [k, ...].
        misses: True for the conditions that the background row does not meet, [k, ...].
    """
    gained = misses.sum(axis=0)
    lost = lacks.sum(axis=0)
    shares = _inverse_binomials(2 * len(lacks))[gained + lost, gained]
    gains = misses * (shares / np.maximum(gained, 1))
    losses = lacks * (shares / np.maximum(lost, 1))
    values: Array = gains - losses
    return values


@lru_cache
def _inverse_binomials(most: int) -> Array:
    """Return 1 / C(n, k) for k <= n <= `most`, [most + 1, most + 1]."""
    inverse = np.zeros((most + 1, most + 1))
    inverse[:, 0] = 1.0
    for total in range(1, most + 1):
        chosen = np.arange(1, total + 1)
        inverse[total, chosen] = inverse[total - 1, chosen - 1] * chosen / total
    return inverse


@lru_cache(1)
def _values_of_pairs(count: int) -> Array:
    """Return the contributions of `count` conditions, [2**k, 2**k * k], for the set of
    conditions that a background row meets, and the set that the explained row meets.
    """
    is_unmet = ~np.arange(2**count) >> np.arange(count)[:, np.newaxis] & 1 == 1
    lacks = is_unmet[:, np.newaxis]
    misses = is_unmet[..., np.newaxis]
    values = _shapley_values(lacks, misses) * ~(lacks & misses).any(axis=0)
    lines: Array = values.transpose(1, 2, 0).reshape(2**count, -1)
    return lines


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
            packed = np.packbits(form.members[form.membership[tree, node]], bitorder="little")
            codes = int.from_bytes(packed.tobytes(), "little")
            left = left._replace(codes=left.codes & codes)
            right = right._replace(codes=right.codes & ~codes)
        else:
            left = left._replace(high=min(left.high, float(threshold)))
            right = right._replace(low=float(np.fmax(right.low, threshold)))
        nodes.append((form.left[tree, node], path | {feature: left}))
        nodes.append((form.right[tree, node], path | {feature: right}))
