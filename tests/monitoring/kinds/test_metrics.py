"""Every figure is scikit-learn's of the same name, and its interval holds what it says."""

import numpy as np
import pytest
from sklearn import metrics

from mlflow_deploy_plugin.monitoring.kinds.intervals import (
    RESAMPLES,
    MetricInterval,
    Sampling,
    auc_interval,
    share_interval,
    wilson_interval,
)
from mlflow_deploy_plugin.monitoring.kinds.metrics import (
    CLASSIFICATION,
    ClassPredictions,
    classification_metrics,
    regression_metrics,
)
from mlflow_deploy_plugin.refused import Refused
from mlflow_deploy_plugin.spec import REGRESSION


def answers_to(truth: np.ndarray, classes: int, rng: np.random.Generator) -> ClassPredictions:
    scores = rng.normal(size=(len(truth), classes)) + 1.5 * (truth[:, None] == np.arange(classes))
    probabilities = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    return ClassPredictions(probabilities.argmax(axis=1), probabilities, tuple(map(str, range(classes))))


def is_held(one: MetricInterval | Refused, truth: float) -> bool:
    assert isinstance(one, MetricInterval)
    return one.low <= truth <= one.high


def value(measured: object) -> float:
    assert isinstance(measured, MetricInterval), measured
    assert measured.low <= measured.value <= measured.high
    return measured.value


@pytest.mark.parametrize("classes", [2, 4])
def test_the_figures_of_a_classifier_are_those_of_scikit_learn(classes: int) -> None:
    rng = np.random.default_rng(3)
    truth = rng.integers(0, classes, 700)
    answers = answers_to(truth, classes, rng)
    found = classification_metrics(truth, answers, CLASSIFICATION, Sampling(0.95))

    average = {"average": "binary" if classes == 2 else "macro"}
    chances = answers.probabilities
    assert chances is not None
    assert value(found["accuracy"]) == pytest.approx(metrics.accuracy_score(truth, answers.predicted))
    assert value(found["f1"]) == pytest.approx(metrics.f1_score(truth, answers.predicted, **average))
    assert value(found["precision"]) == pytest.approx(metrics.precision_score(truth, answers.predicted, **average))
    assert value(found["recall"]) == pytest.approx(metrics.recall_score(truth, answers.predicted, **average))
    assert value(found["log_loss"]) == pytest.approx(metrics.log_loss(truth, chances))
    auc = (
        metrics.roc_auc_score(truth, chances[:, 1])
        if classes == 2
        else metrics.roc_auc_score(truth, chances, multi_class="ovr")
    )
    assert value(found["roc_auc"]) == pytest.approx(auc)
    if classes == 2:
        assert value(found["brier"]) == pytest.approx(metrics.brier_score_loss(truth, chances[:, 1]))


def test_the_figures_of_a_regressor_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(4)
    truth = rng.normal(5, 2, 500)
    predicted = truth + rng.normal(0, 1, 500)
    found = regression_metrics(truth, predicted, REGRESSION, Sampling(0.95))

    assert value(found["mae"]) == pytest.approx(metrics.mean_absolute_error(truth, predicted))
    assert value(found["rmse"]) == pytest.approx(metrics.root_mean_squared_error(truth, predicted))
    assert value(found["mape"]) == pytest.approx(metrics.mean_absolute_percentage_error(truth, predicted))
    assert value(found["r2"]) == pytest.approx(metrics.r2_score(truth, predicted))


@pytest.mark.parametrize("name", ["accuracy", "f1", "recall", "roc_auc", "log_loss", "rmse"])
def test_an_interval_of_nine_tenths_holds_the_figure_of_the_whole_in_nine_of_ten_samples(name: str) -> None:
    rng = np.random.default_rng(5)
    truth = rng.integers(0, 2, 50_000)
    answers = answers_to(truth, 2, rng)
    numbers = rng.normal(size=50_000)

    def figure(rows: np.ndarray) -> MetricInterval:
        if name == "rmse":
            found = regression_metrics(numbers[rows], np.zeros(len(rows)), [name], Sampling(0.9))[name]
        else:
            found = classification_metrics(truth[rows], answers.take(rows), [name], Sampling(0.9))[name]
        assert isinstance(found, MetricInterval)
        return found

    whole = figure(np.arange(50_000)).value
    samples = [figure(rng.choice(50_000, 300)) for _ in range(100)]

    held = np.mean([sample.low <= whole <= sample.high for sample in samples])
    assert 0.82 <= held <= 0.97  # 100 samples of a share of 0.9: not quite three deviations


def test_many_rows_are_resampled_without_drawing_each() -> None:
    rng = np.random.default_rng(6)
    truth = rng.normal(size=60_000)
    found = regression_metrics(truth, np.zeros(60_000), ["rmse"], Sampling(0.95))["rmse"]

    assert isinstance(found, MetricInterval)
    assert found.high - found.low == pytest.approx(2 * 1.96 / np.sqrt(2 * 60_000), rel=0.2)
    assert RESAMPLES >= 200


