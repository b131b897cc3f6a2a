"""Sketches: all that a verdict needs of a column, in a size that depends on its bins and not on its rows.

A sketch holds the histogram over bins that are frozen on the reference, counts of what lies beyond the reference, the
range, the moments and the registers of a HyperLogLog (`hyperloglog.py`). Two sketches over the same bins merge exactly:
counts add, the moments follow Chan, Golub, LeVeque (Updating formulae and a pairwise algorithm for computing sample
variances, COMPSTAT 1982). Merging is associative and commutative, up to rounding in the moments alone, so that hours,
partitions and batches may be merged in any order.

No column is skipped: one that cannot be judged, for its type or for want of bins, has a sketch of kind "other" that
says how many rows it has, how many of them are missing and of which type it is.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import repeat
from typing import Literal

import numpy as np
import pyarrow as pa

from mlflow_deploy_plugin.inference_log import summarise_lists
from mlflow_deploy_plugin.monitoring.drift.sketches.bins import Bins
from mlflow_deploy_plugin.monitoring.drift.sketches.columns import OWN_PREFIX, Array
from mlflow_deploy_plugin.monitoring.drift.sketches.counting import count_column
from mlflow_deploy_plugin.monitoring.drift.sketches.hyperloglog import REGISTERS, estimate_distinct, hash_texts

SketchKind = Literal["number", "category", "other"]

SHOWN_VALUES = 20
KEPT_VALUES = 200
_TOGETHER_ROWS = 65_536
_TOGETHER_BYTES = 64 * 2**20
_TYPE_SEPARATOR = " | "


@dataclass(frozen=True, eq=False)
class ColumnSketch:
    """One column over some rows.

    Attributes:
        kind: of the bins that it is counted over; "other": it has none, or its values do not fit them.
        arrow_type: of the values, as Arrow writes it; more than one joined by " | ", where files differ.
        counts: [K + 1] int64 over the frozen bins, the missing values last; "other": [1], the missing values alone
            where there are no bins.
        rows: that have the column; the rows of the profile that lack it altogether are not among them.
        missing: null or NaN.
        mistyped: rows whose value is of a type that the bins cannot take: text for numbers, numbers for text.
        below, above: numbers outside of the reference's own range.
        unseen: rows whose category the reference lacks. They are counted among the rare ones, too.
        fresh: such categories and their rows: all, or the 200 whose hashes are smallest (a fair sample, which merges
            exactly: bottom-k, Cohen and Kaplan, PODC 2007). Those of more than 80 characters are shortened.
        registers: [1024] uint8, the HyperLogLog of the known values.
        minimum, maximum: of the numbers; NaN where there are none.
        finite: numbers that are neither missing nor infinite; mean, m2: of them, m2 the sum of squared deviations.
        expected_type: that of the reference; empty if there are no bins.
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
    registers: Array = field(default_factory=lambda: np.zeros(REGISTERS, np.uint8))
    minimum: float = math.nan
    maximum: float = math.nan
    finite: int = 0
    mean: float = math.nan
    m2: float = 0.0
    expected_type: str = ""

    @property
    def distinct(self) -> float:
        """The number of different values, with a standard error of 3 %."""
        return estimate_distinct(self.registers)

    @property
    def deviation(self) -> float:
        """The standard deviation of the finite numbers; NaN if there are none."""
        return math.sqrt(self.m2 / self.finite) if self.finite else math.nan

    @property
    def unseen_values(self) -> dict[str, int]:
        """At most 20 of the categories that the reference lacks, the most frequent first, with their rows."""
        return dict(sorted(self.fresh.items(), key=lambda entry: (-entry[1], entry[0]))[:SHOWN_VALUES])


_NOTHING = ColumnSketch("", "other", "", np.zeros(1, np.int64), 0)
_FIELDS = [(one.name, getattr(_NOTHING, one.name)) for one in fields(ColumnSketch)]
"""Names in the order of the constructor, and what stands where a column has none; shared, since nobody changes it."""


@dataclass(frozen=True, eq=False)
class Profile:
    """The columns of some rows, by name; columns that the reference has and these rows lack are not among them."""

    rows: int
    columns: Mapping[str, ColumnSketch]


def sketch_batches(bins: Mapping[str, Bins], batches: Iterable[pa.Table | pa.RecordBatch]) -> Profile:
    """Return the profile of all rows of the batches, whose columns may differ.

    Columns whose name begins with an underscore are the log's own and are left out; columns of lists are summarised
    (`inference_log/columns.py`).
    """
    return merge(
        [sketch_groups(bins, table, np.zeros(len(table), np.int64), 1)[0] for table in coalesce_batches(batches)]
    )


