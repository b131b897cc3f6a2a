"""Measure false alarms per year with a budget, and when lasting shifts of a column's
level are found.
"""

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from typing import Any, NamedTuple

import numpy as np

from benchmarks.drifting.judging import Line, found_line, on_all_cores
from benchmarks.drifting.worlds import HOUR_US, Array
from benchmarks.over_time.streams import (
    CALM,
    Change,
    Monitor,
    World,
    count_alarms,
    first_alarm,
    median_line,
    share_line,
    simulate,
    some,
    yearly_line,
    years_of,
)
from mlflow_deploy_plugin.core.spec.monitors import MonitorSpec, Requirement
from mlflow_deploy_plugin.watch.statistics.intervals import (
    Sampling,
    bonferroni_confidence,
    criterion_state,
    share_interval,
    wilson_interval,
)

INDEPENDENT = World(10, 0.2, 400)
PERSISTENT = World(5, 0.4, 300, correlation=0.8)
WORLDS = {
    "independent days, 10 columns": INDEPENDENT,
    "AR .3, 20 columns": World(20, 0.15, 500, correlation=0.3),
    "weekly cycle, 5 columns": World(5, 0.3, 300, season=7),
    "AR .8, 5 columns": PERSISTENT,
}
OTHERS = {
    "levels with Student's t (3), 10 columns": replace(INDEPENDENT, tails=3),
    "two of 10 columns walk by .06": replace(INDEPENDENT, walk=0.06),
    "AR .95, 5 columns": replace(PERSISTENT, correlation=0.95),
}
DELAYS: tuple[tuple[str, World, Change, float | None, bool], ...] = (
    ("+1", INDEPENDENT, Change(shift=1), 35, True),
    ("+2", INDEPENDENT, Change(shift=2), 10, True),
    ("+4", INDEPENDENT, Change(shift=4), 6, True),
    ("+.1 per day", INDEPENDENT, Change(slope=0.1), 22, True),
    ("+4, AR .8", PERSISTENT, Change(shift=4), 12, False),
    ("+2, AR .8", PERSISTENT, Change(shift=2), 60, False),
    ("+2 on weekends", INDEPENDENT, Change(shift=2, is_weekly=True), 25, False),
    ("+4 on weekends", INDEPENDENT, Change(shift=4, is_weekly=True), None, False),
)
"""The change in deviations of days, the most days until the alarm, and whether 90 %
must be found in 120 days. The levels of weekends are those of any two of seven days.
"""
_CALM_DAYS = 365
_LATER_DAYS = 120
_CALM_STREAMS = 80
_CHANGED_STREAMS = 60
_OTHER_STREAMS = 24
_CHANGED_DAY = 31
_SINGLE_DAYS = (6.0, 8.0, 10.0)
_SHIFTED_DAYS = 20
_ENDPOINT = replace(INDEPENDENT, columns=5, missing=0.02)
_MONITORS = ("all columns", "inputs", "prediction", "accuracy", "error rate")
_INPUTS = tuple(f"x{number}" for number in range(_ENDPOINT.columns - 1))
_PREDICTION = (f"x{_ENDPOINT.columns - 1}",)
_HOURS = World(5, 0.2, 200, season=24, length_us=HOUR_US)


class Calm(NamedTuple):
    """The false alarms of one stream: all, for single windows, and for lasting shifts;
    the windows that are red, [judged] bool; and the notes on the budget.
    """

    alarms: int
    jumps: int
    shifts: int
    red: Array
    is_unkept: bool


def lines(share: float) -> Iterator[Line]:
    """Yield the lines of the table; `share` is the part of the streams that is used."""
    for what, world in WORLDS.items():
        yield from calm_lines(what, world, some(_CALM_STREAMS, share), 1.5, 0.03)
    yield from _endpoint_lines(some(_CALM_STREAMS, share))
    yield from delay_lines(some(_CHANGED_STREAMS, share))
    yield from _onset_lines(some(_CHANGED_STREAMS, share))
    for shift in _SINGLE_DAYS:
        found = on_all_cores(
            _single_day,
            [(shift, seed) for seed in range(some(_CHANGED_STREAMS, share))],
        )
        yield found_line(
            f"a single day with +{shift:g} is found",
            [[is_found] for is_found in found],
            None,
        )
    others = some(_OTHER_STREAMS, share)
    for what, world in OTHERS.items():
        yield from calm_lines(what, world, others)
    yield from calm_lines(
        "independent days, 10 columns, reference of 30 days",
        INDEPENDENT,
        others,
        reference=30,
    )
    hours = "hours with a daily cycle, reference of 30 days"
    yield from calm_lines(
        hours,
        _HOURS,
        others,
        reference=30 * 24,
        judged=60 * 24,
        spec={"season": "1d"},
    )
    yield from _later_lines(some(_CHANGED_STREAMS, share))
    for what, world in WORLDS.items():
        yield from _without_budget(what, world, others)


