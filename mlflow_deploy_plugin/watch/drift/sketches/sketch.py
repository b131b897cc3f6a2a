"""Sketches: all data of a column that a verdict needs, in a size that depends on its
bins and not on its rows.

A sketch has the histogram over frozen bins, the range, the moments, and counts of
values outside of the reference. Sketches over the same bins can be merged in any order:
counts are added, and moments follow Chan, Golub, LeVeque (COMPSTAT 1982). Only the
rounding of moments and the stored names of over 200 new categories depend on the order.
A column that cannot be judged has a sketch of kind "other". Text is dictionary-encoded,
so no loop runs over rows.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import repeat, starmap
from operator import attrgetter
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mlflow_deploy_plugin.serve.runtime.feeds import Array
from mlflow_deploy_plugin.watch.drift.sketches.bins import (
    Bins,
    CategoryBins,
    OrderedBins,
    hash_numbers,
    hash_texts,
    round_to_reference,
)
from mlflow_deploy_plugin.watch.drift.sketches.columns import (
    TRUTH,
    as_floats,
    decoded,
    feature_columns,
    type_family,
)
from mlflow_deploy_plugin.watch.drift.sketches.relations import PROJECTIONS, relation_tables

SketchKind = Literal["number", "category", "other"]

SHOWN_VALUES = 20
KEPT_VALUES = 200
_TOGETHER_ROWS = 65_536
_TOGETHER_BYTES = 64 * 2**20
_TYPE_SEPARATOR = " | "
_LONGEST = 80

ColumnCounts = dict[str, Any]


@dataclass(frozen=True, eq=False, slots=True)
class ColumnSketch:
    """The sketch of a column over some rows.

    Attributes:
        kind: the kind of the column's bins; "other" if the column has no bins, or if
            its values do not fit them.
        arrow_type: the type of the values in Arrow's notation; different types in
            several files are joined by " | ".
        counts: of the frozen bins and then of the missing values, [K + 1] int32 or
            int64; for "other", of missing values, [1].
        missing: the number of null or NaN values.
        mistyped: the number of values with a type that does not fit the bins: text for
            numbers, numbers for text.
        below, above: the number of values outside of the reference's range.
        unseen: the number of rows with a category that the reference lacks. These rows
            also count as rare.
        fresh: the unseen categories with row counts. Of over 200, the categories with
            the smallest ratio of hash to rows are kept (priority sampling: Duffield,
            Lund and Thorup, JACM 54, 2007). Names are cut at 80 characters.
        minimum, maximum: the range of the numbers; NaN without numbers.
        mean, m2: the mean and the sum of squared deviations of the `finite` values.
        expected_type: the type in the reference; empty without bins.
    """

    name: str
    kind: SketchKind
    arrow_type: str
    counts: Array
    rows: int
    missing: int = 0
    mistyped: int = 0
    below: int = 0
    above: int = 0
    unseen: int = 0
    fresh: Mapping[str, int] = field(default_factory=dict)
    minimum: float = math.nan
    maximum: float = math.nan
    finite: int = 0
    mean: float = math.nan
    m2: float = 0.0
    expected_type: str = ""

    @property
    def arrow_types(self) -> set[str]:
        return set(self.arrow_type.split(_TYPE_SEPARATOR))

    @property
    def deviation(self) -> float:
        """The standard deviation of the finite numbers; NaN without finite numbers."""
        if self.finite:
            return math.sqrt(self.m2 / self.finite)
        return math.nan

    @property
    def infinite_share(self) -> float:
        present_rows = int(self.counts[:-1].sum())
        return (present_rows - self.finite) / max(present_rows, 1)

    @property
    def unseen_values(self) -> dict[str, int]:
        """At most 20 categories that the reference lacks, with their row counts, the
        most frequent first.
        """
        return dict(
            sorted(
                self.fresh.items(),
                key=lambda entry: (-entry[1], entry[0]),
            )[:SHOWN_VALUES],
        )


_ADDED = ("rows", "missing", "mistyped", "below", "above", "unseen")
_NOTHING = ColumnSketch(
    "",
    "other",
    "",
    np.zeros(1, np.int64),
    0,
)
_FIELDS = [
    (each_field.name, getattr(_NOTHING, each_field.name)) for each_field in fields(ColumnSketch)
]
"""The field names of a sketch in constructor order, each with the default for columns
without this field.
"""


@dataclass(frozen=True, eq=False)
class Profile:
    """The columns of some rows, by name. Columns of the reference that these rows lack
    are not included.
    """

    rows: int
    columns: Mapping[str, ColumnSketch]


def sketch_batches(
    bins: Mapping[str, Bins],
    batches: Iterable[pa.Table | pa.RecordBatch],
) -> Profile:
    """Return the profile of all rows in the batches. The columns of batches may
    differ.
    """
    profiles: list[Profile] = []
    for table in coalesce_batches(batches):
        one_group = np.zeros(len(table), np.int64)
        profiles += sketch_groups(bins, table, one_group, 1)
    return merge(profiles)


@dataclass(frozen=True, eq=False)
class _Groups:
    """The group of each row, [N] int64, from 0 to count - 1."""

    of_rows: Array
    count: int

    def __getitem__(self, rows: Array) -> "_Groups":
        return _Groups(self.of_rows[rows], self.count)

    def sizes(self, rows: Array | slice = slice(None)) -> Array:
        """Return the number of these rows, [N] bool, in each group."""
        return np.bincount(self.of_rows[rows], minlength=self.count)

    def histograms(self, codes: Array, size: int) -> Array:
        """Return the number of rows with each code in each group, [count, size] int32,
        because the hours of a reference have millions of such numbers.
        """
        cells = np.bincount(self.of_rows * size + codes, minlength=self.count * size)
        return cells.reshape(self.count, size).astype(np.int32)


def sketch_groups(
    bins: Mapping[str, Bins],
    table: pa.Table,
    groups: Array,
    count: int,
) -> list[Profile]:
    """Return a profile for each group of rows; `groups` is the group of each row, [N]
    int64, from 0 to count - 1.
    """
    rows = np.bincount(groups, minlength=count).tolist()
    profiles: list[dict[str, ColumnSketch]] = [{} for _ in rows]
    for name, counted in _count_columns(bins, table, _Groups(groups, count)):
        frozen = bins.get(name)
        expected = frozen.arrow_type or frozen.kind if frozen else ""
        counted |= {"name": repeat(name), "expected_type": repeat(expected), "rows": rows}
        # Pass positional arguments, because passing keyword arguments takes as long as
        # counting an hour of rows.
        in_order = (counted.get(key, repeat(default)) for key, default in _FIELDS)
        for group, column in enumerate(starmap(ColumnSketch, zip(*in_order, strict=False))):
            profiles[group][name] = column
    return [*map(Profile, rows, profiles)]


def encode_columns(
    bins: Mapping[str, Bins],
    table: pa.Table,
) -> dict[str, Array]:
    """Return the bin of each row by column, [N] int64, also of projections; a missing
    value has the last code, K. The result lacks columns whose values do not fit their
    bins.
    """
    counted = _count_columns(
        bins,
        table,
        _Groups(np.zeros(len(table), np.int64), 1),
    )
    return {name: np.asarray(values["codes"]) for name, values in counted if "codes" in values}


def sketch_by(
    bins: Mapping[str, Bins],
    table: pa.Table,
    keys: Array,
) -> Iterator[tuple[int, Profile]]:
    """Yield each distinct key, ascending, with the profile of its rows; `keys` is the
    key of each row, [N] int64.
    """
    present, groups = np.unique(keys, return_inverse=True)
    yield from zip(
        present.tolist(),
        sketch_groups(bins, table, groups, len(present)),
        strict=True,
    )


def merge(profiles: Iterable[Profile]) -> Profile:
    """Return the profile of all rows together; without profiles, an empty profile."""
    profile_list = list(profiles)
    if len(profile_list) == 1:
        return profile_list[0]
    parts: dict[str, list[ColumnSketch]] = {}
    for profile in profile_list:
        for name, column in profile.columns.items():
            parts.setdefault(name, []).append(column)
    columns = {name: _merge_columns(parts[name]) for name in sorted(parts)}
    return Profile(sum(profile.rows for profile in profile_list), columns)


def _merge_columns(parts: Sequence[ColumnSketch]) -> ColumnSketch:
    """Return the sketch of a column in all rows together."""
    if len(parts) == 1:
        return parts[0]
    # Ignore the type of a file in which all values are null, because this type is
    # compatible with every type.
    typed_parts = [part for part in parts if part.arrow_type != "null"] or parts
    judged: list[SketchKind] = [part.kind for part in typed_parts if part.kind != "other"]
    types = set[str]().union(*(part.arrow_types for part in parts))
    finite, mean, m2 = _merge_moments(parts)

    fresh = Counter[str]()
    for part in parts:
        if part.fresh:
            fresh.update(part.fresh)
    order = list(fresh.items())
    if len(order) > KEPT_VALUES:
        ranks = hash_texts(list(fresh)) / np.array(list(fresh.values()))
        order = [order[index] for index in np.argsort(ranks, kind="stable")[:KEPT_VALUES]]
    return ColumnSketch(
        name=parts[0].name,
        kind=min(judged, default="other"),
        arrow_type=_TYPE_SEPARATOR.join(sorted(types - {"null"} or types)),
        counts=np.sum([part.counts for part in parts], axis=0),
        **{name: sum(map(attrgetter(name), parts)) for name in _ADDED},
        fresh=dict(order),
        minimum=float(np.fmin.reduce([part.minimum for part in parts])),
        maximum=float(np.fmax.reduce([part.maximum for part in parts])),
        finite=finite,
        mean=mean,
        m2=m2,
        expected_type=parts[0].expected_type,
    )


def _merge_moments(parts: Sequence[ColumnSketch]) -> tuple[int, float, float]:
    """Return the number of finite values, their mean and sum of squared deviations."""
    finite = np.array([part.finite for part in parts], np.float64)
    total = int(finite.sum())
    if not total:
        return 0, math.nan, 0.0
    means = np.where(finite, [part.mean for part in parts], 0.0)
    mean = float((means * (finite / total)).sum())
    with np.errstate(over="ignore", invalid="ignore"):
        between = (finite * (means - mean) ** 2).sum()
        return total, mean, float(sum(part.m2 for part in parts) + between)


def coalesce_batches(batches: Iterable[pa.Table | pa.RecordBatch]) -> Iterator[pa.Table]:
    """Combine small tables into larger tables, because each table costs a pass over its
    columns.
    """
    pending: list[pa.Table] = []
    rows = 0
    size = 0
    for batch in batches:
        table = pa.Table.from_batches([batch]) if isinstance(batch, pa.RecordBatch) else batch
        is_full = rows + len(table) > _TOGETHER_ROWS or size + table.nbytes > _TOGETHER_BYTES
        if pending and (is_full or table.schema != pending[0].schema):
            yield pa.concat_tables(pending)
            pending = []
            rows = 0
            size = 0
        pending.append(table)
        rows += len(table)
        size += table.nbytes
    if pending:
        yield pa.concat_tables(pending)


def _count_columns(
    bins: Mapping[str, Bins],
    table: pa.Table,
    groups: _Groups,
) -> Iterator[tuple[str, ColumnCounts]]:
    """Yield the name and the fields of each column, as `_count_column`, then of each
    projection (`relations.py`).
    """
    tables = relation_tables(bins)
    directions = len(PROJECTIONS) if tables else 0
    sums = np.zeros((len(table), directions), np.float32)
    for name, column in feature_columns(table, bins):
        counted = _count_column(column, bins.get(name), groups)
        if name in tables and "codes" in counted:
            sums += tables[name].take(counted["codes"], axis=0)
        yield name, counted
    for name, values in zip(PROJECTIONS, sums.T, strict=False):
        frozen = bins[name]
        if isinstance(frozen, OrderedBins):  # A projection needs only its histogram.
            codes = frozen.bin_of(values)
            counts = groups.histograms(codes, frozen.size + 1)
            yield name, {"kind": repeat("number"), "codes": codes, "counts": counts}


def _count_column(
    column: pa.ChunkedArray,
    bins: Bins | None,
    groups: _Groups,
) -> ColumnCounts:
    """Return the fields of a `ColumnSketch` by name, each with a value per group. If
    the values do not fit the bins, they are only counted.
    """
    raw_column = decoded(column)
    if bins is None:
        return _count_missing(raw_column, 1, groups)
    # Booleans become 1 and 0 if the reference is numeric, and vice versa, because
    # graphs have numeric inputs.
    column = raw_column
    codes = bins.codes.keys() if isinstance(bins, CategoryBins) and bins.kind == "category" else ()
    if pa.types.is_boolean(column.type) and bins.kind == "number" and not bins.is_blank:
        column = column.cast(pa.int8())
    elif type_family(column.type) == "number" and codes and TRUTH.keys() >= codes:
        values = as_floats(column.drop_null())
        if np.isin(values[~np.isnan(values)], (0.0, 1.0)).all():
            is_missing = pc.is_null(column, nan_is_null=pa.types.is_floating(column.type))
            column = pc.if_else(is_missing, None, pc.not_equal(column, 0))
    family = type_family(column.type)
    # A reference without values accepts numbers and categories.
    takes = ("number", "category", "null") if bins.is_blank else (bins.kind, "null")
    if family in takes:
        count_values = _count_numbers if family == "number" else _count_texts
        counted = count_values(column, bins, groups)
        return {**counted, "arrow_type": repeat(_type_name(raw_column.type))}
    counted = _count_missing(column, bins.size + 1, groups)
    return {
        **counted,
        "mistyped": (groups.sizes() - counted["missing"]).tolist(),
    }


def _count_missing(column: pa.ChunkedArray, size: int, groups: _Groups) -> ColumnCounts:
    """Return the fields of a column whose values do not fit `size` - 1 bins."""
    is_missing = (
        pc.is_null(
            column,
            nan_is_null=pa.types.is_floating(column.type),
        )
        .to_numpy()
        .astype(bool)
    )
    counts = np.zeros((groups.count, size), np.int64)
    counts[:, -1] = groups.sizes(is_missing)
    return {
        "kind": repeat("other"),
        "arrow_type": repeat(_type_name(column.type)),
        "counts": counts,
        "missing": counts[:, -1].tolist(),
    }


def _type_name(kind: pa.DataType) -> str:
    """Return Arrow's type name without the storage variant: `string` for large_string
    and string_view.
    """
    return str(kind).removeprefix("large_").removesuffix("_view")


def _count_numbers(column: pa.ChunkedArray, bins: Bins, groups: _Groups) -> ColumnCounts:
    """Return the fields of a column of numbers. Numbers may also be categories, whose
    new values are counted.
    """
    values = as_floats(column)
    is_known = ~np.isnan(values)
    is_missing = ~is_known
    fields: ColumnCounts = {
        "kind": repeat("number"),
        "missing": groups.sizes(is_missing).tolist(),
        **_measure_moments(values, is_known, groups),
    }
    values = round_to_reference(values, bins.arrow_type)
    if isinstance(bins, OrderedBins):
        codes = bins.bin_of(values)
        fields["below"] = groups.sizes(values < bins.minimum).tolist()
        fields["above"] = groups.sizes(values > bins.maximum).tolist()
    else:
        distinct, inverse = np.unique(values[is_known], return_inverse=True)
        rare = len(bins.codes)
        code_list = [bins.codes.get(float(value), rare) for value in distinct]
        codes = np.zeros(len(values), np.int64)
        codes[is_known] = np.array(code_list, dtype=np.int64)[inverse]
        names = np.array([f"{value:g}" for value in distinct], dtype=object)
        occurring = _DistinctValues(names, hash_numbers(distinct), inverse)
        fields |= _fresh(bins, occurring, groups[is_known])
    codes[is_missing] = bins.size
    fields["codes"] = codes
    fields["counts"] = groups.histograms(codes, bins.size + 1)
    return fields


def _count_texts(column: pa.ChunkedArray, bins: Bins, groups: _Groups) -> ColumnCounts:
    """Return the fields of a column of categories, booleans or only missing values."""
    encoded = pc.cast(column, pa.large_string()).combine_chunks().dictionary_encode()
    is_known = encoded.indices.is_valid().to_numpy(zero_copy_only=False)
    inverse = encoded.indices.drop_null().to_numpy().astype(np.int64)
    distinct = encoded.dictionary
    codes = np.full(len(column), bins.size, np.int64)
    kind = bins.kind if pa.types.is_null(column.type) else "category"
    fields: ColumnCounts = {"kind": repeat(kind), "codes": codes}
    if isinstance(bins, CategoryBins):
        texts = distinct.to_numpy(zero_copy_only=False)
        values = _DistinctValues(texts, hash_texts(texts), inverse)
        codes[is_known] = bins.codes_of_texts(distinct, values.hashes)[inverse]
        fields |= _fresh(bins, values, groups[is_known])
    counts = groups.histograms(codes, bins.size + 1)
    fields["counts"] = counts
    fields["missing"] = counts[:, -1].tolist()
    return fields


def _measure_moments(numbers: Array, is_known: Array, groups: _Groups) -> ColumnCounts:
    """Return the range, and the number, mean and squared deviations of the finite
    numbers in each group. `is_known`, [N] bool, is False for NaN.
    """
    count = groups.count
    owners = groups.of_rows
    minimum = np.full(count, np.inf)
    maximum = np.full(count, -np.inf)
    if not is_known.all():
        numbers = numbers[is_known]
        owners = owners[is_known]
    np.minimum.at(minimum, owners, numbers)
    np.maximum.at(maximum, owners, numbers)
    has_numbers = np.bincount(owners, minlength=count) > 0
    is_finite = np.isfinite(numbers)
    if not is_finite.all():
        numbers = numbers[is_finite]
        owners = owners[is_finite]
    finite = np.bincount(owners, minlength=count)
    # The figures of a single group need no copy for each row.
    rows = np.zeros(1, np.int64) if count == 1 else owners
    with np.errstate(all="ignore"):
        # A plain sum could overflow.
        about: Array = np.bincount(owners, numbers / finite[rows], minlength=count)
        about = (
            about
            + np.bincount(
                owners,
                numbers - about[rows],
                minlength=count,
            )
            / finite
        )
        # exact for constants
        mean = np.where(
            finite > 0,
            np.where(minimum == maximum, minimum, about),
            np.nan,
        )
        m2 = np.bincount(
            owners,
            (numbers - mean[rows]) ** 2,
            minlength=count,
        )
    return {
        "minimum": np.where(has_numbers, minimum, np.nan).tolist(),
        "maximum": np.where(has_numbers, maximum, np.nan).tolist(),
        "finite": finite.tolist(),
        "mean": mean.tolist(),
        "m2": m2.tolist(),
    }


@dataclass(frozen=True, eq=False)
class _DistinctValues:
    """The distinct values of a column, [D] str, with their hashes, [D] uint64, and the
    value of each row, [M] int64.
    """

    names: Array
    hashes: Array
    of_rows: Array

    def label(self, value: int) -> str:
        """Return the name of the value with this index; a long name is cut, and ends
        with its hash.
        """
        name: str = self.names[value]
        if len(name) > _LONGEST:
            return f"{name[:60]}…{int(self.hashes[value]):016x}"
        return name


def _fresh(bins: CategoryBins, values: _DistinctValues, groups: _Groups) -> ColumnCounts:
    """Return row counts and names of values that the reference lacks, per group; empty
    if there are none.
    """
    first = np.searchsorted(bins.known, values.hashes)
    is_fresh = first == np.searchsorted(bins.known, values.hashes, side="right")
    if not is_fresh.any():
        return {}
    is_unseen = is_fresh[values.of_rows]
    keys, rows = np.unique(
        groups.of_rows[is_unseen] * len(is_fresh) + values.of_rows[is_unseen],
        return_counts=True,
    )
    # Each row count belongs to a group, ascending, and to a value.
    owners, members = np.divmod(keys, len(is_fresh))
    order = np.lexsort((values.hashes[members] / rows, owners))
    fresh = [Counter[str]() for _ in range(groups.count)]
    # `order` keeps `owners` sorted.
    is_kept = np.arange(len(order)) - np.searchsorted(owners, owners) < KEPT_VALUES
    for position in order[is_kept].tolist():
        fresh[owners[position]][values.label(members[position])] += int(rows[position])
    return {"unseen": groups.sizes(is_unseen).tolist(), "fresh": fresh}


def column_counts(profiles: Sequence[Profile], name: str, bins: Bins) -> Array:
    """Return a column's histograms, [P, K + 1] float64. The values of rows without the
    column count as missing.
    """
    counts = np.zeros((len(profiles), bins.size + 1))
    for position, profile in enumerate(profiles):
        column = profile.columns.get(name)
        if column is None or len(column.counts) != bins.size + 1:
            counts[position, -1] = profile.rows
        else:
            counts[position] = column.counts
            counts[position, -1] += profile.rows - column.rows
    return counts


def row_counts(profiles: Sequence[Profile]) -> Array:
    """Return the number of rows of each profile, [P] int64."""
    return np.array([profile.rows for profile in profiles], dtype=np.int64)