def sketch_groups(bins: Mapping[str, Bins], table: pa.Table, groups: Array, count: int) -> list[Profile]:
    """Return a profile of each group of the table's rows, all from one pass.

    Args:
        groups: [N] int64, the group of each row, from 0 to count - 1.
    """
    rows = np.bincount(groups, minlength=count)
    amounts = rows.tolist()
    columns: list[dict[str, ColumnSketch]] = [{} for _ in range(count)]
    summarised = summarise_lists(table, bins)
    for name in summarised.column_names:
        if name.startswith(OWN_PREFIX):
            continue
        frozen = bins.get(name)
        counted = count_column(summarised.column(name), frozen, groups, count, rows, KEPT_VALUES)
        expected = (frozen.arrow_type or frozen.kind) if frozen else ""
        given = {"name": repeat(name), "rows": amounts, "expected_type": repeat(expected), **counted}
        # by position: of hours there are many, and keywords cost as much as counting does
        in_order = (given.get(key, repeat(default)) for key, default in _FIELDS)
        for group, values in zip(columns, zip(*in_order, strict=False), strict=True):
            group[name] = ColumnSketch(*values)
    return [Profile(number, group) for number, group in zip(amounts, columns, strict=True)]


def merge(profiles: Iterable[Profile]) -> Profile:
    """Return the profile of the rows of all of them; without any, a profile without rows and columns."""
    given = list(profiles)
    if len(given) == 1:
        return given[0]
    parts: dict[str, list[ColumnSketch]] = {}
    for profile in given:
        for name, column in profile.columns.items():
            parts.setdefault(name, []).append(column)
    columns = {name: _merge_columns(parts[name]) for name in sorted(parts)}
    return Profile(sum(profile.rows for profile in given), columns)


def _merge_columns(parts: Sequence[ColumnSketch]) -> ColumnSketch:
    if len(parts) == 1:
        return parts[0]
    # a file in which every value is null has the type null, and says nothing
    telling = [part for part in parts if part.arrow_type != "null"] or parts
    judged: list[SketchKind] = [part.kind for part in telling if part.kind != "other"]
    types = {one for part in parts for one in part.arrow_type.split(_TYPE_SEPARATOR)}
    finite = np.array([part.finite for part in parts], np.float64)
    total = int(finite.sum())
    means = np.array([part.mean if part.finite else 0.0 for part in parts])
    mean = float((means * (finite / total)).sum()) if total else math.nan
    with np.errstate(over="ignore", invalid="ignore"):
        m2 = float(sum(part.m2 for part in parts) + (finite * (means - mean) ** 2).sum()) if total else 0.0
    return ColumnSketch(
        name=parts[0].name,
        kind=min(judged, default="other"),
        arrow_type=_TYPE_SEPARATOR.join(sorted(types - {"null"} or types)),
        counts=np.sum([part.counts for part in parts], axis=0),
        rows=sum(part.rows for part in parts),
        missing=sum(part.missing for part in parts),
        mistyped=sum(part.mistyped for part in parts),
        below=sum(part.below for part in parts),
        above=sum(part.above for part in parts),
        unseen=sum(part.unseen for part in parts),
        fresh=_merge_fresh([part.fresh for part in parts if part.fresh]),
        registers=np.max([part.registers for part in parts], axis=0),
        minimum=float(np.fmin.reduce([part.minimum for part in parts])),
        maximum=float(np.fmax.reduce([part.maximum for part in parts])),
        finite=total,
        mean=mean,
        m2=m2,
        expected_type=parts[0].expected_type,
    )


def _merge_fresh(parts: Sequence[Mapping[str, int]]) -> Mapping[str, int]:
    if len(parts) <= 1:
        return parts[0] if parts else {}
    total: dict[str, int] = {}
    for part in parts:
        for value, count in part.items():
            total[value] = total.get(value, 0) + count
    values = list(total)
    order = np.argsort(hash_texts(values), kind="stable")[:KEPT_VALUES]
    return {values[position]: total[values[position]] for position in order}


def coalesce_batches(batches: Iterable[pa.Table | pa.RecordBatch]) -> Iterator[pa.Table]:
    """Yield the same rows in tables of some size, since each table costs a pass over its columns."""
    held: list[pa.Table] = []
    rows = size = 0
    for batch in batches:
        table = pa.Table.from_batches([batch]) if isinstance(batch, pa.RecordBatch) else batch
        is_full = rows + len(table) > _TOGETHER_ROWS or size + table.nbytes > _TOGETHER_BYTES
        if held and (is_full or table.schema != held[0].schema):
            yield pa.concat_tables(held)
            held, rows, size = [], 0, 0
        held.append(table)
        rows += len(table)
        size += table.nbytes
    if held:
        yield pa.concat_tables(held)
