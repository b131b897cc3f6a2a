"""Measure the false alarms of rows that depend on each other or have very heavy tails,
and of a number of rows that grows. Nothing else changes.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import pyarrow as pa

from benchmarks.drifting.judging import Line
from benchmarks.drifting.worlds import Array
from benchmarks.over_time.moving import year_lines
from benchmarks.over_time.streams import Stream, World, some, stream_of

_STREAMS = 40
_REFERENCE = 90
_DAYS = 365
_WORLD = World(6, 0.2, 400)
_MOST = 1.5
_CUSTOMERS = (8, 25)
_BATCH = (1, 60)
_ALIKE = 0.1
"""The deviation of the rows of a customer, of which the customers have 1."""
_BURSTS = 0.1
_BURST = (0.1, 0.4)
_GROWTH = 0.25


def lines(share: float) -> Iterator[Line]:
    """Yield the lines of the table; `share` is the part of the streams that is used."""
    for what, make in WORLDS.items():
        yield from year_lines(what, make, some(_STREAMS, share), _MOST)


def _stream(columns: dict[str, Array], counts: Array) -> Stream:
    numbers = np.repeat(np.arange(len(counts)), counts)
    table = pa.table({name: pa.array(each, from_pandas=True) for name, each in columns.items()})
    return stream_of(table, numbers, _WORLD, _REFERENCE, _DAYS)


def _batches(seed: int) -> Stream:
    """Return a stream of customers, each of whom sends rows that are alike."""
    rng = np.random.default_rng([seed, 71])
    days = _REFERENCE + _DAYS
    customers = rng.integers(_CUSTOMERS[0], _CUSTOMERS[1] + 1, days)
    sizes = rng.integers(_BATCH[0], _BATCH[1] + 1, customers.sum())
    counts = np.add.reduceat(sizes, np.cumsum(customers) - customers)
    columns: dict[str, Array] = {}
    for number in range(4):
        values = np.repeat(rng.normal(size=len(sizes)), sizes)
        columns[f"x{number}"] = values + _ALIKE * rng.normal(size=len(values))
    names = np.array([f"product {name}" for name in range(12)], object)
    shares = 1 / np.arange(1, 13)
    drawn = rng.choice(12, len(sizes), p=shares / shares.sum())
    columns["product"] = np.repeat(names[drawn], sizes)
    columns["is_new"] = np.repeat(rng.random(len(sizes)) < 0.2, sizes)
    return _stream(columns, counts)


def _normal(rng: np.random.Generator, counts: Array) -> dict[str, Array]:
    values = np.repeat(_WORLD.levels(rng, len(counts)), counts, axis=0)
    values += rng.normal(size=values.shape)
    return {f"x{number}": column for number, column in enumerate(values.T)}


def _bursts(seed: int) -> Stream:
    """Return a stream in which one column lacks a part of its values on some days."""
    rng = np.random.default_rng([seed, 72])
    days = _REFERENCE + _DAYS
    counts = np.full(days, _WORLD.rows)
    columns = _normal(rng, counts)
    names = [*columns]
    for day in np.flatnonzero(rng.random(days) < _BURSTS).tolist():
        name = names[rng.integers(len(names))]
        is_missing = rng.random(_WORLD.rows) < rng.uniform(*_BURST)
        columns[name][day * _WORLD.rows + np.flatnonzero(is_missing)] = np.nan
    return _stream(columns, counts)


def _heavy(seed: int) -> Stream:
    """Return a stream of independent rows whose columns have very heavy tails."""
    rng = np.random.default_rng([seed, 73])
    counts = np.full(_REFERENCE + _DAYS, _WORLD.rows)
    rows = int(counts.sum())
    columns = {
        "amount": np.exp(2 * rng.normal(size=rows)),
        "size": 1 + rng.pareto(1.3, rows),
        "change": rng.standard_t(1.5, rows),
    }
    return _stream(columns, counts)


def _growing(yearly: float, seed: int) -> Stream:
    """Return a stream whose number of rows grows and has a cycle of a week."""
    rng = np.random.default_rng([seed, 74])
    day = np.arange(_REFERENCE + _DAYS)
    logs = math.log1p(yearly) * day / 365 + 0.06 * rng.normal(size=len(day))
    counts = rng.poisson(_WORLD.rows * np.where(day % 7 >= 5, 0.7, 1.1) * np.exp(logs))
    return _stream(_normal(rng, counts), counts)


WORLDS: dict[str, Callable[[int], Stream]] = {
    "8 to 25 customers a day, each with 1 to 60 rows alike": _batches,
    "a tenth of the days lack 10 to 40 % of one of six columns": _bursts,
    "log-normal (2), Pareto (1.3), t (1.5)": _heavy,
    "25 % more rows per year": partial(_growing, _GROWTH),
}
