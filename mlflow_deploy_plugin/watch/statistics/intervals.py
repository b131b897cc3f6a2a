"""Intervals of a window's metrics, which treat the rows as a sample.

- Shares: Wilson's score interval (Wilson, JASA 1927), above a confidence of 99 % joined
  with the exact interval (Clopper & Pearson, Biometrika 1934): at 99.95 %, Wilson's
  misses a share of 1 % of 200 rows 8 times too often.
- Functions of means over rows: the percentile bootstrap (Efron, Tibshirani, An
  Introduction to the Bootstrap, 1993). Percentiles beyond the tenth resample are
  extrapolated with the quantiles of the normal distribution.
- The area under the curve: DeLong's variance (DeLong et al., Biometrics 1988) on the
  logit scale.

Errors of consecutive rows are often correlated, so the rows are worth fewer independent
rows (Kish, Survey Sampling, 1965). The number of independent rows follows from the
variance of sums over increasingly long stretches (batch means: Schmeiser, Operations
Research 30, 1982), with Student's quantile (Korn & Graubard, Survey Methodology 24,
1998). Coverage of nominal 95 % intervals for four figures on 480 to 2,880 rows:

| dependence of the rows | assuming independence | these intervals |
|---|---|---|
| independent | 92 to 95 % | 92 to 98 % |
| 24 stretches, each with correlated errors | 46 to 94 % | 90 to 97 % |
| a window 17 correlation times long | 49 to 92 % | 88 to 97 % |
| a window 5 correlation times long | 17 to 88 % | 73 to 94 % |
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pyarrow as pa
from scipy.special import expit, ndtri, stdtrit

from mlflow_deploy_plugin.core.column_names import EVENT_TIME
from mlflow_deploy_plugin.core.errors import Refused
from mlflow_deploy_plugin.core.spec.monitors import MONITOR_METRICS, Requirement
from mlflow_deploy_plugin.serve.inference_log.scan import microseconds_of
from mlflow_deploy_plugin.serve.runtime.feeds import Array
from mlflow_deploy_plugin.watch.result import Finding, State, WindowRequest
from mlflow_deploy_plugin.watch.sequential.budget import FEWEST_OF_ONE
from mlflow_deploy_plugin.wrap.evaluation.metrics import resamples, weight_below_scores
from mlflow_deploy_plugin.wrap.evaluation.proportions import clopper_pearson_bounds, wilson_bounds

Method = Literal[
    "Wilson",
    "Clopper-Pearson",
    "bootstrap",
    "DeLong",
    "prediction interval",
    "worst case",
    "noise of earlier windows",
]

RESAMPLES = 400
_SHORTEST = 8
_CRITICAL = 2.0
"""An autocorrelation below this many standard errors (times a logarithmic factor)
counts as 0 (section 3.2).
"""
_TAIL = 10
"""The number of resamples beyond a percentile that is not extrapolated."""
_WILSON_UP_TO = 0.99
_SEED = 0
_BOOTSTRAP_ROWS = 20_000
_PIECES = 96
_PIECE_ROWS = 5
"""The maximum number of pieces for measuring the autocorrelation of a window, and the
minimum rows per piece.
"""
_TIMES_A_STRETCH = 6
_FEWEST_STRETCHES = 8
"""The length of a stretch in correlation times, and the minimum number of stretches.
With four stretches, three of four models that broke in mid-window (accuracy 0.78, then
0.44) looked like normal variation; with eight, none of 200 did.
"""
_LATEST = 90
"""The maximum number of windows whose values show the noise of windows."""
_LARGEST_CHANGE = 6.0
"""The largest change from one window to the next, in medians of these changes."""
_WORTH = 2 / 3
"""The number of independent values that a change is worth (von Neumann, Annals of
Mathematical Statistics 12, 1941).
"""


@dataclass(frozen=True)
class MetricInterval:
    """A figure with its interval, low <= value <= high. The `rows` are worth
    `effective_n` independent rows. The value is NaN if only its bounds are known.
    """

    name: str
    value: float
    low: float
    high: float
    rows: int
    method: Method
    effective_n: float

    def widened(self, before: Sequence[float], confidence: float) -> "MetricInterval":
        """Return the interval with the noise of whole windows. It is the part of the
        noise of the values in the windows before that their rows do not explain; fewer
        than 8 values show none.
        """
        if len(before) < FEWEST_OF_ONE or math.isnan(self.value):
            return self
        changes = np.abs(np.diff(before[-_LATEST:]))
        # A shift, or a window that is far off, counts as little as possible.
        changes = np.minimum(changes, _LARGEST_CHANGE * np.median(changes))
        level = (1 + confidence) / 2
        of_rows = (self.high - self.low) / (2 * ndtri(level))
        excess = np.square(changes).mean() / 2 - of_rows**2
        if excess <= 0:
            return self
        noise = stdtrit(_WORTH * len(changes), level) * math.sqrt(excess)
        is_share = MONITOR_METRICS["performance"][self.name].scale == "share"
        high = self.value + math.hypot(self.high - self.value, noise)
        return replace(
            self,
            low=max(self.value - math.hypot(self.value - self.low, noise), min(self.low, 0.0)),
            high=min(high, 1.0) if is_share else high,
            method="noise of earlier windows",
        )

    @property
    def figures(self) -> dict[str, float]:
        ends = {f"{self.name}_low": self.low, f"{self.name}_high": self.high}
        if math.isnan(self.value):
            return ends
        return {self.name: self.value, **ends}


@dataclass(frozen=True, eq=False)
class Sampling:
    """The sampling of rows. `times` is [N] in any unit; None if rows are independent.
    `weights` is [N] > 0, the number of rows that each row represents; None for equal
    weights. Weights are treated as known (Hájek's ratio estimator).
    """

    confidence: float
    times: Array | None = None
    weights: Array | None = None

    def of(self, rows: Array) -> "Sampling":
        """Return the sampling of the chosen `rows`, a mask [N]."""
        times = None if self.times is None else self.times[rows]
        weights = None if self.weights is None else self.weights[rows]
        return replace(self, times=times, weights=weights)

    def shares(self, count: int) -> Array:
        """Return the weights of `count` rows, [N], normalised to mean 1."""
        if self.weights is None:
            return np.ones(count)
        normalised: Array = self.weights / self.weights.mean()
        return normalised

    def effective_n(self, influence: Array) -> float:
        """Return the number of independent rows that these rows are worth for a figure,
        at most the number of rows. `influence` is the influence of each row on the
        figure, [N] with mean 0, in any unit.
        """
        count = len(influence)
        pieces = min(_PIECES, count // _PIECE_ROWS)
        independent = float(np.square(influence).sum())
        if self.times is None or pieces < _FEWEST_STRETCHES or not independent > 0:
            return float(count)
        ordered = influence[np.argsort(self.times, kind="stable")]
        decay = dependence(_sums(ordered, pieces))
        length = max(decay.block_length, 1)
        if decay.correlation_time > 1:
            length = max(decay.block_length, _TIMES_A_STRETCH * decay.correlation_time)
        stretches = max(pieces // math.ceil(length), _FEWEST_STRETCHES)
        dependent = stretches * float(_sums(ordered, stretches).var(ddof=1))
        level = (1 + self.confidence) / 2
        # The variance of a few stretches is itself uncertain.
        correction = float(ndtri(level) / stdtrit(stretches - 1, level)) ** 2
        return max(count / max(dependent / independent, 1.0) * correction, 1.0)


def _sums(values: Array, parts: int) -> Array:
    """Return the sums of consecutive parts of the values, [parts]; the parts have
    nearly equal lengths.
    """
    return np.add.reduceat(
        values,
        np.arange(parts) * len(values) // parts,
    )


def share_interval(name: str, is_hit: Array, sampling: Sampling) -> MetricInterval:
    """Return the share of hits with its interval; `is_hit` is [N] bool, N > 0."""
    hits = is_hit.astype(np.float64)
    count = len(is_hit)
    weights = sampling.shares(count)
    part = min(float(weights @ hits) / count, 1.0)
    influence = weights * (hits - part)
    independent = sampling.effective_n(influence)
    effective_n = independent * kish_effective_n(weights) / count
    if sampling.weights is not None and 0 < part < 1:
        # If rows with large weights miss more often, the variance is larger than the
        # weights imply.
        effective_n = min(
            effective_n,
            independent * part * (1 - part) / float(np.square(influence).mean()),
        )
    return wilson_interval(name, part * count, count, sampling.confidence, effective_n)


def kish_effective_n(weights: Array) -> float:
    """Return the number of equally weighted rows that rows with `weights`, [N > 0], are
    worth (Kish, 1965).
    """
    return float(weights.sum() ** 2 / np.square(weights).sum())


def wilson_interval(
    name: str,
    hits: float,
    total: int,
    confidence: float,
    effective_n: float | None = None,
) -> MetricInterval:
    """Return a share of `total` > 0 rows with its interval; `effective_n` is by default
    `total` (independent rows).
    """
    part = hits / total
    count = total if effective_n is None else effective_n
    low, high = wilson_bounds(part, count, confidence)
    method: Method = "Wilson"
    if confidence > _WILSON_UP_TO and math.isfinite(count):
        exact_low, exact_high = clopper_pearson_bounds(part * count, count, confidence)
        low = min(low, exact_low)
        high = max(high, exact_high)
        method = "Clopper-Pearson"
    return MetricInterval(name, part, low, high, total, method, count)


def bootstrap_interval(
    name: str,
    rows: Array,
    figure: Callable[[Array], Array],
    sampling: Sampling,
) -> MetricInterval:
    """Return a figure of the means over `rows`, [N > 0, k], with its interval. A
    resample has `effective_n` rows. `figure` maps means [.., k] to [..] and is smooth
    at the mean. Above 20,000 rows, a normal approximation is used.
    """
    count = len(rows)
    weights = sampling.shares(count)[:, None]
    mean = (weights * rows).mean(axis=0)
    slopes = np.ones(1)  # the derivatives of the figure with respect to the means
    if len(mean) > 1:
        steps = np.diag(np.maximum(1e-4 * rows.std(axis=0), 1e-12))
        slopes = np.nan_to_num((figure(mean + steps) - figure(mean - steps)) / (2 * np.diag(steps)))
    effective_n = sampling.effective_n(weights[:, 0] * ((rows - mean) @ slopes))
    weighted = np.hstack([weights * rows, weights])
    size = max(round(effective_n), 1)
    rng = np.random.default_rng(_SEED)
    if size > _BOOTSTRAP_ROWS:
        sums = rng.multivariate_normal(
            weighted.mean(axis=0),
            np.atleast_2d(np.cov(weighted, rowvar=False)) / size,
            RESAMPLES,
            method="eigh",
        )
    else:
        sums = np.stack(
            [times @ weighted / size for times in resamples(rng, len(weighted), size, RESAMPLES)]
        )
    means = sums[:, :-1] / sums[:, -1:]
    effective_n = effective_n * kish_effective_n(weights) / count
    return _percentile_interval(name, mean, means, figure, count, effective_n, sampling.confidence)


def bootstrap_counts_interval(
    name: str,
    counts: Array,
    figure: Callable[[Array], Array],
    effective_n: float,
    sampling: Sampling,
) -> MetricInterval:
    """Return a figure with its interval. `figure` maps shares of K kinds of rows, [..,
    K], to [..]; `counts` is [K].
    """
    total = round(float(counts.sum()))
    shares = counts / counts.sum()
    size = max(round(effective_n), 1)
    drawn = np.random.default_rng(_SEED).multinomial(size, shares, RESAMPLES) / size
    return _percentile_interval(
        name,
        shares,
        drawn,
        figure,
        total,
        effective_n,
        sampling.confidence,
    )


def _percentile_interval(
    name: str,
    mean: Array,
    means: Array,
    figure: Callable[[Array], Array],
    count: int,
    effective_n: float,
    confidence: float,
) -> MetricInterval:
    """Return the figure of the `mean`, [k], with the percentiles of the figure of
    resampled `means`, [RESAMPLES, k], as its interval.

    Percentiles with fewer than `_TAIL` resamples beyond them are extrapolated by the
    normal distribution. Resamples in which the figure is undefined are skipped.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        value = float(figure(mean))
        drawn = figure(means)
    drawn = drawn[np.isfinite(drawn)]
    low = value
    high = value
    if len(drawn):
        tail = (1 - confidence) / 2
        probability = max(tail, min(_TAIL / len(drawn), 0.25))
        low, middle, high = np.quantile(drawn, [probability, 0.5, 1 - probability])
        scale = float(ndtri(tail) / ndtri(probability))
        low = middle - scale * (middle - low)
        high = middle + scale * (high - middle)
    return MetricInterval(
        name,
        value,
        min(float(low), value),
        max(float(high), value),
        count,
        "bootstrap",
        effective_n,
    )


def auc_interval(is_positive: Array, scores: Array, sampling: Sampling) -> MetricInterval:
    """Return the area under the curve with its interval: the share of pairs in which
    the positive row has a higher score than the negative row. The area is the mean over
    C curves, with `is_positive` and `scores` as [N, C]; each curve has both classes.
    """
    count = len(is_positive)
    weights = sampling.shares(count)
    areas = []
    influence = np.zeros(count)
    for curve in zip(is_positive.T, scores.T, strict=True):
        area, deviations = _area(*curve, weights)
        areas.append(area)
        influence += deviations / is_positive.shape[1]
    value = float(np.mean(areas))
    effective_n = sampling.effective_n(influence)
    variance = float(np.square(influence).mean()) / effective_n
    effective_n *= kish_effective_n(weights) / count
    rarest = int(
        np.minimum(
            is_positive.sum(axis=0),
            (~is_positive).sum(axis=0),
        ).min()
    )
    if 0 < value < 1:  # The normal interval of the logit.
        logit = math.log(value / (1 - value))
        half = float(ndtri((1 + sampling.confidence) / 2)) * math.sqrt(variance)
        half /= value * (1 - value)
        low, high = expit([logit - half, logit + half]).tolist()
    else:  # The variance is 0: use Wilson's interval with the rows of the rarer class.
        edge = wilson_interval("roc_auc", value * rarest, rarest, sampling.confidence)
        low = edge.low
        high = edge.high
    return MetricInterval("roc_auc", value, low, high, count, "DeLong", effective_n)


def _area(
    positive: Array,
    score: Array,
    weights: Array,
) -> tuple[float, Array]:
    """Return the area under a curve, and the influence of each row on the area, [N]."""
    above = weights * positive
    below = weights * ~positive
    positives = above.sum()
    negatives = below.sum()
    weight_below = weight_below_scores(score)
    beaten = weight_below(below)
    beating = positives - weight_below(above)
    area = float(above @ beaten / (positives * negatives))
    deviations: Array = np.where(positive, beaten / negatives, beating / positives) - area
    deviations *= weights * (len(score) / np.where(positive, positives, negatives))
    return area, deviations


def bonferroni_confidence(rate: float, intervals: int) -> float:
    """Return the confidence of each interval such that the chance of any false
    violation is at most `rate`. Bonferroni's inequality divides the rate by the number
    of intervals. Only one side of an interval is a violation.
    """
    return 1 - rate / max(intervals, 1)


def event_sampling(request: WindowRequest, rows: pa.Table, confidence: float) -> Sampling:
    """Return the sampling of the log's rows according to the monitor's spec."""
    if request.spec.independent_rows:
        return Sampling(confidence)
    return Sampling(confidence, microseconds_of(rows.column(EVENT_TIME)))


def criterion_finding(
    requirement: Requirement,
    measured: MetricInterval | Refused,
    confidence: float,
    segment: str = "",
    prefix: str = "",
) -> Finding:
    """Return the finding of a requirement; `prefix` precedes the name of the figure,
    such as `estimated `.
    """
    subject = f"{prefix}{requirement.name}"
    if requirement.argument:
        subject += f"({requirement.argument})"
    if isinstance(measured, Refused):
        return Finding(
            subject,
            check="criterion",
            state="not judged",
            reason=measured.reason,
            threshold=requirement.value,
            segment=segment,
        )
    state = criterion_state(requirement.holds(measured.low), requirement.holds(measured.high))
    interval = (
        f"{measured.low:.4g} to {measured.high:.4g} ({measured.method}, confidence "
        f"{confidence:.4g})"
    )
    is_less = measured.effective_n < 0.9 * measured.rows
    worth = f" (worth {measured.effective_n:,.0f} independent rows)" if is_less else ""
    value = None if math.isnan(measured.value) else measured.value
    on_rows = "" if value is None else f"{value:.4g} on {measured.rows:,} rows{worth}, "
    reason = f"{on_rows}{interval}; required is {requirement.text}"
    if state == "cannot tell":
        reason += ", which is within the interval"
    return Finding(subject, "criterion", state, reason, value, requirement.value, segment)


def criterion_state(holds_at_low: bool, holds_at_high: bool) -> State:
    """Return the state of a requirement that holds at both ends of an interval, at one
    or at none.
    """
    if holds_at_low and holds_at_high:
        return "kept"
    if holds_at_low or holds_at_high:
        return "cannot tell"
    return "violated"


def overall_state(findings: Sequence[Finding]) -> tuple[State, str]:
    """Return the overall state and the reason: "violated" if any finding is violated,
    otherwise "drift" if a figure has shifted, and "kept" if all are kept. A segment
    that was not judged does not prevent "kept", because the requirement also applies to
    all rows.
    """
    of_state: dict[State, list[Finding]] = {}
    for finding in findings:
        of_state.setdefault(finding.state, []).append(finding)
    for state in ("violated", "drift"):
        if state in of_state:
            return state, _shown(of_state[state])
    unknown = of_state.get("cannot tell", [])
    if unknown or "kept" in of_state:
        unknown += [each for each in of_state.get("not judged", ()) if not each.segment]
    if unknown:
        return "cannot tell", _shown(unknown)
    if "kept" in of_state:
        return "kept", _shown(of_state["kept"])
    if findings:
        return "not judged", _shown(findings[:1])
    return "not judged", "the monitor has no requirements"


def _shown(findings: Sequence[Finding]) -> str:
    first = findings[0]
    where = f" of {first.segment}" if first.segment else ""
    more = f", and {len(findings) - 1} more" if len(findings) > 1 else ""
    return f"{first.subject}{where}: {first.account}{more}"


@dataclass(frozen=True)
class Dependence:
    """The autocorrelation of a series, in items. `block_length` is the mean stretch
    length that best estimates the variance of the series' mean (Politis & White,
    Econometric Reviews 23, 2004; corrected by Patton, Politis & White, 28, 2009).
    `correlation_time` is the long-run variance divided by the variance: 1 for
    independent items, (1 + c) / (1 - c) for an autoregressive process, less than 1 for
    a cycle.
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
    # After the last lag, `run` consecutive autocorrelations count as zero.
    correlations = covariances[1:] / covariances[0]
    is_none = np.abs(correlations) < _CRITICAL * math.sqrt(math.log10(count) / count)
    present = np.flatnonzero(~is_none)
    last = int(present[-1]) + 1 if len(present) else 1
    for lag in range(len(is_none) - run + 1):
        if is_none[lag : lag + run].all():
            last = max(lag, 1)
            break
    reach = min(2 * last, longest)
    lags = np.arange(1, reach + 1)
    window = np.where(lags / reach <= 0.5, 1.0, 2 * (1 - lags / reach))  # the flat-top window
    slope = 2 * float((window * lags) @ covariances[1 : reach + 1])
    spectrum = float(covariances[0] + 2 * window @ covariances[1 : reach + 1])
    if spectrum <= 0:
        return Dependence(1.0, 0.0)
    length = (slope**2 / spectrum**2 * count) ** (1 / 3)
    length = float(np.clip(length, 1.0, max(1.0, min(3 * math.sqrt(count), count / 3))))
    return Dependence(length, spectrum / float(covariances[0]))
