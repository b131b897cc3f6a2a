"""How sure a figure of a window is: intervals in which the figure that its rows are a sample of lies.

Shares: Wilson's score interval (Wilson, JASA 1927). Figures that are made of the means of rows: the percentile
bootstrap over rows (Efron, Tibshirani, An Introduction to the Bootstrap, 1993). Area under the curve: DeLong's variance
(DeLong et al., Biometrics 1988) on the logit scale. All take the rows as drawn independently from what the window shows
of the model; that of a day says nothing of the next.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from scipy.stats import norm, rankdata

from mlflow_deploy_plugin.monitoring.features import Array

Method = Literal["Wilson", "bootstrap", "DeLong", "largest error on earlier windows"]

ERROR_BEFORE: Final = "largest error on earlier windows"
RESAMPLES = 400
_CHUNK = 2_000_000  # random numbers at a time
_BOOTSTRAP_ROWS = 20_000


@dataclass(frozen=True)
class Measure:
    """A figure with its interval; low <= value <= high, in the figure's own units.

    Attributes:
        rows: that it was made of.
    """

    name: str
    value: float
    low: float
    high: float
    rows: int
    method: Method


def wilson(name: str, hits: float, total: int, confidence: float) -> Measure:
    """A share of `total` > 0 rows."""
    z = float(norm.ppf((1 + confidence) / 2))
    share = hits / total
    centre = (share + z**2 / (2 * total)) / (1 + z**2 / total)
    half = z / (1 + z**2 / total) * math.sqrt(share * (1 - share) / total + z**2 / (4 * total**2))
    return Measure(
        name, share, max(min(centre - half, share), 0.0), min(max(centre + half, share), 1.0), total, "Wilson"
    )


def bootstrap(name: str, rows: Array, figure: Callable[[Array], Array], confidence: float, seed: int) -> Measure:
    """A figure of the means of rows.

    Args:
        rows: [N, k] float64, N > 0.
        figure: of means [.., k]: [..].

    Beyond 20,000 rows a resample is approximated by the normal distribution that the means have then.
    """
    count, width = rows.shape
    mean = rows.mean(axis=0)
    rng = np.random.default_rng(seed)
    if count > _BOOTSTRAP_ROWS:
        covariance = np.atleast_2d(np.cov(rows, rowvar=False)) / count
        means = rng.multivariate_normal(mean, covariance, RESAMPLES, method="eigh")
    else:
        means = np.empty((RESAMPLES, width))
        step = max(_CHUNK // count, 1)
        for start in range(0, RESAMPLES, step):
            number = min(step, RESAMPLES - start)
            weights = np.stack(
                [np.bincount(drawn, minlength=count) for drawn in rng.integers(0, count, (number, count))]
            )
            means[start : start + number] = weights @ rows / count
    return _percentiles(name, mean, means, figure, count, confidence)


def bootstrap_counts(
    name: str, counts: Array, figure: Callable[[Array], Array], confidence: float, seed: int
) -> Measure:
    """A figure of the shares of [K] kinds of rows, of which there are `counts`; `figure` of shares [.., K]: [..]."""
    total = int(counts.sum())
    drawn = np.random.default_rng(seed).multinomial(total, counts / total, RESAMPLES) / total
    return _percentiles(name, counts / total, drawn, figure, total, confidence)


def _percentiles(
    name: str, mean: Array, means: Array, figure: Callable[[Array], Array], count: int, confidence: float
) -> Measure:
    with np.errstate(invalid="ignore", divide="ignore"):
        value = float(figure(mean))
        drawn = figure(means)
    drawn = drawn[np.isfinite(drawn)]
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2]) if len(drawn) else (value, value)
    return Measure(name, value, min(float(low), value), max(float(high), value), count, "bootstrap")


def area_under_curve(is_positive: Array, scores: Array, confidence: float) -> Measure:
    """The share of pairs of a positive and a negative row in which the positive one has the higher score.

    Args:
        is_positive: [N, C] bool, for each of C curves, none all True or all False; scores: [N, C]. Of several curves
            the mean, its variance by their influence functions together.
    """
    count = len(is_positive)
    areas, influence = [], np.zeros(count)
    for positive, score in zip(is_positive.T, scores.T, strict=True):
        area, own = _placements(positive, score)
        areas.append(area)
        influence += own / is_positive.shape[1]
    value = float(np.mean(areas))
    deviation = float(np.sqrt(np.square(influence).sum()) / count)
    z = float(norm.ppf((1 + confidence) / 2))
    if not 0 < value < 1:
        # all pairs are in order, no variance is left: as sure as of a share of the rarer side's rows without a miss
        rarest = int(np.minimum(is_positive.sum(axis=0), (~is_positive).sum(axis=0)).min())
        edge = wilson("roc_auc", value * rarest, rarest, confidence)
        return Measure("roc_auc", value, edge.low, edge.high, count, "DeLong")
    logit, half = math.log(value / (1 - value)), z * deviation / (value * (1 - value))
    return Measure("roc_auc", value, _expit(logit - half), _expit(logit + half), count, "DeLong")


def _placements(is_positive: Array, scores: Array) -> tuple[float, Array]:
    """The area, and the influence of each row on it: [N], of mean 0."""
    count, positives = len(scores), int(is_positive.sum())
    negatives = count - positives
    ranks = rankdata(scores)
    area = (float(ranks[is_positive].sum()) - positives * (positives + 1) / 2) / (positives * negatives)
    influence = np.empty(count)
    influence[is_positive] = (ranks[is_positive] - rankdata(scores[is_positive])) / negatives
    influence[~is_positive] = 1 - (ranks[~is_positive] - rankdata(scores[~is_positive])) / positives
    influence -= area
    influence[is_positive] *= count / positives
    influence[~is_positive] *= count / negatives
    return area, influence


def _expit(value: float) -> float:
    return 1 / (1 + math.exp(-value)) if value > -700 else 0.0
