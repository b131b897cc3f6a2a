"""Measure how often changes are found: injected shifts, and the later months of New
York's flights, compared with other methods on the same rows.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from benchmarks.drifting.judging import Judge, Line, found_line, is_alarm, on_all_cores
from benchmarks.drifting.others import P_LIMIT, Others
from benchmarks.drifting.worlds import (
    CALM_DAYS,
    DAY_US,
    FIRST_US,
    HOUR_US,
    Array,
    Rows,
    calm,
    flights,
    independent_rows,
    month_of,
    reference_of,
)

Shift = Callable[[pa.Table, np.random.Generator], pa.Table]
Found = dict[str, list[bool]]

ROWS = 1_000
BLOCKS = 39
COLUMNS = (
    "ours, contiguous",
    "ours, `independent_rows`",
    "Evidently, data set",
    "Evidently, any column",
)
BESIDE = ("PSI > 0.2, any column", "KS/χ² p < 0.05, any column", "the same, Bonferroni")
_WINDOWS = 6
_WITH_EVIDENTLY = 2
"""The windows per reference, and the number of references whose first window is also
judged by Evidently.
"""
_SAMPLE = 10_000
_FIFTY = 50
_FIFTY_NAME = "one column of 50: mean + 0.3 σ"
_TO_FIND = 0.9


def _set(table: pa.Table, name: str, values: Array | pa.Array) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, pa.array(values))


def _mean(table: pa.Table, rng: np.random.Generator) -> pa.Table:
    return _set(table, "normal", table["normal"].to_numpy() + 0.25)


def _scale(table: pa.Table, rng: np.random.Generator) -> pa.Table:
    return _set(table, "normal", table["normal"].to_numpy() * 1.4)


def _swap(table: pa.Table, rng: np.random.Generator) -> pa.Table:
    is_swapped = pa.array(rng.random(len(table)) < 0.3)
    return _set(
        table,
        "four",
        pc.if_else(pc.and_(is_swapped, pc.equal(table["four"], "c0")), "c3", table["four"]),
    )


def _missing(table: pa.Table, rng: np.random.Generator) -> pa.Table:
    values = table["normal"].to_numpy().copy()
    start = int(rng.integers(0, len(values) - 80))
    values[start : start + 80] = np.nan
    return _set(table, "normal", values)


def _unseen(table: pa.Table, rng: np.random.Generator) -> pa.Table:
    is_new = pa.array(rng.random(len(table)) < 0.15)
    return _set(table, "four", pc.if_else(is_new, "new", table["four"]))


SHIFTS: Mapping[str, Shift] = {
    "nothing (false alarms)": lambda table, rng: table,
    "mean of one of 8 columns + 0.25 σ": _mean,
    "scale of one of 8 columns × 1.4": _scale,
    "30 % of the first category swapped": _swap,
    "8 % missing in a burst": _missing,
    "15 % an unseen category": _unseen,
}


def injected(share: float, lines: list[Line]) -> Iterator[str]:
    """Yield the rows of the table, which contain the share of windows called drifted,
    and add the lines with targets to `lines`.
    """
    yield f"| what changed | {' | '.join((*COLUMNS, *BESIDE))} |"
    yield "|---" * (len(COLUMNS) + len(BESIDE) + 1) + "|"
    references = max(round(5 * share), 2)
    for name in (*SHIFTS, _FIFTY_NAME):
        one = on_all_cores(_injected, [(name, seed) for seed in range(references)])
        shares = [
            _share([flag for found in one for flag in found[column]])
            for column in (*COLUMNS, *BESIDE)
        ]
        if not name.startswith("nothing"):
            lines.append(
                found_line(f"found: {name}", [found[COLUMNS[0]] for found in one], _TO_FIND),
            )
        yield f"| {name} | {' | '.join(shares)} |"


def _share(flags: list[bool]) -> str:
    if flags:
        return f"{sum(flags) / len(flags):.0%} of {len(flags)}"
    return "–"


def _injected(task: tuple[str, int]) -> Found:
    name, seed = task
    if name == _FIFTY_NAME:
        return _one_of_fifty(seed)
    rng = np.random.default_rng([seed, 3])
    reference = Rows(
        independent_rows(rng, BLOCKS * ROWS),
        np.repeat(np.arange(BLOCKS) * HOUR_US, ROWS),
    )
    windows = [SHIFTS[name](independent_rows(rng, ROWS), rng) for _ in range(_WINDOWS)]
    return _verdicts(reference, windows, rng, seed < _WITH_EVIDENTLY)


def _one_of_fifty(seed: int) -> Found:
    rng = np.random.default_rng([seed, 4])

    def fifty(count: int, shift: float) -> pa.Table:
        values = rng.normal(size=(count, _FIFTY))
        values[:, 7] += shift
        return pa.table({f"x{number}": values[:, number] for number in range(_FIFTY)})

    reference = Rows(fifty(BLOCKS * ROWS, 0.0), np.repeat(np.arange(BLOCKS) * HOUR_US, ROWS))
    return _verdicts(reference, [fifty(ROWS, 0.3) for _ in range(_WINDOWS)], rng, seed == 0)


def _verdicts(
    reference: Rows,
    windows: list[pa.Table],
    rng: np.random.Generator,
    with_evidently: bool,
) -> Found:
    """Return the verdict of each method on each window; the other methods receive
    10,000 rows of the reference.
    """
    found: Found = {column: [] for column in (*COLUMNS, *BESIDE)}
    sample = reference.take(
        np.sort(
            rng.choice(len(reference.table), min(_SAMPLE, len(reference.table)), replace=False)
        ),
    )
    ours = (
        Judge(reference_of(reference, 1_000 * HOUR_US, HOUR_US)),
        Judge(reference_of(sample, 0, HOUR_US, has_times=False), independent_rows=True),
    )
    others = Others(sample.table)
    for number, window in enumerate(windows):
        for column, judge in zip(COLUMNS[:2], ours, strict=True):
            found[column].append(bool(is_alarm(judge(window, (1_000 + number) * HOUR_US))))
        beside(found, others, window, with_evidently and number == 0)
    return found


def beside(found: Found, others: Others, window: pa.Table, with_evidently: bool) -> None:
    """Add the verdicts of the other methods on one window."""
    p_value, columns = others.smallest_p(window)
    for column, flag in zip(
        BESIDE,
        (others.psi(window), p_value < P_LIMIT, p_value < P_LIMIT / columns),
        strict=True,
    ):
        found[column].append(flag)
    if with_evidently:
        for column, flag in zip(COLUMNS[2:], others.evidently(window), strict=True):
            found[column].append(flag)


def months(share: float) -> Iterator[str]:
    """Yield the verdicts on the days of each later month, each judged separately, and
    on the complete month, with January to March as the reference.
    """
    shown = ("ours, days", *COLUMNS[2:], *BESIDE, "ours, the complete month (null; p)")
    yield f"| month | {' | '.join(shown)} |"
    yield "|---" * (len(shown) + 1) + "|"
    step = max(round(1 / share), 1)
    yield from on_all_cores(_month, [(month, step) for month in (0, *range(4, 13))])


def _month(task: tuple[int, int]) -> str:
    """Judge every few days of a month. Month 0 is the calm months, a few of whose days
    are held out together.
    """
    month, step = task
    days = (flights().times - FIRST_US) // DAY_US
    held = np.sort(np.random.default_rng(0).choice(CALM_DAYS, 9, replace=False))
    wanted = (
        held
        if month == 0
        else np.array([day for day in range(CALM_DAYS, 365) if month_of(day) == month])
    )
    judge, others = _beside_calm(tuple(held.tolist()) if month == 0 else ())
    found: Found = {column: [] for column in (*COLUMNS, *BESIDE)}
    judged = wanted[::step].tolist()
    for number, day in enumerate(judged):
        window = flights().take(days == day).table
        found[COLUMNS[0]].append(bool(is_alarm(judge(window, FIRST_US + day * DAY_US))))
        beside(found, others, window, number == len(judged) // 2)
    shares = [_share(found[column]) for column in (COLUMNS[0], *COLUMNS[2:], *BESIDE)]
    name = "January to March, held out" if month == 0 else f"{np.datetime64(f'2013-{month:02d}')}"
    return f"| {name} | {' | '.join(shares)} | {'–' if month == 0 else _whole(wanted)} |"


@cache
def _beside_calm(left_out: tuple[int, ...]) -> tuple[Judge, Others]:
    """Return January to March without some days, prepared once per process; the other
    methods receive 10,000 of its rows.
    """
    rows = calm()
    reference = rows.take(~np.isin((rows.times - FIRST_US) // DAY_US, left_out))
    chosen = np.random.default_rng(0).choice(len(reference.table), _SAMPLE, replace=False)
    judge = Judge(reference_of(reference, FIRST_US, DAY_US))
    return judge, Others(reference.take(np.sort(chosen)).table)


def _whole(days: Array) -> str:
    start_us = FIRST_US + int(days[0]) * DAY_US
    length_us = len(days) * DAY_US
    judge = Judge(reference_of(calm(), start_us, length_us))
    verdict = judge(flights().between(start_us, start_us + length_us).table, start_us)
    if "p_value" not in verdict.figures:
        return verdict.reason
    return f"{verdict.state} ({verdict.figures['p_value']:.3f})"
