"""Measure the alarms of columns that move all the time, and in how many streams the
monitor says that the budget cannot be kept.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from benchmarks.drifting.judging import Line, found_line, on_all_cores
from benchmarks.drifting.worlds import Array
from benchmarks.over_time.streams import (
    Monitor,
    Stream,
    World,
    count_alarms,
    share_line,
    simulate,
    some,
    stream_of,
    yearly_line,
    years_of,
)

_STREAMS = 24
_REFERENCE = 90
_DAYS = 365
_FACTOR = 2
_STABLE = World(4, 0.2, 400)
_NAMES = 60


class _Year(NamedTuple):
    """The alarms of a stream, its red windows, [judged] bool, and whether the monitor
    says that the budget cannot be kept.
    """

    alarms: int
    red: Array
    is_warned: bool


def lines(share: float) -> Iterator[Line]:
    """Yield the lines of the table; `share` is the part of the streams that is used."""
    for what, make in _WORLDS.items():
        yield from year_lines(what, make, some(_STREAMS, share))


def year_lines(
    what: str,
    make: Callable[[int], Stream],
    streams: int,
    most: float | None = None,
) -> Iterator[Line]:
    """Yield the alarms of streams of a year, the red windows and the notes. `most` is
    the largest number of alarms per year.
    """
    years = on_all_cores(partial(_year, make), range(streams))
    length = years_of(_STABLE, _DAYS)
    yield yearly_line(f"{what}: alarms per year", [year.alarms for year in years], length, most)
    yield share_line("the same, red windows", [year.red for year in years])
    warned = [[year.is_warned] for year in years]
    yield found_line("the same, said in the notes of the last window", warned, None)
    kept = [[year.is_warned or year.alarms <= _FACTOR * length] for year in years]
    yield found_line(f"the same, at most {_FACTOR} alarms or a note", kept, 0.9)


def _year(make: Callable[[int], Stream], seed: int) -> _Year:
    with Monitor(make(seed), 1.0) as monitor:
        return _Year(count_alarms(monitor.alarms), monitor.red, monitor.is_warned)


def _walking(walk: float, seed: int) -> Stream:
    return simulate(replace(_STABLE, columns=8, walk=walk), seed, _REFERENCE, _DAYS)


def _named(replaced: float, is_zipf: bool, seed: int) -> Stream:
    """Return a stream with a column of names and `_STABLE` numbers. On each day, each
    name is replaced by a new name with a probability.

    Args:
        is_zipf: True for names with Zipf's frequencies, without a last name; otherwise
            `_NAMES` names with equal frequencies.
    """
    rng = np.random.default_rng([seed, 71])
    windows = _REFERENCE + _DAYS
    ranks = rng.integers(0, _NAMES, (windows, _STABLE.rows))
    if is_zipf:
        ranks = rng.zipf(1.5, (windows, _STABLE.rows)).clip(max=5_000) - 1
    is_replaced = rng.random((windows, ranks.max() + 1)) < replaced
    generations = np.cumsum(is_replaced, axis=0)
    names = [
        f"{rank}.{generations[window, rank]}"
        for window in range(windows)
        for rank in ranks[window].tolist()
    ]
    values = np.repeat(_STABLE.levels(rng, windows), _STABLE.rows, axis=0)
    values += rng.normal(size=values.shape)
    columns = {f"x{number}": column for number, column in enumerate(values.T)}
    table = pa.table({**columns, "item": names})
    numbers = np.repeat(np.arange(windows), _STABLE.rows)
    return stream_of(table, numbers, _STABLE, _REFERENCE, _DAYS)


_WORLDS: dict[str, Callable[[int], Stream]] = {
    "two of 8 columns walk by .05 a day": partial(_walking, 0.05),
    "two of 8 columns walk by .1 a day": partial(_walking, 0.1),
    "names, 7 % replaced a day": partial(_named, 0.07, False),
    "Zipf's names": partial(_named, 0.0, True),
    "Zipf's names, 2 % replaced a day": partial(_named, 0.02, True),
}
