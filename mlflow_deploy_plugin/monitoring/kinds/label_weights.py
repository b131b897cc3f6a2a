"""Weights with which labelled rows represent similar rows without a label.

Labels are seldom missing at random, so rows with and without a label are compared by score, prediction, segment and
event time, each by Pearson's chi-square test, together at the monitor's rate of false alarms (Bonferroni). If they
differ, each labelled row is weighted by the inverse of the share of similar rows that have a label (Horvitz & Thompson,
JASA 1952). Similar rows are one of ten strata of the propensity from a logistic regression (Rosenbaum & Rubin, JASA
1984). Rows similar to fewer than five labelled ones are not represented: the metric lies between their worst and best
labels (Manski, American Economic Review 80, 1990). If labels are missing by the label itself, weights do not help;
`cbpe.labels_contradict` finds that, and `performance.py` then takes the worst case of every row without a label.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.stats import chi2_contingency

from mlflow_deploy_plugin.errors import Refused
from mlflow_deploy_plugin.evaluation.metrics import EPSILON
from mlflow_deploy_plugin.inference_log import microseconds_of
from mlflow_deploy_plugin.monitoring.kinds.intervals import MetricInterval, Sampling
from mlflow_deploy_plugin.monitoring.kinds.metrics import Metrics, classification_metrics, regression_metrics
from mlflow_deploy_plugin.monitoring.kinds.predictions import Predictions
from mlflow_deploy_plugin.monitoring.segments import as_texts
from mlflow_deploy_plugin.runtime.feeds import Array
from mlflow_deploy_plugin.runtime.log_columns import EVENT_TIME

_BINS, _MOST_VALUES, _STRATA = 10, 20, 10
_FEWEST_UNLABELLED = 10
"""The fewest rows without a label that can be compared; fewer move a figure of 200 rows by 5 % at most."""
_FEWEST_LIKE = 5
"""The fewest labelled rows that may stand for the unlabelled rows like them."""
_LEAST_WORTH = 30
"""The fewest independent rows that weighted ones may be worth; with fewer, single rows decide the figure."""
_MATERIAL = 0.05
"""Cramér's V: with labels for half of the rows a standardised difference of 0.1, below which groups are balanced
(Austin, Multivariate Behavioral Research 46, 2011). With 100,000 rows a test finds far smaller differences."""
_EVENT_TIME = "event time"
_RIDGE = 0.1
_BY_CALL, _BY_PROBABILITY = ("accuracy", "f1", "precision", "recall"), ("log_loss", "brier")
_RANGES = {
    "log_loss": (0.0, -math.log(EPSILON)),
    "mae": (0.0, math.inf),
    "rmse": (0.0, math.inf),
    "mape": (0.0, math.inf),
    "r2": (-math.inf, 1.0),
}
"""Ranges of the metrics that are not shares."""


@dataclass(frozen=True, eq=False)
class LabelWeights:
    """The comparison of rows with a label and rows without a label.

    Attributes:
        rows: [N] bool, True for a row with a label.
        compared: the properties that were compared; empty: all rows have a label, or all but a few.
        is_selected: they differ in other properties than event time, by more than chance and more than a little.
        weights: [N] float64, the number of rows that each labelled row represents; None: the same number.
        unknown: [N] bool, rows without a label that no labelled row represents.
    """

    rows: Array
    compared: tuple[str, ...]
    differing: tuple[str, ...]
    is_selected: bool
    weights: Array | None
    unknown: Array

    @property
    def at_worst(self) -> "LabelWeights":
        """The same if labels may be missing by the label itself: no row represents another."""
        return replace(self, weights=None, unknown=~self.rows)

    @property
    def effective_n(self) -> float:
        """Return how many labelled rows of equal weight they are worth (Kish, Survey Sampling, 1965)."""
        return float(self.rows.sum()) if self.weights is None else _worth(self.weights[self.rows])


def weigh_labels(table: pa.Table, predictions: Predictions, columns: Sequence[str], rate: float) -> LabelWeights:
    """Return the weights with which rows with a label represent those without. Columns of segments that the rows lack
    are skipped. Rows whose labels are missing at random are found to differ at `rate`."""
    labelled, nobody = predictions.is_labelled, np.zeros(len(table), bool)
    missing = int((~labelled).sum())
    if missing < _FEWEST_UNLABELLED or not labelled.any():
        return LabelWeights(labelled, (), (), False, None, nobody)
    traits = _traits(table, predictions, columns, min(missing, int(labelled.sum())))
    differing, is_selected = [], False
    for name, codes in traits.items():
        found, strength = _association(codes, labelled)
        if found < rate / len(traits):
            differing.append(name)
            is_selected |= name != _EVENT_TIME and strength >= _MATERIAL
    weights, unknown = _weights([traits[name] for name in differing], labelled) if differing else (None, nobody)
    return LabelWeights(labelled, tuple(traits), tuple(differing), is_selected, weights, unknown)


def _traits(table: pa.Table, predictions: Predictions, columns: Sequence[str], rarer: int) -> Mapping[str, Array]:
    """Return by name [N] int64, the part of the rows that each row belongs to, without traits that do not vary. `rarer`
    is the smaller of the numbers of rows with and without a label."""
    bins = int(np.clip(rarer // _FEWEST_UNLABELLED, 2, _BINS))
    traits: dict[str, Array] = {}
    classified = predictions.classified
    if classified is None:
        assert predictions.numbers is not None
        traits["answer"] = _cut(predictions.numbers, bins)
    else:
        if classified.probabilities is not None:
            said = classified.probabilities
            traits["score"] = _cut(said[:, 1] if classified.is_binary else said.max(axis=1), bins)
        traits["answer"] = _largest(classified.predicted)
    for column in columns:
        texts = as_texts(table.column(column)) if column in table.column_names else None
        if texts is not None:
            coded = texts.dictionary_encode()
            traits[column] = _largest(np.asarray(pc.fill_null(coded.indices, -1)).astype(np.int64))
    traits[_EVENT_TIME] = _cut(microseconds_of(table.column(EVENT_TIME)), bins)
    return {name: codes for name, codes in traits.items() if np.ptp(codes)}


def _cut(values: Array, bins: int) -> Array:
    """Return the bin of each value, [N] int64: bins of as many rows each, equal values together, one of no numbers."""
    known = np.isfinite(values)
    if not known.any():
        return np.zeros(len(values), np.int64)
    edges = np.unique(np.quantile(values[known], np.arange(1, bins) / bins))
    return np.where(known, np.searchsorted(edges, values, side="right"), len(edges) + 1)


def _largest(codes: Array) -> Array:
    """Return the most frequent codes, and one for all others together."""
    _, inverse, counts = np.unique(codes, return_inverse=True, return_counts=True)
    ranks = np.empty(len(counts), np.int64)
    ranks[np.argsort(-counts, kind="stable")] = np.arange(len(counts))
    return np.minimum(ranks[inverse], _MOST_VALUES)


def _association(codes: Array, labelled: Array) -> tuple[float, float]:
    """Return the p-value of the chi-square test, and Cramér's V. Parts with few rows are taken together."""
    counts = np.stack([np.bincount(codes[labelled == side], minlength=codes.max() + 1) for side in (True, False)])
    expected = counts.sum(axis=0) * min(labelled.mean(), 1 - labelled.mean())
    rare = expected < _FEWEST_LIKE
    parts = np.column_stack([counts[:, ~rare], counts[:, rare].sum(axis=1)])
    parts = parts[:, parts.sum(axis=0) > 0]
    if parts.shape[1] < 2:
        return 1.0, 0.0
    tested = chi2_contingency(parts, correction=False)
    return float(tested.pvalue), float(np.sqrt(tested.statistic / len(codes)))


