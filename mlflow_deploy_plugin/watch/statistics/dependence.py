"""The autocorrelation of a series: block length (Politis & White, Econometric Reviews
23, 2004; corrected by Patton, Politis & White, 28, 2009), and correlation time.
"""

import math
from dataclasses import dataclass

import numpy as np

from mlflow_deploy_plugin.serve.runtime.feeds import Array

_SHORTEST = 8
_CRITICAL = 2.0
"""An autocorrelation below this many standard errors (times a logarithmic factor)
counts as 0 (section 3.2).
"""


@dataclass(frozen=True)
class Dependence:
    """The autocorrelation of a series, in items. `block_length` is the mean stretch
    length that best estimates the variance of the series' mean. `correlation_time` is
    the long-run variance divided by the variance: 1 for independent items, (1 + c) / (1
    - c) for an autoregressive process, less than 1 for a cycle.
    """

    block_length: float
    correlation_time: float


def dependence(series: Array) -> Dependence:
    """Return the dependence of a series [N]. A series that is constant or has fewer
    than eight items counts as independent. The block length is between 1 and the
    smaller of 3 √N and N / 3, as in Patton's implementation.
    """
    count = len(series)
    if count < _SHORTEST:
        return Dependence(1.0, 1.0)
    centred = series - series.mean()
    run = max(5, math.ceil(math.sqrt(math.log10(count))))
    longest = min(math.ceil(math.sqrt(count)) + run, count - 1)
    covariances = np.array([centred[: count - lag] @ centred[lag:] for lag in range(longest + 1)])
    covariances = covariances / count
    if covariances[0] <= 1e-12 * max(float(np.square(series).mean()), 1e-300):
        return Dependence(1.0, 1.0)
    reach = min(2 * _last_lag(covariances[1:] / covariances[0], count, run), longest)
    lags = np.arange(1, reach + 1)
    window = np.where(lags / reach <= 0.5, 1.0, 2 * (1 - lags / reach))  # the flat-top window
    slope = 2 * float((window * lags) @ covariances[1 : reach + 1])
    spectrum = float(covariances[0] + 2 * window @ covariances[1 : reach + 1])
    if spectrum <= 0:
        return Dependence(1.0, 0.0)
    length = (slope**2 / spectrum**2 * count) ** (1 / 3)
    length = float(np.clip(length, 1.0, max(1.0, min(3 * math.sqrt(count), count / 3))))
    return Dependence(length, spectrum / float(covariances[0]))


def _last_lag(correlations: Array, count: int, run: int) -> int:
    """Return the lag after which `run` consecutive autocorrelations count as zero; at
    least 1.
    """
    is_none = np.abs(correlations) < _CRITICAL * math.sqrt(math.log10(count) / count)
    for lag in range(len(is_none) - run + 1):
        if is_none[lag : lag + run].all():
            return max(lag, 1)
    present = np.flatnonzero(~is_none)
    return int(present[-1]) + 1 if len(present) else 1
