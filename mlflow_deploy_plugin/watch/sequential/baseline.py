"""The usual course of figures over windows: a cycle, a mean, the correlation of
neighbouring windows, and a deviation.

A figure is described by x(t) = cycle(t) + mean + s(t) r(t) with r(t) = φ r(t - 1) +
innovation (an autoregressive process). The scale s(t) is the standard deviation that
the number of rows of the window implies, relative to a usual window (Laney, Quality
Engineering 14, 2002). The cycle comes from the reference. The other parameters come
from the reference and from later windows without a shift: a fixed reference would share
its chance errors with all later windows, so that some references would cause many false
alarms. A window joins `JOINS_AFTER` windows later, because a shift that is not yet
found must not become usual. Older windows are forgotten at the same rate, so that the
baseline follows a figure that moves slowly.
"""

import numpy as np

from mlflow_deploy_plugin.serve.runtime.feeds import Array

JOINS_AFTER = 21
LARGEST_CORRELATION = 0.97
_ROUNDING = 1e-12
_KEPT_WINDOWS = 7
"""The windows of the reference that count for the deviation after a restart."""


def remove_cycle(
    values: Array,
    reference: int,
    phases: Array,
    season: int,
    scales: Array | float = 1.0,
) -> Array:
    """Return the values, [..., N, m], without the mean of their phase in the first
    `reference` windows.

    Args:
        phases: the positions of the windows in the cycle of `season` windows, [N]
            int64.
        scales: the relative standard deviations of the figures, [N, m]. An imprecise
            figure has a small weight in the means.

    An unknown value (NaN) becomes usual.
    """
    known = np.isfinite(values[..., :reference, :])
    weights = known / np.square(np.broadcast_to(scales, values.shape)[..., :reference, :])
    filled = np.where(known, values[..., :reference, :], 0)
    result = values - _weighted_mean(filled, weights)[..., None, :]
    if season > 1:
        filled = np.where(known, result[..., :reference, :], 0)
        for phase in np.unique(phases):
            in_phase = np.flatnonzero(phases[:reference] == phase)
            mean = _weighted_mean(filled[..., in_phase, :], weights[..., in_phase, :])
            result[..., phases == phase, :] -= mean[..., None, :]
    usual: Array = np.nan_to_num(result, nan=0.0, posinf=0.0, neginf=0.0)
    return usual


def _weighted_mean(values: Array, weights: Array) -> Array:
    """Return the mean over the windows, [..., m]; 0 without a window."""
    total = weights.sum(axis=-2)
    mean: Array = (weights * values).sum(axis=-2) / np.where(total > 0, total, 1)
    return mean


