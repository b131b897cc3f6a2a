"""Bins that are frozen on the reference, and the distance between two histograms over
these bins.

Numbers are compared by the Wasserstein distance in standard deviations of the
reference, because the Jensen–Shannon distance of quantile bins does not grow beyond the
reference's range. Summer days that were called drifted (same false-alarm rate):
Wasserstein 98 to 100 %, Jensen–Shannon 71 to 94 % (5 to 16 % with 250 rows). Numbers
are clipped three ranges outside of the middle 99 %, to limit the weight of a sentinel
like -9999.

Text, booleans and nearly constant numbers are compared by the Jensen–Shannon distance
(base 2, 0 to 1) over the most frequent values. Rare texts are divided by length and
hash into about 64 bins. New values have no bin of their own: the reference's windows
would have no rows in such a bin, and every new value would be an alarm. New values are
counted separately from the distance. If the reference has fractions, numbers are
compared in float32, like inputs of the graph.
"""

import hashlib
import heapq
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pandas.util import hash_array
from scipy.special import rel_entr

from mlflow_deploy_plugin.serve.inference_log.tables import distinct, splitmix64
from mlflow_deploy_plugin.serve.runtime.feeds import Array
from mlflow_deploy_plugin.watch.drift.sketches.columns import ColumnValues, Kind

_GRID = 256
_BEYOND = 64
_CATEGORIES = 50
_RARE = 64
_FEW = _CATEGORIES + _RARE
_LENGTHS = 8
_NEW = 0.05
_FEWEST_NEW = 4
"""The probability of a new value above which the values of a column are many, and the
number of values. It is the share of values that occur once in the reference (Good,
Biometrika 40, 1953).
"""
_BEYOND_CHANCE = 4  # A frequent value exceeds the rest by this many Poisson deviations.
_RANGES_BEYOND = 3.0
_WIDEST = 1e150  # The square of a larger number may be infinite.
_FLOATING = frozenset({"halffloat", "float", "double"})
_CELLS = 2**14
_SINGLE = (1e-37, 1e38)  # the range in which a float32 has 24 significant bits


@dataclass(frozen=True, eq=False)
class OrderedBins:
    """Bins of numbers.

    Attributes:
        positions: the position of each bin, [K] float64, ascending; a value belongs to
            the bin at the nearest position.
        scale: the standard deviation of the reference's numbers, clipped to the middle
            99 %.
        arrow_type: the reference's type in Arrow's notation; empty if unknown.
        tables: for a projection, the contributions of the other columns' bins
            (`relations.py`); otherwise empty.
    """

    positions: Array
    scale: float
    minimum: float = -math.inf
    maximum: float = math.inf
    arrow_type: str = ""
    tables: Mapping[str, Array] = field(default_factory=dict)
    kind: ClassVar[Kind] = "number"
    is_blank: ClassVar[bool] = False

    @property
    def size(self) -> int:
        return len(self.positions)

    @cached_property
    def edges(self) -> Array:
        """The bounds between bins: [K - 1] float64, ascending. A value on an edge
        belongs to the bin above the edge.
        """
        return (self.positions[1:] + self.positions[:-1]) / 2

    @cached_property
    def _edge_cells(self) -> tuple[Array, Array, Array]:
        """Three arrays: the number of edges below each cell of `_cell_of`, True for the
        cells with several edges, and the edges followed by NaN.
        """
        edge_counts = np.bincount(self._cell_of(self.edges), minlength=_CELLS)
        edges_below = np.cumsum(edge_counts) - edge_counts
        # A thousand columns have these arrays, and a column has at most 384 bins.
        return edges_below.astype(np.int16), edge_counts > 1, np.append(self.edges, np.nan)

    def _cell_of(self, values: Array) -> Array:
        """Return the cell of each value, [N] int64: equal parts of the range of the
        edges. NaN is in any cell.
        """
        with np.errstate(all="ignore"):
            cells: Array = (values - self.edges[0]) * (_CELLS / (self.edges[-1] - self.edges[0]))
            return np.fmax(
                np.fmin(cells, _CELLS - 1),
                0,
            ).astype(np.int64)

    def bin_of(self, values: Array) -> Array:
        """Return the bin of each number, [N] int64; any bin for NaN. Only values in
        cells with several edges are searched, because a binary search of all values
        takes ten times as long.
        """
        below, is_crowded, edges = self._edge_cells
        cells = self._cell_of(values)
        bins: Array = below[cells].astype(np.int64)
        bins += values >= edges[bins]
        searched = is_crowded[cells]
        bins[searched] = np.searchsorted(self.edges, values[searched], side="right")
        return bins

    def distance(self, left: Array, right: Array) -> Array:
        """Return the Wasserstein distances, [B], of the histograms [B, K] and [B, K]
        (or [K]); 0 if one is empty. For a projection, return the differences of the
        standard deviations. The mean of a projection depends only on the means of the
        columns, which usually change from window to window.
        """
        if self.tables:
            return _where_known(
                np.abs(self._deviations(left) - self._deviations(right)) / self.scale,
                left,
                right,
            )
        # `scipy.stats.wasserstein_distance` takes 46 to 67 times as long for 90 or 400
        # windows: one pair per call.
        gaps = np.diff(self.positions) / self.scale
        differences = np.cumsum(_shares(left) - _shares(right), axis=-1)
        distance = np.abs(differences)[..., :-1] @ gaps
        return _where_known(distance, left, right)

    def _deviations(self, counts: Array) -> Array:
        """Return the standard deviation of each histogram, [B, K] or [K]."""
        shares = _shares(counts)
        means = shares @ self.positions
        variances = shares @ np.square(self.positions) - np.square(means)
        deviations: Array = np.sqrt(np.maximum(variances, 0))
        return deviations


