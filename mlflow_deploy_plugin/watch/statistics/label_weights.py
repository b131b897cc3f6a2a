"""Weights with which labelled rows represent similar unlabelled rows.

Labels are seldom missing at random. Therefore labelled and unlabelled rows are compared
by score, prediction, segment and event time with Pearson's chi-square tests, jointly at
the monitor's false alarm rate (Bonferroni). If they differ, each labelled row is
weighted by the inverse of the share of similar rows with a label (Horvitz & Thompson,
JASA 1952). Rows are similar if they are in the same of ten strata of the propensity
from a logistic regression (Rosenbaum & Rubin, JASA 1984). Rows with fewer than five
similar labelled rows are not represented: the metric is reported as the range over all
possible labels of these rows (Manski, American Economic Review 80, 1990). Weights do
not help if labels are missing because of their values (`cbpe.labels_fit`). No
unlabelled row is then represented, and the value of the metric is unknown.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mlflow_deploy_plugin.core.column_names import EVENT_TIME
from mlflow_deploy_plugin.core.errors import Refused
from mlflow_deploy_plugin.serve.inference_log.scan import microseconds_of
from mlflow_deploy_plugin.serve.runtime.feeds import Array
from mlflow_deploy_plugin.watch.segments import texts_of
from mlflow_deploy_plugin.watch.statistics.intervals import (
    MetricInterval,
    Sampling,
    kish_effective_n,
)
from mlflow_deploy_plugin.watch.statistics.metrics import (
    Metrics,
    classification_metrics,
    regression_metrics,
)
from mlflow_deploy_plugin.watch.statistics.predictions import Predictions
from mlflow_deploy_plugin.wrap.evaluation.metrics import EPSILON

_BINS = 10
_MOST_VALUES = 20
_STRATA = 10
_FEWEST_UNLABELLED = 10
"""The minimum of unlabelled rows for a comparison. Fewer unlabelled rows change a
figure of 200 rows by at most 5 %.
"""
_FEWEST_LIKE = 5
"""The minimum number of labelled rows that may represent similar unlabelled rows."""
_LEAST_WORTH = 30
"""The minimum number of independent rows that weighted rows are worth. With fewer,
single rows decide the figure.
"""
_MATERIAL = 0.05
"""The minimum Cramér's V of a material difference. If half of the rows are labelled, V
= 0.05 is a standardised difference of 0.1, below which groups count as balanced
(Austin, Multivariate Behavioral Research 46, 2011).
"""
_EVENT_TIME = "event time"
_RIDGE = 0.1
_BY_CALL = ("accuracy", "f1", "precision", "recall")
_BY_PROBABILITY = ("log_loss", "brier")
_RANGES = dict.fromkeys(("mae", "rmse", "mape"), (0.0, math.inf))
_RANGES |= {
    "log_loss": (0.0, -math.log(EPSILON)),
    "r2": (-math.inf, 1.0),
}
"""The possible values of metrics that are not shares: lowest and highest."""


@dataclass(frozen=True, eq=False)
class LabelWeights:
    """The comparison of labelled and unlabelled rows.

    Attributes:
        rows: [N] bool, True for a labelled row.
        compared: the compared properties; empty if all or nearly all rows are labelled.
        differing: the properties in which the rows differ significantly.
        is_selected: True if a property other than event time differs significantly and
            materially.
        weights: [N] float64, the number of rows that each labelled row represents; None
            for equal weights.
        unknown: [N] bool, unlabelled rows that no labelled row represents.
    """

    rows: Array
    compared: tuple[str, ...]
    differing: tuple[str, ...]
    is_selected: bool
    weights: Array | None
    unknown: Array

    @property
    def at_worst(self) -> "LabelWeights":
        """The same labels without weights: no labelled row represents an unlabelled
        row.
        """
        return replace(self, weights=None, unknown=~self.rows)

    @property
    def as_sample(self) -> "LabelWeights":
        """The same labels without weights: the labelled rows represent all rows
        equally.
        """
        return replace(self, weights=None, unknown=np.zeros_like(self.rows))

    @property
    def effective_n(self) -> float:
        """The number of equally weighted rows that the labelled rows are worth."""
        if self.weights is None:
            return float(self.rows.sum())
        return kish_effective_n(self.weights[self.rows])


def weigh_labels(
    table: pa.Table,
    predictions: Predictions,
    columns: Sequence[str],
    rate: float,
) -> LabelWeights:
    """Return the weights with which labelled rows represent unlabelled rows. Missing
    segment columns are skipped. If labels are missing at random, a difference is
    reported with probability `rate`.
    """
    labelled = predictions.is_labelled
    weights = None
    unknown = np.zeros(len(table), bool)
    differing: list[str] = []
    is_selected = False
    traits: Mapping[str, Array] = {}
    missing = int((~labelled).sum())
    if missing >= _FEWEST_UNLABELLED and labelled.any():
        traits = _find_traits(table, predictions, columns, min(missing, int(labelled.sum())))
    for name, codes in traits.items():
        p_value, strength = _association(codes, labelled)
        if p_value < rate / len(traits):
            differing.append(name)
            is_selected |= name != _EVENT_TIME and strength >= _MATERIAL
    if differing:
        weights, unknown = _balance_rows([traits[name] for name in differing], labelled)
    return LabelWeights(labelled, tuple(traits), tuple(differing), is_selected, weights, unknown)


def _find_traits(
    table: pa.Table,
    predictions: Predictions,
    columns: Sequence[str],
    rarer: int,
) -> Mapping[str, Array]:
    """Return, for each trait that varies between rows, the group of each row, [N]
    int64. `rarer` is the smaller of the numbers of labelled and unlabelled rows.
    """
    bins = int(np.clip(rarer // _FEWEST_UNLABELLED, 2, _BINS))
    traits: dict[str, Array] = {}
    classified = predictions.classified
    if classified is None:
        assert predictions.numbers is not None
        traits["answer"] = _cut(predictions.numbers, bins)
    else:
        if classified.probabilities is not None:
            scores = classified.probabilities.max(axis=1)
            if classified.is_binary:
                scores = classified.probabilities[:, 1]
            traits["score"] = _cut(scores, bins)
        traits["answer"] = _largest(classified.predicted)
    for column in columns:
        texts = texts_of(table, column)
        if texts is not None:
            coded = texts.dictionary_encode()
            traits[column] = _largest(np.asarray(pc.fill_null(coded.indices, -1)).astype(np.int64))
    traits[_EVENT_TIME] = _cut(microseconds_of(table.column(EVENT_TIME)), bins)
    return {name: codes for name, codes in traits.items() if np.ptp(codes)}


def _cut(values: Array, bins: int) -> Array:
    """Return the bin of each value, [N] int64. Bins have equal sizes; non-finite values
    have a separate bin.
    """
    is_known = np.isfinite(values)
    if not is_known.any():
        return np.zeros(len(values), np.int64)
    edges = np.unique(
        np.quantile(
            values[is_known],
            np.arange(1, bins) / bins,
        )
    )
    return np.where(
        is_known,
        np.searchsorted(edges, values, side="right"),
        len(edges) + 1,
    )


def _largest(codes: Array) -> Array:
    """Return the ranks of the most frequent codes; all other codes share one rank."""
    _, inverse, counts = np.unique(codes, return_inverse=True, return_counts=True)
    ranks = np.empty(len(counts), np.int64)
    ranks[np.argsort(-counts, kind="stable")] = np.arange(len(counts))
    return np.minimum(ranks[inverse], _MOST_VALUES)


def _association(codes: Array, labelled: Array) -> tuple[float, float]:
    """Return the p-value of the chi-square test, and Cramér's V. Groups with few rows
    are merged.
    """
    from scipy.stats import chi2_contingency  # The import takes 0.8 s and 48 MB.

    groups = codes.max() + 1
    sides = (labelled, ~labelled)
    counts = np.stack([np.bincount(codes[side], minlength=groups) for side in sides])
    expected = counts.sum(axis=0) * min(
        labelled.mean(),
        1 - labelled.mean(),
    )
    is_rare = expected < _FEWEST_LIKE
    parts = np.column_stack(
        [
            counts[:, ~is_rare],
            counts[:, is_rare].sum(axis=1),
        ]
    )
    parts = parts[:, parts.sum(axis=0) > 0]
    if parts.shape[1] < 2:
        return 1.0, 0.0
    tested = chi2_contingency(parts, correction=False)
    return float(tested.pvalue), float(np.sqrt(tested.statistic / len(codes)))


def _balance_rows(traits: Sequence[Array], labelled: Array) -> tuple[Array | None, Array]:
    """Return the number of rows that each labelled row represents, [N], and a mask of
    rows without a representative, [N] bool. If the weights would be worth too few rows,
    return None and the mask of all unlabelled rows.
    """
    is_rare = np.zeros(len(labelled), bool)
    for codes in traits:
        with_label = np.bincount(codes[labelled], minlength=codes.max() + 1)
        is_rare |= with_label[codes] < _FEWEST_LIKE
    weights = np.ones(len(labelled))
    represented = np.flatnonzero(~is_rare)
    if not len(represented):
        return None, ~labelled
    is_labelled = labelled[represented]
    strata = _cut(
        _propensities([codes[represented] for codes in traits], is_labelled),
        _STRATA,
    )
    joined = []  # the number of each stratum after small ones are merged with the next
    number = 0
    held = 0.0
    for labels in np.bincount(strata, is_labelled):
        joined.append(number)
        held += labels
        if held >= _FEWEST_LIKE:
            number += 1
            held = 0.0
    # Merge the remaining rows into the last stratum.
    strata = np.minimum(joined, max(number - 1, 0))[strata]
    with_label = np.bincount(strata, is_labelled)
    weights[represented] = (np.bincount(strata) / np.maximum(with_label, 1))[strata]
    if kish_effective_n(weights[labelled]) < _LEAST_WORTH:
        return None, ~labelled
    return weights, is_rare & ~labelled


def _propensities(traits: Sequence[Array], labelled: Array) -> Array:
    """Return the propensity of each row to have a label, [N], from a logistic
    regression on all traits. Rows with equal traits are counted together. The ridge
    keeps coefficients finite if all rows of a group have labels.
    """
    from sklearn.linear_model import LogisticRegression  # The import takes a second.
    from sklearn.preprocessing import OneHotEncoder

    cells, inverse = np.unique(
        np.stack(traits, axis=1),
        axis=0,
        return_inverse=True,
    )
    inverse = inverse.reshape(-1)
    rows = np.bincount(inverse).astype(np.float64)
    hits = np.bincount(inverse, labelled)
    parts = OneHotEncoder(drop="first", sparse_output=False).fit_transform(cells)
    design = np.column_stack([np.ones(len(cells)), parts])
    model = LogisticRegression(
        C=1 / _RIDGE,
        fit_intercept=False,
        solver="newton-cholesky",
        tol=1e-8,
    )
    is_hit = np.repeat([True, False], len(cells))
    model.fit(
        np.vstack([design, design]),
        is_hit,
        sample_weight=np.concatenate([hits, rows - hits]),
    )
    chances: Array = model.predict_proba(design)[inverse, 1]
    return chances


def weighted_metrics(
    predictions: Predictions,
    labelled: LabelWeights,
    rows: Array,
    names: Sequence[str],
    sampling: Sampling,
) -> Metrics:
    """Return the metrics of the chosen `rows`, [N] bool, from their labels and
    weights.
    """
    is_used = rows & labelled.rows
    unknown = rows & labelled.unknown
    weighted = replace(sampling, weights=labelled.weights)
    truth = predictions.truth
    if predictions.classified is not None:
        # Only bounds are known. They also exist for answers without a labelled row.
        if labelled.weights is None:
            is_used = is_used | unknown
            truth = np.where(unknown, predictions.classified.predicted, truth)
        metrics = classification_metrics(
            truth[is_used],
            predictions.classified.take(is_used),
            names,
            weighted.of(is_used),
        )
    else:
        assert predictions.numbers is not None
        is_used &= np.isfinite(predictions.numbers)
        if not is_used.any():
            return dict.fromkeys(names, Refused("no labelled row has a numeric answer"))
        metrics = regression_metrics(
            truth[is_used],
            predictions.numbers[is_used],
            names,
            weighted.of(is_used),
        )
    if not unknown.any():
        return metrics
    both = is_used | unknown  # The interval covers all possible labels of the unknown rows.
    ends = dict(metrics)
    for name, metric in metrics.items():
        if isinstance(metric, MetricInterval):
            low, high = _possible_range(name, predictions, weighted, both, unknown)
            value = math.nan if labelled.weights is None else metric.value
            ends[name] = replace(
                metric,
                value=value,
                low=low,
                high=high,
                method="worst case",
            )
    return ends


def _possible_range(
    name: str,
    predictions: Predictions,
    weighted: Sampling,
    rows: Array,
    unknown: Array,
) -> tuple[float, float]:
    """Return the range of a metric of `rows` over all possible labels of the `unknown`
    rows.
    """
    answers = predictions.classified
    truth = predictions.truth
    if answers is None:
        return _RANGES.get(name, (0.0, 1.0))
    if name in _BY_PROBABILITY and answers.probabilities is not None:
        probabilities = answers.probabilities[:, : len(answers.classes) - answers.unknown]
        worst = probabilities.argmin(axis=1)
        best = probabilities.argmax(axis=1)
    elif name in _BY_CALL and answers.is_binary:
        worst = 1 - answers.predicted
        best = answers.predicted
    elif name == "accuracy":
        worst = answers.predicted + 1  # Any class except the predicted class is wrong.
        best = answers.predicted
    else:
        return _RANGES.get(name, (0.0, 1.0))
    selected = answers.take(rows)
    drawn = weighted.of(rows)
    truths = [np.where(unknown, labels, truth)[rows] for labels in (worst, best)]
    measured = [classification_metrics(labels, selected, [name], drawn)[name] for labels in truths]
    bounds = [end for end in measured if isinstance(end, MetricInterval)]
    return min(end.low for end in bounds), max(end.high for end in bounds)
