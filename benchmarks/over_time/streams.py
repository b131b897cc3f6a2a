"""Streams of windows whose rows have levels with known changes, and their alarms under
a budget of false alarms.

The verdicts are the product's: `WindowComparison.verdict` for the jumps of each window,
and its course for lasting shifts. The detector is a pure function of the windows'
figures, so it follows all windows at once; `agrees` checks that judging each window
with the windows before it gives the same alarms.
"""

import math
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
from scipy import stats

from benchmarks.drifting.judging import Line, Outcome, interval
from benchmarks.drifting.worlds import DAY_US, HOUR_US, Array, Rows, reference_of
from mlflow_deploy_plugin.core.settings import Settings
from mlflow_deploy_plugin.core.spec.monitors import MonitorSpec
from mlflow_deploy_plugin.core.spec.types import EPOCH
from mlflow_deploy_plugin.serve.inference_log.windows import Window
from mlflow_deploy_plugin.watch.drift.references.windows import DriftReference
from mlflow_deploy_plugin.watch.drift.sketches.sketch import Profile, sketch_groups
from mlflow_deploy_plugin.watch.drift.verdict import DriftVerdict
from mlflow_deploy_plugin.watch.kinds.drift import WindowComparison
from mlflow_deploy_plugin.watch.result import Finding, WindowRequest
from mlflow_deploy_plugin.watch.sequential import budget
from mlflow_deploy_plugin.watch.sequential.course import Course
from mlflow_deploy_plugin.watch.sequential.detector import Tracking, limit_for, track
from mlflow_deploy_plugin.watch.sequential.evidence import Evidence, JudgedWindow, SeriesKey
from mlflow_deploy_plugin.watch.sequential.levels import ROWS, window_levels
from mlflow_deploy_plugin.watch.sequential.shifts import judge_shifts

CHANGED = 3
"""The column whose level changes."""
_WEEKEND = (1.0, -1.0, 0.5, 0.0, 0.0)
_TICK = timedelta(microseconds=1)


@dataclass(frozen=True)
class World:
    """Levels of columns over windows.

    Attributes:
        deviation: the standard deviation of the levels between windows, in deviations
            of rows.
        correlation: of the levels of consecutive windows (an autoregressive process).
        tails: the degrees of freedom of Student's distribution of the levels; 0 for a
            normal distribution.
        walk: the steps of the first two levels, a random walk.
        season: the number of windows in the cycle; the last two of seven windows
            differ, or a sine of 24 windows.
        missing: the usual share of missing values.
        quiet: the number of rows in the quiet windows of the cycle (the last two of
            seven, or a third of the others), divided by `rows`. Below 1, the numbers
            vary by chance (Poisson).
    """

    columns: int
    deviation: float
    rows: int
    correlation: float = 0.0
    tails: int = 0
    walk: float = 0.0
    season: int = 1
    missing: float = 0.0
    quiet: float = 1.0
    length_us: int = DAY_US

    def levels(self, rng: np.random.Generator, windows: int) -> Array:
        """Return [windows, columns] float64."""
        shape = windows, self.columns
        noise = rng.normal(size=shape)
        if self.tails:
            noise = rng.standard_t(self.tails, shape) * math.sqrt(1 - 2 / self.tails)
        levels = noise.copy()
        for now in range(1, windows):
            levels[now] = (
                self.correlation * levels[now - 1] + math.sqrt(1 - self.correlation**2) * noise[now]
            )
        levels *= self.deviation
        if self.season == 7:
            levels += (np.arange(windows) % 7 >= 5)[:, None] * np.resize(_WEEKEND, self.columns)
        elif self.season > 1:
            cycle = np.sin(2 * np.pi * np.arange(windows) / self.season)
            levels += cycle[:, None] * np.resize(_WEEKEND, self.columns)
        if self.walk:
            levels[:, :2] += np.cumsum(self.walk * rng.normal(size=(windows, 2)), axis=0)
        return levels

    def counts(self, rng: np.random.Generator, windows: int) -> Array:
        """Return the number of rows of each window, [windows] int64."""
        if self.quiet == 1:
            return np.full(windows, self.rows)
        phases = np.arange(windows) % self.season
        busy = 5 if self.season == 7 else self.season - self.season // 3
        expected = np.where(phases >= busy, self.quiet, 1.0) * self.rows
        numbers: Array = rng.poisson(expected)
        return numbers

    @property
    def changed(self) -> str:
        return f"x{min(CHANGED, self.columns - 1)}"


