"""Measure when the exchange of two segments' distributions is found, which does not
change the rows of all segments.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from benchmarks.drifting.judging import Line, found_line, on_all_cores
from benchmarks.over_time.streams import (
    Monitor,
    Stream,
    World,
    count_alarms,
    first_alarm,
    median_line,
    some,
    stream_of,
    yearly_line,
    years_of,
)
from mlflow_deploy_plugin.watch.drift.references.windows import cut_pieces
from mlflow_deploy_plugin.watch.drift.sketches.sketch import sketch_groups

_WORLD = World(5, 0.2, 400)
_REFERENCE = 90
_CALM_DAYS = 365
_LATER_DAYS = 30
_STREAMS = 60
_WITHIN = 7
_OFFSETS = (0.25, 0.35)
"""Half of the distance between the means of the two segments, in standard deviations of
rows.
"""


@dataclass(frozen=True)
class _Task:
    seed: int
    judged: int
    offset: float
    is_exchanged: bool = True
    per_year: float | None = 1.0


def lines(share: float) -> Iterator[Line]:
    """Yield the lines of the table; `share` is the part of the streams that is used."""
    streams = some(_STREAMS, share)
    for offset in _OFFSETS:
        what = f"two segments with means of ± {offset:g} exchange"
        days = on_all_cores(_delay, [_Task(seed, _LATER_DAYS, offset) for seed in range(streams)])
        yield found_line(
            f"{what}: found within {_WITHIN} days",
            [[day <= _WITHIN] for day in days],
            0.85,
        )
        yield median_line("the same, days until the alarm", days)
        jumps = on_all_cores(
            _jumps,
            [_Task(seed, _LATER_DAYS, offset, per_year=None) for seed in range(streams)],
        )
        yield found_line("the same, days with drift without a budget", jumps, None)
    calm = on_all_cores(
        _calm,
        [_Task(seed, _CALM_DAYS, _OFFSETS[0], False) for seed in range(streams // 2)],
    )
    yield yearly_line(
        "false alarms per year, two segments",
        calm,
        years_of(_WORLD, _CALM_DAYS),
        1.5,
    )


def _delay(task: _Task) -> float:
    with _monitor(task) as monitor:
        return first_alarm(monitor.alarms)


def _jumps(task: _Task) -> list[bool]:
    with _monitor(task) as monitor:
        return [bool(flag) for flag in monitor.jumps]


def _calm(task: _Task) -> int:
    with _monitor(task) as monitor:
        return count_alarms(monitor.alarms)


def _monitor(task: _Task) -> Monitor:
    return Monitor(_simulate(task), task.per_year, segment_by="side")


def _simulate(task: _Task) -> Stream:
    """Return a stream whose rows belong to the sides a and b in equal numbers. Each
    side has its own levels of days.
    """
    rng = np.random.default_rng([task.seed, task.judged, 40])
    days = _REFERENCE + task.judged
    sides = np.stack([_WORLD.levels(rng, days) for _ in "ab"], axis=1)
    signs = np.where((np.arange(days) >= _REFERENCE) & task.is_exchanged, -1.0, 1.0)
    sides[:, :, 0] += task.offset * signs[:, None] * np.array([1.0, -1.0])
    values = np.repeat(sides.reshape(2 * days, _WORLD.columns), _WORLD.rows // 2, axis=0)
    values += rng.normal(size=values.shape)
    side = np.tile(np.repeat(["a", "b"], _WORLD.rows // 2), days)
    table = pa.table(
        {**{f"x{number}": column for number, column in enumerate(values.T)}, "side": side},
    )
    numbers = np.repeat(np.arange(days), _WORLD.rows)
    stream = stream_of(table, numbers, _WORLD, _REFERENCE, task.judged)
    parts = {}
    for name in "ab":
        chosen = pc.equal(table["side"], name)
        rows = table.filter(chosen)
        own = numbers[np.asarray(chosen)]
        split = int(np.searchsorted(own, _REFERENCE))
        earlier = rows.slice(0, split)
        times = own[:split] * _WORLD.length_us
        pieces = cut_pieces(
            stream.reference.bins,
            earlier,
            times,
            stream.first_us,
            _WORLD.length_us,
        )
        profiles = sketch_groups(
            stream.reference.bins,
            rows.slice(split),
            own[split:] - _REFERENCE,
            task.judged,
        )
        parts[f"side={name}"] = (
            replace(stream.reference, pieces=pieces, sample=earlier, notes=()),
            profiles,
        )
    return replace(stream, parts=parts)
