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


def regressor(seed=0, noise=1.0):
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=ROWS)
    return truth, ModelPredictions(truth + rng.normal(size=ROWS) * noise, False)


def of_sklearn(metric, truth, answers, weights):
    labels = np.unique(truth)
    probabilities = answers.probabilities
    several = len(labels) > 2
    match metric:
        case "accuracy":
            return metrics.accuracy_score(truth, answers.prediction, sample_weight=weights)
        case "f1":
            how = {"average": "macro"} if several else {"pos_label": labels[-1]}
            return metrics.f1_score(truth, answers.prediction, sample_weight=weights, **how)
        case "log_loss":
            return metrics.log_loss(truth, probabilities, sample_weight=weights, labels=labels)
        case "roc_auc":
            assert probabilities is not None
            scores = [
                metrics.roc_auc_score(
                    truth == label, probabilities[:, place], sample_weight=weights
                )
                for place, label in enumerate(labels)
            ]
            return np.mean(scores) if several else scores[-1]
        case "rmse":
            return metrics.root_mean_squared_error(truth, answers.prediction, sample_weight=weights)
        case _:
            return metrics.mean_absolute_error(truth, answers.prediction, sample_weight=weights)


@pytest.mark.parametrize("metric", ["accuracy", "f1", "log_loss", "roc_auc"])
@pytest.mark.parametrize("classes", [[0, 1], ["late", "on time"], [1, 2, 5]])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_classifiers_metric_is_scikit_learns(metric, classes, weighted):
    truth, answers = classifier(classes)
    weights = (
        np.random.default_rng(1).integers(0, 4, ROWS).astype(float) if weighted else np.ones(ROWS)
    )
    assert weighted_metric(metric, truth, answers)(weights) == pytest.approx(
        of_sklearn(metric, truth, answers, weights)
    )


@pytest.mark.parametrize("metric", ["rmse", "mae"])
def test_a_regressors_metric_is_scikit_learns(metric):
    truth, answers = regressor()
    weights = np.random.default_rng(1).integers(0, 4, ROWS).astype(float)
    assert weighted_metric(metric, truth, answers)(weights) == pytest.approx(
        of_sklearn(metric, truth, answers, weights)
    )


@pytest.mark.parametrize("metric", ["log_loss", "roc_auc"])
def test_probabilities_that_are_no_numbers_have_no_metric(metric):
    truth, answers = classifier([0, 1])
    assert answers.probabilities is not None
    # NaN would be sorted as the highest score.
    probabilities = np.where(truth[:, None] == 1, np.nan, answers.probabilities)
    broken = replace(answers, probabilities=probabilities)
    assert np.isnan(weighted_metric(metric, truth, broken)(np.ones(ROWS)))


def test_the_default_metric_depends_on_the_kind_of_answer():
    assert default_metric(*classifier([0, 1])) == "accuracy"
    assert default_metric(*regressor()) == "rmse"


@pytest.mark.parametrize(
    ("metric", "truth", "answers", "message"),
    [
        (
            "accuracy",
            np.zeros(3),
            ModelPredictions(np.zeros(3), False),
            "accuracy needs labels, and this model returns numbers",
        ),
        (
            "roc_auc",
            np.array([0, 1]),
            ModelPredictions(np.array([0, 1]), True),
            "needs class probabilities, and this model returns none",
        ),
        ("rmse", np.array(["a"]), ModelPredictions(np.zeros(1), False), "rmse needs numbers"),
        (
            "accuracy",
            np.array(["a"], dtype=object),
            ModelPredictions(np.zeros(1, int), True),
            "contains 'a', the model returns 0",
        ),
        (
            "mae",
            np.zeros(2),
            ModelPredictions(np.zeros((2, 3)), False),
            r"shape \(2,\), the answers \(2, 3\)",
        ),
        (
            "log_loss",
            np.array([0, 7]),
            ModelPredictions(np.array([0, 1]), True, np.full((2, 2), 0.5), (0, 1)),
            "contains 7, which is not a class of the model",
        ),
        (
            "roc_auc",
            np.array([1, 1]),
            ModelPredictions(np.array([0, 1]), True, np.full((2, 2), 0.5), (0, 1)),
            "needs two different labels",
        ),
    ],
)
def test_a_metric_that_does_not_fit_is_refused_with_the_reason(metric, truth, answers, message):
    with pytest.raises(InvalidConfig, match=message):
        weighted_metric(metric, truth, answers)


def compared(metric, truth, candidate, current, seed=0, resamples=300):
    pair = weighted_metric(metric, truth, candidate), weighted_metric(metric, truth, current)
    return paired_bootstrap(metric, *pair, len(truth), 0.95, resamples, seed)


def test_equal_answers_differ_by_nothing():
    truth, answers = classifier([0, 1])
    same = compared("roc_auc", truth, answers, answers)
    assert same.difference == 0
    assert same.low == 0
    assert same.high == 0


def test_the_same_seed_gives_the_same_bounds():
    truth, answers = classifier([0, 1])
    _, other = classifier([0, 1], certainty=0.8)
    assert compared("accuracy", truth, answers, other) == compared(
        "accuracy", truth, answers, other
    )
    assert compared("accuracy", truth, answers, other) != compared(
        "accuracy", truth, answers, other, seed=1
    )


def test_a_smaller_error_is_better_and_counts_as_a_share():
    truth, current = regressor(noise=1.0)
    halved = ModelPredictions(truth + (current.prediction - truth) / 2, False)
    comparison = compared("rmse", truth, halved, current)
    assert comparison.difference == pytest.approx(0.5)
    assert comparison.low == pytest.approx(0.5)
    assert compared("rmse", truth, current, halved).difference == pytest.approx(-1.0)


def test_the_lower_bound_is_missed_about_as_often_as_was_asked_for():
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


def test_scores_of_classes_are_the_label_of_the_highest():
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
def test_nan_never_counts_as_a_hit_even_if_the_target_is_nan(metric):
    truth = np.array([0.0, 1.0, 2.0, np.nan])
    assert weighted_metric(metric, truth, ModelPredictions(truth, True))(np.ones(4)) == 0.75


def test_f1_of_as_many_labels_as_rows_takes_the_memory_of_the_rows():
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
