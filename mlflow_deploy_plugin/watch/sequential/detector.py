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

    def ends(self, innovation: float) -> bool:
        """Add a window, and return True if the windows since the alarm show that the
        figure is usual again.
        """
        self.over = max(0.0, self.over + self.size**2 / 2 - self.size * self.sign * innovation)
        return self.over > _OVER


@dataclass(frozen=True, eq=False)
class Tracking:
    """The state after the last window.

    Attributes:
        shifts: the open shifts, the oldest first.
        alarms: the windows at which an alarm began.
        statistic: the logarithm of the statistic after the last window.
        levels: the figures without their cycle, [N, m].
        mean, deviation: of the usual figures, [m] each.
    """

    shifts: tuple[Shift, ...]
    alarms: tuple[int, ...]
    statistic: float
    levels: Array
    mean: Array
    deviation: Array


def track(windows: Windows, limit: float) -> Tracking:
    """Follow all windows after the reference. `limit` is the logarithm of the statistic
    above which an alarm begins.
    """
    first = windows.reference
    count = len(windows.values)
    levels = remove_cycle(windows.values, first, windows.phases, windows.season)
    baseline = RunningBaseline(levels[:first], windows.season, windows.floors)
    mass = np.zeros((len(_THETA), levels.shape[1]))
    innovations = np.zeros_like(levels)
    is_shifted = np.zeros(levels.shape, bool)
    open_shifts: list[Shift] = []
    alarms: list[int] = []
    restarted = first
    statistic = -math.inf
    for now in range(first, count):
        accepted = windows.restarts == now
        if accepted.any():
            baseline.restart_level(accepted)
            mass[:, accepted] = 0
            open_shifts = [shift for shift in open_shifts if not accepted[shift.series]]
        value = levels[now]
        previous = levels[now - 1]
        innovation = baseline.innovation(value, previous, int(windows.gaps[now])).clip(
            -_LARGEST,
            _LARGEST,
        )
        innovations[now] = innovation
        open_shifts = [
            shift for shift in open_shifts if not shift.ends(float(innovation[shift.series]))
        ]
        shifted = [shift.series for shift in open_shifts]
        mass = (mass + 1) * np.exp(_THETA * innovation - np.square(_THETA) / 2)
        mass[:, shifted] = 0
        statistic = math.log(max(float(mass.mean()), 1e-300))
        if statistic > limit:
            shifts = [*_find(mass, innovations[restarted : now + 1], restarted, limit)]
            open_shifts += shifts
            for shift in shifts:
                is_shifted[shift.onset : now, shift.series] = True
            alarms.append(now)
            mass[:] = 0
            restarted = now + 1
        is_shifted[now, [shift.series for shift in open_shifts]] = True
        has_restarted = windows.restarts <= now
        baseline.add_level(value, has_restarted & ~is_shifted[now])
        if (joining := now - JOINS_AFTER) >= first:
            baseline.add(
                levels[joining], levels[joining - 1], ~is_shifted[joining] & ~has_restarted
            )
    return Tracking(
        tuple(open_shifts),
        tuple(alarms),
        statistic,
        levels,
        baseline.mean,
        baseline.deviation,
    )


def _find(mass: Array, innovations: Array, first: int, limit: float) -> Iterator[Shift]:
    """Yield the series with the most evidence, and each other series that would be an
    alarm by itself.
    """
    half = len(_SIZES)
    by_sign = np.stack([mass[:half].mean(axis=0), mass[half:].mean(axis=0)])
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
        onsets = (end - length, end - int(likely[-1]) - 1, end - int(likely[0]) - 1)
        yield Shift(series, sign, *onsets, size=float(sums[length - 1] / length))


def limit_for(windows: Windows, rate: float) -> float:
    """Return the limit at which the mean number of alarms per window is `rate`, if
    nothing shifts.
    """
    first = windows.reference
    season = windows.season
    levels = remove_cycle(windows.values[:first], first, windows.phases[:first], season)
    correlation = RunningBaseline(levels, season, windows.floors).correlation
    drawn_from = levels[1:] - correlation * levels[:-1]
    rng = np.random.default_rng(0)
    phases = np.concatenate(
        [windows.phases[:first], (windows.phases[first - 1] + 1 + np.arange(_HORIZON)) % season],
    )
    drawn = drawn_from[rng.integers(0, len(drawn_from), (_SIMULATIONS, len(phases)))].astype(
        np.float32,
    )
    drawn[:, 0] /= np.sqrt(1 - np.square(correlation))
    for window in range(1, len(phases)):
        drawn[:, window] += correlation.astype(np.float32) * drawn[:, window - 1]
    alarms = _count_alarms(
        remove_cycle(drawn, first, phases, season),
        first,
        season,
        windows.floors,
    )
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
    baseline = RunningBaseline(levels[:, :first], season, floors.astype(np.float32))
    theta = _THETA.astype(np.float32)
    mass = np.zeros((len(_LIMITS), len(levels), len(theta), levels.shape[2]), np.float32)
    alarms = np.zeros(len(_LIMITS))
    bounds = np.exp(_LIMITS)[:, None]
    for now in range(first, levels.shape[1]):
        innovation = baseline.innovation(levels[:, now], levels[:, now - 1]).clip(
            -_LARGEST,
            _LARGEST,
        )
        mass += 1
        mass *= np.exp(theta * innovation[:, None] - np.square(theta) / 2).astype(np.float32)
        is_alarm = mass.mean(axis=(2, 3)) > bounds
        alarms += is_alarm.sum(axis=1)
        mass[is_alarm] = 0
        if (joining := now - JOINS_AFTER) >= first:
            baseline.add(levels[:, joining], levels[:, joining - 1])
    return alarms