def _weights(traits: Sequence[Array], labelled: Array) -> tuple[Array | None, Array]:
    """Return the number of rows that each labelled row represents, and the rows that no labelled row represents."""
    alone = np.zeros(len(labelled), bool)
    for codes in traits:
        with_label = np.bincount(codes[labelled], minlength=codes.max() + 1)
        alone |= with_label[codes] < _FEWEST_LIKE
    weights, spoken_for = np.ones(len(labelled)), np.flatnonzero(~alone)
    if not len(spoken_for):
        return None, ~labelled
    strata = _strata(_propensities([codes[spoken_for] for codes in traits], labelled[spoken_for]), labelled[spoken_for])
    rows, with_label = np.bincount(strata), np.bincount(strata, labelled[spoken_for])
    weights[spoken_for] = (rows / np.maximum(with_label, 1))[strata]
    if _worth(weights[labelled]) < _LEAST_WORTH:
        return None, ~labelled
    return weights, alone & ~labelled


def _propensities(traits: Sequence[Array], labelled: Array) -> Array:
    """Return [N]: how often rows like each have a label, by a logistic regression on the parts of every trait. Rows
    that are alike in all traits are counted together; the ridge keeps a part finite that has all labels."""
    from sklearn.linear_model import LogisticRegression  # here: a second, where labels differ
    from sklearn.preprocessing import OneHotEncoder

    cells, inverse = np.unique(np.stack(traits, axis=1), axis=0, return_inverse=True)
    inverse = inverse.reshape(-1)
    rows, hits = np.bincount(inverse).astype(np.float64), np.bincount(inverse, labelled)
    parts = OneHotEncoder(drop="first", sparse_output=False).fit_transform(cells)
    design = np.column_stack([np.ones(len(cells)), parts])
    model = LogisticRegression(C=1 / _RIDGE, fit_intercept=False, solver="newton-cholesky", tol=1e-8)
    is_hit = np.repeat([True, False], len(cells))
    model.fit(np.vstack([design, design]), is_hit, sample_weight=np.concatenate([hits, rows - hits]))
    chances: Array = model.predict_proba(design)[inverse, 1]
    return chances


