"""Every metric equals scikit-learn's metric of the same name, and its interval has the
promised coverage.
"""

import numpy as np
import pytest
from sklearn import metrics

from mlflow_deploy_plugin.core.errors import Refused
from mlflow_deploy_plugin.core.spec.monitors import REGRESSION
from mlflow_deploy_plugin.watch.statistics.intervals import Sampling
from mlflow_deploy_plugin.watch.statistics.metrics import (
    CLASSIFICATION,
    ClassPredictions,
    classification_metrics,
    regression_metrics,
)


def answers_to(truth, classes, rng):
    scores = rng.normal(size=(len(truth), classes)) + 1.5 * (truth[:, None] == np.arange(classes))
    probabilities = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    return ClassPredictions(
        probabilities.argmax(axis=1), probabilities, tuple(map(str, range(classes)))
    )


def value(measured):
    assert measured.low <= measured.value <= measured.high
    return measured.value


@pytest.mark.parametrize("classes", [2, 4])
def test_classification_metrics_equal_scikit_learn(classes):
    rng = np.random.default_rng(3)
    truth = rng.integers(0, classes, 700)
    answers = answers_to(truth, classes, rng)
    figures = classification_metrics(truth, answers, CLASSIFICATION, Sampling(0.95))

    average = {"average": "binary" if classes == 2 else "macro"}
    chances = answers.probabilities
    scores = chances[:, 1] if classes == 2 else chances
    expected = {
        "accuracy": metrics.accuracy_score(truth, answers.predicted),
        "f1": metrics.f1_score(truth, answers.predicted, **average),
        "precision": metrics.precision_score(truth, answers.predicted, **average),
        "recall": metrics.recall_score(truth, answers.predicted, **average),
        "log_loss": metrics.log_loss(truth, chances),
        "roc_auc": metrics.roc_auc_score(truth, scores, multi_class="ovr"),
    }
    if classes == 2:
        expected["brier"] = metrics.brier_score_loss(truth, scores)
    assert {name: value(figures[name]) for name in expected} == pytest.approx(expected)


def test_regression_metrics_equal_scikit_learn():
    rng = np.random.default_rng(4)
    truth = rng.normal(5, 2, 500)
    predicted = truth + rng.normal(0, 1, 500)
    figures = regression_metrics(truth, predicted, REGRESSION, Sampling(0.95))

    assert {name: value(figure) for name, figure in figures.items()} == pytest.approx(
        {
            "mae": metrics.mean_absolute_error(truth, predicted),
            "rmse": metrics.root_mean_squared_error(truth, predicted),
            "mape": metrics.mean_absolute_percentage_error(truth, predicted),
            "r2": metrics.r2_score(truth, predicted),
        }
    )


@pytest.mark.parametrize(
    "name",
    ["accuracy", "f1", "recall", "roc_auc", pytest.param("log_loss", marks=pytest.mark.long)],
)
def test_interval_holds_the_metric_at_its_rate(name):
    rng = np.random.default_rng(5)
    truth = rng.integers(0, 2, 50_000)
    answers = answers_to(truth, 2, rng)

    def figure(rows):
        some = classification_metrics(truth[rows], answers.take(rows), [name], Sampling(0.9))
        return some[name]

    whole = figure(np.arange(50_000)).value
    samples = [figure(rng.choice(50_000, 300)) for _ in range(100)]

    held = np.mean([sample.low <= whole <= sample.high for sample in samples])
    # 100 samples of a share of 0.9, with a margin of nearly three deviations
    assert 0.82 <= held <= 0.97


def test_metric_without_suitable_rows_is_refused():
    ones = np.ones(50, dtype=np.int64)
    chances = np.tile([0.8, 0.2], (50, 1))
    answers = ClassPredictions(0 * ones, chances, ("no", "yes"))
    silent = ClassPredictions(0 * ones, None, ("no", "yes"))
    sampling = Sampling(0.95)
    figures = classification_metrics(ones, answers, ["roc_auc", "precision", "recall"], sampling)
    of_no = classification_metrics(0 * ones, answers, ["recall"], sampling)
    without = classification_metrics(ones, silent, ["log_loss"], sampling)
    equal = regression_metrics(np.ones(9), np.ones(9), ["r2"], sampling)
    huge = regression_metrics(np.full(9, 1e200), np.ones(9), ["rmse"], sampling)

    assert value(figures["recall"]) == 0.0
    for refusal, words in (
        (figures["roc_auc"], "all labels are 'yes'"),
        (figures["precision"], "no row was predicted as 'yes'"),
        (of_no["recall"], "no label is 'yes'"),
        (without["log_loss"], "no class probabilities"),
        (equal["r2"], "needs two"),
        (huge["rmse"], "too large to square"),
    ):
        assert isinstance(refusal, Refused)
        assert words in refusal.reason
