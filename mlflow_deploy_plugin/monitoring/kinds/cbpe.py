"""Estimates of a classifier's metrics before its labels are known, from its own confidence.

If probabilities are calibrated, a prediction with the probability p is right with the probability p, so every expected
figure of the confusion matrix is a sum of probabilities (CBPE, as NannyML's documentation describes it; Białek et al.,
arXiv 2401.08348, compares it with its further forms). The estimate notices that rows have become harder. It cannot
notice that the same rows now have other labels. Earlier windows with labels correct the probabilities by isotonic
regression, if that helps in windows that it was not fitted on, and show the error of the estimate. Without such
windows, the estimate decides nothing.

The prediction interval for the metric of this window's labels accounts for the draw of the labels (simulated, 100
draws) and for wrong probabilities. Its squared standard error is the mean square of the errors in the k earlier
windows, plus the sampling variance of this window in so far as it is above theirs. Student's quantile has k degrees of
freedom. The interval is never narrower than the largest error: if this window's error is like theirs, that gives a
coverage of k/(k+1), whatever their distribution.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import isotonic_regression
from scipy.stats import norm, rankdata, t

from mlflow_deploy_plugin.errors import Refused
from mlflow_deploy_plugin.evaluation.metrics import HITS_DIVISORS, log_losses, mean_over_labels, weight_below_scores
from mlflow_deploy_plugin.monitoring.kinds.intervals import MetricInterval
from mlflow_deploy_plugin.monitoring.kinds.metrics import CLASSIFICATION, ClassPredictions
from mlflow_deploy_plugin.runtime.feeds import Array
from mlflow_deploy_plugin.spec.monitors import MIN_LABELLED_WINDOWS

_DRAWS, _DRAWN_ROWS = 100, 2_000
"""The simulations of a window's labels, and the rows in each; the variance falls with the number of rows."""


@dataclass(frozen=True, eq=False)
class LabelledWindow:
    """The labelled rows of one earlier window: truth [N] int64, places in the classes of the answers."""

    truth: Array
    answers: ClassPredictions


@dataclass(frozen=True)
class EstimateError:
    """The standard error of an estimate, and the largest error in so many earlier windows."""

    standard: float
    largest: float
    windows: int

    def half_width(self, confidence: float) -> float:
        return max(float(t.ppf((1 + confidence) / 2, self.windows)) * self.standard, self.largest)


@dataclass(frozen=True)
class CbpeEstimate:
    """The estimate of one window.

    Attributes:
        values: the estimate of each figure, or the reason why there is none.
        errors: the error of each figure that at least `MIN_LABELLED_WINDOWS` earlier windows have.
        windows: the number of earlier windows that were used.
        calibration_error: mean difference of the probabilities and the share that was true, on those windows, over ten
            bins of equal size; None without them.
        is_corrected: True if the probabilities were corrected by isotonic regression.
    """

    values: Mapping[str, "float | Refused"]
    errors: Mapping[str, EstimateError]
    windows: int
    calibration_error: float | None
    is_corrected: bool

    def measure(self, name: str, rows: int, confidence: float) -> MetricInterval | Refused:
        value = self.values[name]
        if isinstance(value, Refused):
            return value
        if name not in self.errors:
            return Refused(
                f"estimated {value:.4g}, which {self.windows} earlier windows with labels cannot confirm; "
                f"{MIN_LABELLED_WINDOWS} are needed"
            )
        half = self.errors[name].half_width(confidence)
        high = value + half if name == "log_loss" else min(value + half, 1.0)
        return MetricInterval(name, value, max(value - half, 0.0), high, rows, "prediction interval", rows)


def estimate(
    answers: ClassPredictions, earlier: Sequence[LabelledWindow], names: Sequence[str] = CLASSIFICATION, seed: int = 0
) -> CbpeEstimate | Refused:
    """Return the metrics to expect of predictions, with errors of `names`, by labelled windows of the same version."""
    if answers.probabilities is None:
        return Refused("the model gives no probability of each label, from which it could be estimated")
    fitted = _calibrated(earlier)
    if not fitted.windows:
        return CbpeEstimate(expected_metrics(answers, answers.probabilities), {}, 0, None, False)
    chances = fitted.curve(answers.probabilities)
    errors: dict[str, EstimateError] = {}
    if len(fitted.windows) >= MIN_LABELLED_WINDOWS:
        errors = dict(_errors(answers, chances, fitted, names, np.random.default_rng(seed)))
    return CbpeEstimate(
        values=expected_metrics(answers, chances),
        errors=errors,
        windows=len(fitted.windows),
        calibration_error=fitted.calibration_error,
        is_corrected=fitted.is_corrected,
    )


