"""All windows of a monitor as one more run: MLflow draws a run's metrics over time, and of a single window a point.

Its metrics are those of the windows, each at the window's end, with the number of the window as the step.
"""

from collections.abc import Mapping
from itertools import islice
from typing import TYPE_CHECKING

from mlflow_deploy_plugin.monitoring.result import MonitorResult
from mlflow_deploy_plugin.registry import IdempotentRun, log_metrics, project_run_id

if TYPE_CHECKING:
    from mlflow import MlflowClient

_MOST_METRICS = 300  # more than a person looks at, and no more than one call's worth for every window


def log_series(result: MonitorResult, figures: Mapping[str, float], optional_identity: Mapping[str, str]) -> None:
    """Add the window's metrics; again the same changes nothing.

    Args:
        optional_identity: as of `IdempotentRun`.

    Raises:
        RegistryUnavailable: MLflow does not answer.
    """
    if project_run_id():
        return  # there, everything would go to the run of the project
    end, length = result.window.end_us, result.window.end_us - result.window.start_us

    def log_content(client: "MlflowClient", run_id: str, times: int) -> None:
        log_metrics(client, run_id, "", islice(figures.items(), _MOST_METRICS), end // 1000, end // length)

    IdempotentRun(
        f"the experiment of endpoint {result.endpoint}",
        f"onnxserve/{result.endpoint}",
        {
            "onnxserve.endpoint": result.endpoint,
            "onnxserve.monitor": result.monitor,
            "onnxserve.series": "windows",
        },
        ("onnxserve.series.until", result.window.end.isoformat()),
        optional_identity,
    ).log(f"{result.monitor}: all windows", {"onnxserve.kind": result.kind}, log_content)