def delay_lines(streams: int) -> Iterator[Line]:
    for what, world, change, most, is_required in DELAYS:
        days = on_all_cores(_delay, [(world, change, seed) for seed in range(streams)])
        yield median_line(f"lasting shift {what}: days until the alarm", days, most)
        least = 0.9 if is_required else None
        yield found_line(
            f"the same, found within {_LATER_DAYS} days",
            [[day <= _LATER_DAYS] for day in days],
            least,
        )


def calm_lines(
    what: str,
    world: World,
    streams: int,
    most: float | None = None,
    most_red: float | None = None,
    reference: int = 0,
    judged: int = _CALM_DAYS,
    per_year: float = 1.0,
    spec: dict[str, Any] | None = None,
) -> Iterator[Line]:
    """Yield the false alarms and red windows of streams without a change."""
    tasks = [
        (world, reference or _reference_days(world), judged, per_year, spec or {}, seed)
        for seed in range(streams)
    ]
    calm = on_all_cores(_calm, tasks)
    years = years_of(world, judged)
    yield yearly_line(f"false alarms per year, {what}", [one.alarms for one in calm], years, most)
    yield yearly_line("of these, single windows", [one.jumps for one in calm], years)
    yield yearly_line("of these, lasting shifts", [one.shifts for one in calm], years)
    yield share_line("red windows", [one.red for one in calm], most_red)
    yield found_line(
        "references with a note that the budget is not kept",
        [[one.is_unkept] for one in calm],
        None,
    )


def _calm(task: tuple[World, int, int, float, dict[str, Any], int]) -> Calm:
    world, reference, judged, per_year, spec, seed = task
    with Monitor(simulate(world, seed, reference, judged), per_year, **spec) as monitor:
        jumps = monitor.jumps
        shifts = monitor.shift_alarms
        return Calm(
            count_alarms(jumps | shifts),
            count_alarms(jumps),
            count_alarms(shifts),
            monitor.red,
            bool(monitor.unkept),
        )


def _endpoint_lines(streams: int) -> Iterator[Line]:
    counts = on_all_cores(_endpoint, range(streams))
    years = years_of(_ENDPOINT, _CALM_DAYS)
    yield yearly_line(
        "false alarms per year, five monitors on one endpoint",
        [sum(one) for one in counts],
        years,
        1.5,
    )
    for index, monitor in enumerate(_MONITORS):
        yield yearly_line(f"of these, {monitor}", [one[index] for one in counts], years)


def _endpoint(seed: int) -> list[int]:
    """Return the false alarms of five monitors that share one alarm per year: of all
    columns, of the inputs, of the prediction, which is the last column, and of two
    requirements, which are kept by a small margin.
    """
    stream = simulate(_ENDPOINT, seed, 90, _CALM_DAYS)
    per_year = 1 / len(_MONITORS)
    counts = []
    for columns in ((), _INPUTS, _PREDICTION):
        with Monitor(stream, per_year, columns) as monitor:
            counts.append(count_alarms(monitor.alarms))
    rng = np.random.default_rng([seed, 5])
    for kind, text, share, rows in (
        ("performance", "accuracy>=0.9", 0.905, 400),
        ("service_level", "error_rate<=0.01", 0.009, 2_000),
    ):
        spec = MonitorSpec.model_validate({"kind": kind, "require": [text]})
        confidence = bonferroni_confidence(per_year / spec.windows_per_year, 1)
        violated = [
            _is_violated(spec.requirements[0], rng.random(rows) < share, confidence)
            for _ in range(_CALM_DAYS)
        ]
        counts.append(count_alarms(np.array(violated)))
    return counts


def _is_violated(requirement: Requirement, is_hit: Array, confidence: float) -> bool:
    if requirement.name == "accuracy":
        interval = share_interval("accuracy", is_hit, Sampling(confidence, np.arange(len(is_hit))))
    else:
        interval = wilson_interval(requirement.name, int(is_hit.sum()), len(is_hit), confidence)
    return (
        criterion_state(requirement.holds(interval.low), requirement.holds(interval.high))
        == "violated"
    )


