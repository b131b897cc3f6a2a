"""A judgement in MLflow: one run with the report, and what leads to it from the model version.

A window's run is found by its tags endpoint, monitor, window start and revision: after a crash the next one goes on
with it, and a window that is judged again overwrites it. It is none of an earlier endpoint of the name.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from mlflow_deploy_plugin.errors import RegistryUnavailable
from mlflow_deploy_plugin.monitoring.reports.history import PastWindow
from mlflow_deploy_plugin.monitoring.reports.metrics import to_metrics
from mlflow_deploy_plugin.monitoring.reports.page import PAGE, embed_picture
from mlflow_deploy_plugin.monitoring.reports.series import log_series
from mlflow_deploy_plugin.monitoring.reports.trend import MOST_WINDOWS, draw_trend, trend_lines
from mlflow_deploy_plugin.monitoring.reports.versions import link_report_to_version
from mlflow_deploy_plugin.monitoring.result import MonitorResult
from mlflow_deploy_plugin.registry import (
    MAX_TAG_LENGTH,
    SUPERSEDED,
    IdempotentRun,
    LoggedRun,
    log_metrics,
    registry_client,
    registry_errors,
    unavailable_message,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

ENDPOINT_TAG, MONITOR_TAG, VERDICT_TAG = "onnxserve.endpoint", "onnxserve.monitor", "onnxserve.verdict"
START_TAG, END_TAG, REVISION_TAG = "onnxserve.window.start", "onnxserve.window.end", "onnxserve.window.revision"
CREATED_TAG = "onnxserve.endpoint.created"
TRIED_TAG, TRIED_VERDICT_TAG = "onnxserve.tried", "onnxserve.tried.verdict"
"""Of a run with other bounds than the monitor's: which, and what was found. It has no `VERDICT_TAG`: whoever looks for
what the monitor has found does not find it."""


def log_result(result: MonitorResult, files: Mapping[str, str | bytes], past: Sequence[PastWindow] = ()) -> LoggedRun:
    """Logs the run, and tags the registered version with the verdict and where the report is; of bounds that were only
    tried the run alone.

    It is the run of the MLflow project that this process belongs to (`mlflow run . -e drift`), else the one in the
    experiment `onnxserve/ENDPOINT` that this revision of the window has, or a new one.

    Args:
        files: artifacts by name; the picture of the last windows is added.
        past: the windows of this monitor before this one.

    Raises:
        RegistryUnavailable: MLflow does not answer. What was begun is gone on with by the next call.
    """
    figures = to_metrics(result)

    def log_content(client: "MlflowClient", run_id: str, times: int) -> None:
        end = result.window.end_us // 1000
        log_metrics(client, run_id, result.model_id, figures.items(), end, times)
        this = PastWindow(result.window.start, result.state, figures)
        picture = draw_trend(trend_lines(result, figures), [*past, this], result.window.length)
        _log_files(client, run_id, embed_picture(files, picture))

    created = {CREATED_TAG: result.endpoint_created} if result.endpoint_created else {}
    name = result.monitor, str(result.window), result.tried
    run = IdempotentRun(
        f"the experiment of endpoint {result.endpoint}",
        f"onnxserve/{result.endpoint}",
        _identity(result),
        (TRIED_VERDICT_TAG if result.tried else VERDICT_TAG, result.state),
        created,
    ).log(" ".join(filter(None, name)), _tags(result), log_content)
    if not result.tried:
        log_series(result, figures, created)
        link_report_to_version(result, report_link(run))
    return run


def report_link(run: LoggedRun) -> str:
    """The page of the report in MLflow, else where the artifact is."""
    return f"{run.url}/artifacts/{PAGE}" if run.url else f"{run.run_id}/{PAGE}"


def past_windows(result: MonitorResult) -> list[PastWindow]:
    """Return the newest windows of this monitor before this one, and as long, as their runs tell; of each the last
    revision. Those of an earlier endpoint of the name are none of them.

    Raises:
        RegistryUnavailable: MLflow does not answer.
    """
    with registry_errors(f"the experiment of endpoint {result.endpoint}"):
        client = registry_client()
        experiment = client.get_experiment_by_name(f"onnxserve/{result.endpoint}")
        if experiment is None:
            return []
        runs = client.search_runs(
            [experiment.experiment_id],
            f"tags.`{MONITOR_TAG}` = '{result.monitor}' and tags.`{VERDICT_TAG}` != ''",
            max_results=2 * MOST_WINDOWS,
            order_by=[f"tags.`{START_TAG}` DESC", "attributes.start_time DESC"],
        )
    last: dict[datetime, tuple[int, PastWindow]] = {}
    for run in runs:
        tags = run.data.tags
        start, end = (_time(tags.get(name, "")) for name in (START_TAG, END_TAG))
        if start is None or end is None or end - start != result.window.length:
            continue
        if start >= result.window.start or SUPERSEDED in tags:
            continue
        if result.endpoint_created and tags.get(CREATED_TAG, result.endpoint_created) != result.endpoint_created:
            continue
        revision = tags.get(REVISION_TAG, "")
        number = int(revision) if revision.isdigit() else 0
        if start not in last or last[start][0] < number:
            last[start] = (number, PastWindow(start, tags[VERDICT_TAG], run.data.metrics))
    return [window for _, window in last.values()]


def _time(text: str) -> datetime | None:
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return None  # a run that somebody made by hand
    return time if time.tzinfo else None


def _log_files(client: "MlflowClient", run_id: str, files: Mapping[str, str | bytes]) -> None:
    from mlflow.exceptions import MlflowException
    from requests import RequestException

    with TemporaryDirectory() as folder:
        for name, content in files.items():
            target = Path(folder) / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content.encode() if isinstance(content, str) else content)
        try:
            client.log_artifacts(run_id, folder)
        except (MlflowException, RequestException, OSError):
            raise
        except Exception as error:  # noqa: BLE001 — of the artifact store's own library: boto3, google, azure, …
            raise RegistryUnavailable(
                unavailable_message("the files of the report", "MLflow's artifact store", error)
            ) from None


def _identity(result: MonitorResult) -> dict[str, str]:
    window = {
        ENDPOINT_TAG: result.endpoint,
        MONITOR_TAG: result.monitor,
        START_TAG: result.window.start.isoformat(),
    }
    if result.tried:
        return {**window, END_TAG: result.window.end.isoformat(), TRIED_TAG: result.tried}
    return {**window, REVISION_TAG: str(result.revision)}


def _tags(result: MonitorResult) -> dict[str, str]:
    return {
        "onnxserve.kind": result.kind,
        "onnxserve.model": result.model,
        "onnxserve.version": result.version,
        END_TAG: result.window.end.isoformat(),
        "onnxserve.reason": result.reason[:MAX_TAG_LENGTH],
    }
