"""How good a classifier's answers are before their labels are in, estimated from its own confidence (CBPE).

A row whose answer has the probability p is right with the probability p, if probabilities mean what they say. So the
expected number of hits, and with it every figure of the confusion matrix, is a sum of probabilities: confidence-based
performance estimation, as NannyML's documentation describes it (CBPE; Białek et al., We don't need no labels, arXiv
2401.08348, lays it beside its further forms). It sees that rows have become harder; it cannot see that the same rows
have come to mean something else.

Whether probabilities mean what they say is found out on earlier windows whose labels are in: they are corrected by
isotonic regression where that brings them nearer to what was true in windows that it was not fitted on, and the same
windows tell how far the estimate is off. Without such windows the estimate is a figure and decides nothing.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import isotonic_regression
from scipy.stats import rankdata

from mlflow_deploy_plugin.monitoring.features import Array
from mlflow_deploy_plugin.monitoring.kinds.intervals import ERROR_BEFORE, Measure, Sampling
from mlflow_deploy_plugin.monitoring.kinds.measures import CLASSIFICATION, LEAST, Classified, classification
from mlflow_deploy_plugin.spec.monitors import MIN_LABELLED_WINDOWS

_ANY = Sampling(0.95)
"""Where figures alone are asked for, and not how sure they are."""


@dataclass(frozen=True, eq=False)
class Earlier:
    """The labelled rows of one earlier window: truth [N] int64, places in the classes of the answers."""

    truth: Array
    answers: Classified


@dataclass(frozen=True)
class Estimate:
    """The estimate of one window.

    Attributes:
        values: by figure, or why there is none.
        errors: by figure the largest difference from what the earlier windows' labels said; empty with fewer than
            `MIN_LABELLED_WINDOWS` of them.
        windows: earlier windows that were used.
        calibration_error: mean difference of the probabilities used and the share that was true, on those windows,
            over ten bins of equal size; None without them.
        is_corrected: by isotonic regression.
    """

    values: Mapping[str, "float | str"]
    errors: Mapping[str, float]
    windows: int
    calibration_error: float | None
    is_corrected: bool

    def measure(self, name: str, rows: int) -> Measure | str:
        """The estimate with the largest error as its interval; a text says why it decides nothing."""
        value = self.values[name]
        if isinstance(value, str):
            return value
        if name not in self.errors:
            return (
                f"estimated {value:.4g}, which {self.windows} earlier windows with labels cannot confirm; "
                f"{MIN_LABELLED_WINDOWS} are needed"
            )
        error = self.errors[name]
        return Measure(name, value, value - error, value + error, rows, ERROR_BEFORE, rows)


def estimate(answers: Classified, earlier: Sequence[Earlier], names: Sequence[str] = CLASSIFICATION) -> Estimate | str:
    """The figures to expect of answers; a text says why none can be.

    Args:
        earlier: windows of the same version with labels; their classes are those of `answers`.
    """
    if answers.probabilities is None:
        return "the model gives no probability of each label, from which it could be estimated"
    usable = [one for one in earlier if one.answers.probabilities is not None and len(one.truth)]
    if not usable:
        return Estimate(expected(answers, answers.probabilities, names), {}, 0, None, False)
    corrected = [_fit(usable[:place] + usable[place + 1 :]) for place in range(len(usable))]
    held_out = [fit(_probabilities(one)) for one, fit in zip(usable, corrected, strict=True)]
    raw = [_probabilities(one) for one in usable]
    is_corrected = len(usable) > 1 and _distance(usable, held_out) < _distance(usable, raw)
    used = held_out if is_corrected else raw
    errors = {}
    if len(usable) >= MIN_LABELLED_WINDOWS:
        errors = dict(_errors(usable, used, names))
    fit = _fit(usable) if is_corrected else _as_they_are
    return Estimate(
        values=expected(answers, fit(answers.probabilities), names),
        errors=errors,
        windows=len(usable),
        calibration_error=_calibration_error(usable, used),
        is_corrected=is_corrected,
    )


def expected(answers: Classified, chances: Array, names: Sequence[str] = CLASSIFICATION) -> dict[str, "float | str"]:
    """The expected figures of N answers of which row i is of class k with the probability chances[i, k]."""
    return {name: _EXPECTED[name](answers, chances) for name in names}


def _accuracy(answers: Classified, chances: Array) -> float:
    return float(chances[np.arange(len(chances)), answers.predicted].mean())


def _confusion(answers: Classified, chances: Array) -> tuple[Array, Array, Array]:
    """Expected hits, true and called rows of each label that is asked for: [k] each."""
    classes = len(answers.classes)
    called = np.bincount(answers.predicted, minlength=classes).astype(np.float64)
    own = chances[np.arange(len(chances)), answers.predicted]
    hits = np.bincount(answers.predicted, own, minlength=classes)
    true = chances.sum(axis=0)
    asked = [1] if classes == 2 else np.flatnonzero((called > 0) | (true >= 0.5))
    return hits[asked], true[asked], called[asked]


def _of_confusion(below: Callable[[Array, Array], Array]) -> Callable[[Classified, Array], "float | str"]:
    def figure(answers: Classified, chances: Array) -> "float | str":
        hits, true, called = _confusion(answers, chances)
        total = below(true, called)
        if not (total > 0).any():
            return f"no row was called {answers.classes[-1]!r}"
        return float(np.where(total > 0, hits / np.where(total > 0, total, 1), 0).mean())

    return figure


def _roc_auc(answers: Classified, chances: Array) -> "float | str":
    """The expected area: every row is positive and negative, with its chances as weights."""
    assert answers.probabilities is not None
    asked = [1] if len(answers.classes) == 2 else range(len(answers.classes))
    areas = [_area(answers.probabilities[:, place], chances[:, place]) for place in asked]
    known = [area for area in areas if area is not None]
    return float(np.mean(known)) if known else "all rows are expected to be of one label"


def _area(scores: Array, chances: Array) -> float | None:
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=-np.inf))
    above, below = np.add.reduceat(chances[order], starts), np.add.reduceat(1 - chances[order], starts)
    total = above.sum() * below.sum()
    return float(above @ (np.cumsum(below) - below / 2) / total) if total > 0 else None


def _log_loss(answers: Classified, chances: Array) -> float:
    assert answers.probabilities is not None
    return float(-(chances * np.log(np.clip(answers.probabilities, LEAST, 1 - LEAST))).sum(axis=1).mean())


def _brier(answers: Classified, chances: Array) -> float:
    given = answers.probabilities
    assert given is not None
    return float((chances * np.square(1 - given) + (1 - chances) * np.square(given)).sum(axis=1).mean() / 2)


_EXPECTED: dict[str, Callable[[Classified, Array], "float | str"]] = {
    "accuracy": _accuracy,
    "f1": _of_confusion(lambda true, called: (true + called) / 2),
    "precision": _of_confusion(lambda true, called: called),
    "recall": _of_confusion(lambda true, called: true),
    "roc_auc": _roc_auc,
    "log_loss": _log_loss,
    "brier": _brier,
}


def _probabilities(one: Earlier) -> Array:
    assert one.answers.probabilities is not None
    return one.answers.probabilities


def _as_they_are(probabilities: Array) -> Array:
    return probabilities


def _fit(windows: Sequence[Earlier]) -> Callable[[Array], Array]:
    """Isotonic regression of what was true on the probability, for each class; rows sum to 1 afterwards."""
    if not windows:
        return _as_they_are
    truth = np.concatenate([one.truth for one in windows])
    given = np.concatenate([_probabilities(one) for one in windows])
    classes = given.shape[1]
    asked = [1] if classes == 2 else list(range(classes))
    curves = [_isotonic(given[:, place], truth == place) for place in asked]

    def corrected(probabilities: Array) -> Array:
        parts = [np.interp(probabilities[:, place], *curve) for place, curve in zip(asked, curves, strict=True)]
        if classes == 2:
            return np.stack([1 - parts[0], parts[0]], axis=1)
        stacked = np.stack(parts, axis=1)
        total = stacked.sum(axis=1, keepdims=True)
        result: Array = np.where(total > 0, stacked / np.where(total > 0, total, 1), 1 / classes)
        return result

    return corrected


def _isotonic(given: Array, is_true: Array) -> tuple[Array, Array]:
    """Points of the curve, the given probability ascending, equal ones taken together."""
    values, inverse = np.unique(given, return_inverse=True)
    weights = np.bincount(inverse).astype(np.float64)
    shares = np.bincount(inverse, is_true.astype(np.float64)) / weights
    return values, isotonic_regression(shares, weights=weights).x


def _distance(windows: Sequence[Earlier], chances: Sequence[Array]) -> float:
    """The mean squared distance of the chances from what was true."""
    total = sum(
        float(np.square(one - np.eye(one.shape[1])[w.truth]).sum()) for w, one in zip(windows, chances, strict=True)
    )
    return total / sum(len(one.truth) for one in windows)


def _errors(windows: Sequence[Earlier], chances: Sequence[Array], names: Sequence[str]) -> list[tuple[str, float]]:
    found: dict[str, list[float]] = {name: [] for name in names}
    for window, used in zip(windows, chances, strict=True):
        real, guessed = classification(window.truth, window.answers, names, _ANY), expected(window.answers, used, names)
        for name in names:
            one, other = real[name], guessed[name]
            if isinstance(one, Measure) and not isinstance(other, str):
                found[name].append(abs(one.value - other))
    return [(name, max(values)) for name, values in found.items() if len(values) >= MIN_LABELLED_WINDOWS]


def _calibration_error(windows: Sequence[Earlier], chances: Sequence[Array]) -> float:
    """Of the class that was called, over ten bins of as many rows each."""
    own = np.concatenate(
        [used[np.arange(len(used)), one.answers.predicted] for one, used in zip(windows, chances, strict=True)]
    )
    hit = np.concatenate([one.truth == one.answers.predicted for one in windows])
    bins = np.minimum((rankdata(own, method="ordinal") - 1) * 10 // len(own), 9).astype(np.int64)
    weights = np.maximum(np.bincount(bins, minlength=10), 1)
    apart = np.abs(np.bincount(bins, own, minlength=10) - np.bincount(bins, hit, minlength=10)) / weights
    return float((apart * np.bincount(bins, minlength=10)).sum() / len(own))
