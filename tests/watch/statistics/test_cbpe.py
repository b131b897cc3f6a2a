"""Estimates from a classifier's confidence, compared with the truth."""

import numpy as np
import pytest

from mlflow_deploy_plugin.core.errors import Refused
from mlflow_deploy_plugin.watch.statistics.cbpe import (
    CbpeEstimate,
    LabelledWindow,
    estimate,
    expected_metrics,
    labels_fit,
)
from mlflow_deploy_plugin.watch.statistics.intervals import MetricInterval, Sampling
from mlflow_deploy_plugin.watch.statistics.metrics import (
    CLASSIFICATION,
    ClassPredictions,
    classification_metrics,
)
from tests.support.refusals import mentions


def window(seed, classes=2, rows=10_000, overconfident=1.0):
    """Return a window whose truth is drawn by its chances; the model's probabilities
    are sharper by a power.
    """
    rng = np.random.default_rng(seed)
    chances = rng.dirichlet(np.ones(classes), rows)
    truth = (chances.cumsum(axis=1) < rng.random((rows, 1))).sum(axis=1)
    probabilities = chances**overconfident / (chances**overconfident).sum(axis=1, keepdims=True)
    return LabelledWindow(
        truth,
        ClassPredictions(
            probabilities.argmax(axis=1), probabilities, tuple(map(str, range(classes)))
        ),
    ), chances


def real(one):
    measured = classification_metrics(one.truth, one.answers, CLASSIFICATION, Sampling(0.95))
    return {
        name: figure.value
        for name, figure in measured.items()
        if isinstance(figure, MetricInterval)
    }


@pytest.mark.parametrize("classes", [2, 3])
def test_calibrated_probabilities_give_the_expected_metrics(classes):
    labelled, chances = window(0, classes)

    truth = real(labelled)

    assert expected_metrics(labelled.answers, chances) == pytest.approx(truth, abs=0.02)
    assert len(truth) == len(CLASSIFICATION)


@pytest.mark.parametrize(
    ("classes", "too_much"), [(2, 0.14), pytest.param(3, 0.21, marks=pytest.mark.long)]
)
def test_overconfident_probabilities_are_corrected(classes, too_much):
    judged, *earlier = (
        window(seed, classes, rows=6_000, overconfident=3.0)[0] for seed in range(4)
    )

    alone = estimate(judged.answers, [])
    checked = estimate(judged.answers, earlier)

    assert isinstance(alone, CbpeEstimate)
    assert isinstance(checked, CbpeEstimate)
    truth = real(judged)["accuracy"]
    assert alone.values["accuracy"] == pytest.approx(truth + too_much, abs=0.03)
    assert checked.values["accuracy"] == pytest.approx(truth, abs=0.02)
    assert checked.is_corrected
    assert checked.calibration_error is not None
    assert checked.calibration_error < 0.02
    assert checked.errors["accuracy"].half_width(0.95) < 0.04


def test_calibrated_probabilities_are_not_corrected():
    judged, _ = window(0, rows=2_000)
    earlier = [window(seed, rows=300)[0] for seed in (1, 2, 3)]

    result = estimate(judged.answers, earlier)

    assert isinstance(result, CbpeEstimate)
    assert not result.is_corrected


def test_few_windows_give_no_interval():
    judged, _ = window(0, rows=500)

    result = estimate(judged.answers, [window(1, rows=500)[0]])

    assert isinstance(result, CbpeEstimate)
    assert result.errors == {}
    assert mentions(str(result.measure("accuracy", 500, 0.95)), "1 earlier windows")


def test_answers_without_probabilities_have_no_estimate():
    silent = ClassPredictions(np.zeros(10, np.int64), None, ("a", "b"))

    assert "returns no class probabilities" in str(estimate(silent, []))


def test_unexpectable_metrics_are_refused():
    answers = ClassPredictions(np.zeros(10, np.int64), np.tile([0.9, 0.1], (10, 1)), ("no", "yes"))

    metrics = expected_metrics(answers, np.tile([1.0, 0.0], (10, 1)))

    assert metrics["precision"] == Refused("no row was predicted as 'yes'")
    assert metrics["roc_auc"] == Refused("all rows are expected to have the same label")


def moved(rng, rows, spread):
    """Return a window whose chances deviate from the model's probabilities by a common
    draw.
    """
    scores = 2 * rng.normal(size=rows)
    predicted, chances = (
        1 / (1 + np.exp(-scores - level)) for level in (0.0, spread * rng.normal())
    )
    both = np.stack([1 - predicted, predicted], axis=1)
    truth = (rng.random(rows) < chances).astype(np.int64)
    return LabelledWindow(truth, ClassPredictions(both.argmax(axis=1), both, ("0", "1")))


@pytest.mark.long
@pytest.mark.parametrize(
    ("rows", "windows", "spread"),
    [(1, 8, 0.0), (100, 8, 0.0), (100, 3, 0.5), (1_000, 8, 0.5), (1_000, 3, 0.0)],
)
def test_interval_covers_the_truth_at_its_rate(rows, windows, spread):
    rng = np.random.default_rng([rows, windows])
    held = []
    for seed in range(80):
        judged = moved(rng, rows, spread)
        earlier = [moved(rng, 500, spread) for _ in range(windows)]
        result = estimate(judged.answers, earlier, ["accuracy"], seed)
        assert isinstance(result, CbpeEstimate)
        interval = result.measure("accuracy", rows, 0.95)
        assert isinstance(interval, MetricInterval)
        held.append(
            interval.low
            <= float((judged.truth == judged.answers.predicted).mean())
            <= interval.high
        )

    # The interval promises 76 of 80, and 70 are three deviations fewer; the largest
    # earlier error gave 2 to 75 %.
    assert sum(held) >= 70


@pytest.mark.parametrize(("kind", "fits"), [("fits", True), ("worse", False), ("better", False)])
def test_labels_fit_the_probabilities(kind, fits):
    labelled, _ = window(0, rows=500)
    changed = {
        "fits": labelled.truth,
        "worse": 1 - labelled.answers.predicted,
        "better": labelled.answers.predicted,
    }[kind]
    is_changed = np.random.default_rng(0).random(500) < 0.6
    judged = LabelledWindow(np.where(is_changed, changed, labelled.truth), labelled.answers)
    complete = [window(seed, rows=500)[0] for seed in range(1, 5)]

    assert labels_fit(judged, [], 0.95) is fits
    assert labels_fit(judged, complete, 0.95) is fits