def _delay(task: tuple[World, Change, int]) -> float:
    """Return the day of the first alarm after a change on the first judged day;
    infinity without one.
    """
    world, change, seed = task
    with Monitor(
        simulate(world, seed, _reference_days(world), _LATER_DAYS, change),
        1.0,
    ) as monitor:
        return first_alarm(monitor.alarms)


def _onset_lines(streams: int) -> Iterator[Line]:
    found = [one for one in on_all_cores(_onset, range(streams)) if one is not None]
    yield median_line(
        "onset, +2 from day 31: error in days",
        [abs(error) for error, *_ in found],
        3,
    )
    yield found_line(
        "the same, column and direction right",
        [[is_right] for _, is_right, _ in found],
        0.95,
    )
    yield found_line(
        "the same, the interval contains the change",
        [[is_inside] for _, _, is_inside in found],
        None,
    )


def _onset(seed: int) -> tuple[int, bool, bool] | None:
    """Return the error of the onset in days, whether column and direction are right,
    and whether the interval contains the change; None if no lasting shift was found.
    """
    start = _CHANGED_DAY - 1
    change = Change(shift=2, start=start)
    with Monitor(simulate(INDEPENDENT, seed, 90, start + _LATER_DAYS, change), 1.0) as monitor:
        day = first_alarm(monitor.shift_alarms[start:])
        if day > _LATER_DAYS:
            return None
        own, *_ = (item for item in monitor.findings(start + int(day) - 1) if item.check == "shift")
        true = monitor.stream.window(start).start
        is_right = own.subject == INDEPENDENT.changed and (own.value or 0) > 0
        assert own.since_range is not None
        earliest, latest = map(datetime.fromisoformat, own.since_range)
        return (datetime.fromisoformat(own.since) - true).days, is_right, earliest <= true <= latest


def _single_day(task: tuple[float, int]) -> bool:
    shift, seed = task
    with Monitor(simulate(INDEPENDENT, seed, 90, 1, Change(shift=shift)), 1.0) as monitor:
        return bool(monitor.alarms[0])


def _later_lines(streams: int) -> Iterator[Line]:
    ends = [end for end in on_all_cores(_end, range(streams)) if end is not None]
    yield median_line("+2 that returns after 20 days: days until the alarm ends", ends)
    accepted = [count for count in on_all_cores(_accepted, range(streams)) if count is not None]
    years = years_of(INDEPENDENT, _LATER_DAYS)
    yield yearly_line("false alarms per year in the 120 days after `accept` of +2", accepted, years)


def _end(seed: int) -> float | None:
    """Return the days from the return of the level until no alarm is open; None if no
    alarm is open at the return.
    """
    change = Change(shift=2, end=_SHIFTED_DAYS)
    with Monitor(
        simulate(INDEPENDENT, seed, 90, _SHIFTED_DAYS + _LATER_DAYS, change),
        1.0,
    ) as monitor:
        open_shifts = monitor.open_shifts
    if not open_shifts[_SHIFTED_DAYS - 1]:
        return None
    return first_alarm(~open_shifts[_SHIFTED_DAYS:])


def _accepted(seed: int) -> int | None:
    """Return the alarms in 120 days after the user has accepted a shift; None if no
    lasting shift was found.
    """
    stream = simulate(INDEPENDENT, seed, 90, 2 * _LATER_DAYS, Change(shift=2))
    with Monitor(stream, 1.0) as monitor:
        day = first_alarm(monitor.shift_alarms)
        if day > _LATER_DAYS:
            return None
        own, *_ = monitor.findings(int(day) - 1)
    with Monitor(stream, 1.0, baseline={own.subject: datetime.fromisoformat(own.since)}) as monitor:
        return count_alarms(monitor.alarms[int(day) : int(day) + _LATER_DAYS])


def _without_budget(what: str, world: World, streams: int) -> Iterator[Line]:
    flags = on_all_cores(_drifted, [(world, seed) for seed in range(streams)])
    for consecutive in (1, 2, 3):
        counts = [count_alarms(one, consecutive) for one in flags]
        yield yearly_line(
            f"without a budget, `consecutive: {consecutive}`, {what}",
            counts,
            years_of(world, _CALM_DAYS),
        )


def _drifted(task: tuple[World, int]) -> Array:
    world, seed = task
    with Monitor(simulate(world, seed, _reference_days(world), _CALM_DAYS, CALM), None) as monitor:
        return monitor.jumps


def _reference_days(world: World) -> int:
    return 91 if world.season == 7 else 90