class RunningBaseline:
    """The mean, correlation and deviation of m figures, [..., m] each, in windows that
    may be added one by one. The deviation is that of a window with a scale of 1.
    """

    def __init__(
        self,
        reference: Array,
        season: int,
        floors: Array,
        scales: Array | float = 1.0,
    ) -> None:
        """`reference` are the figures without their cycle, [..., R, m]; `floors` their
        smallest deviations, [m]; `scales` their relative deviations, [R, m].
        """
        self._season = season
        self._floors = floors
        count = reference.shape[-2]
        self._kept = 1 - 1 / count
        """The weight of older windows when a window joins."""
        scaled = reference / scales
        shape = reference.shape[:-2] + reference.shape[-1:]
        self._count = np.full(shape, float(count), reference.dtype)
        weights = np.broadcast_to(1 / np.square(scales), reference.shape).sum(axis=-2)
        self._weights = weights.astype(reference.dtype)
        self._sum = (scaled / scales).sum(axis=-2)
        self._squares = np.square(scaled).sum(axis=-2)
        self._lagged = (scaled[..., 1:, :] * scaled[..., :-1, :]).sum(axis=-2)
        self._cycle_error = 0.0 if season == 1 else season / self._weights
        self._level_weights = self._weights.copy()
        self._level_sum = self._sum.copy()

    @property
    def mean(self) -> Array:
        mean: Array = self._level_sum / np.maximum(self._level_weights, 1e-9)
        return mean

    @property
    def deviation(self) -> Array:
        """The standard deviation of the figures around their mean and cycle."""
        count = self._count
        variance = np.maximum(self._squares - np.square(self._sum) / self._weights, 0)
        deviation: Array = np.sqrt(variance / (count - self._season))
        return np.maximum(deviation, self._floors)

    @property
    def correlation(self) -> Array:
        """φ, corrected for the bias of a short series (Kendall, Biometrika 41, 1954),
        generalised to the means of the phases of a cycle: neighbouring windows have
        different phases, so that a long cycle adds little bias.
        """
        count = self._count
        of_mean = np.square(self._sum) / (self._weights * count)
        season = self._season
        variance = np.maximum(self._squares / count - of_mean, 1e-30)
        raw = ((self._lagged / (count - 1) - of_mean) / variance).clip(0, LARGEST_CORRELATION)
        over_cycle = raw ** (season - 1)
        of_means = season * over_cycle * (1 - np.square(raw)) / (1 - over_cycle * raw)
        corrected: Array = (raw + (2 * raw + of_means) / count).clip(0, LARGEST_CORRELATION)
        return corrected

    def innovation(
        self,
        value: Array,
        previous: Array,
        gap: int = 1,
        scale: Array | float = 1.0,
    ) -> Array:
        """Return the part of the value that the window `gap` windows earlier does not
        explain, in deviations.

        Args:
            value: the figures of the window, without their cycle.
            previous: what the earlier window was above its mean, divided by its scale.
            scale: the scale of the window.
        """
        explained = self.correlation**gap
        free = self._count - self._season
        deviation = self.deviation * np.sqrt((1 - np.square(explained)) * free / (free - 1))
        # The estimated mean and cycle have errors of their own.
        of_mean = 1 / np.maximum(np.square(scale) * self._level_weights, 1e-9)
        of_cycle = self._cycle_error / np.square(scale)
        luck = 1 / np.sqrt(1 + of_mean + of_cycle)
        innovation: Array = (self.scaled(value, scale) - explained * previous) / deviation * luck
        return innovation

    def scaled(self, value: Array, scale: Array | float) -> Array:
        """Return the values above their mean, divided by their scale."""
        scaled: Array = (value - self.mean) / scale
        return scaled

    def add(
        self,
        value: Array,
        previous: Array,
        chosen: Array | bool = True,
        scale: Array | float = 1.0,
        previous_scale: Array | float = 1.0,
    ) -> None:
        """Add a window and its neighbour for the `chosen` figures, [m] bool."""
        weight = np.where(chosen, 1.0, 0.0).astype(value.dtype)
        kept = np.where(chosen, self._kept, 1.0).astype(value.dtype)
        scaled = value / scale
        self._sum = kept * self._sum + weight * scaled / scale
        self._add_squares(scaled, previous / previous_scale, weight, kept, scale)
        self.add_level(value, chosen, scale)

    def add_level(
        self,
        value: Array,
        chosen: Array | bool,
        scale: Array | float,
    ) -> None:
        """Add a window only to the mean of the `chosen` figures, [m] bool."""
        weight = np.where(chosen, 1.0, 0.0).astype(value.dtype)
        kept = np.where(chosen, self._kept, 1.0).astype(value.dtype)
        self._level_weights = kept * self._level_weights + weight / np.square(scale)
        self._level_sum = kept * self._level_sum + weight * value / np.square(scale)

    def restart(self, chosen: Array) -> None:
        """Forget the mean of the `chosen` figures, [m] bool, and most windows of their
        deviation and correlation: both may differ at the new level.
        """
        self.restart_level(chosen)
        of_mean = np.square(self._sum) / (self._weights * self._count)
        kept = np.minimum((self._season + _KEPT_WINDOWS) / self._count, 1.0)
        squares = (self._squares - self._count * of_mean) * kept
        lagged = (self._lagged - (self._count - 1) * of_mean) * kept
        # What is left of a constant figure is the rounding of its squares.
        lagged = np.where(squares > _ROUNDING * self._squares, lagged, 0.0)
        self._squares = np.where(chosen, squares, self._squares)
        self._lagged = np.where(chosen, lagged, self._lagged)
        self._sum = np.where(chosen, 0.0, self._sum)
        self._count = np.where(chosen, self._count * kept, self._count)
        self._weights = np.where(chosen, self._weights * kept, self._weights)

    def add_deviation(
        self,
        above: Array,
        previous: Array,
        chosen: Array,
        scale: Array | float,
    ) -> None:
        """Add a window only to the deviation and correlation of the `chosen` figures,
        [m] bool, which have restarted.

        Args:
            above: the figures minus their mean, divided by their scale.
            previous: these figures in the window before.
            scale: the scale of the window.
        """
        weight = np.where(chosen, 1.0, 0.0)
        kept = np.where(chosen, self._kept, 1.0)
        # Differences below the least deviation would make constant figures correlated.
        above = np.where(np.abs(above) > self._floors, above, 0.0)
        self._add_squares(above, previous, weight, kept, scale)

    def _add_squares(
        self, above: Array, previous: Array, weight: Array, kept: Array, scale: Array | float
    ) -> None:
        self._count = kept * self._count + weight
        self._weights = kept * self._weights + weight / np.square(scale)
        self._squares = kept * self._squares + weight * np.square(above)
        self._lagged = kept * self._lagged + weight * above * previous

    def luck(self, scale: Array | float) -> Array:
        """Return the factor that corrects a difference from the mean for the error of
        this mean (Welford, Technometrics 4, 1962).
        """
        part: Array = np.sqrt(1 - 1 / (1 + self._level_weights * np.square(scale)))
        return part

    @property
    def has_mean(self) -> Array:
        """True for the figures whose mean is known, [m] bool: not at a restart."""
        known: Array = self._level_weights > 0
        return known

    def restart_level(self, chosen: Array, weights: Array | float = 0.0) -> None:
        """Set the mean of the `chosen` figures, [m] bool, to 0, as if it were the mean
        of this number of windows. By default, the mean is forgotten: later windows are
        usual.
        """
        self._level_weights[..., chosen] = weights
        self._level_sum[..., chosen] = 0