@dataclass(frozen=True)
class Change:
    """A change of the level of one column, in deviations of its levels, in the judged
    windows `start` <= t < `end`; with `is_weekly`, only in the last two of seven.
    """

    shift: float = 0.0
    slope: float = 0.0
    start: int = 0
    end: int = 10_000
    is_weekly: bool = False

    def steps(self, windows: int) -> Array:
        numbers = np.arange(windows)
        late = numbers - self.start
        is_changed = (late >= 0) & (numbers < self.end)
        if self.is_weekly:
            is_changed &= numbers % 7 >= 5
        return np.where(is_changed, self.shift + self.slope * (late + 1), 0.0)


CALM = Change()


@dataclass(frozen=True, eq=False)
class Stream:
    """The reference of a monitor and the profiles of the windows after it; `parts` are
    those of segments.
    """

    reference: DriftReference
    profiles: Sequence[Profile]
    world: World
    first_us: int
    parts: Mapping[str, tuple[DriftReference, Sequence[Profile]]] = field(default_factory=dict)

    def window(self, number: int) -> Window:
        length = self.world.length_us * _TICK
        start = EPOCH + self.first_us * _TICK + number * length
        return Window(start, start + length)


def simulate(world: World, seed: int, reference: int, judged: int, change: Change = CALM) -> Stream:
    """Return a stream with `reference` windows in the reference and `judged` windows
    after it.
    """
    table, numbers = simulated_rows(world, seed, reference, judged, change)
    return stream_of(table, numbers, world, reference, judged)


def simulated_rows(
    world: World,
    seed: int,
    reference: int,
    judged: int,
    change: Change = CALM,
) -> tuple[pa.Table, Array]:
    """Return the rows of a stream, and the number of each row's window, [N] int64."""
    rng = np.random.default_rng([seed, judged, world.columns])
    windows = reference + judged
    levels = world.levels(rng, windows)
    levels[reference:, min(CHANGED, world.columns - 1)] += world.deviation * change.steps(judged)
    counts = world.counts(rng, windows)
    values = np.repeat(levels, counts, axis=0) + rng.normal(
        size=(int(counts.sum()), world.columns),
    )
    if world.missing:
        shares = world.missing * np.exp(0.3 * rng.normal(size=levels.shape))
        values[rng.random(values.shape) < np.repeat(shares, counts, axis=0)] = np.nan
    numbers = np.repeat(np.arange(windows), counts)
    table = pa.table({f"x{number}": column for number, column in enumerate(values.T)})
    return table, numbers


def stream_of(table: pa.Table, numbers: Array, world: World, reference: int, judged: int) -> Stream:
    """Return the stream of rows; `numbers` are their windows, ascending, [N] int64."""
    first_us = reference * world.length_us
    split = int(np.searchsorted(numbers, reference))
    earlier = Rows(table.slice(0, split), numbers[:split] * world.length_us)
    frozen = reference_of(earlier, first_us, world.length_us)
    profiles = sketch_groups(frozen.bins, table.slice(split), numbers[split:] - reference, judged)
    return Stream(frozen, profiles, world, first_us)


