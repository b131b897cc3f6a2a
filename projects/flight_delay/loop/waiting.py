"""Waiting for the consequences of a week of traffic: its rows in the log, the verdicts, and the retraining."""

import time
from collections.abc import Callable
from datetime import timedelta

import pyarrow as pa
import pyarrow.compute as pc

from mlflow_deploy_plugin.errors import NotReady
from mlflow_deploy_plugin.inference_log import InferenceLog, Window
from mlflow_deploy_plugin.inference_log.labels import LABEL, EndpointLabels, join_labels
from mlflow_deploy_plugin.spec import duration_seconds
from mlflow_deploy_plugin.store import Monitors, MonitorWindow, Retraining, Retrainings, Store
from projects.flight_delay.loop.setup import ACCURACY, DRIFT, ReplaySettings

LOG_SECONDS, JUDGED_SECONDS, TRAINED_SECONDS = 120.0, 900.0, 2400.0
_POLL_SECONDS = 0.3
_BEFORE_TRAFFIC = ("waiting", "running", "registered", "gated")


def wait_until_logged(log: InferenceLog, endpoint: str, window: Window, rows: int, labels: int) -> None:
    """Wait until the log has so many of the window's rows, and of their labels. Raises NotReady."""

    def is_there() -> bool:
        found = sum(len(batch) for batch in log.batches(endpoint, window, columns=["_row"]))
        if found < rows:
            return False
        columns = ["_prediction_id", "_row", "_received_time", "_event_time"]
        table = pa.concat_tables(log.batches(endpoint, window, columns=columns))
        joined = join_labels(table, EndpointLabels(log.location, endpoint, log.unreadable))  # once: it reads all labels
        return (pc.sum(pc.is_valid(joined.column(LABEL))).as_py() or 0) >= labels

    _wait(is_there, LOG_SECONDS, f"{rows:,} rows of {window} in the log, {labels:,} of them labelled")


def wait_for_verdicts(store: Store, setting: ReplaySettings, window: Window) -> list[MonitorWindow]:
    """Wait for the verdicts on accuracy in the window and on drift in its last part. Raises NotReady."""
    monitors, length = Monitors(store), timedelta(seconds=duration_seconds(setting.drift_every))
    asked = [
        monitors.add(setting.endpoint, DRIFT, window.end - length, window.end),
        monitors.add(setting.endpoint, ACCURACY, window.start, window.end),
    ]
    wanted = {one.id for one in asked}
    found: list[MonitorWindow] = []

    def are_judged() -> bool:
        found[:] = [one for one in monitors.windows(setting.endpoint) if one.id in wanted]
        return all(one.state in ("judged", "failed") for one in found)

    _wait(are_judged, JUDGED_SECONDS, f"the verdicts on {window}")
    return found


def wait_for_retraining(store: Store, endpoint: str) -> Retraining | None:
    """Return the last retraining, once none is running that needs no further traffic. Raises NotReady."""
    found: list[Retraining] = []

    def is_done() -> bool:
        found[:] = Retrainings(store).find(endpoint)
        return all(not one.is_live or one.state not in _BEFORE_TRAFFIC for one in found)

    _wait(is_done, TRAINED_SECONDS, "the retraining's end")
    return found[-1] if found else None


def _wait(condition: Callable[[], bool], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise NotReady(f"after {seconds:g} s still not there: {what}")
        time.sleep(_POLL_SECONDS)