def _strata(propensities: Array, labelled: Array) -> Array:
    """Return [N] int64: at most ten parts, in each as many rows and at least some labelled ones."""
    strata = _cut(propensities, _STRATA)
    with_label = np.bincount(strata, labelled)
    joined, place, held = np.zeros(len(with_label), np.int64), 0, 0.0
    for stratum, count in enumerate(with_label):
        joined[stratum] = place
        held += count
        if held >= _FEWEST_LIKE:
            place, held = place + 1, 0.0
    if held < _FEWEST_LIKE:  # The remaining rows join the stratum before.
        joined = np.minimum(joined, max(place - 1, 0))
    return joined[strata]


def _worth(weights: Array) -> float:
    return float(weights.sum() ** 2 / np.square(weights).sum()) if len(weights) else 0.0


def weighted_metrics(
    predictions: Predictions, labelled: LabelWeights, rows: Array, names: Sequence[str], sampling: Sampling
) -> Metrics:
    """Return the metrics of some rows, [N] bool: of their labels, and of the rows that these represent."""
    chosen = rows & labelled.rows
    weighted = replace(sampling, weights=labelled.weights)
    if predictions.classified is not None:
        found = classification_metrics(
            predictions.truth[chosen], predictions.classified.take(chosen), names, weighted.of(chosen)
        )
    else:
        assert predictions.numbers is not None
        chosen &= np.isfinite(predictions.numbers)
        if not chosen.any():
            return dict.fromkeys(names, Refused("no labelled row has an answer that is a number"))
        found = regression_metrics(predictions.truth[chosen], predictions.numbers[chosen], names, weighted.of(chosen))
    unknown = rows & labelled.unknown
    if not unknown.any():
        return found
    both = chosen | unknown  # between the two ends that labels of the unknown rows could bring the metrics to
    ends = dict(found)
    for name, one in found.items():
        if isinstance(one, MetricInterval):
            low, high = _possible_range(name, predictions, weighted, both, unknown)
            ends[name] = replace(one, low=low, high=high, method="worst case")
    return ends


def _possible_range(
    name: str, predictions: Predictions, weighted: Sampling, rows: Array, unknown: Array
) -> tuple[float, float]:
    """Return the range of a metric of `rows` over all labels that the `unknown` ones of them may have."""
    answers, truth = predictions.classified, predictions.truth
    if answers is None:
        return _RANGES.get(name, (0.0, 1.0))
    if name in _BY_PROBABILITY and answers.probabilities is not None:
        given = answers.probabilities[:, : len(answers.classes) - answers.unknown]
        worst, best = given.argmin(axis=1), given.argmax(axis=1)
    elif name in _BY_CALL and answers.is_binary:
        worst, best = 1 - answers.predicted, answers.predicted
    elif name == "accuracy":
        worst, best = answers.predicted + 1, answers.predicted  # any other class
    else:
        return _RANGES.get(name, (0.0, 1.0))
    chosen, drawn = answers.take(rows), weighted.of(rows)
    truths = [np.where(unknown, labels, truth)[rows] for labels in (worst, best)]
    measured = [classification_metrics(one, chosen, [name], drawn)[name] for one in truths]
    bounds = [end for end in measured if isinstance(end, MetricInterval)]
    return min(end.low for end in bounds), max(end.high for end in bounds)