class Monitor:
    """Judges the windows of a stream with a share of a budget; `columns` are judged, by
    default all.
    """

    def __init__(
        self,
        stream: Stream,
        per_year: float | None,
        columns: Sequence[str] = (),
        baseline: Mapping[str, datetime] | None = None,
        **spec: object,
    ) -> None:
        self.stream = stream
        self.per_year = per_year
        self.baseline = baseline or {}
        self._listed = tuple(columns)
        self.columns = tuple(columns or sorted(stream.reference.bins))
        every = "1h" if stream.world.length_us == HOUR_US else "1d"
        self.spec = MonitorSpec.model_validate({"every": every, "min_rows": 30, **spec})
        self._home = tempfile.TemporaryDirectory(prefix="onnxserve-benchmark-")

    def __enter__(self) -> "Monitor":
        return self

    def __exit__(self, *_: object) -> None:
        self._home.cleanup()

    def comparison(self, number: int) -> WindowComparison:
        """Return the comparison of a window;
        the past contains all windows before it.
        """
        stream = self.stream
        request = WindowRequest(
            endpoint="simulated",
            monitor="daily",
            spec=self.spec,
            window=stream.window(number),
            revision=1,
            settings=Settings(home=Path(self._home.name)),
            false_per_year=self.per_year,
            past=self._past[:number],
            baseline=self.baseline,
        )
        parts = {name: (own, profiles[number]) for name, (own, profiles) in stream.parts.items()}
        return WindowComparison(
            request,
            ("m", "1"),
            stream.reference,
            "",
            stream.profiles[number],
            parts,
            (),
            {},
        )

    @cached_property
    def _past(self) -> tuple[JudgedWindow, ...]:
        stream, basis = self.stream, self.stream.reference.bins_key
        past = []
        for number in range(len(stream.profiles)):
            evidence = Evidence(basis, self.levels(number))
            past.append(JudgedWindow(stream.window(number).start, "no drift", evidence))
        return tuple(past)

    def levels(self, number: int) -> dict[SeriesKey, float]:
        stream = self.stream
        columns = [*self.columns, ROWS]
        levels = window_levels(stream.reference, stream.profiles[number], columns, "")
        for name, (own, profiles) in stream.parts.items():
            levels |= window_levels(own, profiles[number], self.columns, name)
        return levels

    @property
    def unkept(self) -> list[str]:
        """The statements of the report about a budget
        that the reference cannot keep.
        """
        if self.per_year is None:
            return []
        assert self.course is not None
        return [*budget.unkept(self.course.levels, self.spec, self.per_year)]

    def verdict(self, number: int) -> DriftVerdict:
        return self.comparison(number).verdict(self._listed)

    @cached_property
    def jumps(self) -> Array:
        """The windows with an unusual figure, [judged] bool: the detector is a pure
        function of the windows' figures, so the last course has those of all windows.
        """
        assert self.course is not None
        judged = slice(self.course.windows.reference, None)
        innovations = self.course.tracking.innovations[judged]
        is_known = np.isfinite(self.course.windows.values[judged])
        upward = np.where(self.course.windows.is_upward, innovations, np.abs(innovations))
        return np.any(is_known & (upward > self.course.limits), axis=1)

    @cached_property
    def course(self) -> Course | None:
        """The windows and shifts of the whole stream; None if no series can be
        followed.
        """
        return self.verdict(len(self.stream.profiles) - 1).course

    @property
    def shift_alarms(self) -> Array:
        """The windows at which an alarm of the detector begins, [judged] bool."""
        flags = np.zeros(len(self.stream.profiles), bool)
        if self.course is not None:
            flags[
                np.array(self.course.tracking.alarms, np.int64) - self.course.windows.reference
            ] = True
        return flags

    @property
    def alarms(self) -> Array:
        return self.jumps | self.shift_alarms

    @property
    def open_shifts(self) -> Array:
        """The windows in which a lasting shift is open, [judged] bool."""
        flags = np.zeros(len(self.stream.profiles), bool)
        if self.course is not None:
            flags[np.array(self.course.tracking.red, np.int64) - self.course.windows.reference] = (
                True
            )
        return flags

    @property
    def red(self) -> Array:
        """The windows whose state is drift, [judged] bool."""
        return self.jumps | self.open_shifts

    @property
    def is_warned(self) -> bool:
        """True if the notes of the last window say that the budget cannot be kept. The
        first note states the budget itself.
        """
        assert self.course is not None
        return len(judge_shifts(self.course).notes) > 1

    def tracking(self, number: int) -> Tracking:
        """Return the state of the detector after a window."""
        assert self.course is not None
        windows = self.course.windows
        end = windows.reference + number + 1
        names = ("values", "phases", "gaps", "scales")
        parts = {name: getattr(windows, name)[:end] for name in names}
        return track(replace(windows, **parts), self._limit, self.course.limits)

    @cached_property
    def _limit(self) -> float:
        assert self.course is not None
        assert self.per_year is not None
        return limit_for(
            self.course.windows,
            budget.LASTING_SHARE * self.per_year / self.spec.windows_per_year,
        )

    def findings(self, number: int) -> tuple[Finding, ...]:
        """Return the lasting shifts in the report of a window."""
        comparison = self.comparison(number)
        return comparison.shifts(comparison.verdict(self._listed)).findings

    def agrees(self) -> bool:
        """Return True if judging each window with the windows before it gives the same
        alarms of the detector.
        """
        own = [bool(self.findings(number)) for number in range(len(self.stream.profiles))]
        return own == [
            bool(self.tracking(number).shifts) for number in range(len(self.stream.profiles))
        ]


