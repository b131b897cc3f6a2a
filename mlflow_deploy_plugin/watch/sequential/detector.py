"""The detector of unusual windows and lasting shifts of figures.

Both use the innovations e of the figures, which `baseline.py` defines. A single window
is unusual if an innovation exceeds its own limit (`tails.py`). Lasting shifts are found
by a Shiryaev–Roberts statistic with restarts. Per series, sign and size θ, M(t) =
(M(t - 1) + 1) exp(θ e(t) - θ² / 2) is the evidence that the innovations have shifted by
θ at some earlier window (Roberts, Technometrics 8, 1966; Shin, Ramdas and Rinaldo,
E-detectors, 2023). The statistic is the mean over all series, signs and θ. After an
alarm, all M restart at 0.

The limit is set by a bootstrap of the whole procedure, including its estimates: the
reference's innovations are drawn with replacement, window by window, so that series
that move together count less. The mean number of alarms of these simulated windows
equals the budget.

An alarm is confirmed if the windows since then are 100 times as likely under the shift,
the size of which is one of a few, as under the usual mean. If they are less likely, it
ends as not confirmed after `CONFIRMED_IN` windows, or as soon as they are 12 times less
likely under a shift of the estimated size. A confirmed shift has the most likely of the
sizes, and is over if later windows are 400 times as likely under the usual mean. In
simulations, monitors with a budget of 4 alarms per year were red on 8 % to 12 % of the
days without a shift.
"""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from mlflow_deploy_plugin.serve.runtime.feeds import Array
from mlflow_deploy_plugin.watch.sequential.baseline import (
    JOINS_AFTER,
    Lines,
    RunningBaseline,
    remove_cycle,
)

