"""Monitor results that are made from a few plain values."""

from datetime import UTC, datetime, timedelta
from typing import Any

from mlflow_deploy_plugin.serve.inference_log.windows import Window
from mlflow_deploy_plugin.watch.result import Finding, MonitorResult, shown_order, with_outcomes
from mlflow_deploy_plugin.watch.sequential.evidence import Evidence, JudgedWindow, Outcome

FIRST = datetime(2013, 7, 1, tzinfo=UTC)


def result_of(day=0, endpoint="flights", findings=(), **said):
    """Return the result of a day, with one finding per column (drifted beyond 3), or
    with any field.
    """
    fields = MonitorResult.__dataclass_fields__
    scores = {name: value for name, value in said.items() if name not in fields}
    measured: dict[str, Any] = {"measure": "Wasserstein distance", "unit": "SD"}
    scored = [
        Finding(
            name, "distribution", "drift" if value > 3 else "no drift", "", value, 3.0, **measured
        )
        for name, value in scores.items()
    ]
    start = FIRST + timedelta(days=day)
    values: dict[str, Any] = {
        "endpoint": endpoint,
        "monitor": "daily",
        "kind": "drift",
        "model": "flight-delay",
        "version": "1",
        "model_id": "",
        "window": Window(start, start + timedelta(days=1)),
        "revision": 1,
        "state": "drift"
        if any(finding.is_alarm for finding in (*scored, *findings))
        else "no drift",
        "reason": "the largest score is beyond the threshold",
        "rows": 1000,
        "findings": tuple(sorted((*scored, *findings), key=shown_order)),
        "figures": {"statistic": max(scores.values()), "threshold": 3.0} if scores else {},
    }
    values |= {name: value for name, value in said.items() if name in fields}
    largest = (
        {"": Outcome("distribution", values["state"], max(scores.values()), 3.0)} if scores else {}
    )
    evidence = with_outcomes(Evidence(outcomes=largest), values["findings"])
    return MonitorResult(**{"evidence": evidence, **values})


def past_of(*results):
    """Return the windows as the judgement of a later window sees them."""
    return [JudgedWindow(result.window.start, result.state, result.evidence) for result in results]
