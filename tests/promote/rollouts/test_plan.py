"""A plan is stored as JSON, and its steps and criteria are parsed
from the user's text.
"""

import json

import pytest

from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.core.store.database import utc_now
from mlflow_deploy_plugin.core.store.store import Rollout
from mlflow_deploy_plugin.promote.rollouts.plan import (
    Criterion,
    parse_criteria,
    parse_steps,
    plan_of,
)
from tests.support.refusals import refused
from tests.support.rollouts import PLAN


def test_plan_round_trips_through_json():
    now = utc_now()
    written = json.loads(json.dumps(PLAN.to_json()))

    assert plan_of(Rollout(1, PLAN.endpoint, written, "starting", 0, now, {}, "", now, now)) == PLAN


def test_error_probability_is_shared_by_all_tests():
    assert PLAN.level_of_a_test == pytest.approx(0.05 / 2 / 2)


def test_valid_steps():
    assert parse_steps("1, 10%,50,100") == (1, 10, 50, 100)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "whole percentages"),
        ("1,x", "whole percentages"),
        ("0,100", "must ascend"),
        ("10,5", "must ascend"),
        ("50,50", "must ascend"),
        ("50,101", "must ascend"),
    ],
)
def test_invalid_steps_are_refused(text, said):
    with pytest.raises(InvalidConfig, match=f"--steps .*{said}"):
        parse_steps(text)


def test_criteria_are_read_with_their_units():
    assert parse_criteria("error_rate>1%, p99 > 2x,disagreement>0.2") == (
        Criterion("error_rate>1%", "error_rate", 0.01),
        Criterion("p99>2x", "latency", 0.01, factor=2.0),
        Criterion("disagreement>0.2", "disagreement", 0.2),
    )


def test_latency_criterion_accepts_a_time():
    fast, slow = parse_criteria("p50>250ms,p95>1.5s")

    assert fast.share == 0.5
    assert fast.seconds == 0.25
    assert fast.factor is None
    assert slow.share == 0.05
    assert slow.seconds == 1.5


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", ["contains no criterion", "error_rate>1%"]),
        ("errors>1%", ["'errors>1%'", "is not a criterion", "error_rate>1%, p99>2x"]),
        ("error_rate<1%", ["'error_rate<1%'", "is not a criterion"]),
        ("p42>2x", ["'p42>2x'", "is not a criterion"]),
        ("error_rate>120%", ["error_rate>120%", "0%", "100%"]),
        ("error_rate>0", ["error_rate>0", "0%", "100%"]),
        ("p99>0.5x", ["p99>0.5x", "1x"]),
        ("p99>0ms", ["p99>0ms", "greater than 0"]),
        ("p99>2x,p99>1s", ["p99>2x", "p99>1s", "the same"]),
    ],
)
def test_invalid_criterion_is_refused(text, names):
    with refused(InvalidConfig, "--abort-on", *names):
        parse_criteria(text)
