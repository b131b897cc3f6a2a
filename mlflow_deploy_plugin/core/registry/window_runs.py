"""The runs of judged windows in MLflow: their tags, their files, and a search for
them.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from mlflow_deploy_plugin.core.registry.connection import registry_client, registry_errors
from mlflow_deploy_plugin.core.registry.runs import SUPERSEDED

if TYPE_CHECKING:
    from mlflow.entities import Run

PAGE = "report.html"
DOCUMENT = "verdict.json"
ENDPOINT_TAG = "onnxserve.endpoint"
MONITOR_TAG = "onnxserve.monitor"
VERDICT_TAG = "onnxserve.verdict"
KIND_TAG = "onnxserve.kind"
START_TAG = "onnxserve.window.start"
END_TAG = "onnxserve.window.end"
REVISION_TAG = "onnxserve.window.revision"
CREATED_TAG = "onnxserve.endpoint.created"
TRIED_TAG = "onnxserve.tried"
TRIED_VERDICT_TAG = "onnxserve.tried.verdict"
"""Tags of a run with overridden settings. The run has no `VERDICT_TAG`, so it is not
used as a verdict.
"""
SERIES_TAG = "onnxserve.series"
SERIES_UNTIL_TAG = "onnxserve.series.until"
PREFIX = "onnxserve.monitor."
"""The prefix of version tags: PREFIX, ENDPOINT/MONITOR, and /window or /report. Names
may contain dots but no slash.
"""
PAGE_RUNS = 120
"""The number of runs per page of the search: twice the windows that a report draws."""
_MOST_PAGES = 10


def runs_of_windows(endpoint: str, monitor: str) -> "Iterator[Run]":
    """Yield the runs of the monitor's windows, the newest first, page by page: a late
    window has many newer runs.
    """
    token = None
    for _ in range(_MOST_PAGES):
        with registry_errors(f"the experiment of endpoint {endpoint}"):
            client = registry_client()
            experiment = client.get_experiment_by_name(f"onnxserve/{endpoint}")
            if experiment is None:
                return
            runs = client.search_runs(
                [experiment.experiment_id],
                f"tags.`{MONITOR_TAG}` = '{monitor}' and tags.`{VERDICT_TAG}` != ''",
                max_results=PAGE_RUNS,
                order_by=[f"tags.`{START_TAG}` DESC", "attributes.start_time DESC"],
                page_token=token,
            )
        yield from (run for run in runs if SUPERSEDED not in run.data.tags)
        if not (token := runs.token):
            return