def labels_contradict(
    truth: Array, answers: ClassPredictions, earlier: Sequence[LabelledWindow], confidence: float
) -> bool:
    """Return True if the labels have another number of a class, or of right answers, than the probabilities predict.

    Either the model has changed, or labels are missing by the label itself. The margin is that of an estimate. With
    fewer than `MIN_LABELLED_WINDOWS` earlier windows, the probabilities are not corrected. `truth` is [N > 0] int64,
    indices into the classes of the answers, which have probabilities; nearly all rows of `earlier` have a label.
    """
    fitted = _calibrated(earlier)
    own = len(answers.classes) - answers.unknown
    asked = [1] if answers.is_binary else list(range(own))

    def off(labels: Array, called: Array, chances: Array) -> tuple[Array, Array]:
        """Return by how much each share is larger than expected, and the variance of that: [k] each."""
        own = chances[np.arange(len(labels)), called]
        said = np.column_stack([chances[:, asked], own])
        seen = np.column_stack([labels[:, None] == asked, labels == called])
        return (seen - said).mean(axis=0), (said * (1 - said)).mean(axis=0) / len(labels)

    assert answers.probabilities is not None
    found, variance = off(truth, answers.predicted, fitted.curve(answers.probabilities))
    level = 1 - (1 - confidence) / (2 * len(found))
    quantile = float(norm.ppf(level))
    if len(fitted.windows) >= MIN_LABELLED_WINDOWS:
        before = [
            off(one.truth, one.answers.predicted, chances)
            for one, chances in zip(fitted.windows, fitted.chances, strict=True)
        ]
        errors, variances = (np.stack(side) for side in zip(*before, strict=True))
        variance = _prediction_variance(errors, variances, variance)
        quantile = float(t.ppf(level, len(before)))
    return bool((np.abs(found) > quantile * np.sqrt(variance)).any())


def expected_metrics(
    answers: ClassPredictions, chances: Array, names: Sequence[str] = CLASSIFICATION
) -> dict[str, "float | Refused"]:
    """Return the expected metrics of N predictions of which row i is of class k with the probability chances[i, k]."""
    return {name: _expected_metric(name, answers, chances) for name in names}


def _expected_metric(name: str, answers: ClassPredictions, chances: Array) -> "float | Refused":
    given, own = answers.probabilities, chances[np.arange(len(chances)), answers.predicted]
    if name == "accuracy":
        return float(own.mean())
    if name in HITS_DIVISORS:
        classes = len(answers.classes)
        called = np.bincount(answers.predicted, minlength=classes).astype(np.float64)
        hits = np.bincount(answers.predicted, own, minlength=classes)
        true = chances.sum(axis=0)
        asked = [1] if answers.is_binary else np.flatnonzero((called > 0) | (true >= 0.5))
        total = HITS_DIVISORS[name](true[asked], called[asked])
        if not (total > 0).any():
            return Refused(f"no row was called {answers.classes[1 if answers.is_binary else -1]!r}")
        return float(mean_over_labels(hits[asked], total))
    assert given is not None
    if name == "log_loss":
        return float((chances * log_losses(given)).sum(axis=1).mean())
    if name == "brier":
        return float((chances * np.square(1 - given) + (1 - chances) * np.square(given)).sum(axis=1).mean() / 2)
    areas = []
    for place in [1] if answers.is_binary else range(len(answers.classes) - answers.unknown):
        above, below = chances[:, place], 1 - chances[:, place]  # every row is both, with its chances as weights
        if (total := above.sum() * below.sum()) > 0:
            areas.append(float(above @ weight_below_scores(given[:, place])(below) / total))
    return float(np.mean(areas)) if areas else Refused("all rows are expected to be of one label")


def _probabilities(one: LabelledWindow) -> Array:
    assert one.answers.probabilities is not None
    return one.answers.probabilities


