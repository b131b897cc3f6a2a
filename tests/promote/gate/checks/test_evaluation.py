import numpy as np
import pytest

from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.core.registry.policy import EvaluationPolicy
from mlflow_deploy_plugin.promote.gate.checks.evaluation import check_evaluation
from mlflow_deploy_plugin.wrap.evaluation.model import ModelPredictions
from tests.support.refusals import mentions, refused

ROWS = 1000
TRUTH = np.random.default_rng(0).integers(0, 2, ROWS)


NAME = "models:/m/1"


def wrong_in(count):
    """Return answers that are wrong for the first `count` labels."""
    answers = TRUTH.copy()
    answers[:count] = 1 - answers[:count]
    return ModelPredictions(answers, True)


def policy(**fields):
    return EvaluationPolicy(dataset="d.csv", target="y", **fields)


@pytest.mark.parametrize(
    ("wrong", "state", "names"),
    [
        (100, "passed", ["accuracy 0.9000", "0.9000 of models:/m/1", "0.0000 better"]),
        (80, "passed", ["0.0200 better"]),
        (102, "passed", ["0.0020 worse"]),
        (108, "failed", ["too few rows", "0.0100"]),
        (112, "failed", ["the margin of 0.0100", "required confidence"]),
        (
            200,
            "failed",
            ["the margin of 0.0100", "accuracy 0.8000", "0.9000 of models:/m/1", "0.1000 worse"],
        ),
    ],
)
def test_loss_is_limited_by_the_margin(wrong, state, names):
    result = check_evaluation(TRUTH, wrong_in(wrong), wrong_in(100), policy(), 7, NAME)
    assert result.state == state
    assert mentions(result.reason, *names)
    assert result.figures["accuracy_candidate"] == pytest.approx(1 - wrong / ROWS)
    assert result.figures["difference"] == pytest.approx((100 - wrong) / ROWS)
    assert (
        result.figures["difference_low"]
        <= result.figures["difference"]
        <= result.figures["difference_high"]
    )


def test_wider_margin_passes():
    assert (
        check_evaluation(TRUTH, wrong_in(200), wrong_in(100), policy(margin=0.15), seed=7).state
        == "passed"
    )


def test_floor_holds_with_any_served_version():
    result = check_evaluation(TRUTH, wrong_in(300), None, policy(at_least=0.8), seed=7)
    assert result.state == "failed"
    assert mentions(result.reason, "accuracy 0.7000", "0.8", "the policy")
    assert (
        check_evaluation(TRUTH, wrong_in(300), wrong_in(400), policy(at_least=0.8), seed=7).state
        == "failed"
    )
    assert (
        check_evaluation(TRUTH, wrong_in(100), None, policy(at_least=0.8), seed=7).state == "passed"
    )


def test_too_few_rows_fail():
    result = check_evaluation(
        TRUTH[:50],
        ModelPredictions(TRUTH[:50], True),
        ModelPredictions(TRUTH[:50], True),
        policy(),
        seed=7,
    )
    assert result.state == "failed"
    assert mentions(result.reason, "50 rows", "100")


def test_margin_of_an_error_is_relative():
    values = TRUTH + np.random.default_rng(1).normal(size=ROWS)
    served = ModelPredictions(values - 1.0, False)
    near = ModelPredictions(values - 1.005, False)
    assert check_evaluation(values, near, served, policy(), seed=7).state == "passed"
    result = check_evaluation(
        values, ModelPredictions(values - 1.5, False), served, policy(), 7, NAME
    )
    assert result.state == "failed"
    assert mentions(result.reason, "rmse", "1.5000", "1.0000", "models:/m/1", "50.0%")


def test_nan_answers_fail():
    result = check_evaluation(
        TRUTH.astype(float), ModelPredictions(np.full(ROWS, np.nan), False), None, policy(), seed=7
    )
    assert result.state == "failed"
    assert mentions(result.reason, "rmse", "nan")


def test_probability_metric_needs_probabilities():
    with refused(InvalidConfig, "roc_auc", "probabilities"):
        check_evaluation(TRUTH, wrong_in(1), None, policy(metric="roc_auc"), seed=7)


def test_incomparable_served_answers_fail():
    result = check_evaluation(
        TRUTH, wrong_in(1), ModelPredictions(TRUTH.astype(float), False), policy(), 7, NAME
    )
    assert result.state == "failed"
    assert mentions(result.reason, "models:/m/1", "comparison", "accuracy", "labels")
    numbers = TRUTH.astype(float)
    broken = ModelPredictions(np.full(ROWS, np.nan), False)
    result = check_evaluation(numbers, ModelPredictions(numbers, False), broken, policy(), 7, NAME)
    assert mentions(result.reason, "models:/m/1", "comparison", "rmse", "nan")
