"""Count one Arrow column over frozen bins, for many groups of rows at once.

Text is dictionary-encoded first: each different value is looked up and hashed once, however many rows have it, and no
loop runs over rows.
"""

from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mlflow_deploy_plugin.monitoring.drift.sketches.bins import Bins, CategoryBins, OrderedBins, round_to_reference
from mlflow_deploy_plugin.monitoring.drift.sketches.columns import TRUTH, Array, as_floats
from mlflow_deploy_plugin.monitoring.drift.sketches.hyperloglog import count_registers, hash_numbers, hash_texts

Family = Literal["number", "category", "null", "other"]
ColumnCounts = dict[str, list[Any] | Array]

_LONGEST = 80
_DENSE = 4_000_000


def type_family(kind: pa.DataType) -> Family:
    """Return what values of an Arrow type are compared as; "null": all are missing, and fit anything."""
    types = pa.types
    if types.is_null(kind):
        return "null"
    if types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind):
        return "number"
    if types.is_boolean(kind) or types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return "category"
    return "other"


def count_column(
    column: pa.ChunkedArray, bins: Bins | None, groups: Array, count: int, rows: Array, kept: int
) -> ColumnCounts:
    """Return the fields of a `ColumnSketch` for each of the `count` groups, by name.

    Args:
        groups: [N] int64, the group of each row; rows: [count] int64, how many rows each has.
        kept: how many unseen categories are named.
    """
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    given, column = column, _booleans_alike(column, bins)
    family = type_family(column.type)
    takes: tuple[str, ...] = ()
    if bins is not None:  # a reference without any value has no kind of its own
        takes = ("number", "category", "null") if _is_blank(bins) else (bins.kind, "null")
    if bins is None or family not in takes:
        return _other(column, bins, groups, count, rows)
    counted = (_numbers if family == "number" else _texts)(column, bins, groups, count, kept)
    return {**counted, "arrow_type": [str(given.type)] * count}


def _booleans_alike(column: pa.ChunkedArray, bins: Bins | None) -> pa.ChunkedArray:
    """Return booleans as 1 and 0 beside a reference of numbers, and the other way round: a graph takes them so."""
    if bins is None or _is_blank(bins):
        return column
    family = type_family(column.type)
    if pa.types.is_boolean(column.type) and bins.kind == "number":
        return column.cast(pa.int8())
    if (
        family == "number"
        and isinstance(bins, CategoryBins)
        and bins.kind == "category"
        and bins.codes.keys() <= TRUTH.keys()
    ):
        known = pc.cast(column.drop_null(), pa.float64(), safe=False).to_numpy()
        if np.isin(known[~np.isnan(known)], (0.0, 1.0)).all():
            is_missing = pc.is_null(column, nan_is_null=pa.types.is_floating(column.type))
            return pc.if_else(is_missing, None, pc.not_equal(column, 0))
    return column


def _is_blank(bins: Bins) -> bool:
    return isinstance(bins, CategoryBins) and not bins.codes


def _other(column: pa.ChunkedArray, bins: Bins | None, groups: Array, count: int, rows: Array) -> ColumnCounts:
    is_missing = pc.is_null(column, nan_is_null=pa.types.is_floating(column.type)).to_numpy().astype(bool)
    missing = np.bincount(groups[is_missing], minlength=count)
    counts = np.zeros((count, (bins.size if bins else 0) + 1), np.int64)
    counts[:, -1] = missing
    fields: ColumnCounts = {"kind": ["other"] * count, "arrow_type": [str(column.type)] * count, "counts": counts}
    fields["missing"] = missing.tolist()
    if bins is not None:
        fields["mistyped"] = (rows - missing).tolist()
    return fields


def _numbers(column: pa.ChunkedArray, bins: Bins, groups: Array, count: int, kept: int) -> ColumnCounts:
    values = as_floats(column)
    is_known = ~np.isnan(values)
    is_missing = ~is_known
    hashes = hash_numbers(values[is_known])
    fields: ColumnCounts = {
        "kind": ["number"] * count,
        "missing": np.bincount(groups[is_missing], minlength=count).tolist(),
        "registers": count_registers(hashes, groups[is_known], count),
        **_moments(values, is_known, groups, count),
    }
    values = round_to_reference(values, bins.arrow_type)
    if isinstance(bins, OrderedBins):
        codes = np.searchsorted(bins.edges, values, side="right")
        fields["below"] = np.bincount(groups[values < bins.minimum], minlength=count).tolist()
        fields["above"] = np.bincount(groups[values > bins.maximum], minlength=count).tolist()
    else:
        distinct, inverse = np.unique(values[is_known], return_inverse=True)
        table = np.array([bins.codes.get(float(value), len(bins.codes)) for value in distinct], dtype=np.int64)
        codes = np.zeros(len(values), np.int64)
        codes[is_known] = table[inverse]
        is_fresh = ~_contains(bins.reference_hashes, hash_numbers(distinct))
        fields |= _fresh([f"{value:g}" for value in distinct], is_fresh, inverse, groups[is_known], count, kept)
    codes[is_missing] = bins.size
    fields["counts"] = _histograms(codes, bins.size + 1, groups, count)
    return fields


