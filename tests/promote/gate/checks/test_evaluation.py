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


def checked(candidate, served=None, truth=TRUTH, **fields):
    policy = EvaluationPolicy(dataset="d.csv", target="y", **fields)
    return check_evaluation(truth, candidate, served, policy, 7, NAME)


def numbers(values):
    return ModelPredictions(values, False)


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
    result = checked(wrong_in(wrong), wrong_in(100))
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
    assert checked(wrong_in(200), wrong_in(100), margin=0.15).state == "passed"


def test_floor_holds_with_any_served_version():
    result = checked(wrong_in(300), at_least=0.8)
    assert result.state == "failed"
    assert mentions(result.reason, "accuracy 0.7000", "0.8", "the policy")
    assert checked(wrong_in(300), wrong_in(400), at_least=0.8).state == "failed"
    assert checked(wrong_in(100), at_least=0.8).state == "passed"


def test_too_few_rows_fail():
    perfect = ModelPredictions(TRUTH[:50], True)
    result = checked(perfect, perfect, TRUTH[:50])
    assert result.state == "failed"
    assert mentions(result.reason, "50 rows", "100")


def test_margin_of_an_error_is_relative():
    values = TRUTH + np.random.default_rng(1).normal(size=ROWS)
    served = numbers(values - 1.0)
    assert checked(numbers(values - 1.005), served, values).state == "passed"
    result = checked(numbers(values - 1.5), served, values)
    assert result.state == "failed"
    assert mentions(result.reason, "rmse", "1.5000", "1.0000", "models:/m/1", "50.0%")


def test_nan_answers_fail():
    result = checked(numbers(np.full(ROWS, np.nan)), truth=TRUTH.astype(float))
    assert result.state == "failed"
    assert mentions(result.reason, "rmse", "nan")


def test_probability_metric_needs_probabilities():
    with refused(InvalidConfig, "roc_auc", "probabilities"):
        checked(wrong_in(1), metric="roc_auc")


def test_incomparable_served_answers_fail():
    truth = TRUTH.astype(float)
    result = checked(wrong_in(1), numbers(truth))
    assert result.state == "failed"
    assert mentions(result.reason, "models:/m/1", "comparison", "accuracy", "labels")
    result = checked(numbers(truth), numbers(np.full(ROWS, np.nan)), truth)
    assert mentions(result.reason, "models:/m/1", "comparison", "rmse", "nan")
