"""Measure false alarms per year where weekends or nights have fewer rows and another
level.
"""

from collections.abc import Iterator

from benchmarks.drifting.judging import Line
from benchmarks.drifting.worlds import HOUR_US
from benchmarks.over_time.levels import calm_lines
from benchmarks.over_time.streams import World, some

_STREAMS = 40
_HOURLY_STREAMS = 14
_DAYS = {
    "a third of the rows on weekends": World(10, 0.2, 400, season=7, quiet=1 / 3),
    "AR .8, 150 of 400 rows on weekends": World(
        5,
        0.4,
        400,
        correlation=0.8,
        season=7,
        quiet=0.375,
    ),
}
_HOURS = {
    "hours, a third of the rows at night": World(
        5,
        0.2,
        300,
        season=24,
        quiet=1 / 3,
        length_us=HOUR_US,
    ),
    "hours, a twentieth of the rows at night": World(
        5,
        0.2,
        1_000,
        season=24,
        quiet=0.05,
        length_us=HOUR_US,
    ),
}


def lines(share: float) -> Iterator[Line]:
    """Yield the lines of the table; `share` is the part of the streams that is used."""
    for what, world in _DAYS.items():
        yield from calm_lines(what, world, some(_STREAMS, share), 1.5, 0.03)
    for what, world in _HOURS.items():
        yield from calm_lines(
            what,
            world,
            some(_HOURLY_STREAMS, share),
            1.5,
            reference=30 * 24,
            judged=60 * 24,
            spec={"season": "1d"},
        )
