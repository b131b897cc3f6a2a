"""The metrics of labelled rows with their intervals. Each metric equals scikit-learn's,
which is checked by a test.

- precision, recall, f1: of the larger of two labels; otherwise the mean over the labels
  (macro)
- roc_auc: of the larger of two labels; otherwise the mean over labels, each compared
  with all other labels
- brier: half the mean squared distance of probabilities and truth (`brier_score_loss`)

mape uses all rows: if the truth is 0, it divides by the smallest float, like
scikit-learn.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mlflow_deploy_plugin.core.errors import Refused
from mlflow_deploy_plugin.serve.runtime.feeds import Array
from mlflow_deploy_plugin.watch.statistics import intervals
from mlflow_deploy_plugin.wrap.evaluation.metrics import (
    EPSILON,
    HITS_DIVISORS,
    log_losses,
    mean_over_labels,
)

_LARGEST = 1e75  # A bootstrap's variance needs the fourth power of a value, which must be finite.
MOST_CLASSES = 200
CLASSIFICATION = ("accuracy", "f1", "precision", "recall", "roc_auc", "log_loss", "brier")

Metrics = Mapping[str, "intervals.MetricInterval | Refused"]
"""The metrics by name, or the reason why a metric is not available."""


@dataclass(frozen=True, eq=False)
class ClassPredictions:
    """Predicted classes of rows, as indices into `classes`.

    Attributes:
        predicted: [N] int64.
        probabilities: [N, C] float64, rows sum to 1; None if the model returns no
            probabilities.
        classes: names as text: the model's own classes in ascending order, then classes
            that only labels have.
        unknown: the number of classes that only labels have. Above `MOST_CLASSES`, the
            last class combines the rest.
    """

    predicted: Array
    probabilities: Array | None
    classes: tuple[str, ...]
    unknown: int = 0

    @property
    def is_binary(self) -> bool:
        """True if the model has two classes, so that metrics refer to the larger
        class.
        """
        return len(self.classes) - self.unknown == 2

    @property
    def judged_classes(self) -> list[int]:
        """The larger class of two, otherwise all classes of the model."""
        if self.is_binary:
            return [1]
        return list(range(len(self.classes) - self.unknown))

    def take(self, rows: Array) -> "ClassPredictions":
        """Return the predictions of `rows`, which are indices or a mask, [N] bool."""
        probabilities = None if self.probabilities is None else self.probabilities[rows]
        return ClassPredictions(self.predicted[rows], probabilities, self.classes, self.unknown)


def classification_metrics(
    truth: Array,
    answers: ClassPredictions,
    names: Sequence[str],
    sampling: intervals.Sampling,
) -> Metrics:
    """Return the metrics of N > 0 rows; `truth` is [N] int64, indices into
    `answers.classes`.
    """
    return {name: _classification_metric(name, truth, answers, sampling) for name in names}


def regression_metrics(
    truth: Array,
    predicted: Array,
    names: Sequence[str],
    sampling: intervals.Sampling,
) -> Metrics:
    """Return the metrics of N > 0 rows, or the reason why a metric is undefined; both
    arrays are [N] float64 and finite.
    """
    largest = max(
        np.abs(truth).max(),
        np.abs(predicted).max(),
    )
    if largest > _LARGEST:
        return dict.fromkeys(
            names,
            Refused(f"labels or answers above {_LARGEST:g} are too large to square"),
        )
    errors = truth - predicted
    centred = truth - truth.mean()

    def root(means: Array) -> Array:
        return np.sqrt(np.maximum(_first(means), 0))

    def explained(means: Array) -> Array:
        squares = means[..., 0]
        offset = means[..., 1]
        spread = means[..., 2]
        share: Array = 1 - squares / (spread - np.square(offset))
        return share

    # the rows whose means give each metric, and the metric of these means
    rows_and_figure: dict[str, tuple[Array, Callable[[Array], Array]]] = {
        "mae": (np.abs(errors)[:, None], _first),
        "rmse": (np.square(errors)[:, None], root),
        "mape": (
            (np.abs(errors) / np.maximum(np.abs(truth), EPSILON))[:, None],
            _first,
        ),
        "r2": (
            np.stack(
                [np.square(errors), centred, np.square(centred)],
                axis=1,
            ),
            explained,
        ),
    }
    results: dict[str, intervals.MetricInterval | Refused] = {}
    for name in names:
        if name == "r2" and (len(truth) < 2 or not np.ptp(truth)):
            results[name] = Refused("all labels are equal; r2 needs two different labels")
        else:
            results[name] = intervals.bootstrap_interval(name, *rows_and_figure[name], sampling)
    return results


def _classification_metric(
    name: str,
    truth: Array,
    answers: ClassPredictions,
    sampling: intervals.Sampling,
) -> intervals.MetricInterval | Refused:
    """Return the interval of a metric of classes; `brier` is the only metric that has
    no branch with its name.
    """
    if name == "accuracy":
        return intervals.share_interval(name, truth == answers.predicted, sampling)
    if name in ("precision", "recall", "f1"):
        return _confusion_metric(name, truth, answers, sampling)
    probabilities = answers.probabilities
    if probabilities is None:
        return Refused("the model returns no class probabilities")
    if name == "roc_auc":
        labels = np.unique(truth)
        if len(labels) < 2:
            only_label = answers.classes[int(labels[0])]
            return Refused(
                f"all labels are {only_label!r}; roc_auc needs two different labels",
            )
        if answers.is_binary:
            classes = np.array([1])
        else:
            classes = labels[labels < len(answers.classes) - answers.unknown]
        if not np.isin(classes, labels).all():
            return Refused(f"no label is {answers.classes[1]!r}")
        return intervals.auc_interval(
            truth[:, None] == classes,
            probabilities[:, classes],
            sampling,
        )
    if name == "log_loss":
        losses = log_losses(probabilities[np.arange(len(truth)), truth])
    else:
        is_true = truth[:, None] == np.arange(len(answers.classes))
        losses = np.square(probabilities - is_true).sum(axis=1) / 2
    return intervals.bootstrap_interval(name, losses[:, None], _first, sampling)


def _confusion_metric(
    name: str,
    truth: Array,
    answers: ClassPredictions,
    sampling: intervals.Sampling,
) -> intervals.MetricInterval | Refused:
    """Return the metric for the larger label if there are two labels, otherwise the
    mean over the existing labels.
    """
    if answers.is_binary:
        true = truth == 1
        called = answers.predicted == 1
        positive = repr(answers.classes[1])
        rows, refusal = {
            "precision": (called, f"no row was predicted as {positive}"),
            "recall": (true, f"no label is {positive}"),
            "f1": (
                true | called,
                f"no label is {positive}, and no row was predicted as {positive}",
            ),
        }[name]
        if not rows.any():
            return Refused(refusal)
        if name != "f1":
            return intervals.share_interval(
                name,
                (true & called)[rows],
                sampling.of(rows),
            )
    if len(answers.classes) > MOST_CLASSES:
        return Refused(
            f"there are more than {MOST_CLASSES} different labels, the limit for a mean over "
            "labels",
        )
    cells, inverse = np.unique(
        truth * len(answers.classes) + answers.predicted, return_inverse=True
    )
    weights = sampling.shares(len(truth))
    counts = np.bincount(inverse, weights)
    hits, below = _hits_of_cells(name, cells, answers)

    def figure(shares: Array) -> Array:
        return mean_over_labels(shares @ hits, shares @ below)

    shares = counts / len(truth)
    total = np.maximum(shares @ below, EPSILON)
    slopes = ((hits - shares @ hits / total * below) / total).mean(axis=1)
    effective_n = sampling.effective_n(weights * slopes[inverse])
    effective_n = effective_n * intervals.kish_effective_n(weights) / len(truth)
    return intervals.bootstrap_counts_interval(name, counts, figure, effective_n, sampling)


def _hits_of_cells(
    name: str,
    cells: Array,
    answers: ClassPredictions,
) -> tuple[Array, Array]:
    """Return the hits and the divisor of each cell of the confusion matrix for each
    label, [cells, labels] each.
    """
    true, called = np.divmod(cells, len(answers.classes))
    if answers.is_binary:
        labels = np.array([1])
    else:
        labels = np.union1d(true, called)
    is_true = (true[:, None] == labels).astype(np.float64)
    is_called = (called[:, None] == labels).astype(np.float64)
    return is_true * is_called, HITS_DIVISORS[name](is_true, is_called)


def _first(means: Array) -> Array:
    return means[..., 0]
