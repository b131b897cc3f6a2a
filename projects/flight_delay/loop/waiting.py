"""Wait for the results of a period of traffic: its rows in the log, the verdicts, and
the retraining.
"""

import time
from collections.abc import Callable
from datetime import timedelta

import pyarrow as pa
import pyarrow.compute as pc

from mlflow_deploy_plugin.core.errors import NotReady
from mlflow_deploy_plugin.core.spec.types import duration_seconds
from mlflow_deploy_plugin.core.store.monitor_tables import Monitors, MonitorWindow
from mlflow_deploy_plugin.core.store.retrainings import Retraining, Retrainings
from mlflow_deploy_plugin.core.store.store import Store
from mlflow_deploy_plugin.serve.inference_log.labels import LABEL
from mlflow_deploy_plugin.serve.inference_log.log_reader import InferenceLog
from mlflow_deploy_plugin.serve.inference_log.windows import Window
from projects.flight_delay.loop.setup import ACCURACY, DRIFT, ReplaySettings

LOG_SECONDS = 120.0
JUDGED_SECONDS = 900.0
TRAINED_SECONDS = 2400.0
_POLL_SECONDS = 0.3
_BEFORE_TRAFFIC = ("waiting", "running", "registered", "gated")


def wait_until_logged(
    log: InferenceLog,
    endpoint: str,
    window: Window,
    rows: int,
    labels: int,
) -> None:
    """Wait until the log contains the numbers of rows and labels in the window. Raises
    NotReady.
    """

    def is_there() -> bool:
        count = sum(len(batch) for batch in log.batches(endpoint, window, columns=["_row"]))
        if count < rows:
            return False
        columns = ["_prediction_id", "_row", "_event_time"]
        table = pa.concat_tables(log.batches(endpoint, window, columns=columns))
        joined = log.labels(endpoint).join(table)
        return (pc.sum(pc.is_valid(joined.column(LABEL))).as_py() or 0) >= labels

    _wait(
        is_there,
        LOG_SECONDS,
        f"{rows:,} rows of {window} in the log, {labels:,} of them labelled",
    )


def wait_for_verdicts(store: Store, setting: ReplaySettings, window: Window) -> list[MonitorWindow]:
    """Wait for the verdicts on accuracy in the window and on drift in its last part.
    Raises NotReady.
    """
    monitors = Monitors(store)
    length = timedelta(seconds=duration_seconds(setting.drift_every))
    requested = [
        monitors.add(setting.endpoint, DRIFT, window.end - length, window.end),
        monitors.add(setting.endpoint, ACCURACY, window.start, window.end),
    ]
    ids = {window.id for window in requested}
    windows: list[MonitorWindow] = []

    def are_judged() -> bool:
        windows[:] = [window for window in monitors.windows(setting.endpoint) if window.id in ids]
        return all(window.state in ("judged", "failed") for window in windows)

    _wait(are_judged, JUDGED_SECONDS, f"the verdicts on {window}")
    return windows


def wait_for_retraining(store: Store, endpoint: str) -> Retraining | None:
    """Wait until all retrainings have ended or need traffic, and return the last one or
    None. Raises NotReady.
    """
    retrainings: list[Retraining] = []

    def is_done() -> bool:
        retrainings[:] = Retrainings(store).find(endpoint)
        return all(
            not retraining.is_live or retraining.state not in _BEFORE_TRAFFIC
            for retraining in retrainings
        )

    _wait(is_done, TRAINED_SECONDS, "the retraining's end")
    return retrainings[-1] if retrainings else None


def _wait(condition: Callable[[], bool], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise NotReady(f"timeout after {seconds:g} s: {what}")
        time.sleep(_POLL_SECONDS)
