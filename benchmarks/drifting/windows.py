"""Single windows at a nominal rate of 5 %: how often unchanged windows are called
drifted, and how often a change is found, by the monitor and by tests of single columns.
"""

from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from scipy import stats

from benchmarks.drifting.judging import RATE, Judge, Line, on_all_cores, share_line
from benchmarks.drifting.worlds import (
    HOUR_US,
    Array,
    Rows,
    independent_rows,
    reference_of,
)

_SIZES = (30, 100, 300, 1_000, 3_000)
_REFERENCES = 40
_BLOCKS = 39
_ROWS = 1_000
_TARGET = (50 * RATE, 150 * RATE)
Shift = Callable[[pa.Table, np.random.Generator], pa.Table]


def lines(share: float) -> Iterator[Line]:
    """Yield the lines of the table; `share` is the part of the windows that is used."""
    seeds = range(max(round(_REFERENCES * share), 2))
    for what, judged in (("", _blocks), (", `independent_rows`", _samples)):
        groups = on_all_cores(judged, [(size, seed) for size in _SIZES for seed in seeds])
        yield share_line(f"unchanged windows of independent rows{what}", groups, _TARGET)
    for what in _SHIFTS:
        found = on_all_cores(_changed, [(what, seed) for seed in seeds[: _REFERENCES // 8]])
        ours, tests = zip(*found, strict=True)
        target = None if what == "nothing" else (90.0, 100.0)
        yield share_line(f"changed: {what}", ours, target)
        yield share_line("the same, a test per column at 5 %", tests)


def _blocks(task: tuple[int, int]) -> list[bool]:
    """Judge windows of `size` rows by a reference whose windows have at least a
    thousand rows and are thinned.
    """
    size, seed = task
    rng = np.random.default_rng([seed, size])
    judge = _judge_of(rng, max(size, _ROWS))
    numbers = range(1_000, 1_010)
    return [judge(independent_rows(rng, size), number * HOUR_US) for number in numbers]


def _judge_of(rng: np.random.Generator, rows: int) -> Judge:
    times = np.repeat(np.arange(_BLOCKS) * HOUR_US, rows)
    reference = Rows(independent_rows(rng, _BLOCKS * rows), times)
    return Judge(reference_of(reference, 1_000 * HOUR_US, HOUR_US))


def _samples(task: tuple[int, int]) -> list[bool]:
    """Judge windows of `size` rows by a reference of 10,000 rows without times."""
    size, seed = task
    rng = np.random.default_rng([seed, size, 1])
    rows = Rows(independent_rows(rng, 10_000), np.zeros(10_000, np.int64))
    judge = Judge(reference_of(rows, 0, HOUR_US, has_times=False), independent_rows=True)
    return [judge(independent_rows(rng, size), number * HOUR_US) for number in range(5)]


def _set(table: pa.Table, name: str, values: Array | pa.Array) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, pa.array(values))


def _missing(table: pa.Table, rng: np.random.Generator) -> pa.Table:
    values = table["normal"].to_numpy().copy()
    start = int(rng.integers(0, len(values) - 80))
    values[start : start + 80] = np.nan
    return _set(table, "normal", values)


def _unseen(table: pa.Table, rng: np.random.Generator) -> pa.Table:
    is_new = pa.array(rng.random(len(table)) < 0.15)
    return _set(table, "four", pc.if_else(is_new, "new", table["four"]))


_SHIFTS: dict[str, Shift] = {
    "nothing": lambda table, _: table,
    "mean of one of 8 columns + 0.25 σ": lambda table, _: _set(
        table, "normal", table["normal"].to_numpy() + 0.25
    ),
    "8 % missing in a burst": _missing,
    "15 % an unseen category": _unseen,
}


def _changed(task: tuple[str, int]) -> tuple[list[bool], list[bool]]:
    """Return the verdicts on six changed windows, by the monitor and by the tests."""
    what, seed = task
    rng = np.random.default_rng([seed, 3])
    judge = _judge_of(rng, _ROWS)
    sample = independent_rows(rng, 10_000).to_pandas()
    windows = [_SHIFTS[what](independent_rows(rng, _ROWS), rng) for _ in range(6)]
    ours = [judge(window, (1_000 + number) * HOUR_US) for number, window in enumerate(windows)]
    return ours, [_is_any_column_different(sample, window.to_pandas()) for window in windows]


def _is_any_column_different(sample: pd.DataFrame, window: pd.DataFrame) -> bool:
    """Return True if a test of Kolmogorov and Smirnov (numbers) or a chi-squared test
    (texts) of a column has a p-value below 5 %.
    """
    values = []
    for name in sample:
        if sample[name].dtype.kind in "fiu":
            numbers = sample[name].dropna(), window[name].dropna()
            values.append(stats.ks_2samp(*numbers, method="asymp").pvalue)
        else:
            counts = pd.DataFrame({0: sample[name].value_counts(), 1: window[name].value_counts()})
            values.append(stats.chi2_contingency(counts.fillna(0)).pvalue)
    return bool(min(values) < RATE)
