from typing import Any

import numpy as np
import pytest

from mlflow_deploy_plugin.gate.checks.budget import check_budget
from mlflow_deploy_plugin.gate.measure import MeasuredCost
from mlflow_deploy_plugin.gate.policy import BudgetPolicy


def cost(row_ms: float = 1.0, batch_ms: float = 10.0, memory_mb: float = 100.0) -> MeasuredCost:
    rounds = range(1, 4)  # a machine that gets busier from round to round
    return MeasuredCost(
        memory_mb * 1e6,
        tuple(np.full(20, row_ms * slow / 1e3) for slow in rounds),
        tuple(np.full(5, batch_ms * slow / 1e3) for slow in rounds),
    )


@pytest.mark.parametrize(
    ("candidate", "policy", "state", "said"),
    [
        (cost(), {}, "passed", "a row 2 ms (1 times what is served)"),
        (cost(row_ms=2.5), {}, "failed", "a row 5 ms (2.5 times what is served); the policy allows 2 times as much"),
        (cost(batch_ms=30), {}, "failed", "a batch of 64 60 ms (3 times what is served); the policy allows 2"),
        (cost(memory_mb=300), {}, "failed", "memory 300 MB (3 times what is served); the policy allows 2"),
        (cost(row_ms=2.5), {"max_latency_ratio": 3}, "passed", "a row 5 ms"),
        (cost(row_ms=2.5), {"max_latency_ratio": None}, "passed", "a row 5 ms"),
        (cost(row_ms=2.5), {"ignore_below_ms": 10}, "passed", "a row 5 ms"),
        (cost(), {"max_p99_ms": 2.5}, "failed", "the 99th percentile of a row is 3.00 ms; the policy allows 2.5"),
        (cost(), {"max_memory_mb": 50}, "failed", "the loaded model takes 100 MB; the policy allows 50"),
    ],
)
def test_what_it_may_cost_beside_what_is_served(candidate: Any, policy: dict[str, Any], state: str, said: str) -> None:
    result = check_budget(candidate, cost(), BudgetPolicy(**policy))
    assert result.state == state
    assert said in result.reason


def test_with_nothing_served_only_absolute_bounds_count() -> None:
    result = check_budget(cost(row_ms=500), None, BudgetPolicy())
    assert result.state == "passed"
    assert "ratio" not in " ".join(result.figures)
    assert check_budget(cost(), None, BudgetPolicy(max_memory_mb=50)).state == "failed"
