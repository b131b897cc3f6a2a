"""The metrics of a result, if MLflow's rules make several names the same."""

from typing import Any

from mlflow_deploy_plugin.monitoring.reports.history import to_metrics
from tests.support.results import result_of

SCORES: dict[str, Any] = {
    "a_b": 1.0,
    "a/b": 2.0,
    "a%b": 3.0,
    "a b": 4.0,
    "\n": 5.0,
    "x" * 300 + "1": 6.0,
    "x" * 300 + "2": 7.0,
}


def test_no_column_is_lost_and_each_keeps_its_name_whatever_their_order_is() -> None:
    metrics = to_metrics(result_of(**SCORES))
    backwards = to_metrics(result_of(**dict(reversed(SCORES.items()))))

    scores = {name: value for name, value in metrics.items() if name.startswith("distribution_score/")}
    assert sorted(scores.values()) == sorted(SCORES.values())
    assert metrics["distribution_score/a_b"] == 1.0
    assert backwards == metrics
    assert max(map(len, metrics)) <= 250