class Lines:
    """The lines of m figures: regressions on the number of the window, which forget
    older windows as `RunningBaseline` does.
    """

    def __init__(self, reference: Array) -> None:
        """`reference` are the figures without their cycle, [R, m]."""
        self._kept = 1 - 1 / len(reference)
        numbers = np.arange(len(reference))[:, None]
        self._sums = _moments(numbers, reference).sum(axis=1)

    def at(self, number: int) -> tuple[Array, Array]:
        """Return the lines in a window, [m], and the number of windows whose mean is as
        precise, [m].
        """
        weights, numbers, squares, values, products = self._sums
        weights = np.maximum(weights, 1e-9)
        spread = np.maximum(squares - np.square(numbers) / weights, 1e-9)
        ahead = number - numbers / weights
        slopes = (products - numbers * values / weights) / spread
        precision = 1 / (1 / weights + np.square(ahead) / spread)
        line: Array = values / weights + slopes * ahead
        return line, precision

    def add(self, number: int, values: Array, chosen: Array) -> None:
        """Add a window to the lines of the `chosen` figures, [m] bool."""
        sums = self._kept * self._sums + _moments(number, values)
        self._sums = np.where(chosen, sums, self._sums)

    def restart(self, chosen: Array) -> None:
        self._sums[:, chosen] = 0


def _moments(numbers: Array | int, values: Array) -> Array:
    ones = np.ones_like(values)
    return np.stack([ones, ones * numbers, ones * numbers**2, values, values * numbers])
