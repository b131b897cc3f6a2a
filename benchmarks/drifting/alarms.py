"""Measure how often a window that is like the reference is called drifted, compared
with the nominal rate.
"""

from collections.abc import Iterator

import numpy as np

from benchmarks.drifting.judging import (
    RATE,
    Flags,
    Judge,
    Line,
    is_alarm,
    on_all_cores,
    rate_line,
)
from benchmarks.drifting.worlds import (
    CALM_DAYS,
    DAY_US,
    FIRST_US,
    HOUR_US,
    Rows,
    calm,
    dependent_days,
    independent_rows,
    reference_of,
)

SIZES = (30, 100, 300, 1_000, 3_000, 30_000)
_COEFFICIENTS = (0.6, 0.5, 0.4, 0.3, 0.2, 0.0)
_DAY_ROWS = 60
_REFERENCES = {size: 16 if size == 30_000 else 40 for size in SIZES}


def of_splits(share: float) -> Iterator[Line]:
    """Judge windows of independent rows with both kinds of reference; `share` is the
    part of the references that is used.
    """
    for null, judged in (("windows of the reference", _blocks), ("`independent_rows`", _samples)):
        every: list[Flags] = []
        for size in SIZES:
            groups = on_all_cores(
                judged,
                [(size, seed) for seed in range(_some(_REFERENCES[size], share))],
            )
            every += groups
            yield rate_line(f"independent rows, {size:,} per window, {null}", groups)
        yield rate_line(f"independent rows, all sizes together, {null}", every)


def of_calm_time(share: float) -> Iterator[Line]:
    """Judge simulated days that depend on each other, and days and hours held out from
    the calm months.
    """
    days = on_all_cores(_held_out_day, range(0, CALM_DAYS, max(round(1 / share), 1)))
    yield rate_line(
        "flights, January to March: each day compared with the others",
        [[flag] for flag, _ in days],
    )
    yield rate_line("the same at 10 %", [[flag] for _, flag in days], 0.1)
    weeks = on_all_cores(_weeks, range(_some(100, share)))
    yield rate_line("days that depend on the previous day, a week compared with 13", weeks)
    hours = on_all_cores(_held_out_hours, range(_some(4, share)))
    yield rate_line("flights, January to March: hours, held out in tenths", hours)


def _some(count: int, share: float) -> int:
    return max(round(count * share), 1)


def _blocks(task: tuple[int, int]) -> Flags:
    """Judge windows of `size` rows by a reference whose windows have at least a
    thousand rows and are thinned.
    """
    size, seed = task
    rng = np.random.default_rng([seed, size])
    blocks = 19 if size == 30_000 else 39
    rows = max(size, 1_000)
    reference = Rows(
        independent_rows(rng, blocks * rows),
        np.repeat(np.arange(blocks) * HOUR_US, rows),
    )
    judge = Judge(reference_of(reference, 1_000 * HOUR_US, HOUR_US))
    return [
        is_alarm(judge(independent_rows(rng, size), (1_000 + number) * HOUR_US))
        for number in range(10)
    ]


def _samples(task: tuple[int, int]) -> Flags:
    """Judge windows of `size` rows by a reference of 10,000 rows without times."""
    size, seed = task
    rng = np.random.default_rng([seed, size, 1])
    rows = Rows(independent_rows(rng, 10_000), np.zeros(10_000, np.int64))
    judge = Judge(reference_of(rows, 0, HOUR_US, has_times=False), independent_rows=True)
    return [is_alarm(judge(independent_rows(rng, size), number * HOUR_US)) for number in range(5)]


def _weeks(seed: int) -> Flags:
    """Return the verdicts on four weeks by a reference of 13."""
    rng = np.random.default_rng([seed, 7])
    rows = dependent_days(rng, _COEFFICIENTS, 91, _DAY_ROWS)
    judge = Judge(reference_of(rows, 91 * DAY_US, 7 * DAY_US))
    flags = []
    for number in range(4):
        window = dependent_days(rng, _COEFFICIENTS, 7, _DAY_ROWS)
        flags.append(is_alarm(judge(window.table, 91 * DAY_US + number)))
    return flags


def _held_out_day(day: int) -> tuple[bool | None, bool | None]:
    """Return True or None for the nominal rate, and the same for 10 %; None means that
    the day was not judged.
    """
    rows = calm()
    start_us = FIRST_US + day * DAY_US
    is_held = (rows.times >= start_us) & (rows.times < start_us + DAY_US)
    judge = Judge(reference_of(rows.take(~is_held), start_us, DAY_US))
    verdict = judge(rows.take(is_held).table, start_us)
    if "p_value" not in verdict.figures:
        return None, None
    return verdict.figures["p_value"] <= RATE, verdict.figures["p_value"] <= 0.1


def _held_out_hours(tenth: int) -> Flags:
    """Judge every hour of a random tenth of the hours by the other nine tenths."""
    rows = calm()
    hours = (rows.times - FIRST_US) // HOUR_US
    tenths = np.random.default_rng(0).permutation(CALM_DAYS * 24) % 10
    is_held = tenths[hours] == tenth
    judge = Judge(reference_of(rows.take(~is_held), FIRST_US, HOUR_US))
    flags = []
    for hour in np.unique(hours[is_held]):
        window = rows.take(hours == hour)
        if len(window.table) >= 30:
            flags.append(is_alarm(judge(window.table, FIRST_US + int(hour) * HOUR_US)))
    return flags
