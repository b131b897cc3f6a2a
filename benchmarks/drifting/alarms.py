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
    forward_flags,
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
from mlflow_deploy_plugin.core.errors import Refused

SIZES = (30, 100, 300, 1_000, 3_000, 30_000)
_COEFFICIENTS = (0.6, 0.5, 0.4, 0.3, 0.2, 0.0)
_DAY_ROWS = 60
_REFERENCES = {size: 16 if size == 30_000 else 40 for size in SIZES}


def of_splits(share: float) -> Iterator[Line]:
    """Judge windows of independent rows with both kinds of reference; `share` is the
    part of the references that is used.
    """
    for null, judged in (("contiguous null", _blocks), ("`independent_rows`", _samples)):
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
    for length, count, what in (
        (7, 91, "a week compared with 13, overlapping null"),
        (30, 90, "30 days compared with 90, bootstrap"),
    ):
        found = on_all_cores(_days, [(length, count, seed) for seed in range(_some(100, share))])
        yield rate_line(
            f"days that depend on the previous day, {what}",
            [flags for flags, _, _ in found],
        )
        rate = max(rate for _, _, rate in found)
        if rate:  # three months are too few to measure the rate
            forward = [flags for _, flags, _ in found]
            yield rate_line(
                f"the same, rate in the reports, measured forward in time, at {rate:.2g}",
                forward,
                rate,
            )
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
    flags = [
        is_alarm(judge(independent_rows(rng, size), (1_000 + number) * HOUR_US))
        for number in range(10)
    ]
    judge.close()
    return flags


def _samples(task: tuple[int, int]) -> Flags:
    """Judge windows of `size` rows by a reference of 10,000 rows without times."""
    size, seed = task
    rng = np.random.default_rng([seed, size, 1])
    rows = Rows(independent_rows(rng, 10_000), np.zeros(10_000, np.int64))
    judge = Judge(reference_of(rows, 0, HOUR_US, has_times=False), independent_rows=True)
    flags = [is_alarm(judge(independent_rows(rng, size), number * HOUR_US)) for number in range(5)]
    judge.close()
    return flags


def _days(task: tuple[int, int, int]) -> tuple[Flags, Flags, float]:
    """Return the verdicts on windows, the report's verdicts on the reference's own
    windows, and the rate of the latter.
    """
    length, days, seed = task
    rng = np.random.default_rng([seed, length])
    rows = dependent_days(rng, _COEFFICIENTS, days, _DAY_ROWS)
    judge = Judge(reference_of(rows, days * DAY_US, length * DAY_US))
    verdicts = []
    for number in range(4):
        window = dependent_days(rng, _COEFFICIENTS, length, _DAY_ROWS)
        verdicts.append(judge(window.table, days * DAY_US + number))
    judge.close()
    told = verdicts[0].held_out
    rate = 0.0 if isinstance(told, Refused) else told.rate
    return [is_alarm(verdict) for verdict in verdicts], forward_flags(verdicts[0]), rate


def _held_out_day(day: int) -> tuple[bool | None, bool | None]:
    """Return True or None for the nominal rate, and the same for 10 %; None means that
    the day was not judged.
    """
    rows = calm()
    start_us = FIRST_US + day * DAY_US
    is_held = (rows.times >= start_us) & (rows.times < start_us + DAY_US)
    judge = Judge(reference_of(rows.take(~is_held), start_us, DAY_US))
    verdict = judge(rows.take(is_held).table, start_us)
    judge.close()
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
    judge.close()
    return flags
