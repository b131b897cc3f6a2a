"""Every metric equals scikit-learn's metric of the same name, and its interval has the
promised coverage.
"""

import numpy as np
import pytest
from sklearn import metrics

from mlflow_deploy_plugin.core.errors import Refused
from mlflow_deploy_plugin.core.spec.monitors import REGRESSION
from mlflow_deploy_plugin.watch.statistics.intervals import MetricInterval, Sampling
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
    assert isinstance(measured, MetricInterval), measured
    assert measured.low <= measured.value <= measured.high
    return measured.value


@pytest.mark.parametrize("classes", [2, 4])
def test_the_figures_of_a_classifier_are_those_of_scikit_learn(classes):
    rng = np.random.default_rng(3)
    truth = rng.integers(0, classes, 700)
    answers = answers_to(truth, classes, rng)
    figures = classification_metrics(truth, answers, CLASSIFICATION, Sampling(0.95))

    average = {"average": "binary" if classes == 2 else "macro"}
    chances = answers.probabilities
    assert chances is not None
    assert value(figures["accuracy"]) == pytest.approx(
        metrics.accuracy_score(truth, answers.predicted)
    )
    assert value(figures["f1"]) == pytest.approx(
        metrics.f1_score(truth, answers.predicted, **average)
    )
    assert value(figures["precision"]) == pytest.approx(
        metrics.precision_score(truth, answers.predicted, **average)
    )
    assert value(figures["recall"]) == pytest.approx(
        metrics.recall_score(truth, answers.predicted, **average)
    )
    assert value(figures["log_loss"]) == pytest.approx(metrics.log_loss(truth, chances))
    auc = (
        metrics.roc_auc_score(truth, chances[:, 1])
        if classes == 2
        else metrics.roc_auc_score(truth, chances, multi_class="ovr")
    )
    assert value(figures["roc_auc"]) == pytest.approx(auc)
    if classes == 2:
        assert value(figures["brier"]) == pytest.approx(
            metrics.brier_score_loss(truth, chances[:, 1])
        )


def test_the_figures_of_a_regressor_are_those_of_scikit_learn():
    rng = np.random.default_rng(4)
    truth = rng.normal(5, 2, 500)
    predicted = truth + rng.normal(0, 1, 500)
    figures = regression_metrics(truth, predicted, REGRESSION, Sampling(0.95))

    assert value(figures["mae"]) == pytest.approx(metrics.mean_absolute_error(truth, predicted))
    assert value(figures["rmse"]) == pytest.approx(
        metrics.root_mean_squared_error(truth, predicted)
    )
    assert value(figures["mape"]) == pytest.approx(
        metrics.mean_absolute_percentage_error(truth, predicted)
    )
    assert value(figures["r2"]) == pytest.approx(metrics.r2_score(truth, predicted))


@pytest.mark.parametrize("name", ["accuracy", "f1", "recall", "roc_auc", "log_loss", "rmse"])
def test_an_interval_of_nine_tenths_holds_the_figure_of_the_whole_in_nine_of_ten_samples(name):
    rng = np.random.default_rng(5)
    truth = rng.integers(0, 2, 50_000)
    answers = answers_to(truth, 2, rng)
    numbers = rng.normal(size=50_000)

    def figure(rows):
        if name == "rmse":
            interval = regression_metrics(
                numbers[rows], np.zeros(len(rows)), [name], Sampling(0.9)
            )[name]
        else:
            interval = classification_metrics(
                truth[rows], answers.take(rows), [name], Sampling(0.9)
            )[name]
        assert isinstance(interval, MetricInterval)
        return interval

    whole = figure(np.arange(50_000)).value
    samples = [figure(rng.choice(50_000, 300)) for _ in range(100)]

    held = np.mean([sample.low <= whole <= sample.high for sample in samples])
    # 100 samples of a share of 0.9, with a margin of nearly three deviations
    assert 0.82 <= held <= 0.97


def test_a_figure_that_the_rows_cannot_give_says_why():
    ones = np.ones(50, dtype=np.int64)
    answers = ClassPredictions(
        np.zeros(50, dtype=np.int64), np.tile([0.8, 0.2], (50, 1)), ("no", "yes")
    )
    figures = classification_metrics(
        ones, answers, ["roc_auc", "precision", "recall"], Sampling(0.95)
    )

    assert figures["roc_auc"] == Refused("all labels are 'yes'; roc_auc needs two different labels")
    assert figures["precision"] == Refused("no row was predicted as 'yes'")
    assert value(figures["recall"]) == 0.0
    assert classification_metrics(0 * ones, answers, ["recall"], Sampling(0.95))[
        "recall"
    ] == Refused("no label is 'yes'")
    silent = ClassPredictions(answers.predicted, None, answers.classes)
    assert classification_metrics(ones, silent, ["log_loss"], Sampling(0.95)) == {
        "log_loss": Refused("the model returns no class probabilities")
    }
    assert "needs two" in str(
        regression_metrics(np.ones(9), np.ones(9), ["r2"], Sampling(0.95))["r2"]
    )
    assert "too large to square" in str(
        regression_metrics(np.full(9, 1e200), np.ones(9), ["rmse"], Sampling(0.95))["rmse"]
    )
