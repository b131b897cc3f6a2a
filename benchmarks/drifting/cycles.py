"""Hours of traffic with a daily cycle, compared with all hours, or with the same hour
one or several days earlier.
"""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from benchmarks.drifting.judging import (
    Flags,
    Judge,
    Line,
    found_line,
    is_alarm,
    on_all_cores,
    rate_line,
)
from benchmarks.drifting.worlds import HOUR_US, Rows, busy_hours, reference_of, rolling_reference_of

_WAYS = {0: "compared with all hours of 14 days", 24: "`rolling:1d`", 168: "`rolling:7d`"}
"""By the lag in hours; 0 means that there is no lag."""
_PAST_HOURS = 14 * 24
_HOURS = range(2, 24, 6)
_SHIFTED_HOUR = 14
_SHIFT = -2.0
"""The level has its maximum at two in the afternoon. Lowered by this shift, it is like
the level of a morning.
"""
_WORLDS = 20


def of_cycles(share: float) -> Iterator[Line]:
    worlds = max(round(_WORLDS * share), 2)
    for lag, way in _WAYS.items():
        calm, shifted = zip(
            *on_all_cores(_judged, [(seed, lag) for seed in range(worlds)]),
            strict=True,
        )
        yield rate_line(f"hours with a daily cycle, {way}", calm)
        what = f"found: 2 deviations within a cycle of ± 3, {way}"
        yield found_line(what, [[bool(flag)] for flag in shifted], 0.9 if lag else None)


def _judged(task: tuple[int, int]) -> tuple[Flags, bool | None]:
    """Return verdicts on some unchanged hours of the day after the past, and on one
    shifted hour.
    """
    seed, lag = task
    rows = busy_hours(np.random.default_rng([seed, 9]), _PAST_HOURS + 24)
    flags: Flags = []
    shifted: bool | None = None
    for hour in _HOURS:
        start_us = (_PAST_HOURS + hour) * HOUR_US
        window = rows.between(start_us, start_us + HOUR_US).table
        judge = _judge_of(rows.between(hour * HOUR_US, start_us), start_us, lag)
        flags.append(is_alarm(judge(window, start_us)))
        if hour == _SHIFTED_HOUR:
            level = pa.array(window["level"].to_numpy() + _SHIFT)
            shifted = is_alarm(judge(window.set_column(0, "level", level), start_us))
    return flags, shifted


def _judge_of(past: Rows, start_us: int, lag: int) -> Judge:
    if lag:
        return Judge(rolling_reference_of(past, start_us, HOUR_US, lag))
    return Judge(reference_of(past, start_us, HOUR_US))
