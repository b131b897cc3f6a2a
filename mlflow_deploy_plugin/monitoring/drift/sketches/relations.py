"""Relations between columns: eight random projections of the row, which are counted and judged like numeric columns.

If only correlations change, the distribution of every column stays the same, but the distribution of sums of columns
changes. A row is standardised, and projected on eight fixed random directions (Johnson and Lindenstrauss, Contemporary
Mathematics 26, 1984). Numbers are limited to four deviations, so that a sentinel like -9999 does not dominate. Each of
the ten most frequent values of a category is 1 or 0, and a missing value contributes nothing.

The contribution of a column is looked up by the column's bin. All columns with bins participate, including predictions
and the parts of lists. The contributions are multiples of 2**-14, so that float32 sums are exact: they depend neither
on the order of the columns nor on the batches.
"""

import math
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np

from mlflow_deploy_plugin.monitoring.drift.sketches.bins import Bins, CategoryBins, OrderedBins, freeze_bins
from mlflow_deploy_plugin.monitoring.drift.sketches.columns import ColumnValues
from mlflow_deploy_plugin.runtime.feeds import Array

RELATIONS = "relations between columns"
"""The subject of findings about the projections."""
PROJECTIONS = tuple(f"_relations.{number}" for number in range(8))
"""The names of the projections in profiles. A column of the data cannot have such a name (`columns.OWN_PREFIX`)."""
_FREQUENT = 10
_REACH = 4.0
_GRAIN = 2.0**14
_SAMPLED, _MOST_VALUES = 50_000, 10_000_000
_FEWEST = 30
"""The number of rows below which no correlation is reported."""


def without_projections(names: Collection[str]) -> list[str]:
    """Return the names of columns, in the same order."""
    return [name for name in names if name not in PROJECTIONS]


def shown_name(name: str) -> str:
    """Return the name of a column for messages and metrics, which is the same for all projections."""
    return RELATIONS if name in PROJECTIONS else name


def relation_tables(bins: Mapping[str, Bins]) -> Mapping[str, Array]:
    """Return the contributions of the participating columns to the projections, by column: [K + 1, 8] float32 for each
    bin of the column, then for missing values; empty without projections."""
    first = bins.get(PROJECTIONS[0])
    return first.tables if isinstance(first, OrderedBins) else {}


def sample_rows(rows: int, columns: int) -> Array:
    """Return the indices of at most 50,000 rows of the reference, on which projections are frozen; fewer if there are
    many columns. The choice is random, with a fixed seed."""
    return np.random.default_rng(0).permutation(rows)[: min(_SAMPLED, _MOST_VALUES // max(columns, 1))]


def freeze_relations(bins: Mapping[str, Bins], sample: Mapping[str, ColumnValues]) -> dict[str, Bins]:
    """Return the bins of the projections, frozen on a sample of the reference. The result is empty if fewer than two
    columns vary."""
    tables: dict[str, Array] = {}
    for name, frozen in bins.items():
        codes = frozen.encode(sample[name])
        scores = _scores(frozen, np.bincount(codes[codes >= 0], minlength=frozen.size))
        if scores.any():
            directions = np.random.default_rng(zlib.crc32(name.encode()))
            tables[name] = scores @ directions.normal(size=(scores.shape[1], len(PROJECTIONS)))
    scale = _GRAIN / math.sqrt(max(len(tables), 1))
    tables = {name: (np.rint(table * scale) / _GRAIN).astype(np.float32) for name, table in tables.items()}
    projected = project(tables, bins, sample) if len(tables) > 1 else {}
    return {
        name: replace(own, minimum=-math.inf, maximum=math.inf, tables=tables)
        for name, own in ((name, freeze_bins(feature)) for name, feature in projected.items())
        if isinstance(own, OrderedBins)
    }


def project(
    tables: Mapping[str, Array], bins: Mapping[str, Bins], features: Mapping[str, ColumnValues]
) -> dict[str, ColumnValues]:
    """Return the projections of the rows in `features` by name; `tables` are the `relation_tables`."""
    sums = np.zeros((max(len(features[name].values) for name in tables), len(PROJECTIONS)))
    for name, table in tables.items():
        sums += table[bins[name].encode(features[name])]  # The code -1 is the last row.
    return {name: ColumnValues(name, "number", sums[:, number]) for number, name in enumerate(PROJECTIONS)}


def _scores(bins: Bins, counts: Array) -> Array:
    """Return the standardised value of each bin, then of missing values, [K + 1, D] float64, divided by the square root
    of D. D is 1 for a number, and the number of frequent values otherwise. `counts` are the rows per bin, [K]."""
    shares = counts / max(counts.sum(), 1)
    if isinstance(bins, OrderedBins):
        below = np.cumsum(shares)
        middle = bins.positions[np.searchsorted(below, below[-1] / 2)]
        values = np.clip((bins.positions - middle) / bins.scale, -_REACH, _REACH)[:, None]
    else:
        values = np.eye(bins.size)[:, : min(len(bins.codes), _FREQUENT)]
    centred = values - shares @ values
    deviations = np.sqrt(shares @ np.square(centred))
    scores = np.clip(centred / np.where(deviations > 0, deviations, np.inf), -_REACH, _REACH)
    padded: Array = np.vstack([scores, np.zeros((1, scores.shape[1]))]) / math.sqrt(max(scores.shape[1], 1))
    return padded


def correlation_change(bins: Mapping[str, Bins], pairs: Sequence[tuple[ColumnValues, ColumnValues]]) -> str:
    """Return the two columns whose correlation changed most from the reference to the window, with both values, such as
    `correlation of temp and humid +0.62 → -0.10`; empty if there are too few rows. `pairs` has [N] values of the
    reference and [M] values of the window per column."""
    columns: list[str] = []
    titles: list[str] = []
    sides: tuple[list[Array], list[Array]] = [], []
    for left, right in pairs:
        if left.name in relation_tables(bins) and left.kind == right.kind == (frozen := bins[left.name]).kind:
            codes = frozen.encode(left)
            scores = _scores(frozen, np.bincount(codes[codes >= 0], minlength=frozen.size))
            for rows, own in zip(sides, (codes, frozen.encode(right)), strict=True):
                rows += list(scores[own].T)
            columns += [left.name] * scores.shape[1]
            values = [f"={value}" for value in frozen.codes] if isinstance(frozen, CategoryBins) else [""]
            titles += [f"{left.name}{value}" for value in values[: scores.shape[1]]]
    if len({*columns}) < 2 or min(len(rows[0]) for rows in sides) < _FEWEST:
        return ""
    with np.errstate(invalid="ignore", divide="ignore"):  # A constant column has no correlation.
        before, now = (np.nan_to_num(np.corrcoef(rows)) for rows in sides)
    names = np.array(columns)
    change = np.where(names[:, None] != names, np.abs(now - before), -1)
    pair = np.unravel_index(change.argmax(), change.shape)
    return f"correlation of {titles[pair[0]]} and {titles[pair[1]]} {before[pair]:+.2f} → {now[pair]:+.2f}"
