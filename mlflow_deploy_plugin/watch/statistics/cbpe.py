"""Estimates of a classifier's metrics before its labels are known, from its confidence.

If probabilities are calibrated, a prediction with probability p is correct with
probability p. Therefore each expected entry of the confusion matrix is a sum of
probabilities (CBPE, as described in NannyML's documentation; Białek et al., arXiv
2401.08348, compare it with its variants). The estimate detects that rows have become
harder to predict. It cannot detect changed labels of the same rows. Earlier labelled
windows calibrate the probabilities by isotonic regression if that helps on held-out
windows. Labelled windows give the error of the estimate, which is otherwise only
informative.

The prediction interval for the metric of this window's labels includes the sampling of
the labels (simulated with 100 draws) and the error of the probabilities. The squared
standard error is the mean squared error in the k earlier windows, plus the amount by
which this window's sampling variance exceeds the mean sampling variance of the earlier
windows. Student's quantile has k degrees of freedom. The interval is never narrower
than the largest earlier error. If this window's error is exchangeable with the earlier
errors, this rule gives a coverage of k/(k+1) for any distribution.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri, stdtrit

from mlflow_deploy_plugin.core.errors import Refused
from mlflow_deploy_plugin.core.spec.monitors import MIN_LABELLED_WINDOWS
from mlflow_deploy_plugin.serve.runtime.feeds import Array
from mlflow_deploy_plugin.watch.statistics.intervals import MetricInterval
from mlflow_deploy_plugin.watch.statistics.metrics import CLASSIFICATION, ClassPredictions
from mlflow_deploy_plugin.wrap.evaluation.metrics import (
    HITS_DIVISORS,
    log_losses,
    mean_over_labels,
    weight_below_scores,
)

COMPLETE = 0.95
"""The share of labelled rows above which the reason for missing labels hardly affects
the metrics.
"""
_DRAWS = 100
_DRAWN_ROWS = 2_000
"""The number of simulations of a window's labels, and of rows per simulation. The
variance is scaled to all rows.
"""


@dataclass(frozen=True, eq=False)
class LabelledWindow:
    """The labelled rows of a window. `truth` is [N] int64, indices into the classes of
    the answers.
    """

    truth: Array
    answers: ClassPredictions


@dataclass(frozen=True)
class EstimateError:
    """The standard error of an estimate, and the largest error among the earlier
    windows.
    """

    standard: float
    largest: float
    windows: int

    def half_width(self, confidence: float) -> float:
        """Return half of the width of the interval: the quantile of Student's t, at
        least the largest error.
        """
        quantile = float(stdtrit(self.windows, (1 + confidence) / 2))
        return max(quantile * self.standard, self.largest)


@dataclass(frozen=True)
class CbpeEstimate:
    """The estimate for a window.

    Attributes:
        values: the estimate of each figure, or the reason why it is missing.
        errors: the error of each figure that is known for at least
            `MIN_LABELLED_WINDOWS` earlier windows.
        windows: the number of earlier windows used.
        calibration_error: the mean difference between probability and actual share on
            earlier windows, over ten bins of equal size; None without earlier windows.
        is_corrected: True if the probabilities were calibrated by isotonic regression.
        accuracies: the accuracy of each earlier window.
    """

    values: Mapping[str, "float | Refused"]
    errors: Mapping[str, EstimateError]
    windows: int
    calibration_error: float | None
    is_corrected: bool
    accuracies: Sequence[float]

    def measure(self, name: str, rows: int, confidence: float) -> MetricInterval | Refused:
        """Return the estimate of a figure with its interval; Refused if the figure is
        missing or its error is unknown.
        """
        value = self.values[name]
        if isinstance(value, Refused):
            return value
        if name not in self.errors:
            return Refused(
                f"estimated {value:.4g}, but {self.windows} earlier windows with labels are too "
                f"few to confirm it; {MIN_LABELLED_WINDOWS} are needed",
            )
        half = self.errors[name].half_width(confidence)
        high = value + half if name == "log_loss" else min(value + half, 1.0)
        return MetricInterval(
            name,
            value,
            low=max(value - half, 0.0),
            high=high,
            rows=rows,
            method="prediction interval",
            effective_n=rows,
        )


def estimate(
    answers: ClassPredictions,
    earlier: Sequence[LabelledWindow],
    names: Sequence[str] = CLASSIFICATION,
    seed: int = 0,
) -> CbpeEstimate | Refused:
    """Return the expected metrics of predictions, with errors for `names` from labelled
    windows of the same version.
    """
    if answers.probabilities is None:
        return Refused("the model returns no class probabilities, which an estimate needs")
    fitted = _calibrate(earlier)
    chances = fitted.curve(answers.probabilities)
    windows = len(fitted.windows)
    errors: dict[str, EstimateError] = {}
    if windows >= MIN_LABELLED_WINDOWS:
        rng = np.random.default_rng(seed)
        errors = dict(_estimate_errors(answers, chances, fitted, names, rng))
    values = expected_metrics(answers, chances)
    error = fitted.calibration_error if windows else None
    hits = [window.truth == window.answers.predicted for window in fitted.windows]
    accuracies = [float(hit.mean()) for hit in hits]
    return CbpeEstimate(values, errors, windows, error, fitted.is_corrected, accuracies)


def labels_fit(
    judged: LabelledWindow,
    complete: Sequence[LabelledWindow],
    confidence: float,
) -> bool:
    """Return True if the labels of a part of a window's rows fit the model's
    probabilities, so that they may represent all rows.

    Labels fit if the numbers of labels per class and of correct answers are as
    expected. The margin is the interval of an estimate. With fewer than
    `MIN_LABELLED_WINDOWS` complete windows, the margin includes only the error of
    sampling.

    Args:
        judged: the labelled rows, at least one, whose answers have probabilities.
        complete: earlier windows with nearly all labels, which calibrate the
            probabilities.
    """
    fitted = _calibrate(complete)
    classes = judged.answers.judged_classes
    chances = fitted.curve(_probabilities(judged))
    excess, variance = _mean_excesses([judged], [chances], classes)
    level = 1 - (1 - confidence) / (2 * excess.shape[1])
    quantile = float(ndtri(level))
    if len(fitted.windows) >= MIN_LABELLED_WINDOWS:
        errors, variances = _mean_excesses(fitted.windows, fitted.chances, classes)
        variance = _prediction_variance(errors, variances, variance)
        quantile = float(stdtrit(len(errors), level))
    return bool((np.abs(excess) <= quantile * np.sqrt(variance)).all())


def _mean_excesses(
    windows: Sequence[LabelledWindow],
    chances: Sequence[Array],
    classes: Sequence[int],
) -> tuple[Array, Array]:
    """Return how far the share of each of the `classes` and of correct answers exceeds
    the expected share, and its sampling variance: [windows, k] each.
    """
    excesses = []
    variances = []
    for window, likely in zip(windows, chances, strict=True):
        labels = window.truth
        called = window.answers.predicted
        of_called = likely[np.arange(len(labels)), called]
        expected = np.column_stack([likely[:, classes], of_called])
        actual = np.column_stack([labels[:, None] == classes, labels == called])
        excesses.append((actual - expected).mean(axis=0))
        variances.append((expected * (1 - expected)).mean(axis=0) / len(labels))
    return np.stack(excesses), np.stack(variances)


def expected_metrics(
    answers: ClassPredictions,
    chances: Array,
    names: Sequence[str] = CLASSIFICATION,
) -> dict[str, "float | Refused"]:
    """Return the expected metrics of N predictions if row i has class k with
    probability chances[i, k].
    """
    return {name: _expected_metric(name, answers, chances) for name in names}


def _expected_metric(name: str, answers: ClassPredictions, chances: Array) -> "float | Refused":
    """Return the expected value of one metric; Refused if it is undefined. Metrics of
    scores need answers with probabilities.
    """
    scores = answers.probabilities
    predicted_chances = chances[np.arange(len(chances)), answers.predicted]
    if name == "accuracy":
        return float(predicted_chances.mean())
    if name in HITS_DIVISORS:
        called = np.bincount(answers.predicted, minlength=len(answers.classes))
        called = called.astype(np.float64)
        hits = np.bincount(answers.predicted, predicted_chances, len(answers.classes))
        true = chances.sum(axis=0)
        labels = [1] if answers.is_binary else np.flatnonzero((called > 0) | (true >= 0.5))
        total = HITS_DIVISORS[name](true[labels], called[labels])
        if not (total > 0).any():
            label = 1 if answers.is_binary else -1
            return Refused(f"no row was predicted as {answers.classes[label]!r}")
        return float(mean_over_labels(hits[labels], total))
    assert scores is not None
    if name == "log_loss":
        return float((chances * log_losses(scores)).sum(axis=1).mean())
    if name == "brier":
        losses = chances * np.square(1 - scores) + (1 - chances) * np.square(scores)
        return float(losses.sum(axis=1).mean() / 2)
    # The area under the curve is the mean over the classes.
    areas = []
    for label in answers.judged_classes:
        above = chances[:, label]  # Each row is partly positive and partly negative.
        below = 1 - chances[:, label]
        total = above.sum() * below.sum()
        if total > 0:
            areas.append(float(above @ weight_below_scores(scores[:, label])(below) / total))
    if areas:
        return float(np.mean(areas))
    return Refused("all rows are expected to have the same label")


def _probabilities(window: LabelledWindow) -> Array:
    assert window.answers.probabilities is not None
    return window.answers.probabilities


@dataclass(frozen=True, eq=False)
class _Calibrated:
    """Earlier windows with probabilities, [N, C], calibrated on all other windows, and
    the calibration function.
    """

    windows: Sequence[LabelledWindow]
    chances: Sequence[Array]
    curve: Callable[[Array], Array]
    is_corrected: bool

    @property
    def calibration_error(self) -> float:
        """The calibration error of the predicted class, over ten bins with the same
        number of rows.
        """
        pairs = list(zip(self.windows, self.chances, strict=True))
        confidences = np.concatenate(
            [
                chances[np.arange(len(chances)), window.answers.predicted]
                for window, chances in pairs
            ],
        )
        hit = np.concatenate([window.truth == window.answers.predicted for window, _ in pairs])
        bins = np.empty(len(confidences), np.int64)
        bins[np.argsort(confidences, kind="stable")] = (
            np.arange(len(confidences)) * 10 // len(confidences)
        )
        counts = np.bincount(bins, minlength=10)
        apart = np.abs(
            np.bincount(bins, confidences, minlength=10) - np.bincount(bins, hit, minlength=10)
        )
        return float((apart / np.maximum(counts, 1) * counts).sum() / len(confidences))


def _calibrate(earlier: Sequence[LabelledWindow]) -> _Calibrated:
    """Return the windows with probabilities and labels. They are corrected by isotonic
    regression if this brings the probabilities of windows that were held out closer to
    the truth.
    """
    usable = [
        window
        for window in earlier
        if window.answers.probabilities is not None and len(window.truth)
    ]
    raw = [_probabilities(window) for window in usable]
    if len(usable) > 1:
        fits = [_fit(usable[:index] + usable[index + 1 :]) for index in range(len(usable))]
        held_out = [fit(probabilities) for probabilities, fit in zip(raw, fits, strict=True)]
        if _distance(usable, held_out) < _distance(usable, raw):
            return _Calibrated(usable, held_out, _fit(usable), is_corrected=True)
    return _Calibrated(usable, raw, lambda probabilities: probabilities, is_corrected=False)


def _fit(windows: Sequence[LabelledWindow]) -> Callable[[Array], Array]:
    """Return the isotonic regression of the truth on the probability per class,
    normalised to row sums of 1.
    """
    from scipy.optimize import isotonic_regression  # The import takes 0.2 s.

    truth = np.concatenate([window.truth for window in windows])
    probability_rows = np.concatenate([_probabilities(window) for window in windows])
    classes = probability_rows.shape[1]
    labels = [1] if classes == 2 else list(range(classes))
    curves = []
    # The points of a curve are ascending probabilities; equal probabilities are merged.
    for label in labels:
        values, inverse = np.unique(probability_rows[:, label], return_inverse=True)
        weights = np.bincount(inverse).astype(np.float64)
        shares = (
            np.bincount(
                inverse,
                (truth == label).astype(np.float64),
            )
            / weights
        )
        curves.append((values, isotonic_regression(shares, weights=weights).x))

    def corrected(probabilities: Array) -> Array:
        parts = [
            np.interp(probabilities[:, label], *curve)
            for label, curve in zip(labels, curves, strict=True)
        ]
        if classes == 2:
            return np.stack(
                [1 - parts[0], parts[0]],
                axis=1,
            )
        stacked = np.stack(parts, axis=1)
        total = stacked.sum(axis=1, keepdims=True)
        return np.where(
            total > 0,
            stacked / np.where(total > 0, total, 1),
            1 / classes,
        )

    return corrected


def _distance(windows: Sequence[LabelledWindow], chances: Sequence[Array]) -> float:
    """Return the mean squared distance between the probabilities and the truth."""
    total = sum(
        float(np.square(likely - np.eye(likely.shape[1])[window.truth]).sum())
        for window, likely in zip(windows, chances, strict=True)
    )
    return total / sum(len(window.truth) for window in windows)


def _estimate_errors(
    answers: ClassPredictions,
    chances: Array,
    fitted: _Calibrated,
    names: Sequence[str],
    rng: np.random.Generator,
) -> Iterator[tuple[str, EstimateError]]:
    """Yield the error of the estimate of each figure that is known for at least
    `MIN_LABELLED_WINDOWS` of the `fitted` windows: how far their labels were from their
    estimates. `chances` are the calibrated probabilities of the `answers`.
    """
    now = _sampling_variances(answers, chances, names, rng)
    errors: dict[str, list[float]] = {name: [] for name in names}
    before: dict[str, list[float]] = {name: [] for name in names}
    for window, likely in zip(fitted.windows, fitted.chances, strict=True):
        differences = _differences(
            expected_metrics(window.answers, np.eye(likely.shape[1])[window.truth], names),
            expected_metrics(window.answers, likely, names),
        )
        variances = _sampling_variances(window.answers, likely, names, rng)
        for name, difference in differences:
            if name in variances:
                errors[name].append(difference)
                before[name].append(variances[name])
    for name in names:
        sizes = np.array(errors[name])
        if len(sizes) >= MIN_LABELLED_WINDOWS and name in now:
            variance = float(_prediction_variance(sizes, np.array(before[name]), now[name]))
            largest = float(np.abs(sizes).max())
            yield name, EstimateError(math.sqrt(variance), largest, len(sizes))


def _differences(
    actual: Mapping[str, "float | Refused"],
    expected: Mapping[str, "float | Refused"],
) -> Iterator[tuple[str, float]]:
    """Yield the difference of each metric that both sides have."""
    for name, value in actual.items():
        centre = expected[name]
        if not isinstance(value, Refused) and not isinstance(centre, Refused):
            yield name, value - centre


def _prediction_variance(errors: Array, sampling: Array, now: "Array | float") -> Array:
    """Return the squared standard error of a window's estimate from the errors and
    sampling variances of earlier windows, [k, …]. The result is at least the mean
    sampling variance, because a few errors may be small by chance.
    """
    usual = sampling.mean(axis=0)
    earlier_variance = np.maximum(np.square(errors).mean(axis=0), usual)
    variance: Array = earlier_variance + np.maximum(now - usual, 0.0)
    return variance


def _sampling_variances(
    answers: ClassPredictions,
    chances: Array,
    names: Sequence[str],
    rng: np.random.Generator,
) -> dict[str, float]:
    """Return the sampling variance of each figure: the mean squared difference from the
    figure's expected value if labels are drawn by their probabilities. Figures that are
    undefined in most draws are skipped.
    """
    scale = min(_DRAWN_ROWS / len(chances), 1.0)
    if scale < 1:
        sample = rng.choice(len(chances), _DRAWN_ROWS, replace=False)
        answers = answers.take(sample)
        chances = chances[sample]
    centre = expected_metrics(answers, chances, names)
    apart: dict[str, list[float]] = {name: [] for name in names}
    classes = np.eye(chances.shape[1])
    below = chances.cumsum(axis=1)[:, :-1]
    for _ in range(_DRAWS):
        truth = classes[(rng.random((len(chances), 1)) > below).sum(axis=1)]
        for name, gap in _differences(expected_metrics(answers, truth, names), centre):
            apart[name].append(gap)
    return {
        name: float(np.square(apart[name]).mean()) * scale
        for name in names
        if len(apart[name]) > _DRAWS // 2
    }
