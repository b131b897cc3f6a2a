"""Relations between columns: eight random projections of the row, which are counted and
judged like numeric columns.

If only correlations change, the distribution of every column stays the same, but the
distribution of sums of columns changes. A row is standardised, and projected on eight
fixed random directions (Johnson and Lindenstrauss, Contemporary Mathematics 26, 1984).
Numbers are limited to four deviations, so that a sentinel like -9999 does not dominate.
Each of the ten most frequent values of a category is 1 or 0, and a missing value
contributes nothing.

The contribution of a column is looked up by the column's bin. All columns with bins
participate, including predictions and the parts of lists. The contributions are
multiples of 2**-14, so that float32 sums are exact: they depend neither on the order of
the columns nor on the batches.
"""

import math
import zlib
from collections.abc import Collection, Mapping
from typing import NamedTuple

import numpy as np

from mlflow_deploy_plugin.serve.runtime.feeds import Array
from mlflow_deploy_plugin.watch.drift.sketches.bins import Bins, CategoryBins, OrderedBins

RELATIONS = "relations between columns"
"""The subject of findings about the projections."""
PROJECTIONS = tuple(f"_relations.{number}" for number in range(8))
"""The names of the projections in profiles. A column of the data cannot have such a
name (`columns.OWN_PREFIX`).
"""
_FREQUENT = 10
_REACH = 4.0
_GRAIN = 2.0**14
_POSITIONS = np.linspace(-12, 12, 193)
"""The positions of a projection's bins, in standard deviations."""
_FEWEST = 30
"""The number of rows below which no correlation is reported."""


def without_projections(names: Collection[str]) -> list[str]:
    """Return the names of columns, in the same order."""
    return [name for name in names if name not in PROJECTIONS]


def shown_name(name: str) -> str:
    """Return the name of a column for messages and metrics, which is the same for all
    projections.
    """
    return RELATIONS if name in PROJECTIONS else name


def relation_tables(bins: Mapping[str, Bins]) -> Mapping[str, Array]:
    """Return the contributions of the participating columns to the projections, by
    column: [K + 1, 8] float32 for each bin of the column, then for missing values;
    empty without projections.
    """
    first = bins.get(PROJECTIONS[0])
    if isinstance(first, OrderedBins):
        return first.tables
    return {}


def freeze_relations(
    bins: Mapping[str, Bins],
    codes: Mapping[str, Array],
) -> dict[str, Bins]:
    """Return the bins of the projections, frozen on rows of the reference with these
    `codes` (`encode_columns`). The result is empty if fewer than two columns vary.
    """
    tables: dict[str, Array] = {}
    for name, frozen in bins.items():
        scores = _scores(frozen, codes[name])
        if scores.any():
            directions = np.random.default_rng(zlib.crc32(name.encode()))
            tables[name] = scores @ directions.normal(
                size=(
                    scores.shape[1],
                    len(PROJECTIONS),
                )
            )
    if len(tables) < 2:
        return {}
    scale = _GRAIN / math.sqrt(len(tables))
    tables = {
        name: (np.rint(table * scale) / _GRAIN).astype(np.float32) for name, table in tables.items()
    }
    sums = np.sum(
        [table[codes[name]] for name, table in tables.items()],
        axis=0,
        dtype=np.float64,
    )
    means = sums.mean(axis=0)
    deviations = np.maximum(sums.std(axis=0), 1 / _GRAIN)
    return {
        name: OrderedBins(mean + deviation * _POSITIONS, float(deviation), tables=tables)
        for name, mean, deviation in zip(PROJECTIONS, means, deviations, strict=True)
    }


def _scores(bins: Bins, codes: Array) -> Array:
    """Return the standardised value of each bin, then of missing values, [K + 1, D]
    float64, divided by the square root of D. D is 1 for a number, and the number of
    frequent values otherwise. `codes` are the bins of the rows, [N].
    """
    counts = np.bincount(codes, minlength=bins.size + 1)[:-1]
    shares = counts / max(counts.sum(), 1)
    if isinstance(bins, OrderedBins):
        standardised = (bins.positions - shares @ bins.positions) / bins.scale
        values = np.clip(standardised, -_REACH, _REACH)[:, None]
    else:
        values = np.eye(bins.size)[:, : min(len(bins.codes), _FREQUENT)]
    centred = values - shares @ values
    deviations = np.sqrt(shares @ np.square(centred))
    scores = np.clip(
        centred / np.where(deviations > 0, deviations, np.inf),
        -_REACH,
        _REACH,
    )
    dimensions = scores.shape[1]
    padded: Array = np.vstack(
        [
            scores,
            np.zeros((1, dimensions)),
        ]
    )
    return padded / math.sqrt(max(dimensions, 1))


class _Variable(NamedTuple):
    """A column of numbers, or one frequent value of a category, with its standardised
    values in rows of the reference and of the window.
    """

    column: str
    title: str
    before: Array
    now: Array


def correlation_change(
    bins: Mapping[str, Bins],
    before: Mapping[str, Array],
    now: Mapping[str, Array],
) -> str:
    """Return the two columns whose correlation changed most, with both values, such as
    `correlation of temp and humid +0.62 → -0.10`; empty if there are too few rows.

    Args:
        before: the codes of some rows of the reference, [N] per column.
        now: the codes of the rows of the window, [M] per column.
    """
    # A column of numbers is one variable, and each frequent category is one.
    variables = []
    for name in relation_tables(bins):
        if name in before and name in now:
            frozen = bins[name]
            titles = [name]
            if isinstance(frozen, CategoryBins):
                titles = [f"{name}={value}" for value in frozen.codes]
            for title, scores in zip(titles, _scores(frozen, before[name]).T, strict=False):
                variables.append(
                    _Variable(name, title, scores[before[name]], scores[now[name]]),
                )
    columns = np.array([variable.column for variable in variables])
    if len({*columns}) < 2:
        return ""
    if (
        min(
            len(variables[0].before),
            len(variables[0].now),
        )
        < _FEWEST
    ):
        return ""
    with np.errstate(invalid="ignore", divide="ignore"):  # A constant column has no correlation.
        old = np.nan_to_num(np.corrcoef([variable.before for variable in variables]))
        new = np.nan_to_num(np.corrcoef([variable.now for variable in variables]))
    change = np.where(
        columns[:, None] != columns,
        np.abs(new - old),
        -1,
    )
    pair = np.unravel_index(change.argmax(), change.shape)
    first, second = (variables[index].title for index in pair)
    return f"correlation of {first} and {second} {old[pair]:+.2f} → {new[pair]:+.2f}"
