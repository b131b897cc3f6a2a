"""Streams of windows whose rows have levels with known changes, and their alarms under
a budget of false alarms.

The verdicts are the product's: `WindowComparison.verdict` for the jumps of each window,
and its course for lasting shifts. The detector is a pure function of the windows'
figures, so it follows all windows at once.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.drifting.judging import Array
from mlflow_deploy_plugin.core.column_names import EVENT_TIME
from mlflow_deploy_plugin.core.settings import Settings
from mlflow_deploy_plugin.core.spec.monitors import MonitorSpec
from mlflow_deploy_plugin.core.spec.types import EPOCH
from mlflow_deploy_plugin.serve.inference_log.windows import Window
from mlflow_deploy_plugin.watch.drift.references.load import freeze_table
from mlflow_deploy_plugin.watch.drift.references.windows import DriftReference, cut_pieces
from mlflow_deploy_plugin.watch.drift.sketches.bins import bins_digest
from mlflow_deploy_plugin.watch.drift.sketches.sketch import Profile, sketch_groups
from mlflow_deploy_plugin.watch.kinds.drift import WindowComparison
from mlflow_deploy_plugin.watch.result import WindowRequest
from mlflow_deploy_plugin.watch.sequential import course as courses
from mlflow_deploy_plugin.watch.sequential.evidence import Evidence, JudgedWindow, SeriesKey
from mlflow_deploy_plugin.watch.sequential.levels import LEVEL, MEAN, ROWS, window_levels

REFERENCE = 91
CHANGED = 3
"""The column whose level changes."""
_WEEKEND = (1.0, -1.0, 0.5, 0.0, 0.0)
_DAY = timedelta(days=1)
DAY_US = 86_400_000_000
_DAILY = MonitorSpec.model_validate({"every": "1d", "min_rows": 30})


@dataclass(frozen=True)
class World:
    """Levels of columns over days.

    Attributes:
        deviation: the standard deviation of the levels between days, in deviations of
            rows.
        correlation: of the levels of consecutive days (an autoregressive process).
        is_weekly: True if the levels of weekends differ.
    """

    columns: int
    deviation: float
    rows: int
    correlation: float = 0.0
    is_weekly: bool = False

    def levels(self, rng: np.random.Generator, days: int) -> Array:
        """Return [days, columns] float64."""
        levels = rng.normal(size=(days, self.columns))
        for now in range(1, days):
            new = math.sqrt(1 - self.correlation**2) * levels[now]
            levels[now] = self.correlation * levels[now - 1] + new
        levels *= self.deviation
        if self.is_weekly:
            levels += (np.arange(days) % 7 >= 5)[:, None] * np.resize(_WEEKEND, self.columns)
        return levels


def draw_rows(rng: np.random.Generator, levels: Array, counts: Array | int) -> dict[str, Array]:
    """Return the columns of rows around the levels, [days, columns]; `counts` are the
    numbers of rows of the days.
    """
    values = np.repeat(levels, counts, axis=0)
    values += rng.normal(size=values.shape)
    return {f"x{number}": column for number, column in enumerate(values.T)}


@dataclass(frozen=True)
class Change:
    """A change of the level of one column, in deviations of its levels, in the first
    `days` judged days.
    """

    shift: float = 0.0
    slope: float = 0.0
    days: int = 10_000


@dataclass(frozen=True, eq=False)
class Stream:
    """The reference of a monitor and the profiles of the windows after it.

    Attributes:
        first: the number of windows in the reference.
        length: the length of the windows.
    """

    reference: DriftReference
    profiles: Sequence[Profile]
    first: int = REFERENCE
    length: timedelta = _DAY

    def window(self, number: int) -> Window:
        start = EPOCH + (self.first + number) * self.length
        return Window(start, start + self.length)

    @cached_property
    def past(self) -> list[JudgedWindow]:
        """All windows with the evidence that a monitor stores."""
        columns = [*sorted(self.reference.bins), ROWS]
        past = []
        for number, profile in enumerate(self.profiles):
            levels = window_levels(self.reference, profile, columns, "")
            evidence = Evidence(self.reference.bins_key, levels)
            past.append(JudgedWindow(self.window(number).start, "no drift", evidence))
        return past


def simulate(world: World, seed: int, judged: int, change: Change) -> Stream:
    rng = np.random.default_rng([seed, judged, world.columns])
    levels = world.levels(rng, REFERENCE + judged)
    day = np.arange(judged)
    steps = np.where(day < change.days, change.shift + change.slope * (day + 1), 0.0)
    levels[REFERENCE:, CHANGED] += world.deviation * steps
    rows = draw_rows(rng, levels, world.rows)
    return stream_of(rows, np.full(len(levels), world.rows))


def with_shift(stream: Stream, shift: float) -> Stream:
    """Return the stream with a lasting shift of one column's level and mean from the
    first judged window on. Its other figures and the relations are unchanged.
    """
    past = []
    for window in stream.past:
        levels = {**window.evidence.levels}
        for figure in (LEVEL, MEAN):
            levels[SeriesKey(f"x{CHANGED}", figure)] += shift
        past.append(replace(window, evidence=replace(window.evidence, levels=levels)))
    shifted = replace(stream)
    vars(shifted)["past"] = past
    return shifted


def stream_of(columns: dict[str, Array], counts: Array) -> Stream:
    """Return the stream of rows; `counts` are the numbers of rows of its days."""
    table = pa.table({name: pa.array(each, from_pandas=True) for name, each in columns.items()})
    return stream_of_table(table, counts, REFERENCE)


def stream_of_table(table: pa.Table, counts: Array, first: int, length: timedelta = _DAY) -> Stream:
    """Return the stream of a table, of whose windows the `first` are the reference;
    `counts` are their numbers of rows.
    """
    numbers = np.repeat(np.arange(len(counts)), counts)
    split = int(np.searchsorted(numbers, first))
    earlier = table.slice(0, split)
    length_us = length // timedelta(microseconds=1)
    times = numbers[:split] * length_us
    bins, notes = freeze_table(earlier, (), "the rows")
    pieces = cut_pieces(bins, earlier, times, first * length_us, length_us)
    moments = pa.array(times, pa.timestamp("us", tz="UTC"))
    logged = earlier.append_column(EVENT_TIME, moments)
    frozen = DriftReference(bins, bins_digest(bins), pieces, logged, notes=tuple(notes))
    judged = len(counts) - first
    later = numbers[split:] - first
    profiles = sketch_groups(frozen.bins, table.slice(split), later, judged)
    return Stream(frozen, profiles, first, length)


@dataclass(frozen=True)
class Course:
    """The course of a stream, [judged] bool: `alarms` is True for the days on which an
    alarm begins, and `red` for red days.
    """

    alarms: Array
    red: Array


def request_of(
    window: Window,
    past: Sequence[JudgedWindow],
    per_year: float | None,
    spec: MonitorSpec = _DAILY,
    baseline: Mapping[str, datetime] | None = None,
) -> WindowRequest:
    """Return the request to judge a window after the `past` ones with a budget."""
    return WindowRequest(
        endpoint="simulated",
        monitor="daily",
        spec=spec,
        window=window,
        revision=1,
        settings=Settings(home=Path("/nonexistent")),
        false_per_year=per_year,
        past=tuple(past),
        baseline=baseline or {},
    )


def compare(
    stream: Stream,
    number: int,
    per_year: float,
    spec: MonitorSpec = _DAILY,
    baseline: Mapping[str, datetime] | None = None,
) -> WindowComparison:
    """Return the window of this number, after all windows before it, with its
    reference.
    """
    past = stream.past[:number]
    request = request_of(stream.window(number), past, per_year, spec, baseline)
    profile = stream.profiles[number]
    return WindowComparison(request, ("m", "1"), stream.reference, "", profile, {}, (), {})


def follow(
    stream: Stream,
    per_year: float,
    spec: MonitorSpec = _DAILY,
    baseline: Mapping[str, datetime] | None = None,
) -> courses.Course:
    """Return the course until the last window, with the accepted `baseline`."""
    last = len(stream.profiles) - 1
    course = compare(stream, last, per_year, spec, baseline).verdict(()).course
    assert course is not None
    return course


def judge(stream: Stream, per_year: float) -> Course:
    """Judge the windows of a stream with a budget."""
    course = follow(stream, per_year)
    count = len(stream.profiles)
    windows = course.windows
    judged = slice(windows.reference, None)
    innovations = course.tracking.innovations[judged]
    upward = np.where(windows.is_upward, innovations, np.abs(innovations))
    is_known = np.isfinite(windows.values[judged])
    jumps = np.any(is_known & (upward > course.limits), axis=1)
    return Course(
        jumps | _flags(course.tracking.alarms, windows.reference, count),
        jumps | _flags(course.tracking.red, windows.reference, count),
    )


def _flags(numbers: Sequence[int], first: int, count: int) -> Array:
    flags = np.zeros(count, bool)
    flags[np.array(numbers, np.int64) - first] = True
    return flags


def count_alarms(flags: Array) -> int:
    """Return the number of stretches of windows with a flag."""
    return int((np.diff(flags.astype(np.int64), prepend=0) == 1).sum())


def first_alarm(course: Course) -> float:
    """Return the day of the first alarm, from 1; infinity without one."""
    return float(course.alarms.argmax()) + 1 if course.alarms.any() else math.inf
