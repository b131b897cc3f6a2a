"""Measure verdicts over time with a budget of one false alarm per year: false alarms,
red days, and when lasting shifts of a column's level are found.

    .venv/bin/python benchmarks/drift.py --share 0.1   # some minutes on two cores
    .venv/bin/python benchmarks/drift.py --share 0.1 --only changes

years     days without a change
changes   a lasting or single change of a column's level

The script prints each figure with its 95 % interval. A target is met if the figure is
inside it, and missed if the whole interval is outside. No setting is tuned on these
streams: the seeds are fixed.
"""

import math
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

# Each core runs one process.
os.environ.update(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from benchmarks.drifting.judging import (
    Array,
    Line,
    median_line,
    on_all_cores,
    part_options,
    share_line,
    yearly_line,
)
from benchmarks.drifting.streams import (
    REFERENCE,
    Change,
    Course,
    Stream,
    World,
    count_alarms,
    draw_rows,
    first_alarm,
    judge,
    simulate,
    stream_of,
)

_STREAMS = 80
_YEAR = 365
_LATER_DAYS = 120
_MOST = 1.5
_INDEPENDENT = World(10, 0.2, 400)
_SIX = World(6, 0.2, 400)
_WORLDS = {
    "independent days, 10 columns": _INDEPENDENT,
    "correlation 0.3, 20 columns": World(20, 0.15, 500, correlation=0.3),
    "weekly cycle, 5 columns": World(5, 0.3, 300, is_weekly=True),
    "correlation 0.8, 5 columns": World(5, 0.4, 300, correlation=0.8),
}
_DELAYS = {
    "+ 1": (Change(shift=1), 35),
    "+ 2": (Change(shift=2), 10),
    "+ 4": (Change(shift=4), 6),
    "+ 0.1 per day": (Change(slope=0.1), 22),
}
"""The change in deviations of days, and the most days until the alarm."""
_SINGLE_DAYS = (6.0, 8.0)


def year_lines(streams: range) -> Iterator[Line]:
    for what, make in _YEARS.items():
        years = on_all_cores(partial(_year, make), streams)
        counts = [count_alarms(year.alarms) for year in years]
        yield yearly_line(f"false alarms per year, {what}", counts, _YEAR / 365.25, _MOST)
        yield share_line("the same, red days", [year.red for year in years], (0, 3))


def change_lines(streams: range) -> Iterator[Line]:
    for what, (change, most) in _DELAYS.items():
        courses = on_all_cores(partial(_changed, change), streams)
        days = [first_alarm(one) for one in courses]
        yield median_line(f"{what} from a day on: days until the alarm", days, most)
        later = [one.red[one.alarms.argmax() :] for one in courses if one.alarms.any()]
        yield share_line("the same, red days after the alarm", later, (90, 100))
    for shift in _SINGLE_DAYS:
        courses = on_all_cores(partial(_changed, Change(shift=shift, days=1)), streams)
        found = [[bool(one.alarms[0])] for one in courses]
        yield share_line(f"+ {shift:g} on a single day is found", found)


def _year(make: Callable[[int], Stream], seed: int) -> Course:
    return judge(make(seed), 1.0)


def _changed(change: Change, seed: int) -> Course:
    return judge(simulate(_INDEPENDENT, seed, _LATER_DAYS, change), 1.0)


def _calm(world: World, seed: int) -> Stream:
    return simulate(world, seed, _YEAR, Change())


def _normal(rng: np.random.Generator, counts: Array) -> dict[str, Array]:
    return draw_rows(rng, _SIX.levels(rng, len(counts)), counts)


def _batches(seed: int) -> Stream:
    """Return a stream of 8 to 25 customers a day, each of whom sends 1 to 60 rows that
    are alike.
    """
    rng = np.random.default_rng([seed, 71])
    customers = rng.integers(8, 26, REFERENCE + _YEAR)
    sizes = rng.integers(1, 61, customers.sum())
    columns: dict[str, Array] = {}
    for number in range(4):
        values = np.repeat(rng.normal(size=len(sizes)), sizes)
        columns[f"x{number}"] = values + 0.1 * rng.normal(size=len(values))
    names = np.array([f"product {name}" for name in range(12)], object)
    columns["product"] = np.repeat(names[rng.zipf(1.7, len(sizes)).clip(max=12) - 1], sizes)
    return stream_of(columns, np.add.reduceat(sizes, np.cumsum(customers) - customers))


def _bursts(usual: float, seed: int) -> Stream:
    """Return a stream in which one column lacks 10 to 40 % of its values on a tenth of
    the days, and every column always lacks the `usual` share.
    """
    rng = np.random.default_rng([seed, 72])
    counts = np.full(REFERENCE + _YEAR, _SIX.rows)
    columns = _normal(rng, counts)
    for day in np.flatnonzero(rng.random(len(counts)) < 0.1).tolist():
        is_missing = rng.random(_SIX.rows) < rng.uniform(0.1, 0.4)
        column = columns[f"x{rng.integers(_SIX.columns)}"]
        column[day * _SIX.rows + np.flatnonzero(is_missing)] = np.nan
    if usual:
        for column in columns.values():
            column[rng.random(len(column)) < usual] = np.nan
    return stream_of(columns, counts)


def _heavy(seed: int) -> Stream:
    """Return a stream of independent rows whose columns have very heavy tails."""
    rng = np.random.default_rng([seed, 73])
    counts = np.full(REFERENCE + _YEAR, _SIX.rows)
    rows = int(counts.sum())
    columns = {
        "amount": np.exp(2 * rng.normal(size=rows)),
        "size": 1 + rng.pareto(1.3, rows),
        "change": rng.standard_t(1.5, rows),
    }
    return stream_of(columns, counts)


def _growing(seed: int) -> Stream:
    """Return a stream whose number of rows grows and has a cycle of a week."""
    rng = np.random.default_rng([seed, 74])
    day = np.arange(REFERENCE + _YEAR)
    logs = math.log(1.25) * day / 365 + 0.06 * rng.normal(size=len(day))
    counts = rng.poisson(_SIX.rows * np.where(day % 7 >= 5, 0.7, 1.1) * np.exp(logs))
    return stream_of(_normal(rng, counts), counts)


_YEARS: dict[str, Callable[[int], Stream]] = {
    **{what: partial(_calm, world) for what, world in _WORLDS.items()},
    "batches of 1 to 60 rows alike": _batches,
    "bursts of missing values": partial(_bursts, 0.0),
    "bursts of missing values, 2 % usually": partial(_bursts, 0.02),
    "very heavy tails: log-normal (2), Pareto (1.3), t (1.5)": _heavy,
    "25 % more rows per year": _growing,
}


PARTS = {"years": year_lines, "changes": change_lines}


def main() -> None:
    options = part_options(__doc__, PARTS)
    print("| | measured; 95 % interval | target | outcome |\n|---|---|---|---|")
    for name in options.only or PARTS:
        for line in PARTS[name](range(max(round(_STREAMS * options.share), 4))):
            print(line, flush=True)


if __name__ == "__main__":
    main()
