"""The usual course of figures over windows: a cycle, a mean, the correlation of
neighbouring windows, and a deviation.

A figure is described by x(t) = cycle(t) + mean + r(t) with r(t) = φ r(t - 1) +
innovation (an autoregressive process). The cycle comes from the reference. The other
parameters come from the reference and from later windows without a shift: a fixed
reference would share its chance errors with all later windows, so that some references
would cause many false alarms. A window joins `JOINS_AFTER` windows later, because a
shift that is not yet found must not become usual.
"""

import numpy as np

from mlflow_deploy_plugin.serve.runtime.feeds import Array

JOINS_AFTER = 21
LARGEST_CORRELATION = 0.97


def remove_cycle(values: Array, reference: int, phases: Array, season: int) -> Array:
    """Return the values, [..., N, m], without the mean of their phase in the first
    `reference` windows. `phases`, [N] int64, are the positions of the windows in the
    cycle of `season` windows. An unknown value (NaN) becomes usual.
    """
    with np.errstate(invalid="ignore"):
        overall = np.nanmean(values[..., :reference, :], axis=-2)
    result = values - overall[..., None, :]
    if season > 1:
        for phase in np.unique(phases):
            in_phase = np.flatnonzero(phases[:reference] == phase)
            if len(in_phase):
                phase_values = result[..., in_phase, :]
                is_known = np.isfinite(phase_values)
                mean = np.where(is_known, phase_values, 0).sum(axis=-2) / np.maximum(
                    is_known.sum(axis=-2), 1
                )
                result[..., phases == phase, :] -= mean[..., None, :]
    usual: Array = np.nan_to_num(result, nan=0.0, posinf=0.0, neginf=0.0)
    return usual


class RunningBaseline:
    """The mean, correlation and deviation of m figures, [..., m] each, in windows that
    may be added one by one.
    """

    def __init__(self, reference: Array, season: int, floors: Array) -> None:
        """`reference` are the figures without their cycle, [..., R, m]; `floors` their
        smallest deviations, [m].
        """
        self._season = season
        self._floors = floors
        shape = reference.shape[:-2] + reference.shape[-1:]
        self._count = np.full(
            shape,
            float(reference.shape[-2]),
            reference.dtype,
        )
        self._sum = reference.sum(axis=-2)
        self._squares = np.square(reference).sum(axis=-2)
        self._lagged = (reference[..., 1:, :] * reference[..., :-1, :]).sum(axis=-2)
        self._level_count = self._count.copy()
        self._level_sum = self._sum.copy()

    @property
    def mean(self) -> Array:
        mean: Array = self._level_sum / np.maximum(self._level_count, 1)
        return mean

    @property
    def deviation(self) -> Array:
        """The standard deviation of the figures around their mean and cycle."""
        count = self._count
        variance = self._squares / count - np.square(self._sum / count)
        deviation: Array = np.sqrt(np.maximum(variance, 0) * count / (count - self._season))
        return np.maximum(deviation, self._floors)

    @property
    def correlation(self) -> Array:
        """φ, corrected for the bias of a short series (Kendall, Biometrika 41, 1954),
        generalised to the means of the phases of a cycle: neighbouring windows have
        different phases, so that a long cycle adds little bias.
        """
        count = self._count
        mean = self._sum / self._count
        season = self._season
        variance = np.maximum(self._squares / count - np.square(mean), 1e-30)
        raw = ((self._lagged / (count - 1) - np.square(mean)) / variance).clip(
            0,
            LARGEST_CORRELATION,
        )
        over_cycle = raw ** (season - 1)
        of_means = season * over_cycle * (1 - np.square(raw)) / (1 - over_cycle * raw)
        corrected: Array = (raw + (2 * raw + of_means) / count).clip(0, LARGEST_CORRELATION)
        return corrected

    def innovation(self, value: Array, previous: Array, gap: int = 1) -> Array:
        """Return the part of the value that the window `gap` windows earlier does not
        explain, in deviations.
        """
        mean = self.mean
        correlation = self.correlation
        explained = correlation**gap
        free = self._count - self._season
        deviation = self.deviation * np.sqrt((1 - np.square(explained)) * free / (free - 1))
        # The estimated mean has an error of its own.
        luck = np.sqrt(self._level_count / (self._level_count + 1))
        innovation: Array = (value - mean - explained * (previous - mean)) / deviation * luck
        return innovation

    def add(
        self,
        value: Array,
        previous: Array,
        chosen: Array | bool = True,
    ) -> None:
        """Add a window for the `chosen` figures, [m] bool."""
        weight = np.where(chosen, 1.0, 0.0).astype(value.dtype)
        self._count += weight
        self._sum += weight * value
        self._squares += weight * np.square(value)
        self._lagged += weight * value * previous
        self.add_level(value, chosen)

    def add_level(self, value: Array, chosen: Array | bool) -> None:
        """Add a window only to the mean of the `chosen` figures, [m] bool."""
        weight = np.where(chosen, 1.0, 0.0).astype(value.dtype)
        self._level_count += weight
        self._level_sum += weight * value

    def restart_level(self, chosen: Array) -> None:
        """Forget the mean of the `chosen` figures, [m] bool: later windows are
        usual.
        """
        self._level_count[..., chosen] = 0
        self._level_sum[..., chosen] = 0
