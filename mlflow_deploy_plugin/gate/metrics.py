"""Weighted metrics, and the paired bootstrap over the rows of two models.

Every metric equals scikit-learn's of the same name with `sample_weight` (a test compares them). A resample is a weight
for each row, so a metric has two parts: one is computed once for the rows, the other for a thousand weightings.
For two labels f1 is that of the larger one and roc_auc that of the pair; for more labels both are the mean over the
labels (macro), roc_auc of one label against the rest.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mlflow_deploy_plugin.errors import InvalidConfig
from mlflow_deploy_plugin.gate.model import ModelPredictions
from mlflow_deploy_plugin.gate.policy import MetricName
from mlflow_deploy_plugin.runtime import Array

WeightedMetric = Callable[[Array], float]
"""A function of the weight of each row, [N], that returns the metric."""

HIGHER_IS_BETTER = {"accuracy": True, "f1": True, "roc_auc": True, "log_loss": False, "rmse": False, "mae": False}
RELATIVE_METRICS = ("rmse", "mae")
"""Metrics in the unit of the target: a difference is given as a share of the current value."""

_LEAST = float(np.finfo(np.float64).eps)  # as scikit-learn clips probabilities


@dataclass(frozen=True)
class MetricComparison:
    """The difference between the candidate and the current version; negative is worse.

    Attributes:
        candidate, current: the metric of each on all rows.
        difference: in units of the metric; for `RELATIVE_METRICS` a share of the current value.
        low, high: bounds of the difference, each at the requested confidence.
    """

    candidate: float
    current: float
    difference: float
    low: float
    high: float


def default_metric(truth: Array, predictions: ModelPredictions) -> MetricName:
    return "accuracy" if argmax_labels(truth, predictions).is_label else "rmse"


def argmax_labels(truth: Array, predictions: ModelPredictions) -> ModelPredictions:
    """Turn class scores, as networks return them, into the index of the highest, if the truth is such an index."""
    scores = predictions.prediction
    if (
        predictions.is_label
        or scores.ndim != 2
        or scores.shape[1] < 2
        or truth.ndim != 1
        or truth.dtype.kind not in "iuf"
    ):
        return predictions
    is_place = (truth == np.round(truth)) & (truth >= 0) & (truth < scores.shape[1])
    return ModelPredictions(scores.argmax(axis=1), True) if is_place.all() else predictions


def weighted_metric(metric: MetricName, truth: Array, predictions: ModelPredictions) -> WeightedMetric:
    """Return the metric of the predictions, as a function of the rows' weights.

    Raises:
        InvalidConfig: the metric does not fit the predictions, or the predictions do not fit the truth.
    """
    if metric in ("rmse", "mae"):
        return _error(metric, truth, predictions)
    predictions = argmax_labels(truth, predictions)
    labels = np.unique(truth)
    if metric in ("accuracy", "f1"):
        predicted = _labels(metric, truth, predictions)
        return _weighted_mean(predicted == truth) if metric == "accuracy" else _f1(truth, predicted, labels)
    probabilities, columns = _probabilities(metric, labels, predictions)
    if metric == "log_loss":
        return _log_loss(truth, labels, probabilities[:, columns])
    if len(labels) < 2:
        raise InvalidConfig("roc_auc needs rows of two labels; the target has one")
    picked = [1] if len(labels) == 2 else range(len(labels))
    curves = [_auc(truth == labels[place], probabilities[:, columns[place]]) for place in picked]
    return lambda weights: float(np.mean([curve(weights) for curve in curves]))


def paired_bootstrap(
    metric: MetricName,
    candidate: WeightedMetric,
    current: WeightedMetric,
    rows: int,
    confidence: float,
    resamples: int,
    seed: int,
) -> MetricComparison:
    """Compare two models by a paired bootstrap: each resample of the rows weighs both."""
    sign = 1.0 if HIGHER_IS_BETTER[metric] else -1.0

    def difference(weights: Array) -> float:
        ours, theirs = candidate(weights), current(weights)
        return sign * (ours - theirs) / (max(abs(theirs), _LEAST) if metric in RELATIVE_METRICS else 1.0)

    rng = np.random.default_rng(seed)
    ones = np.ones(rows)
    drawn = np.array(
        [difference(np.bincount(rng.integers(0, rows, rows), minlength=rows).astype(float)) for _ in range(resamples)]
    )
    drawn = drawn[np.isfinite(drawn)]  # a resample without one of the labels has no roc_auc
    low, high = np.quantile(drawn, [1 - confidence, confidence]) if len(drawn) else (-np.inf, np.inf)
    return MetricComparison(candidate(ones), current(ones), difference(ones), float(low), float(high))


def _weighted_mean(values: Array) -> WeightedMetric:
    numbers = values.astype(np.float64)
    return lambda weights: float(weights @ numbers / weights.sum())


def _error(metric: MetricName, truth: Array, predictions: ModelPredictions) -> WeightedMetric:
    try:
        wanted, found = truth.astype(np.float64), predictions.prediction.astype(np.float64)
    except (TypeError, ValueError):
        raise InvalidConfig(f"{metric} is of numbers; the model or the target holds labels") from None
    if wanted.shape != found.shape:
        raise InvalidConfig(f"{metric}: the target has the shape {wanted.shape}, the answers {found.shape}")
    errors = (wanted - found).reshape(len(wanted), -1)
    if metric == "mae":
        return _weighted_mean(np.abs(errors).mean(axis=1))
    squares = _weighted_mean((errors**2).mean(axis=1))
    return lambda weights: float(np.sqrt(squares(weights)))


def _labels(metric: MetricName, truth: Array, predictions: ModelPredictions) -> Array:
    if not predictions.is_label:
        raise InvalidConfig(f"{metric} is of labels; the model answers numbers")
    predicted = predictions.prediction
    if predicted.shape != truth.shape:
        raise InvalidConfig(f"{metric}: the target has the shape {truth.shape}, the answers {predicted.shape}")
    if _is_text(predicted) != _is_text(truth):
        raise InvalidConfig(
            f"{metric}: the target holds {_example(truth)}, the model answers {_example(predicted)}; one is text"
        )
    return predicted


def _is_text(values: Array) -> bool:
    return isinstance(values.flat[0], str)


def _example(values: Array) -> str:
    return repr(values.flat[0].item() if isinstance(values.flat[0], np.generic) else values.flat[0])


def _f1(truth: Array, predicted: Array, labels: Array) -> WeightedMetric:
    scored = labels[-1:] if len(labels) == 2 else np.unique(np.concatenate([labels, np.unique(predicted)]))
    sides = [((truth == label).astype(np.float64), (predicted == label).astype(np.float64)) for label in scored]
    both = [true * found for true, found in sides]

    def score(weights: Array) -> float:
        values = []
        for (true, found), hit in zip(sides, both, strict=True):
            total = weights @ true + weights @ found
            values.append(2 * (weights @ hit) / total if total else 0.0)
        return float(np.mean(values))

    return score


def _probabilities(metric: MetricName, labels: Array, predictions: ModelPredictions) -> tuple[Array, list[int]]:
    """Return the probabilities, and the index of their column for each label of the truth."""
    probabilities = predictions.probabilities
    if probabilities is None:
        raise InvalidConfig(f"{metric} is of probabilities, which the model does not give")
    classes = list(predictions.classes) or (labels.tolist() if len(labels) == probabilities.shape[1] else [])
    try:
        return probabilities.astype(np.float64), [classes.index(label) for label in labels.tolist()]
    except ValueError:
        unknown = [label for label in labels.tolist() if label not in classes]
        raise InvalidConfig(
            f"{metric}: the target holds {unknown[0]!r}, which is no class of the model ({classes or 'unknown'})"
        ) from None


def _log_loss(truth: Array, labels: Array, probabilities: Array) -> WeightedMetric:
    places = np.searchsorted(labels, truth)
    sums = probabilities.sum(axis=1, keepdims=True)
    own = (probabilities / np.where(sums > 0, sums, 1))[np.arange(len(truth)), places]
    return _weighted_mean(-np.log(np.clip(own, _LEAST, 1 - _LEAST)))


def _auc(is_positive: Array, scores: Array) -> WeightedMetric:
    """Return the share of pairs of a positive and a negative row in which the positive one has the higher score."""
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=-np.inf))  # of the rows of one score
    positive = is_positive[order].astype(np.float64)

    def score(weights: Array) -> float:
        sorted_weights = weights[order]
        above = np.add.reduceat(sorted_weights * positive, starts)
        below = np.add.reduceat(sorted_weights * (1 - positive), starts)
        total = above.sum() * below.sum()
        pairs = above @ (np.cumsum(below) - below / 2)
        return float(pairs / total) if total else float("nan")

    return score
