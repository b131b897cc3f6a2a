"""Obvious changes of a table: how often they are found in windows of a day, a week and
a month, and how often an unchanged window of the same world is called drifted.
"""

from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from benchmarks.drifting.judging import (
    Flags,
    Judge,
    Line,
    found_line,
    is_alarm,
    on_all_cores,
    rate_line,
)
from benchmarks.drifting.worlds import DAY_US, Rows, reference_of

_DAYS = 91
_ROWS = 200
_LENGTHS = {1: "days", 7: "weeks", 30: "months"}
_WORLDS = 10
_WINDOWS = 4
Change = Callable[[pa.Table, np.random.Generator], pa.Table]


def of_obvious_changes(share: float) -> Iterator[Line]:
    worlds = max(round(_WORLDS * share), 2)
    for length, name in _LENGTHS.items():
        calm, changed = zip(
            *on_all_cores(_judged, [(seed, length) for seed in range(worlds)]),
            strict=True,
        )
        yield rate_line(f"unchanged {name} of a shop", calm)
        for what in _CHANGES:
            yield found_line(f"{name}: {what}", [flags[what] for flags in changed], 0.9)


def _shop(rng: np.random.Generator, days: int) -> Rows:
    """Return orders with a weekly cycle: ids, texts, 500 equally frequent items, and a
    sensor that varies more between days than within a day.
    """
    size = days * _ROWS
    day = np.repeat(np.arange(days), _ROWS)
    weight = rng.normal(1, 0.2, size)
    weight[rng.random(size) < 0.01] = np.nan
    words = np.array([f"{word:x}" for word in range(4096)])
    warmth = np.repeat(20 + 3 * rng.normal(size=days), _ROWS) + 0.1 * rng.normal(size=size)
    table = pa.table(
        {
            "km": rng.gamma(2, 3, size),
            "pieces": rng.poisson(2 + (day % 7 >= 5), size),
            "weight": weight,
            "channel": rng.choice(["web", "app", "till"], size, p=[0.3, 0.2, 0.5]),
            "item": [f"item {number}" for number in rng.integers(1000, 1500, size)],
            "order": [f"{number:016x}" for number in rng.integers(0, 2**62, size)],
            "remark": [
                " ".join(words[rng.integers(0, 4096, count)]) for count in 1 + rng.poisson(12, size)
            ],
            "warmth": warmth,
            "prediction": rng.normal(10, 2, size),
        },
    )
    return Rows(table, day * DAY_US + rng.integers(0, DAY_US, size))


def _judged(task: tuple[int, int]) -> tuple[Flags, dict[str, list[bool]]]:
    seed, length = task
    rng = np.random.default_rng([seed, 17])
    rows = _shop(rng, _DAYS + _WINDOWS * length)
    judge = Judge(reference_of(rows.between(0, _DAYS * DAY_US), _DAYS * DAY_US, length * DAY_US))
    flags: Flags = []
    for number in range(_WINDOWS):
        start_us = (_DAYS + number * length) * DAY_US
        window = rows.between(start_us, start_us + length * DAY_US).table
        flags.append(is_alarm(judge(window, start_us)))
    found = {
        what: [bool(is_alarm(judge(change(window, rng), start_us)))]
        for what, change in _CHANGES.items()
    }
    return flags, found


def _set(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, values)


def _replace(
    name: str,
    new: Callable[[np.random.Generator, int], list[str]],
    share: float = 1.0,
) -> Change:
    def change(table: pa.Table, rng: np.random.Generator) -> pa.Table:
        chosen = pa.array(rng.random(len(table)) < share)
        return _set(table, name, pc.if_else(chosen, pa.array(new(rng, len(table))), table[name]))

    return change


_CHANGES: dict[str, Change] = {
    "miles instead of km": lambda table, _: _set(table, "km", pc.multiply(table["km"], 0.621)),
    "a category renamed": lambda table, _: _set(
        table,
        "channel",
        pc.replace_substring(table["channel"], "web", "www"),
    ),
    "a category in every row": _replace("channel", lambda _, count: ["till"] * count),
    "missing values 1 → 10 %": lambda table, rng: _set(
        table,
        "weight",
        pc.if_else(pa.array(rng.random(len(table)) < 0.09), None, table["weight"]),
    ),
    "predictions + 10 %": lambda table, _: _set(
        table,
        "prediction",
        pc.multiply(table["prediction"], 1.1),
    ),
    "a sensor stuck at a usual value": lambda table, _: _set(
        table,
        "warmth",
        pa.array([20.5] * len(table)),
    ),
    "ids: the same id in all rows": _replace("order", lambda _, count: ["unknown"] * count),
    "ids: the same id in 30 %": _replace("order", lambda _, count: ["unknown"] * count, 0.3),
    "ids in another format": _replace(
        "order",
        lambda rng, count: [f"{n:012}" for n in rng.integers(0, 10**9, count)],
    ),
    "texts empty": _replace("remark", lambda _, count: [""] * count),
    "texts cut to 20 characters": lambda table, _: _set(
        table,
        "remark",
        pc.utf8_slice_codeunits(table["remark"], 0, 20),
    ),
    "40 % of 500 items replaced by 500 new ones": _replace(
        "item",
        lambda rng, count: [f"item {number}" for number in rng.integers(5000, 5500, count)],
        0.4,
    ),
}