def test_a_figure_that_the_rows_cannot_give_says_why() -> None:
    ones = np.ones(50, dtype=np.int64)
    answers = ClassPredictions(np.zeros(50, dtype=np.int64), np.tile([0.8, 0.2], (50, 1)), ("no", "yes"))
    found = classification_metrics(ones, answers, ["roc_auc", "precision", "recall"], Sampling(0.95))

    assert found["roc_auc"] == Refused("all labels are 'yes'; roc_auc needs two")
    assert found["precision"] == Refused("no row was called 'yes'")
    assert value(found["recall"]) == 0.0
    assert classification_metrics(0 * ones, answers, ["recall"], Sampling(0.95))["recall"] == Refused(
        "no label is 'yes'"
    )
    silent = ClassPredictions(answers.predicted, None, answers.classes)
    assert classification_metrics(ones, silent, ["log_loss"], Sampling(0.95)) == {
        "log_loss": Refused("the model gives no probability of each label")
    }
    assert "needs two" in str(regression_metrics(np.ones(9), np.ones(9), ["r2"], Sampling(0.95))["r2"])
    assert "no square" in str(regression_metrics(np.full(9, 1e200), np.ones(9), ["rmse"], Sampling(0.95))["rmse"])


def test_a_perfect_order_of_few_rows_is_not_certain() -> None:
    is_positive = np.arange(20) >= 10
    found = auc_interval(is_positive[:, None], np.arange(20.0)[:, None], Sampling(0.95))

    assert found.value == 1.0
    assert found.high == pytest.approx(1.0)
    assert found.low == pytest.approx(wilson_interval("", 10, 10, 0.95).low)


def together(rng: np.random.Generator, stretches: int, rows: int = 20) -> np.ndarray:
    """[N] what the rows of each stretch have in common, of variance 1."""
    return np.repeat(rng.normal(size=stretches), rows)


NAMES = ("accuracy", "recall", "f1", "roc_auc", "brier")


def answered(rng: np.random.Generator, stretches: int, dependence: float) -> tuple[np.ndarray, ClassPredictions]:
    """Rows of which a stretch is wrong together: the stretch moves the truth's chances, and the model does not know."""
    chances = rng.uniform(0.3, 0.95, stretches * 20)
    moved = np.log(chances / (1 - chances)) + dependence * together(rng, stretches)
    truth = (rng.random(len(chances)) < 1 / (1 + np.exp(-moved))).astype(int)
    said = np.stack([1 - chances, chances], axis=1)
    return truth, ClassPredictions(said.argmax(axis=1), said, ("no", "yes"))


@pytest.mark.parametrize(("dependence", "before", "least"), [(0.0, 0.85, 0.9), (3.0, 0.0, 0.85)])
def test_intervals_hold_the_truth_also_where_rows_are_wrong_together(
    dependence: float, before: float, least: float
) -> None:
    rng = np.random.default_rng(0)
    windows = 60
    times = np.arange(600.0)
    many = classification_metrics(*answered(rng, 4_000, dependence), NAMES, Sampling(0.95))
    values = {name: one.value for name, one in many.items() if isinstance(one, MetricInterval)}

    def held(sampling: Sampling) -> dict[str, float]:
        draws = np.random.default_rng(1)
        found = [classification_metrics(*answered(draws, 30, dependence), NAMES, sampling) for _ in range(windows)]
        return {name: float(np.mean([is_held(one[name], values[name]) for one in found])) for name in NAMES}

    alone, as_they_come = held(Sampling(0.95)), held(Sampling(0.95, times))

    assert all(share >= least for share in as_they_come.values()), as_they_come
    assert all(share >= before for share in alone.values())
    if dependence:
        assert np.mean([alone["accuracy"], alone["brier"]]) < 0.75


def test_rows_that_are_wrong_together_are_worth_fewer() -> None:
    rng = np.random.default_rng(3)
    errors = together(rng, 40) + 0.3 * rng.normal(size=800)
    shuffled = rng.permutation(800)

    def rmse(times: np.ndarray | None) -> MetricInterval:
        found = regression_metrics(errors, np.zeros(800), ["rmse"], Sampling(0.95, times))["rmse"]
        assert isinstance(found, MetricInterval)
        return found

    assert rmse(None).effective_n == 800
    assert rmse(np.arange(800)).effective_n < 120
    assert rmse(shuffled).effective_n > 400  # in an order that does not matter they are as good as independent
    assert rmse(np.arange(800)).high - rmse(np.arange(800)).low > 2 * (rmse(None).high - rmse(None).low)


def test_a_model_that_breaks_within_a_window_is_not_taken_for_one_that_varies() -> None:
    """28 days of 900 rows, each day with its own luck: 0.78 of them are right, and 0.44 from the tenth day on."""
    rng = np.random.default_rng(0)
    is_found = []
    for _ in range(40):
        daily = np.where(np.arange(28) < 9, 0.78, 0.44) + rng.normal(0, 0.08, 28)
        hits = rng.random(28 * 900) < np.repeat(daily, 900)
        is_found.append(share_interval("accuracy", hits, Sampling(0.95, np.arange(28 * 900))).high < 0.75)
    assert np.mean(is_found) > 0.9
