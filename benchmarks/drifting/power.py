"""How often what changed is found: shifts that are put in, and the later months of New York's flights, beside the
verdicts that others give of the same rows."""

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from benchmarks.drifting import others
from benchmarks.drifting.judging import Judge, Line, is_alarm, on_all_cores
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

ROWS, BLOCKS = 1_000, 39
COLUMNS = ("ours, contiguous", "ours, `independent_rows`", "Evidently, data set", "Evidently, any column")
BESIDE = ("PSI > 0.2, any column", "KS/χ² p < 0.05, any column", "the same, Bonferroni")
_WINDOWS, _EVIDENTLY = 6, 1
_SAMPLE = 10_000
_FIFTY = 50


def _set(table: pa.Table, name: str, values: Array | pa.Array) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, pa.array(values))


def _mean(table: pa.Table, rng: np.random.Generator) -> pa.Table:
    return _set(table, "normal", table["normal"].to_numpy() + 0.25)


def _scale(table: pa.Table, rng: np.random.Generator) -> pa.Table:
    return _set(table, "normal", table["normal"].to_numpy() * 1.4)


def _swap(table: pa.Table, rng: np.random.Generator) -> pa.Table:
    is_swapped = pa.array(rng.random(len(table)) < 0.3)
    return _set(table, "four", pc.if_else(pc.and_(is_swapped, pc.equal(table["four"], "c0")), "c3", table["four"]))


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
    "15 % a category never seen": _unseen,
}


def injected(share: float) -> Iterator[str]:
    """Rows of the table; the lines say how many of the windows were called drifted."""
    yield f"| what changed | {' | '.join((*COLUMNS, *BESIDE))} |"
    yield "|---" * (len(COLUMNS) + len(BESIDE) + 1) + "|"
    references = max(round(5 * share), 2)
    found = on_all_cores(_injected, [(name, seed) for name in SHIFTS for seed in range(references)])
    found += on_all_cores(_one_of_fifty, range(references))
    for name in dict.fromkeys(name for name, _ in found):
        parts = [part for other, part in found if other == name]
        shares = [_share([flag for part in parts for flag in part[column]]) for column in (*COLUMNS, *BESIDE)]
        yield f"| {name} | {' | '.join(shares)} |"


def _share(flags: list[bool]) -> str:
    return f"{sum(flags) / len(flags):.0%} of {len(flags)}" if flags else "–"


def _injected(task: tuple[str, int]) -> tuple[str, Found]:
    name, seed = task
    rng = np.random.default_rng([seed, 3])
    reference = Rows(independent_rows(rng, BLOCKS * ROWS), np.repeat(np.arange(BLOCKS) * HOUR_US, ROWS))
    windows = [SHIFTS[name](independent_rows(rng, ROWS), rng) for _ in range(_WINDOWS)]
    return name, _verdicts(reference, windows, rng, _EVIDENTLY)


def _one_of_fifty(seed: int) -> tuple[str, Found]:
    rng = np.random.default_rng([seed, 4])

    def fifty(count: int, shift: float) -> pa.Table:
        values = rng.normal(size=(count, _FIFTY))
        values[:, 7] += shift
        return pa.table({f"x{number}": values[:, number] for number in range(_FIFTY)})

    reference = Rows(fifty(BLOCKS * ROWS, 0.0), np.repeat(np.arange(BLOCKS) * HOUR_US, ROWS))
    windows = [fifty(ROWS, 0.3) for _ in range(_WINDOWS)]
    return "one column of 50: mean + 0.3 σ", _verdicts(reference, windows, rng, 1 if seed < 2 else 0)


def _verdicts(reference: Rows, windows: list[pa.Table], rng: np.random.Generator, with_evidently: int) -> Found:
    """What each way says of each window; the others are given 10,000 rows of the reference."""
    found: Found = {column: [] for column in (*COLUMNS, *BESIDE)}
    sample = reference.take(
        np.sort(rng.choice(len(reference.table), min(_SAMPLE, len(reference.table)), replace=False))
    )
    ours = (
        Judge(reference_of(reference, 1_000 * HOUR_US, HOUR_US)),
        Judge(reference_of(sample, 0, HOUR_US, has_times=False), independent_rows=True),
    )
    for number, window in enumerate(windows):
        for column, judge in zip(COLUMNS[:2], ours, strict=True):
            found[column].append(bool(is_alarm(judge(window, (1_000 + number) * HOUR_US))))
        beside(found, sample.table, window, number < with_evidently)
    for judge in ours:
        judge.close()
    return found


def beside(found: Found, reference: pa.Table, window: pa.Table, with_evidently: bool) -> None:
    """Adds what the others say of one window."""
    p_value, columns = others.smallest_p(reference, window)
    for column, flag in zip(
        BESIDE,
        (others.psi(reference, window), p_value < others.P_LIMIT, p_value < others.P_LIMIT / columns),
        strict=True,
    ):
        found[column].append(flag)
    if with_evidently:
        for column, flag in zip(COLUMNS[2:], others.evidently(reference, window), strict=True):
            found[column].append(flag)


def months() -> Iterator[str]:
    """The days of each later month, each judged on its own, and the month as a whole; January to March left out."""
    shown = ("ours, days", *COLUMNS[2:], *BESIDE, "ours, the whole month (null; p)")
    yield f"| days of | {' | '.join(shown)} |"
    yield "|---" * (len(shown) + 1) + "|"
    yield from on_all_cores(_month, [0, *range(4, 13)])


def _month(month: int) -> str:
    """Month 0: the calm ones, a few of their days held out together."""
    rng = np.random.default_rng(month)
    rows = flights()
    days = (rows.times - FIRST_US) // DAY_US
    held = rng.choice(CALM_DAYS, 9, replace=False)
    wanted = np.sort(held) if month == 0 else np.array([day for day in range(CALM_DAYS, 365) if month_of(day) == month])
    is_reference = (days >= 0) & (days < CALM_DAYS) & ~(np.isin(days, held) & (month == 0))
    reference = rows.take(is_reference)
    sample = reference.take(np.sort(rng.choice(len(reference.table), _SAMPLE, replace=False))).table
    judge = Judge(reference_of(reference, FIRST_US, DAY_US))
    found: Found = {column: [] for column in (*COLUMNS, *BESIDE)}
    for number, day in enumerate(wanted.tolist()):
        window = rows.take(days == day).table
        found[COLUMNS[0]].append(bool(is_alarm(judge(window, FIRST_US + day * DAY_US))))
        beside(found, sample, window, number % 15 == 7)
    judge.close()
    shares = [_share(found[column]) for column in (COLUMNS[0], *COLUMNS[2:], *BESIDE)]
    name = "January to March, held out" if month == 0 else f"{np.datetime64(f'2013-{month:02d}')}"
    return f"| {name} | {' | '.join(shares)} | {'–' if month == 0 else _whole(wanted)} |"


def _whole(days: Array) -> str:
    start_us, length_us = FIRST_US + int(days[0]) * DAY_US, len(days) * DAY_US
    judge = Judge(reference_of(calm(), start_us, length_us))
    verdict = judge(flights().between(start_us, start_us + length_us).table, start_us)
    judge.close()
    if verdict.p_value is None:
        return verdict.reason
    return f"{verdict.state} ({verdict.null}; {verdict.p_value:.3f})"


def targets(rows: list[str]) -> Iterator[Line]:
    """What the table has to show."""
    for row in rows[2:]:
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        if not cells[0].startswith("nothing"):
            share = float(cells[1].split("%")[0]) / 100
            yield Line(f"found: {cells[0]}", cells[1], "≥ 90 %", share >= 0.9)
