"""The detector of lasting shifts: a Shiryaev–Roberts statistic of the innovations of
all series, with restarts.

Per series, sign and size θ, M(t) = (M(t - 1) + 1) exp(θ e(t) - θ² / 2) is the evidence
that the innovations e have shifted by θ at some earlier window (Roberts, Technometrics
8, 1966; Shin, Ramdas and Rinaldo, E-detectors, 2023). The statistic is the mean over
all series, signs and θ. After an alarm, all M restart at 0.

The limit is set by a bootstrap of the whole procedure, including its estimates: the
reference's innovations are drawn with replacement, window by window, so that series
that move together count less. The mean number of alarms of these simulated windows
equals the budget. An open shift ends if the windows since its alarm are 20 times as
likely under the usual mean as under the shifted one.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from mlflow_deploy_plugin.serve.runtime.feeds import Array
from mlflow_deploy_plugin.watch.sequential.baseline import (
    JOINS_AFTER,
    RunningBaseline,
    remove_cycle,
)

_SIZES = np.array([0.35, 0.7, 1.2])
_THETA = np.concatenate([_SIZES, -_SIZES])[:, None]
_LARGEST = 4.0
"""The limit of an innovation: a single window must not be enough, because such jumps
are judged by their distances.
"""
_SIMULATIONS = 100
_HORIZON = 365
_LIMITS = np.arange(2.0, 14.0)
_FEWEST_ALARMS = 8
_OVER = math.log(20)
_ONSET_DROP = 3.0
"""Onsets with a log likelihood up to 3 below the largest form the 95 % interval (by
simulation).
"""


@dataclass(frozen=True, eq=False)
class Windows:
    """The windows of a detector, the reference first.

    Attributes:
        values: the figures, [N, m] float64; NaN if unknown.
        reference: the number of windows of the reference, R.
        phases: the position of each window in the cycle, [N] int64.
        season: the number of windows in the cycle; 1 without a cycle.
        gaps: the distance of each window from the window before, in windows, [N] int64.
        floors: the smallest standard deviations, [m] float64.
        restarts: the window at which the accepted baseline of each series begins, [m]
            int64; N without one.
    """

    values: Array
    reference: int
    phases: Array
    season: int
    gaps: Array
    floors: Array
    restarts: Array


@dataclass
class Shift:
    """A lasting shift of a series.

    Attributes:
        series: the index of the series.
        sign: 1 if the figure has increased, otherwise -1.
        onset, earliest, latest: the first shifted window, and its 95 % interval.
        size: the mean innovation since the onset at the alarm, in deviations, signed by
            `sign`.
    """

    series: int
    sign: int
    onset: int
    earliest: int
    latest: int
    size: float
    over: float = field(default=0.0, repr=False)

    def add_window(self, innovation: float) -> bool:
        """Add a window, and return True if the windows since the alarm show that the
        figure is usual again.
        """
        over = self.over + self.size**2 / 2 - self.size * self.sign * innovation
        self.over = max(0.0, over)
        return self.over > _OVER


def track(windows: Windows, limit: float) -> "Tracking":
    """Follow all windows after the reference. `limit` is the logarithm of the statistic
    above which an alarm begins.
    """
    tracking = Tracking(windows, limit)
    for now in range(windows.reference, len(windows.values)):
        tracking.add(now)
    return tracking


class Tracking:
    """The state after the last window that was added.

    Attributes:
        shifts: the open shifts, the oldest first.
        alarms: the windows at which an alarm began.
        statistic: the logarithm of the statistic after the last window.
        levels: the figures without their cycle, [N, m].
        baseline: the usual figures.
    """

    def __init__(self, windows: Windows, limit: float) -> None:
        first = windows.reference
        self.levels = remove_cycle(windows.values, first, windows.phases, windows.season)
        self.baseline = RunningBaseline(self.levels[:first], windows.season, windows.floors)
        self._windows = windows
        self._limit = limit
        self._first = first
        """The first window after the last alarm."""
        self._mass = np.zeros(
            (
                len(_THETA),
                self.levels.shape[1],
            )
        )
        """The evidence by sign, size and series."""
        self._innovations = np.zeros_like(self.levels)
        self._is_shifted = np.zeros(self.levels.shape, bool)
        self.shifts: list[Shift] = []
        self.alarms: list[int] = []
        self.statistic = -math.inf

    def add(self, now: int) -> None:
        """Add the window with this index: restart accepted baselines, end shifts that
        are over, raise an alarm if the statistic exceeds the limit, and learn the usual
        levels.
        """
        self._restart(self._windows.restarts == now)
        gap = int(self._windows.gaps[now])
        innovation = self.baseline.innovation(
            self.levels[now],
            self.levels[now - 1],
            gap,
        )
        innovation = innovation.clip(-_LARGEST, _LARGEST)
        self._innovations[now] = innovation
        self.shifts = [
            shift for shift in self.shifts if not shift.add_window(float(innovation[shift.series]))
        ]
        self._mass = (self._mass + 1) * np.exp(_THETA * innovation - np.square(_THETA) / 2)
        self._mass[:, self._shifted_series()] = 0
        self.statistic = math.log(
            max(
                float(self._mass.mean()),
                1e-300,
            )
        )
        if self.statistic > self._limit:
            self._raise_alarm(now)
        self._is_shifted[now, self._shifted_series()] = True
        self._learn(now)

    def _shifted_series(self) -> list[int]:
        return [shift.series for shift in self.shifts]

    def _restart(self, accepted: Array) -> None:
        """Begin a new baseline of the accepted series, [m] bool."""
        if accepted.any():
            self.baseline.restart_level(accepted)
            self._mass[:, accepted] = 0
            self.shifts = [shift for shift in self.shifts if not accepted[shift.series]]

    def _raise_alarm(self, now: int) -> None:
        """Open the shifts that the evidence shows, and begin to collect evidence
        anew.
        """
        innovations = self._innovations[self._first : now + 1]
        for shift in _find_shifts(self._mass, innovations, self._first, self._limit):
            self.shifts.append(shift)
            self._is_shifted[shift.onset : now, shift.series] = True
        self.alarms.append(now)
        self._mass[:] = 0
        self._first = now + 1

    def _learn(self, now: int) -> None:
        """Add the usual levels: at once since a restart, otherwise after `JOINS_AFTER`
        windows.
        """
        has_restarted = self._windows.restarts <= now
        self.baseline.add_level(
            self.levels[now],
            has_restarted & ~self._is_shifted[now],
        )
        joining = now - JOINS_AFTER
        if joining >= self._windows.reference:
            self.baseline.add(
                self.levels[joining],
                self.levels[joining - 1],
                ~self._is_shifted[joining] & ~has_restarted,
            )


def _find_shifts(
    mass: Array,
    innovations: Array,
    first: int,
    limit: float,
) -> Iterator[Shift]:
    """Yield the shift of the series with the most evidence, and of each other series
    that would be an alarm by itself.

    Args:
        mass: the evidence by sign and size, [2 · sizes, m].
        innovations: the innovations since the last alarm, [N, m].
        first: the index of the first of these windows.
        limit: the logarithm of the evidence above which a series is an alarm.
    """
    half = len(_SIZES)
    by_sign = np.stack(
        [
            mass[:half].mean(axis=0),
            mass[half:].mean(axis=0),
        ]
    )
    strongest = by_sign.max(axis=0)
    for series in np.argsort(-strongest, kind="stable").tolist():
        if strongest[series] < strongest.max() and np.log(strongest[series]) <= limit:
            return
        sign = 1 if by_sign[0, series] >= by_sign[1, series] else -1
        sums = np.cumsum(sign * innovations[::-1, series])
        likelihood = np.square(np.maximum(sums, 0)) / (2 * np.arange(1, len(sums) + 1))
        likely = np.flatnonzero(likelihood >= likelihood.max() - _ONSET_DROP)
        length = int(likelihood.argmax()) + 1
        end = first + len(sums)
        yield Shift(
            series,
            sign,
            onset=end - length,
            earliest=end - int(likely[-1]) - 1,
            latest=end - int(likely[0]) - 1,
            size=float(sums[length - 1] / length),
        )


def limit_for(windows: Windows, rate: float) -> float:
    """Return the limit at which the mean number of alarms per window is `rate`, if
    nothing shifts.
    """
    first = windows.reference
    season = windows.season
    phases = np.concatenate(
        [
            windows.phases[:first],
            (windows.phases[first - 1] + 1 + np.arange(_HORIZON)) % season,
        ],
    )
    levels = remove_cycle(
        windows.values[:first],
        first,
        windows.phases[:first],
        season,
    )
    correlation = RunningBaseline(levels, season, windows.floors).correlation
    drawn = _draw_levels(levels, correlation, len(phases))
    without_cycle = remove_cycle(drawn, first, phases, season)
    alarms = _count_alarms(without_cycle, first, season, windows.floors)
    return _limit_at(rate, alarms)


def _draw_levels(levels: Array, correlation: Array, count: int) -> Array:
    """Return simulated levels, [simulations, count, m] float32, with innovations that
    are drawn from the `levels`, [R, m].
    """
    drawn_from = levels[1:] - correlation * levels[:-1]
    rng = np.random.default_rng(0)
    positions = rng.integers(0, len(drawn_from), (_SIMULATIONS, count))
    drawn: Array = drawn_from[positions].astype(np.float32)
    drawn[:, 0] /= np.sqrt(1 - np.square(correlation))
    for window in range(1, count):
        drawn[:, window] += correlation.astype(np.float32) * drawn[:, window - 1]
    return drawn


def _limit_at(rate: float, alarms: Array) -> float:
    """Return the limit with this rate by interpolation between the `alarms` at
    `_LIMITS`.
    """
    count = np.count_nonzero(alarms >= _FEWEST_ALARMS)
    if count < 2:  # The figures of the reference hardly vary.
        return float(_LIMITS[count])
    logs = np.log(alarms[:count] / (_SIMULATIONS * _HORIZON))
    target = math.log(rate)
    beyond = int(np.searchsorted(-logs, -target))  # `logs` decrease.
    right = min(max(beyond, 1), len(logs) - 1)
    left = right - 1
    slope = (logs[right] - logs[left]) / (_LIMITS[right] - _LIMITS[left])
    return float(_LIMITS[right] + (target - logs[right]) / min(slope, -0.2))


def _count_alarms(levels: Array, first: int, season: int, floors: Array) -> Array:
    """Return the number of alarms of all simulations for each of `_LIMITS`. `levels` is
    [simulations, N, m].
    """
    baseline = RunningBaseline(
        levels[:, :first],
        season,
        floors.astype(np.float32),
    )
    theta = _THETA.astype(np.float32)
    mass = np.zeros(
        (
            len(_LIMITS),
            len(levels),
            len(theta),
            levels.shape[2],
        ),
        np.float32,
    )
    alarms = np.zeros(len(_LIMITS))
    bounds = np.exp(_LIMITS)[:, None]
    for now in range(first, levels.shape[1]):
        innovation = baseline.innovation(levels[:, now], levels[:, now - 1])
        innovation = innovation.clip(-_LARGEST, _LARGEST)
        mass += 1
        mass *= np.exp(theta * innovation[:, None] - np.square(theta) / 2).astype(np.float32)
        is_alarm = mass.mean(axis=(2, 3)) > bounds
        alarms += is_alarm.sum(axis=1)
        mass[is_alarm] = 0
        joining = now - JOINS_AFTER
        if joining >= first:
            baseline.add(levels[:, joining], levels[:, joining - 1])
    return alarms