@dataclass(frozen=True, eq=False)
class CategoryBins:
    """Bins for the most frequent categories, then a bin for all rare values, or bins
    per length and hash of rare texts.

    Attributes:
        kind: "category" for texts and booleans; "number" for nearly constant or very
            large numbers.
        known: the hashes of all values in the reference, uint64, ascending.
        lengths: the lengths that divide rare texts into bins, int64, ascending; empty
            for a single bin of rare values.
    """

    codes: dict[str | float, int]
    kind: Kind
    known: Array
    minimum: float = -math.inf
    maximum: float = math.inf
    arrow_type: str = ""
    lengths: Array = field(default_factory=lambda: np.empty(0, np.int64))

    @property
    def is_blank(self) -> bool:
        """True if the reference has no values."""
        return not len(self.known)

    @property
    def size(self) -> int:
        return len(self.codes) + math.prod(self.rare_shape)

    @property
    def rare_shape(self) -> tuple[int, int]:
        """The number of lengths, and of hashes per length, in the bins for rare
        texts. A reference with few values has no hashes, because most of their bins
        would be empty.
        """
        lengths = len(self.lengths) + 1
        has_hashes = lengths > 1 and len(self.known) > _FEW
        return lengths, _RARE // lengths if has_hashes else 1

    def codes_of_texts(self, texts: pa.Array, hashes: Array) -> Array:
        """Return the bin of each text (large_string, with its `hash_texts`), [N] int64.
        Null counts as a rare text.
        """
        in_order = pa.array(
            [str(key) for key in self.codes],
            pa.large_string(),
        )
        rare = len(self.codes)
        indices = pc.fill_null(pc.index_in(texts, value_set=in_order), rare)
        codes: Array = indices.to_numpy().astype(np.int64)
        if len(self.lengths):
            sizes = np.searchsorted(
                self.lengths,
                pc.fill_null(pc.utf8_length(texts), 0).to_numpy(),
                side="right",
            )
            count = self.rare_shape[1]
            offsets = sizes * count + (hashes % count).astype(np.int64)
            codes += np.where(codes == rare, offsets, 0)
        return codes

    def distance(self, left: Array, right: Array) -> Array:
        """Return the Jensen–Shannon distances, [B], of the histograms [B, K] and [B, K]
        (or [K]); 0 if one is empty.
        """
        divergence = self.divergence(_shares(left), _shares(right)).sum(axis=-1)
        return _where_known(np.sqrt(divergence), left, right)

    @staticmethod
    def divergence(left: Array, right: Array) -> Array:
        """Return the contribution of each category to the Jensen–Shannon divergence of
        two histograms of shares.
        """
        middle = (left + right) / 2
        divergence: Array = (rel_entr(left, middle) + rel_entr(right, middle)) / (2 * math.log(2))
        return divergence


Bins = OrderedBins | CategoryBins


def freeze_bins(reference: ColumnValues, arrow_type: str = "") -> Bins:
    """Return the bins of a column, computed from only the reference's values. Numbers
    that are nearly constant or very large get bins of categories.
    """
    if reference.kind == "category":
        return _freeze_texts(reference.values, arrow_type)
    values = round_to_reference(reference.values[~np.isnan(reference.values)], arrow_type)
    limits = (-math.inf, math.inf)
    if len(values):
        limits = (float(values.min()), float(values.max()))
    finite = np.sort(values[np.isfinite(values)])
    low = 0.0
    high = 0.0
    if len(finite):
        low, high = map(float, np.quantile(finite, [0.005, 0.995]))
    if not low < high or max(-low, high) > _WIDEST or len(distinct(finite)) <= 2:
        return CategoryBins(
            _frequent_codes(values.tolist()),
            "number",
            distinct(np.sort(hash_numbers(values))),
            *limits,
            arrow_type,
        )
    # The middle 99 % of the numbers are from `low` to `high`.
    reach = _RANGES_BEYOND * (high - low)
    lowest = low - reach
    highest = high + reach
    clipped = np.clip(finite, lowest, highest)
    inner = distinct(clipped)
    if len(inner) > _GRID:
        inner = distinct(np.quantile(clipped, np.linspace(0, 1, _GRID)))
    below = np.linspace(lowest, inner[0], _BEYOND + 1)[:-1]
    above = np.linspace(inner[-1], highest, _BEYOND + 1)[1:]
    return OrderedBins(
        distinct(np.concatenate([below, inner, above])),
        float(np.std(np.clip(finite, low, high))),
        *limits,
        arrow_type,
    )