_SIZES = np.array([0.35, 0.7, 1.2])
_THETA = np.concatenate([_SIZES, -_SIZES])[:, None]
_LARGEST = 4.0
"""The limit of an innovation in the evidence of a shift: a single window must not be
enough.
"""
_SIMULATION = 1
"""The version of the simulation: a change of the simulated limits increases it, so that
stored limits are not used.
"""
_SIMULATIONS = 200
_BLOCK_CELLS = 8_000
"""The number of series, over all simulations, that are simulated together."""
_HORIZON = 365
_LIMITS = np.linspace(1.0, 14.0, 53)
_FEWEST_ALARMS = 8
_KEPT_LIMITS = 64
_LARGEST_LIMIT = 100.0
known_limits: dict[str, float] = {}
"""The limits by a digest of all that they depend on, the last used at the end. They are
derived data, which may be lost, or come from the store.
"""
CONFIRMED_IN = 14
_CONFIRMED = math.log(100)
_REFUTED = math.log(12)
_OVER = math.log(400)
_SHRINKAGE = 0.8
"""The factor on the mean innovation at the alarm, which is the largest of many."""
_CONFIRMED_SIZES = (0.7, 1.2)
_LEAST_SIZE = 0.7
"""Windows tell a smaller shift from none so slowly that false alarms stay open for
months.
"""
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
        scales: the standard deviations of the figures relative to those of a usual
            number of rows, [N, m] float64.
        is_upward: the series of which only an increase is a change, [m] bool.
        is_followed: the series whose lasting shifts are sought, [m] bool. In the other
            series, only single windows are unusual.
        least: the size below which a lasting shift of a series is no alarm and becomes
            usual, [m] float64.
        trends: the trend of the reference, which the values do not contain, [N, m]; 0
            without one.
    """

    values: Array
    reference: int
    phases: Array
    season: int
    gaps: Array
    floors: Array
    restarts: Array
    scales: Array
    is_upward: Array
    is_followed: Array
    least: Array | float = 0.0
    trends: Array | float = 0.0


@dataclass
class Shift:
    """A lasting shift of a series.

    Attributes:
        series: the index of the series.
        sign: 1 if the figure has increased, otherwise -1.
        onset, earliest, latest: the first shifted window, and its 95 % interval.
        size: the mean innovation since the onset at the alarm, in deviations, signed by
            `sign` and without the part that is due to chance; of a confirmed shift, the
            most likely size.
    """

    series: int
    sign: int
    onset: int
    earliest: int
    latest: int
    size: float
    is_confirmed: bool = False
    _windows: int = field(default=0, repr=False)
    """The number of windows since the alarm."""
    _gained: Array | float = field(default=0.0, repr=False)
    """The evidence of the windows since the alarm for the estimated size and for each
    of `_CONFIRMED_SIZES`, log likelihood ratios.
    """
    _over: float = field(default=0.0, repr=False)

    def add_window(self, innovation: float) -> bool:
        """Add a window, and return True if the alarm ends: the shift is not confirmed,
        or the figure is usual again.
        """
        sizes = np.array([self.size, *_CONFIRMED_SIZES])
        gain = sizes * self.sign * innovation - np.square(sizes) / 2
        if self.is_confirmed:
            self._over = max(0.0, self._over - float(gain[0]))
            return self._over > _OVER
        self._windows += 1
        self._gained = gained = self._gained + gain
        # The logarithm of the odds of a shift of any of the sizes.
        odds = float(np.logaddexp.reduce(gained)) - math.log(len(sizes))
        if odds > _CONFIRMED:
            self.is_confirmed = True
            self.size = float(sizes[gained.argmax()])
        is_refuted = self._windows >= CONFIRMED_IN or gained[0] < -_REFUTED
        return odds < 0 and bool(is_refuted)


def track(windows: Windows, limit: float, unusual: Array | float = math.inf) -> "Tracking":
    """Follow all windows after the reference.

    Args:
        limit: the logarithm of the statistic above which an alarm begins.
        unusual: the innovation of each series, [m], above which a single window is
            unusual.
    """
    tracking = Tracking(windows, limit, unusual)
    for window in range(windows.reference, len(windows.values)):
        tracking.add(window)
    return tracking


class Tracking:
    """The state after the last window that was added.

    Attributes:
        shifts: the open shifts, the oldest first.
        alarms: the windows at which an alarm began.
        red: the windows in which a shift is open.
        statistic: the logarithm of the statistic after the last window.
        levels: the figures without their cycle and trend, [N, m].
        lines: the lines of the figures with a trend, minus the trend of the reference,
            [N, m]; 0 without a trend.
        innovations: the innovations of the figures, [N, m]; 0 in the reference.
        baseline: the usual figures.
    """

    def __init__(self, windows: Windows, limit: float, unusual: Array | float) -> None:
        first = windows.reference
        self.levels = remove_cycle(
            windows.values,
            first,
            windows.phases,
            windows.season,
            windows.scales,
        )
        self.baseline = _reference_baseline(windows)[1]
        self.innovations = np.zeros_like(self.levels)
        self.lines = np.zeros_like(self.levels)
        self._line = Lines(self.levels[:first])
        self._has_trend = np.broadcast_to(windows.trends, self.levels.shape)[first - 1] != 0
        self._windows = windows
        self._limit = limit
        self._unusual = unusual
        self._first = first
        """The first window after the last alarm."""
        self._mass = np.zeros((len(_THETA), self.levels.shape[1]))
        """The evidence by sign, size and series."""
        self._followed = max(int(windows.is_followed.sum()), 1)
        self._is_left_out = ~np.isfinite(windows.values)
        """The figures that are unknown, shifted or unusual, and not a part of the
        baseline.
        """
        self._previous = self.baseline.scaled(self.levels[first - 1], windows.scales[first - 1])
        self.shifts: list[Shift] = []
        self.alarms: list[int] = []
        self.red: list[int] = []
        self.statistic = -math.inf

    def add(self, now: int) -> None:
        """Add the window with this index: restart accepted baselines, end shifts that
        are over, raise an alarm if the statistic exceeds the limit, and learn the usual
        levels.
        """
        windows = self._windows
        accepted = windows.restarts == now
        if accepted.any():
            self.baseline.restart(accepted)
            self._line.restart(accepted)
            self._mass[:, accepted] = 0
            self._previous[accepted] = 0
            self.shifts = [shift for shift in self.shifts if not accepted[shift.series]]
        is_known = np.isfinite(windows.values[now])
        line, precision = self._line.at(now)
        self.lines[now] = np.where(self._has_trend, line, 0)
        self.levels[now] -= self.lines[now]
        self.baseline.restart_level(self._has_trend, precision[self._has_trend])
        self.levels[now] = np.where(is_known, self.levels[now], self.baseline.mean)
        innovation = self._innovation(now, is_known)
        # The windows of a shift that was not confirmed become a part of the baseline.
        for shift in [*self.shifts]:
            if not is_known[shift.series]:
                continue
            is_over = shift.add_window(float(innovation[shift.series]))
            if is_over or not self._is_lasting(shift, now):
                self.shifts.remove(shift)
                if not shift.is_confirmed:
                    self._is_left_out[shift.onset : now, shift.series] = False
        # Smaller shifts than the least one are not evidence of a shift.
        margin = np.abs(_THETA) * windows.least / 2 / self.baseline.deviation
        gain = _THETA * innovation - np.square(_THETA) / 2 - margin
        mass = (self._mass + 1) * np.exp(gain)
        self._mass = np.where(is_known, mass, self._mass)
        self._mass[:, [shift.series for shift in self.shifts]] = 0
        self._mass[:, ~windows.is_followed] = 0
        self._mass[len(_SIZES) :, windows.is_upward] = 0
        evidence = float(self._mass.sum()) / (len(_THETA) * self._followed)
        self.statistic = math.log(max(evidence, 1e-300))
        if self.statistic > self._limit:
            self._raise_alarm(now)
        self._is_left_out[now, [shift.series for shift in self.shifts]] = True
        if self.shifts:
            self.red.append(now)
        self._learn(now)

    def _innovation(self, now: int, is_known: Array) -> Array:
        """Return the limited innovations of the window, [m]; 0 if unknown. An unusual
        window, and the first one after a restart, do not explain the next one.
        """
        scale = self._windows.scales[now]
        innovation = self.baseline.innovation(
            self.levels[now],
            self._previous,
            int(self._windows.gaps[now]),
            scale,
        )
        innovation = np.where(is_known, innovation, 0.0)
        self.innovations[now] = innovation
        self._before = self._previous
        is_unusual = np.abs(innovation) > self._unusual
        self._is_left_out[now, is_unusual] = True
        above = np.where(
            is_known,
            self.baseline.scaled(self.levels[now], scale),
            self.baseline.correlation * self._previous,
        )
        self._previous = np.where(is_unusual | ~self.baseline.has_mean, 0.0, above)
        return innovation.clip(-_LARGEST, _LARGEST)

    def _raise_alarm(self, now: int) -> None:
        """Open the shifts that the evidence shows, and begin to collect evidence anew.
        The evidence of a shift that is too small or not lasting is forgotten.
        """
        innovations = self.innovations[: now + 1].clip(-_LARGEST, _LARGEST)
        opened = []
        restarts = np.where(self._windows.restarts <= now, self._windows.restarts, 0)
        first = np.maximum(restarts, self._first)
        for shift in _find_shifts(self._mass, innovations, first, self._limit):
            if not self._is_lasting(shift, now):
                self._mass[:, shift.series] = 0
                continue
            opened.append(shift)
            self._is_left_out[shift.onset : now, shift.series] = True
        if opened:
            self.shifts += opened
            self.alarms.append(now)
            self._mass[:] = 0
            self._first = now + 1

    def _is_lasting(self, shift: Shift, now: int) -> bool:
        """Return True if at least half of the known windows since the onset are on the
        side of the shift: a few extreme windows are not a shift.
        """
        since = slice(shift.onset, now + 1)
        is_known = np.isfinite(self._windows.values[since, shift.series])
        above = self.levels[since, shift.series] - self.baseline.mean[shift.series]
        least = np.maximum(self._windows.least, _LEAST_SIZE / 2 * self.baseline.deviation)
        return bool(np.median(shift.sign * above[is_known]) >= least[shift.series])

    def _learn(self, now: int) -> None:
        """Add the usual levels: at once since a restart, otherwise after `JOINS_AFTER`
        windows.
        """
        scales = self._windows.scales
        restarts = self._windows.restarts
        has_restarted = restarts <= now
        is_new = has_restarted & ~self._is_left_out[now]
        baseline = self.baseline
        above = baseline.scaled(self.levels[now], scales[now]) * baseline.luck(scales[now])
        is_first = is_new & (now < restarts + CONFIRMED_IN)
        baseline.add_deviation(above, self._before, is_first, scales[now])
        baseline.add_level(self.levels[now], is_new, scales[now])
        self._line.add(now, self.levels[now] + self.lines[now], is_new)
        joining = now - JOINS_AFTER
        if joining >= self._windows.reference:
            is_usual = ~self._is_left_out[joining]
            joins = is_usual & ~has_restarted
            self._line.add(joining, self.levels[joining] + self.lines[joining], joins)
            baseline.add(
                self.levels[joining],
                self.levels[joining - 1],
                joins,
                scales[joining],
                scales[joining - 1],
            )
            baseline.add_deviation(
                baseline.scaled(self.levels[joining], scales[joining]),
                baseline.scaled(self.levels[joining - 1], scales[joining - 1]),
                is_usual & (joining >= restarts + CONFIRMED_IN),
                scales[joining],
            )


def _find_shifts(
    mass: Array,
    innovations: Array,
    first: Array,
    limit: float,
) -> Iterator[Shift]:
    """Yield the shift of the series with the most evidence, and of each other series
    that would be an alarm by itself.

    Args:
        mass: the evidence by sign and size, [2 · sizes, m].
        innovations: the innovations until now, [N, m].
        first: the first window of each series that may be the start, [m] int64: after
            the last alarm, and in the accepted baseline.
        limit: the logarithm of the evidence above which a series is an alarm.
    """
    half = len(_SIZES)
    by_sign = np.stack([mass[:half].mean(axis=0), mass[half:].mean(axis=0)])
    strongest = by_sign.max(axis=0)
    for series in np.argsort(-strongest, kind="stable").tolist():
        if strongest[series] < min(strongest.max(), math.exp(limit)):
            return
        sign = 1 if by_sign[0, series] >= by_sign[1, series] else -1
        sums = np.cumsum(sign * innovations[first[series] :, series][::-1])
        likelihood = np.square(np.maximum(sums, 0)) / (2 * np.arange(1, len(sums) + 1))
        likely = np.flatnonzero(likelihood >= likelihood.max() - _ONSET_DROP)
        length = int(likelihood.argmax()) + 1
        end = len(innovations)
        yield Shift(
            series,
            sign,
            onset=end - length,
            earliest=end - int(likely[-1]) - 1,
            latest=end - int(likely[0]) - 1,
            size=max(_SHRINKAGE * float(sums[length - 1]) / length, _LEAST_SIZE),
        )


def limit_for(windows: Windows, rate: float) -> float:
    """Return the limit at which the mean number of alarms per window is `rate`, if
    nothing shifts. The limits of the last references are kept, because all windows of a
    monitor have the same one.
    """
    first = windows.reference
    followed = windows.is_followed
    # Only the windows of the reference and the series whose lasting shifts are sought.
    reference = replace(
        windows,
        values=windows.values[:, followed][:first],
        phases=windows.phases[:first],
        floors=windows.floors[followed],
        scales=windows.scales[:, followed][:first],
        is_upward=windows.is_upward[followed],
    )
    digest = hashlib.sha256(repr((_SIMULATION, rate, reference.season)).encode())
    for part in (reference.values, reference.phases, reference.scales, reference.floors):
        digest.update(np.ascontiguousarray(part).tobytes())
    digest.update(reference.is_upward.tobytes())
    key = digest.hexdigest()
    limit = known_limits.pop(key, math.nan)
    if not 0 < limit < _LARGEST_LIMIT:
        limit = _simulated_limit(reference, rate)
    if len(known_limits) >= _KEPT_LIMITS:
        known_limits.clear()
    known_limits[key] = limit
    return limit


def _simulated_limit(windows: Windows, rate: float) -> float:
    """Return the limit by simulations of a reference and of the windows after it."""
    first = windows.reference
    phases = windows.phases[first - 1] + 1 + np.arange(_HORIZON)
    phases = np.concatenate([windows.phases[:first], phases % windows.season])
    levels, baseline = _reference_baseline(windows)
    levels = levels / windows.scales[:first]
    correlation = baseline.correlation.astype(np.float32)
    innovations = (levels[1:] - baseline.correlation * levels[:-1]).astype(np.float32)
    rng = np.random.default_rng(0)
    positions = rng.integers(0, len(innovations), (_SIMULATIONS, len(phases)))
    # The simulations of a block share memory. Only their statistics are kept.
    size = max(_BLOCK_CELLS // max(innovations.shape[1], 1), 1)
    statistics = []
    for block in range(0, _SIMULATIONS, size):
        # The simulated levels, [simulations, windows, m], have drawn innovations.
        drawn = innovations[positions[block : block + size]]
        drawn[:, 0] /= np.sqrt(1 - np.square(baseline.correlation))
        for window in range(1, len(phases)):
            drawn[:, window] += correlation * drawn[:, window - 1]
        drawn = remove_cycle(drawn, first, phases, windows.season)
        statistics.append(_statistics(drawn, windows))
    return _limit_at(rate, np.concatenate(statistics, axis=1))


def reference_innovations(windows: Windows) -> tuple[Array, Array]:
    """Return the innovations of the reference's windows, [R - 1, m], in deviations as
    `Tracking` has them, and these deviations, [m].
    """
    levels, baseline = _reference_baseline(windows)
    scaled = levels / windows.scales[: windows.reference]
    correlation = baseline.correlation
    deviation = baseline.deviation * np.sqrt(1 - np.square(correlation))
    return (scaled[1:] - correlation * scaled[:-1]) / deviation, deviation


def _reference_baseline(windows: Windows) -> tuple[Array, RunningBaseline]:
    """Return the figures of the reference without their cycle, [R, m], and their
    course.
    """
    first = windows.reference
    scales = windows.scales[:first]
    levels = remove_cycle(
        windows.values[:first],
        first,
        windows.phases[:first],
        windows.season,
        scales,
    )
    return levels, RunningBaseline(levels, windows.season, windows.floors, scales)


def reference_correlation(windows: Windows) -> Array:
    """Return the correlation of consecutive windows of the reference, [m]."""
    return _reference_baseline(windows)[1].correlation


def _limit_at(rate: float, statistics: Array) -> float:
    """Return the limit with this rate: the number of simulations, [windows,
    simulations], that exceed a limit, divided by their windows until then. Beyond the
    simulated limits, the logarithm of the rate is a line.
    """
    peaks = np.maximum.accumulate(statistics, axis=0)
    is_over = peaks[:, :, None] > _LIMITS
    alarms = is_over[-1].sum(axis=0)
    exposure = (~is_over).sum(axis=(0, 1)) + alarms
    count = max(int(np.count_nonzero(alarms >= _FEWEST_ALARMS)), 2)
    if alarms[1] < _FEWEST_ALARMS:  # The figures of the reference hardly vary.
        return float(_LIMITS[-1])
    logs = np.log(alarms[:count] / exposure[:count])
    target = math.log(rate)
    if target >= logs[-1]:
        return float(np.interp(-target, -logs, _LIMITS[:count]))
    slope = np.polyfit(_LIMITS[:count][-12:], logs[-12:], 1)[0]
    return float(_LIMITS[count - 1] + (target - logs[-1]) / min(slope, -0.2))


def _statistics(levels: Array, windows: Windows) -> Array:
    """Return the logarithm of the statistic without restarts, [windows, simulations];
    `levels` is [simulations, N, m].
    """
    first = windows.reference
    floors = windows.floors.astype(np.float32)
    baseline = RunningBaseline(levels[:, :first], windows.season, floors)
    theta = _THETA.astype(np.float32)
    mass = np.zeros((len(levels), len(theta), levels.shape[2]), np.float32)
    statistics = []
    for now in range(first, levels.shape[1]):
        previous = baseline.scaled(levels[:, now - 1], 1.0)
        innovation = baseline.innovation(levels[:, now], previous).clip(-_LARGEST, _LARGEST)
        mass += 1
        mass *= np.exp(theta * innovation[:, None] - np.square(theta) / 2)
        mass[:, len(_SIZES) :, windows.is_upward] = 0
        mass = np.minimum(mass, np.float32(1e30))
        statistics.append(np.log(mass.mean(axis=(1, 2))))
        joining = now - JOINS_AFTER
        if joining >= first:
            baseline.add(levels[:, joining], levels[:, joining - 1])
    return np.stack(statistics)
