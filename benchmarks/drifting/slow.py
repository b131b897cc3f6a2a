"""Days that persist, whose categories are replaced, or whose level walks: what reports measure, beside what came."""

from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa

from benchmarks.drifting.judging import (
    RATE,
    Flags,
    Judge,
    Line,
    beside_line,
    forward_flags,
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
    independent_rows,
    persistent_days,
    reference_of,
    rolling_reference_of,
    walking_days,
)
from mlflow_deploy_plugin.errors import Refused
from mlflow_deploy_plugin.monitoring.drift.threshold.distribution import needed_windows

_DAYS, _LATER, _ROWS = 90, 45, 60
"""The reference, as long again as its later half what comes, and the rows of a day."""
_LAG, _BEFORE = 7, 54
"""`rolling:7d` reads the log so many days back (`spec/reference.py`)."""
_STEP = 9
_REFERENCES = 60


def _independent_days(rng: np.random.Generator, days: int, rows: int) -> Rows:
    return dependent_days(rng, (0.0, 0.0), days, rows)


_WORLDS: dict[str, Callable[[np.random.Generator, int, int], Rows]] = {
    "days that do not depend on each other": _independent_days,
    "days that persist, with a cycle of a week": persistent_days,
    "days with churn: categories are replaced": churning_days,
    "days that walk": walking_days,
}


def of_slow_time(share: float) -> Iterator[Line]:
    references = max(round(_REFERENCES * share), 4)
    for what in _WORLDS:
        found = on_all_cores(_judged, [(what, seed) for seed in range(references)])
        came, forward, said, rolling = zip(*found, strict=True)
        is_calm = what == next(iter(_WORLDS))
        yield rate_line(what, came) if is_calm else found_line(what, _plain(came), None)
        yield beside_line("the same as their reports measure it, forward in time", forward, came)
        if is_calm:
            yield found_line("reports that do not say that it is more than promised", [[not one] for one in said], 0.85)
        else:
            yield found_line(
                "reports that say that it is, or may be, more than promised", [[one] for one in said], 0.67
            )
        yield rate_line("the same days with `rolling:7d`", rolling)
    for made, what in (
        (True, "days of independent rows"),
        (False, "days that do not depend on each other, of rows that do"),
    ):
        judged = on_all_cores(_is_judged, [(made, seed) for seed in range(references)])
        right = [[is_judged == made] for is_judged in judged]
        yield found_line(f"`independent_rows` is {'judged' if made else 'refused'}: {what}", right, 0.95)


def _is_judged(task: tuple[bool, int]) -> bool:
    """Whether a day is judged with `independent_rows` beside days of which each has a tenth of its rows."""
    is_independent, seed = task
    rng = np.random.default_rng([seed, 12])
    table = independent_rows(rng, _DAYS * _ROWS) if is_independent else _independent_days(rng, _DAYS, _ROWS).table
    rows = Rows(table, _independent_days(rng, _DAYS, _ROWS).times)
    judge = Judge(reference_of(rows, _DAYS * DAY_US, DAY_US), independent_rows=True)
    verdict = judge(table.take(rng.integers(0, len(table), 10 * _ROWS)), _DAYS * DAY_US)
    judge.close()
    return verdict.state != "not judged"


def _judged(task: tuple[str, int]) -> tuple[Flags, Flags, bool, Flags]:
    """What is said of the days after the reference, what the report measures, whether it warns, and what is said of
    some of the days where each is compared with the one a week before."""
    what, seed = task
    rows = _WORLDS[what](np.random.default_rng([seed, 11]), _DAYS + _LATER, _ROWS)
    judge = Judge(reference_of(rows.between(0, _DAYS * DAY_US), _DAYS * DAY_US, DAY_US))
    verdicts = [judge(_day(rows, day), day * DAY_US) for day in range(_DAYS, _DAYS + _LATER)]
    judge.close()
    told = verdicts[0].held_out
    is_warned = verdicts[0].figures.get("independent_blocks", 0.0) < needed_windows(RATE) or (
        not isinstance(told, Refused) and told.is_beyond
    )
    rolling: Flags = []
    for day in range(_DAYS, _DAYS + _LATER, _STEP):
        past = rows.between((day - _BEFORE) * DAY_US, day * DAY_US)
        judge = Judge(rolling_reference_of(past, day * DAY_US, DAY_US, _LAG))
        rolling.append(is_alarm(judge(_day(rows, day), day * DAY_US)))
        judge.close()
    return [is_alarm(verdict) for verdict in verdicts], forward_flags(verdicts[0]), is_warned, rolling


def _day(rows: Rows, day: int) -> pa.Table:
    return rows.between(day * DAY_US, (day + 1) * DAY_US).table


def _plain(groups: tuple[Flags, ...]) -> list[list[bool]]:
    return [[bool(flag) for flag in flags] for flags in groups]
