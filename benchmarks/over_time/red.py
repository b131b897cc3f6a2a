"""Measure how long alarms stay open: false alarms at a budget of four per year, and the
alarms of shifts that last or that return.
"""

from collections.abc import Iterator

from benchmarks.drifting.judging import Line, found_line, on_all_cores
from benchmarks.drifting.worlds import Array
from benchmarks.over_time.levels import INDEPENDENT, WORLDS, calm_lines
from benchmarks.over_time.streams import Change, Monitor, median_line, simulate, some

_STREAMS = 40
_WORLDS = ("independent days, 10 columns", "weekly cycle, 5 columns", "AR .8, 5 columns")
_REFERENCE = 90
_DAYS = 120
_RETURN = 10


def lines(share: float) -> Iterator[Line]:
    """Yield the lines of the table; `share` is the part of the streams that is used."""
    streams = some(_STREAMS, share)
    for what in _WORLDS:
        shown = f"{what}, budget 4"
        yield from calm_lines(shown, WORLDS[what], streams, 6.0, 0.1, per_year=4.0)
    for shift in (1.0, 2.0):
        flags = _red(Change(shift=shift), streams)
        later = [one[one.argmax() :].tolist() for one in flags if one.any()]
        yield found_line(f"a lasting +{shift:g}: red days after the alarm", later, 0.9)
    for shift in (2.0, 4.0):
        flags = _red(Change(shift=shift, end=_RETURN), streams)
        later_days = [float(one[_RETURN:].sum()) for one in flags if one[:_RETURN].any()]
        yield median_line(f"+{shift:g} for {_RETURN} days: red days after the return", later_days)


def _red(change: Change, streams: int) -> list[Array]:
    return on_all_cores(_red_windows, [(change, seed) for seed in range(streams)])


def _red_windows(task: tuple[Change, int]) -> Array:
    change, seed = task
    with Monitor(simulate(INDEPENDENT, seed, _REFERENCE, _DAYS, change), 1.0) as monitor:
        return monitor.red