def count_alarms(flags: Array, consecutive: int = 1) -> int:
    """Return the number of alarms: stretches of at least `consecutive` windows with a
    flag.
    """
    edges = np.diff(np.concatenate([[False], flags, [False]]).astype(np.int64))
    lengths = np.flatnonzero(edges == -1) - np.flatnonzero(edges == 1)
    return int((lengths >= consecutive).sum())


def first_alarm(flags: Array) -> float:
    """Return the number of the first window with an alarm, from 1; infinity without
    one.
    """
    if flags.any():
        return float(flags.argmax()) + 1
    return math.inf


def yearly_line(what: str, counts: Sequence[int], years: float, most: float | None = None) -> Line:
    """Return the alarms per year; each count is that of one stream of `years`.

    The interval is exact for a Poisson distribution (Garwood, Biometrika 28, 1936).
    Streams differ by chance, so the years are divided by the ratio of the variance
    between streams and the mean.
    """
    total = sum(counts)
    exposure = years * len(counts)
    effect = (
        max(float(np.var(counts, ddof=1)) / max(total / len(counts), 1e-9), 1.0)
        if len(counts) > 1
        else 1.0
    )
    events = total / effect
    low = float(stats.chi2.ppf(0.025, 2 * events)) / 2 * effect / exposure if total else 0.0
    high = float(stats.chi2.ppf(0.975, 2 * events + 2)) / 2 * effect / exposure
    figure = total / exposure
    shown = f"{figure:.2f} in {exposure:.0f} years; {low:.2f} to {high:.2f}"
    return Line(
        what,
        shown,
        f"at most {most:g}" if most is not None else "–",
        _at_most(figure, low, most),
    )


def median_line(what: str, values: Collection[float], most: float | None = None) -> Line:
    """Return the median with its interval from order statistics; infinite values are
    alarms that were not raised.
    """
    ordered = np.sort(np.array([*values]))
    count = len(values)
    low, high = stats.binom.ppf([0.025, 0.975], count, 0.5).astype(int)
    middle = float(ordered[(count - 1) // 2])
    first = float(ordered[max(low - 1, 0)])
    last = float(ordered[min(high, count - 1)])
    figure = f"median {middle:g} of {count}; {first:g} to {last:g}"
    return Line(
        what,
        figure,
        f"at most {most:g}" if most is not None else "–",
        _at_most(middle, first, most),
    )


def share_line(what: str, groups: Sequence[Array], most: float | None = None) -> Line:
    """Return the share of windows with a flag; each group is that of one stream."""
    share = float(np.mean(np.concatenate(groups)))
    low, high = interval([group.tolist() for group in groups])
    return Line(
        what,
        f"{share:.1%}; {low:.1%} to {high:.1%}",
        f"at most {most:.0%}" if most is not None else "–",
        _at_most(share, low, most),
    )


def _at_most(figure: float, low: float, most: float | None) -> Outcome:
    if most is None:
        return "–"
    if figure <= most:
        return "met"
    if low > most:
        return "missed"
    return "uncertain"


def years_of(world: World, windows: int) -> float:
    return windows * timedelta(microseconds=world.length_us) / timedelta(days=365.25)


def some(count: int, share: float) -> int:
    return max(round(count * share), 4)
