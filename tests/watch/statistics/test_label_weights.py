"""Labelled rows that represent unlabelled rows, in simulations."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest

from mlflow_deploy_plugin.watch.statistics.intervals import MetricInterval, Sampling
from mlflow_deploy_plugin.watch.statistics.label_weights import weigh_labels, weighted_metrics
from mlflow_deploy_plugin.watch.statistics.metrics import (
    CLASSIFICATION,
    ClassPredictions,
    classification_metrics,
)
from mlflow_deploy_plugin.watch.statistics.predictions import Predictions

START = datetime(2013, 4, 1, tzinfo=UTC)
ROWS = 1_000
ALL = np.ones(ROWS, bool)


def at_random(rng, answers, truth):
    """Label every second row."""
    return np.full(len(truth), 0.5)


def classes_of(predictions):
    assert predictions.classified is not None
    return predictions.classified


def by_score(rng, answers, truth):
    """Label nearly all rows with confident predictions, and hardly any other row."""
    assert answers.probabilities is not None
    return 0.05 + 0.9 * np.abs(2 * answers.probabilities[:, 1] - 1)


def by_age(rng, answers, truth):
    """Label older rows more often."""
    return np.linspace(0.9, 0.2, len(truth))


def by_truth(rng, answers, truth):
    """Label 9 of 10 rows of one class, 2 of 10 of the other."""
    return np.where(truth == 1, 0.9, 0.2)


def answers_of(rng, rows=ROWS):
    """Return predictions of a calibrated model, and the truth."""
    chances = 1 / (1 + np.exp(-2 * rng.normal(size=rows)))
    probabilities = np.stack([1 - chances, chances], axis=1)
    return ClassPredictions(probabilities.argmax(axis=1), probabilities, ("0", "1")), (
        rng.random(rows) < chances
    ).astype(np.int64)


def table_of(rng):
    times = [START + timedelta(seconds=row) for row in range(ROWS)]
    return pa.table({"_event_time": times, "carrier": rng.choice(["UA", "AA", "DL"], ROWS)})


def drawn(seed, scheme):
    """Return a partly labelled window, and the truth of all rows."""
    rng = np.random.default_rng(seed)
    answers, truth = answers_of(rng)
    labels = np.where(rng.random(ROWS) < scheme(rng, answers, truth), truth, -1)
    predictions = Predictions(answers, None, labels)
    return weigh_labels(table_of(rng), predictions, ["carrier"], 0.05), predictions, truth


def accuracy_of(labelled, predictions):
    interval = weighted_metrics(predictions, labelled, ALL, ["accuracy"], Sampling(0.95))[
        "accuracy"
    ]
    assert isinstance(interval, MetricInterval)
    return interval


def test_random_labels_rarely_differ():
    comparisons = [drawn(seed, at_random)[0] for seed in range(80)]

    assert comparisons[0].compared == ("score", "answer", "carrier", "event time")
    assert sum(bool(comparison.differing) for comparison in comparisons) <= 8  # 4 are expected
    assert not any(comparison.unknown.any() for comparison in comparisons)


@pytest.mark.parametrize(
    ("scheme", "differing"), [(by_score, "score"), (by_age, "event time"), (by_truth, "score")]
)
def test_differing_columns_are_named(scheme, differing):
    labelled, _, _ = drawn(0, scheme)

    assert differing in labelled.differing
    assert labelled.is_selected == (scheme is not by_age)
    assert labelled.effective_n < labelled.rows.sum()


def test_rows_unlike_labelled_rows_are_unknown():
    rng = np.random.default_rng(0)
    answers, truth = answers_of(rng)
    table = table_of(rng)
    is_new = np.asarray(table.column("carrier")) == "DL"
    predictions = Predictions(answers, None, np.where(is_new, -1, truth))

    labelled = weigh_labels(table, predictions, ["carrier"], 0.05)
    interval = accuracy_of(labelled, predictions)

    assert labelled.differing == ("carrier",)
    assert labelled.unknown.tolist() == is_new.tolist()
    seen_share = (truth == answers.predicted)[~is_new].mean() * (~is_new).mean()
    assert interval.low < seen_share
    assert interval.high > seen_share + is_new.mean()
    assert interval.high - interval.low < is_new.mean() + 0.1


@pytest.mark.parametrize("name", ["precision", "recall", "f1", "log_loss", "brier", "accuracy"])
def test_bounds_hold_for_any_unknown_labels(name):
    rng = np.random.default_rng(3)
    labelled, predictions, truth = drawn(1, by_truth)
    bounds = weighted_metrics(predictions, labelled.at_worst, ALL, [name], Sampling(0.95))[name]
    assert isinstance(bounds, MetricInterval)

    for share in (0.0, 0.1, 0.5, 0.9, 1.0):
        guessed = np.where(labelled.rows, truth, rng.random(ROWS) < share)
        interval = classification_metrics(guessed, classes_of(predictions), [name], Sampling(0.95))[
            name
        ]
        assert isinstance(interval, MetricInterval)
        assert bounds.low < interval.value < bounds.high


def test_weights_equal_repeated_rows():
    rng = np.random.default_rng(0)
    answers, truth = answers_of(rng, 400)
    times = rng.integers(1, 4, 400)
    often = np.repeat(np.arange(400), times)

    weighted = classification_metrics(
        truth, answers, CLASSIFICATION, Sampling(0.95, weights=times.astype(float))
    )
    repeated = classification_metrics(
        truth[often], answers.take(often), CLASSIFICATION, Sampling(0.95)
    )

    for name in CLASSIFICATION:
        interval = weighted[name]
        other = repeated[name]
        assert isinstance(interval, MetricInterval)
        assert isinstance(other, MetricInterval)
        assert interval.value == pytest.approx(other.value)
        assert interval.low <= interval.value <= interval.high
        # 400 rows have a wider interval than 800 rows.
        assert interval.high - interval.low > other.high - other.low


def test_complete_or_absent_labels_need_no_comparison():
    rng = np.random.default_rng(0)
    answers, truth = answers_of(rng)
    table = table_of(rng)

    for labels in (truth, np.full(ROWS, -1), np.where(np.arange(ROWS) < 5, -1, truth)):
        assert weigh_labels(table, Predictions(answers, None, labels), [], 0.05).compared == ()
