"""Labelled rows that represent unlabelled rows, in simulations."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest

from mlflow_deploy_plugin.watch.statistics.cbpe import LabelledWindow, labels_fit
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
Scheme = Callable[[np.random.Generator, ClassPredictions, np.ndarray], np.ndarray]


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


def answers_of(rng, rows=ROWS, skill=2.0):
    """Return predictions of a calibrated model, and the truth."""
    chances = 1 / (1 + np.exp(-skill * rng.normal(size=rows)))
    probabilities = np.stack([1 - chances, chances], axis=1)
    return ClassPredictions(probabilities.argmax(axis=1), probabilities, ("0", "1")), (
        rng.random(rows) < chances
    ).astype(np.int64)


def table_of(rng, rows=ROWS):
    times = [START + timedelta(seconds=row) for row in range(rows)]
    return pa.table({"_event_time": times, "carrier": rng.choice(["UA", "AA", "DL"], rows)})


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


def test_labels_missing_at_random_are_reported_as_differing_at_the_stated_rate_only():
    comparisons = [drawn(seed, at_random)[0] for seed in range(150)]

    assert comparisons[0].compared == ("score", "answer", "carrier", "event time")
    assert sum(bool(comparison.differing) for comparison in comparisons) <= 15  # 7.5 are expected
    assert not any(comparison.unknown.any() for comparison in comparisons)


@pytest.mark.parametrize(
    ("scheme", "differing"), [(by_score, "score"), (by_age, "event time"), (by_truth, "score")]
)
def test_columns_in_which_labelled_rows_differ_are_named(scheme, differing):
    labelled, _, _ = drawn(0, scheme)

    assert differing in labelled.differing
    assert labelled.is_selected == (scheme is not by_age)
    assert labelled.effective_n < labelled.rows.sum()


@pytest.mark.long
def test_weights_correct_for_labels_missing_by_score():
    plain = []
    weighted = []
    for seed in range(100):
        labelled, predictions, truth = drawn(seed, by_score)
        real = float((truth == classes_of(predictions).predicted).mean())
        alone = classification_metrics(
            predictions.truth[labelled.rows],
            classes_of(predictions).take(labelled.rows),
            ["accuracy"],
            Sampling(0.95),
        )["accuracy"]
        assert isinstance(alone, MetricInterval)
        plain.append(alone.low <= real <= alone.high)
        interval = accuracy_of(labelled, predictions)
        weighted.append(interval.low <= real <= interval.high)

    assert sum(plain) <= 10
    assert sum(weighted) >= 93


def test_labels_missing_by_their_value_are_doubted_and_leave_worst_case_bounds():
    seen = []
    held = []
    for seed in range(60):
        labelled, predictions, truth = drawn(seed, by_truth)
        window = LabelledWindow(
            predictions.truth[labelled.rows], classes_of(predictions).take(labelled.rows)
        )
        seen.append(labelled.is_selected and not labels_fit(window, [], 0.95))
        interval = accuracy_of(labelled.at_worst, predictions)
        assert interval.method == "worst case"
        held.append(
            interval.low
            <= float((truth == classes_of(predictions).predicted).mean())
            <= interval.high
        )

    assert all(seen)
    assert all(held)


@pytest.mark.long
def test_labels_that_are_missing_by_the_score_fit_the_probabilities():
    departing = 0
    for seed in range(100):
        labelled, predictions, _ = drawn(seed, by_score)
        window = LabelledWindow(
            predictions.truth[labelled.rows], classes_of(predictions).take(labelled.rows)
        )
        departing += not labels_fit(window, [], 0.95)

    assert departing <= 11  # 5 are expected


def test_wrong_probabilities_are_corrected_by_earlier_windows_before_comparing_labels():
    def window(seed):
        answers, truth = answers_of(np.random.default_rng(seed))
        assert answers.probabilities is not None
        sharper = answers.probabilities**3 / (answers.probabilities**3).sum(axis=1, keepdims=True)
        probabilities = sharper + [[0.04, -0.04]] * (sharper[:, 1:] > 0.5)
        return LabelledWindow(truth, ClassPredictions(answers.predicted, probabilities, ("0", "1")))

    earlier = [window(seed) for seed in range(1, 6)]

    assert not labels_fit(window(0), [], 0.95)
    assert labels_fit(window(0), earlier, 0.95)


def test_rows_that_are_like_no_labelled_one_may_have_any_label():
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
def test_no_labels_of_the_unknown_rows_bring_a_figure_beyond_its_bounds(name):
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


def test_weighted_figures_are_those_of_rows_that_stand_so_often():
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


def test_complete_or_absent_labels_are_not_compared():
    rng = np.random.default_rng(0)
    answers, truth = answers_of(rng)
    table = table_of(rng)

    for labels in (truth, np.full(ROWS, -1), np.where(np.arange(ROWS) < 5, -1, truth)):
        assert weigh_labels(table, Predictions(answers, None, labels), [], 0.05).compared == ()
