"""Persistent days, days whose categories are replaced, and days whose level walks: the
rate of alarms.
"""

from collections.abc import Callable, Iterator

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
from benchmarks.drifting.worlds import (
    DAY_US,
    Rows,
    churning_days,
    dependent_days,
    persistent_days,
    reference_of,
    rolling_reference_of,
    walking_days,
)

_DAYS = 90
_LATER = 45
_ROWS = 60
"""The days of the reference, the later days (half as many), and the rows per day."""
_LAG = 7
_BEFORE = 54
"""The days of the log that `rolling:7d` reads (`core/spec/types.py`)."""
_STEP = 9
_REFERENCES = 60


def _independent_days(rng: np.random.Generator, days: int, rows: int) -> Rows:
    return dependent_days(rng, (0.0, 0.0), days, rows)


_WORLDS: dict[str, Callable[[np.random.Generator, int, int], Rows]] = {
    "independent days": _independent_days,
    "persistent days with a weekly cycle": persistent_days,
    "days with churn (categories are replaced)": churning_days,
    "days with a random walk": walking_days,
}


def of_slow_time(share: float) -> Iterator[Line]:
    references = max(round(_REFERENCES * share), 4)
    for what in _WORLDS:
        found = on_all_cores(_judged, [(what, seed) for seed in range(references)])
        came, rolling = zip(*found, strict=True)
        is_calm = what == next(iter(_WORLDS))
        yield rate_line(what, came) if is_calm else found_line(what, _plain(came), None)
        yield rate_line("the same days with `rolling:7d`", rolling)


def _judged(task: tuple[str, int]) -> tuple[Flags, Flags]:
    """Return the verdicts on the days after the reference, and those on some days that
    are compared with the same day of the week before.
    """
    what, seed = task
    rows = _WORLDS[what](np.random.default_rng([seed, 11]), _DAYS + _LATER, _ROWS)
    judge = Judge(reference_of(rows.between(0, _DAYS * DAY_US), _DAYS * DAY_US, DAY_US))
    verdicts = [judge(_day(rows, day), day * DAY_US) for day in range(_DAYS, _DAYS + _LATER)]
    rolling: Flags = []
    for day in range(_DAYS, _DAYS + _LATER, _STEP):
        past = rows.between((day - _BEFORE) * DAY_US, day * DAY_US)
        judge = Judge(rolling_reference_of(past, day * DAY_US, DAY_US, _LAG))
        rolling.append(is_alarm(judge(_day(rows, day), day * DAY_US)))
    return [is_alarm(verdict) for verdict in verdicts], rolling


def _day(rows: Rows, day: int) -> pa.Table:
    return rows.between(day * DAY_US, (day + 1) * DAY_US).table


def _plain(groups: tuple[Flags, ...]) -> list[list[bool]]:
    return [[bool(flag) for flag in flags] for flags in groups]
