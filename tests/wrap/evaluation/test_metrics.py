import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from sklearn import metrics

from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.wrap.evaluation.metrics import (
    default_metric,
    paired_bootstrap,
    weighted_metric,
)
from mlflow_deploy_plugin.wrap.evaluation.model import ModelPredictions
from tests.support.refusals import refused

ROWS = 300


def classifier(classes, seed=0, certainty=1.0):
    """Return truth and answers that are mostly correct; scores have ties."""
    rng = np.random.default_rng(seed)
    truth = rng.choice(classes, ROWS)
    scores = rng.normal(size=(ROWS, len(classes))) + certainty * (
        truth[:, None] == np.array(classes)
    )
    probabilities = np.round(np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True), 1) + 0.01
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    return truth, ModelPredictions(
        np.array(classes)[probabilities.argmax(axis=1)], True, probabilities, tuple(classes)
    )


def regressor(noise=1.0):
    rng = np.random.default_rng(0)
    truth = rng.normal(size=ROWS)
    return truth, ModelPredictions(truth + rng.normal(size=ROWS) * noise, False)


def of_sklearn(metric, truth, answers, weights):
    labels = np.unique(truth)
    probabilities = answers.probabilities
    several = len(labels) > 2
    options = {"sample_weight": weights}
    match metric:
        case "accuracy":
            return metrics.accuracy_score(truth, answers.prediction, **options)
        case "f1":
            how = {"average": "macro"} if several else {"pos_label": labels[-1]}
            return metrics.f1_score(truth, answers.prediction, **options, **how)
        case "log_loss":
            return metrics.log_loss(truth, probabilities, labels=labels, **options)
        case "roc_auc":
            scores = [
                metrics.roc_auc_score(truth == label, probabilities[:, place], **options)
                for place, label in enumerate(labels)
            ]
            return np.mean(scores) if several else scores[-1]
        case "rmse":
            return metrics.root_mean_squared_error(truth, answers.prediction, **options)
        case _:
            return metrics.mean_absolute_error(truth, answers.prediction, **options)


@pytest.mark.parametrize("metric", ["accuracy", "f1", "log_loss", "roc_auc", "rmse", "mae"])
@pytest.mark.parametrize("classes", [[0, 1], ["late", "on time"], [1, 2, 5]])
def test_metric_is_that_of_scikit_learn(metric, classes):
    truth, answers = regressor() if metric in ("rmse", "mae") else classifier(classes)
    weights = np.random.default_rng(1).integers(0, 4, ROWS, endpoint=True) * 1.0
    assert weighted_metric(metric, truth, answers)(weights) == pytest.approx(
        of_sklearn(metric, truth, answers, weights)
    )


@pytest.mark.parametrize("metric", ["log_loss", "roc_auc"])
def test_nan_probabilities_have_no_metric(metric):
    truth, answers = classifier([0, 1])
    # NaN would be sorted as the highest score.
    probabilities = np.where(truth[:, None] == 1, np.nan, answers.probabilities)
    broken = replace(answers, probabilities=probabilities)
    assert np.isnan(weighted_metric(metric, truth, broken)(np.ones(ROWS)))


HALVES = ModelPredictions(np.array([0, 1]), True, np.full((2, 2), 0.5), (0, 1))
UNFIT = [
    ("accuracy", [0.0] * 3, ModelPredictions(np.zeros(3), False), ("accuracy", "numbers")),
    ("roc_auc", [0, 1], ModelPredictions(np.array([0, 1]), True), ("probabilities",)),
    ("rmse", ["a"], ModelPredictions(np.zeros(1), False), ("rmse", "numbers")),
    ("accuracy", ["a"], ModelPredictions(np.zeros(1, int), True), ("'a'", "0")),
    ("mae", [0.0] * 2, ModelPredictions(np.zeros((2, 3)), False), ("(2,)", "(2, 3)")),
    ("log_loss", [0, 7], HALVES, ("7", "class")),
    ("roc_auc", [1, 1], HALVES, ("two different labels",)),
]


@pytest.mark.parametrize(("metric", "truth", "answers", "words"), UNFIT)
def test_unfit_metric_is_refused(metric, truth, answers, words):
    dtype = object if isinstance(truth[0], str) else None
    with refused(InvalidConfig, *words):
        weighted_metric(metric, np.array(truth, dtype), answers)


def compared(metric, truth, candidate, current, seed=0, resamples=300):
    pair = weighted_metric(metric, truth, candidate), weighted_metric(metric, truth, current)
    return paired_bootstrap(metric, *pair, len(truth), 0.95, resamples, seed)


def test_bounds_depend_on_the_seed():
    truth, answers = classifier([0, 1])
    _, other = classifier([0, 1], certainty=0.8)
    first, again, another = (
        compared("accuracy", truth, answers, other, seed=seed) for seed in (0, 0, 1)
    )
    assert first == again != another
    same = compared("roc_auc", truth, answers, answers)
    assert (same.difference, same.low, same.high) == (0, 0, 0)


def test_smaller_error_counts_as_a_share():
    truth, current = regressor(noise=1.0)
    halved = ModelPredictions(truth + (current.prediction - truth) / 2, False)
    comparison = compared("rmse", truth, halved, current)
    assert comparison.difference == pytest.approx(0.5)
    assert comparison.low == pytest.approx(0.5)
    assert compared("rmse", truth, current, halved).difference == pytest.approx(-1.0)


def test_lower_bound_has_its_confidence():
    """Two models are equal on average, so the lower bound is above 0 in about 5 % of
    200 samples.
    """
    missed = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        truth = np.ones(ROWS, dtype=int)
        ours, theirs = (
            ModelPredictions((rng.random(ROWS) < 0.8).astype(int), True) for _ in range(2)
        )
        missed += compared("accuracy", truth, ours, theirs, seed, resamples=200).low > 0
    assert 2 <= missed <= 22


def test_highest_score_is_the_label():
    truth = np.array([0.0, 2.0, 1.0, 1.0])
    scores = np.eye(3)[[0, 2, 1, 0]] * 9 - 4
    answers = ModelPredictions(scores, False)
    assert default_metric(truth, answers) == "accuracy"
    assert weighted_metric("accuracy", truth, answers)(np.ones(4)) == 0.75
    for other in (
        truth + 0.5,
        truth + 1,
        truth[:, None],
        np.array(["a", "c", "b", "b"], dtype=object),
    ):
        assert default_metric(other, answers) == "rmse"


@pytest.mark.parametrize("metric", ["accuracy", "f1"])
def test_nan_is_never_a_hit(metric):
    truth = np.array([0.0, 1.0, 2.0, np.nan])
    assert weighted_metric(metric, truth, ModelPredictions(truth, True))(np.ones(4)) == 0.75


def test_f1_needs_little_memory():
    truth = np.array([f"made up {row}" for row in range(5000)])
    tracemalloc.start()
    f1 = weighted_metric(
        "f1", truth, ModelPredictions(np.where(np.arange(5000) % 2, truth, truth[0]), True)
    )
    score = f1(np.ones(5000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert score == pytest.approx(0.5, abs=0.001)
    assert peak < 50 * 2**20  # A comparison of each row with each label takes 600 MB.