def _texts(column: pa.ChunkedArray, bins: Bins, groups: Array, count: int, kept: int) -> ColumnCounts:
    encoded = pc.cast(column, pa.large_string()).combine_chunks().dictionary_encode()
    is_known = encoded.indices.is_valid().to_numpy(zero_copy_only=False)
    inverse = encoded.indices.drop_null().to_numpy().astype(np.int64)
    known_groups = groups[is_known]
    distinct = encoded.dictionary
    hashes = hash_texts(distinct.to_numpy(zero_copy_only=False))
    codes = np.full(len(column), bins.size, np.int64)
    kind = bins.kind if pa.types.is_null(column.type) else "category"
    fields: ColumnCounts = {"kind": [kind] * count}
    if isinstance(bins, CategoryBins):
        codes[is_known] = bins.codes_of_texts(distinct)[inverse]
        is_fresh = ~_contains(bins.reference_hashes, hashes)
        fields |= _fresh(distinct, is_fresh, inverse, known_groups, count, kept)
    fields["counts"] = counts = _histograms(codes, bins.size + 1, groups, count)
    fields["missing"] = counts[:, -1].tolist()
    pairs = _pairs(known_groups, inverse, count, len(distinct))[0]
    size = max(len(distinct), 1)
    fields["registers"] = count_registers(hashes[pairs % size], pairs // size, count)
    return fields


def _moments(values: Array, is_known: Array, groups: Array, count: int) -> ColumnCounts:
    """Return range and moments of the numbers of each group."""
    minimum, maximum = np.full(count, np.inf), np.full(count, -np.inf)
    np.minimum.at(minimum, groups[is_known], values[is_known])
    np.maximum.at(maximum, groups[is_known], values[is_known])
    is_finite = np.isfinite(values)
    numbers, owners = values[is_finite], groups[is_finite]
    finite = np.bincount(owners, minlength=count)
    with np.errstate(all="ignore"):
        about = np.bincount(owners, numbers / finite[owners], minlength=count)  # a sum could exceed a float
        mean = np.where(
            finite > 0, about + np.bincount(owners, numbers - about[owners], minlength=count) / finite, np.nan
        )
        m2 = np.bincount(owners, (numbers - mean[owners]) ** 2, minlength=count)
    some = np.bincount(groups[is_known], minlength=count) > 0
    return {
        "minimum": np.where(some, minimum, np.nan).tolist(),
        "maximum": np.where(some, maximum, np.nan).tolist(),
        "finite": finite.tolist(),
        "mean": mean.tolist(),
        "m2": m2.tolist(),
    }


def _fresh(distinct: Any, is_fresh: Array, inverse: Array, groups: Array, count: int, kept: int) -> ColumnCounts:
    """Return rows and names of the values that the reference lacks.

    Args:
        distinct: [D] values; is_fresh: [D] bool.
        inverse: [M] int64, the value of each known row; groups: [M] int64.
    """
    if not is_fresh.any():
        return {}
    named: list[dict[str, int]] = [{} for _ in range(count)]
    is_unseen = is_fresh[inverse]
    unseen = np.bincount(groups[is_unseen], minlength=count)
    pairs, amounts = _pairs(groups[is_unseen], inverse[is_unseen], count, len(is_fresh))
    present = np.unique(pairs % len(is_fresh))
    labels = [_shortened(str(distinct[position])) for position in present.tolist()]
    ranks = np.empty(len(is_fresh), np.int64)
    ranks[present] = np.argsort(np.argsort(hash_texts(labels), kind="stable"), kind="stable")
    owners, members = pairs // len(is_fresh), pairs % len(is_fresh)
    order = np.lexsort((ranks[members], owners))
    places = np.searchsorted(present, members)
    for position in order.tolist():
        group = named[owners[position]]
        if len(group) < kept:
            label = labels[places[position]]
            group[label] = group.get(label, 0) + int(amounts[position])
    return {"unseen": unseen.tolist(), "fresh": named}


def _shortened(label: str) -> str:
    if len(label) <= _LONGEST:
        return label
    return f"{label[:60]}…{int(hash_texts([label])[0]):016x}"


def _pairs(groups: Array, members: Array, count: int, size: int) -> tuple[Array, Array]:
    """Return the different pairs as group · size + member, ascending, and how many rows have each."""
    keys = groups * size + members
    if count * size <= _DENSE:
        amounts = np.bincount(keys, minlength=count * size)
        pairs = np.flatnonzero(amounts)
        return pairs, amounts[pairs]
    return np.unique(keys, return_counts=True)


def _contains(ascending: Array, values: Array) -> Array:
    if not len(ascending):
        return np.zeros(len(values), dtype=bool)
    places = np.minimum(np.searchsorted(ascending, values), len(ascending) - 1)
    found: Array = ascending[places] == values
    return found


def _histograms(codes: Array, size: int, groups: Array, count: int) -> Array:
    return np.bincount(groups * size + codes, minlength=count * size).reshape(count, size)