@dataclass(frozen=True, eq=False)
class _Calibrated:
    """Earlier windows, the [N, C] probabilities of each corrected by the others, and the correction as a function."""

    windows: Sequence[LabelledWindow]
    chances: Sequence[Array]
    curve: Callable[[Array], Array]
    is_corrected: bool

    @property
    def calibration_error(self) -> float:
        """Return the calibration error of the class that was called, over ten bins of as many rows each."""
        pairs = list(zip(self.windows, self.chances, strict=True))
        own = np.concatenate([used[np.arange(len(used)), one.answers.predicted] for one, used in pairs])
        hit = np.concatenate([one.truth == one.answers.predicted for one, _ in pairs])
        bins = np.minimum((rankdata(own, method="ordinal") - 1) * 10 // len(own), 9).astype(np.int64)
        counts = np.bincount(bins, minlength=10)
        apart = np.abs(np.bincount(bins, own, minlength=10) - np.bincount(bins, hit, minlength=10))
        return float((apart / np.maximum(counts, 1) * counts).sum() / len(own))


def _calibrated(earlier: Sequence[LabelledWindow]) -> _Calibrated:
    usable = [one for one in earlier if one.answers.probabilities is not None and len(one.truth)]
    raw = [_probabilities(one) for one in usable]
    if len(usable) > 1:
        fits = [_fit(usable[:place] + usable[place + 1 :]) for place in range(len(usable))]
        held_out = [fit(one) for one, fit in zip(raw, fits, strict=True)]
        if _distance(usable, held_out) < _distance(usable, raw):
            return _Calibrated(usable, held_out, _fit(usable), True)
    return _Calibrated(usable, raw, lambda probabilities: probabilities, False)


def _fit(windows: Sequence[LabelledWindow]) -> Callable[[Array], Array]:
    """Return the isotonic regression of the truth on the probability, for each class; rows sum to 1 afterwards."""
    truth = np.concatenate([one.truth for one in windows])
    given = np.concatenate([_probabilities(one) for one in windows])
    classes = given.shape[1]
    asked = [1] if classes == 2 else list(range(classes))
    curves = []
    for place in asked:  # points of the curve, the given probability ascending, equal ones taken together
        values, inverse = np.unique(given[:, place], return_inverse=True)
        weights = np.bincount(inverse).astype(np.float64)
        shares = np.bincount(inverse, (truth == place).astype(np.float64)) / weights
        curves.append((values, isotonic_regression(shares, weights=weights).x))

    def corrected(probabilities: Array) -> Array:
        parts = [np.interp(probabilities[:, place], *curve) for place, curve in zip(asked, curves, strict=True)]
        if classes == 2:
            return np.stack([1 - parts[0], parts[0]], axis=1)
        stacked = np.stack(parts, axis=1)
        total = stacked.sum(axis=1, keepdims=True)
        result: Array = np.where(total > 0, stacked / np.where(total > 0, total, 1), 1 / classes)
        return result

    return corrected


def _distance(windows: Sequence[LabelledWindow], chances: Sequence[Array]) -> float:
    """Return the mean squared distance of the chances from the truth."""
    total = sum(
        float(np.square(likely - np.eye(likely.shape[1])[window.truth]).sum())
        for window, likely in zip(windows, chances, strict=True)
    )
    return total / sum(len(one.truth) for one in windows)


def _errors(
    answers: ClassPredictions, chances: Array, fitted: _Calibrated, names: Sequence[str], rng: np.random.Generator
) -> Iterator[tuple[str, EstimateError]]:
    now = _sampling_variances(answers, chances, names, rng)
    off: dict[str, list[float]] = {name: [] for name in names}
    before: dict[str, list[float]] = {name: [] for name in names}
    for window, guess in zip(fitted.windows, fitted.chances, strict=True):
        real = expected_metrics(window.answers, np.eye(guess.shape[1])[window.truth], names)
        guessed = expected_metrics(window.answers, guess, names)
        variances = _sampling_variances(window.answers, guess, names, rng)
        for name in names:
            one, other = real[name], guessed[name]
            if not isinstance(one, Refused) and not isinstance(other, Refused) and name in variances:
                off[name].append(one - other)
                before[name].append(variances[name])
    for name in names:
        if len(off[name]) >= MIN_LABELLED_WINDOWS and name in now:
            variance = float(_prediction_variance(np.array(off[name]), np.array(before[name]), now[name]))
            yield name, EstimateError(math.sqrt(variance), float(np.abs(off[name]).max()), len(off[name]))


def _prediction_variance(errors: Array, sampling: Array, now: "Array | float") -> Array:
    """Return the squared standard error of a window's estimate, of [k, …] errors and sampling variances of earlier
    windows. It is no less than the earlier sampling variances, because a few errors may happen to be small."""
    usual = sampling.mean(axis=0)
    variance: Array = np.maximum(np.square(errors).mean(axis=0), usual) + np.maximum(now - usual, 0.0)
    return variance


def _sampling_variances(
    answers: ClassPredictions, chances: Array, names: Sequence[str], rng: np.random.Generator
) -> dict[str, float]:
    """Return by figure the mean squared distance from the expected one where labels are drawn by their chances; a
    figure that most draws lack is left out."""
    rows = len(chances)
    if rows > _DRAWN_ROWS:
        chosen = rng.choice(rows, _DRAWN_ROWS, replace=False)
        answers, chances = answers.take(chosen), chances[chosen]
    centre, classes = expected_metrics(answers, chances, names), np.eye(chances.shape[1])
    below = chances.cumsum(axis=1)[:, :-1]
    apart: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(_DRAWS):
        truth = (rng.random((len(chances), 1)) > below).sum(axis=1)
        for name, value in expected_metrics(answers, classes[truth], names).items():
            middle = centre[name]
            if not isinstance(value, Refused) and not isinstance(middle, Refused):
                apart[name].append(value - middle)
    scale = len(chances) / rows
    return {name: float(np.square(ones).mean()) * scale for name, ones in apart.items() if len(ones) > _DRAWS // 2}