def _freeze_texts(values: Array, arrow_type: str) -> CategoryBins:
    """Return the bins of a column of texts: the frequent texts, then lengths that
    divide the rare texts into parts of equal size.
    """
    texts = [value for value in values if value is not None]
    codes = _frequent_codes(texts)
    hashes = distinct(np.sort(hash_texts(texts)))
    ends = np.array(
        [len(text) for text in texts if text not in codes],
        np.int64,
    )
    if len(ends):
        quantiles = np.quantile(ends, np.arange(_LENGTHS) / _LENGTHS)
        ends = np.append(quantiles, ends.max() + 1)
    lengths = np.unique(np.ceil(ends).astype(np.int64))
    return CategoryBins(codes, "category", hashes, arrow_type=arrow_type, lengths=lengths)


def round_to_reference(values: Array, arrow_type: str) -> Array:
    """Return the values, [N] float64, rounded for a comparison with a reference of this
    type.
    """
    if arrow_type not in _FLOATING:
        return values
    sizes = np.abs(values)
    is_single = (sizes > _SINGLE[0]) & (sizes < _SINGLE[1])
    with np.errstate(over="ignore", invalid="ignore"):
        return np.where(
            is_single,
            values.astype(np.float32).astype(np.float64),
            values,
        )


def bins_digest(bins: Mapping[str, Bins]) -> str:
    """Return 32 hexadecimal digits that identify these bins, independently of the
    column order.
    """
    digest = hashlib.sha256(b"3")
    for name in sorted(bins):
        frozen = bins[name]
        head = (name, frozen.kind, frozen.arrow_type, frozen.minimum, frozen.maximum)
        if isinstance(frozen, OrderedBins):
            parts = [
                repr((*head, frozen.scale)).encode(),
                frozen.positions.tobytes(),
            ]
        else:
            parts = [
                repr((*head, list(frozen.codes))).encode(),
                frozen.known.tobytes(),
                frozen.lengths.tobytes(),
            ]
        for part in parts:
            digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()[:32]


def _frequent_codes(values: Sequence[Any]) -> dict[str | float, int]:
    """Return the values that get a bin, with its index: if there are many, only values
    that are significantly more frequent than the rest. With 500 equally frequent
    values, a random choice of 50 caused false drift in 1/3 to 1/2 of months.
    """
    counts = Counter(values)
    once = sum(count == 1 for count in counts.values())
    are_many = len(counts) > _FEW or once > max(_NEW * len(values), _FEWEST_NEW)
    # Select only the most frequent values, because a full sort took a quarter of the
    # time for a reference with ids.
    most = _CATEGORIES + 1 if are_many else len(counts)
    frequent = heapq.nsmallest(
        most,
        counts.items(),
        key=lambda entry: (-entry[1], entry[0]),
    )
    if are_many:
        _, least = frequent.pop()
        frequent = [
            entry for entry in frequent if entry[1] > least + _BEYOND_CHANCE * math.sqrt(least)
        ]
    return {value: code for code, (value, _) in enumerate(frequent)}


def _shares(counts: Array) -> Array:
    shares: Array = counts / np.maximum(
        counts.sum(axis=-1, keepdims=True),
        1,
    )
    return shares


def _where_known(distance: Array, left: Array, right: Array) -> Array:
    """Return the distance of two histograms; 0 where one of them is empty."""
    has_rows = (left.sum(axis=-1) > 0) & (right.sum(axis=-1) > 0)
    return np.where(has_rows, distance, 0.0)


def hash_texts(texts: Sequence[str] | Array) -> Array:
    """Return the hash of each text, [N] uint64, uniform: SipHash with pandas' fixed
    key, the same in every process.
    """
    return hash_array(np.asarray(texts, dtype=object), categorize=False)


def hash_numbers(values: Array) -> Array:
    """Return the hash of each float64, [N] uint64, uniform; 0.0 and -0.0 have the same
    hash.
    """
    return splitmix64((np.asarray(values, dtype=np.float64) + 0.0).view(np.uint64))
