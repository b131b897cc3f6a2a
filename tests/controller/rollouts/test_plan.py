"""A plan is kept as JSON, and its steps are read from what a person writes."""

import json

import pytest

from mlflow_deploy_plugin.controller.rollouts.plan import RolloutPlan, parse_steps
from mlflow_deploy_plugin.errors import InvalidConfig


def test_a_plan_survives_being_written_down(plan: RolloutPlan) -> None:
    assert RolloutPlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


def test_the_error_probability_is_shared_by_all_tests(plan: RolloutPlan) -> None:
    assert plan.level_of_a_test == pytest.approx(0.05 / 2 / 2)


def test_steps_rise_from_one_to_a_hundred_percent() -> None:
    assert parse_steps("1, 10%,50,100") == (1, 10, 50, 100)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "whole percentages"),
        ("1,x", "whole percentages"),
        ("0,100", "must rise"),
        ("10,5", "must rise"),
        ("50,50", "must rise"),
        ("50,101", "must rise"),
    ],
)
def test_other_steps_are_refused(text: str, said: str) -> None:
    with pytest.raises(InvalidConfig, match=f"--steps .*{said}"):
        parse_steps(text)
