"""Two days that a real server has captured into a bucket, with everything that another
process needs to judge them.
"""

import os
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import mlflow
import numpy as np
import pandas as pd
import pytest
import requests
from sklearn.linear_model import LinearRegression

import mlflow_deploy_plugin
from mlflow_deploy_plugin.core.spec.document import apply_config, new_endpoint
from mlflow_deploy_plugin.core.store.database import open_store
from mlflow_deploy_plugin.core.store.monitor_tables import Monitors
from mlflow_deploy_plugin.core.store.store import Store
from tests.support.services.mlflow_server import MlflowServer
from tests.support.services.s3 import own_bucket
from tests.support.tracking import DEFAULT_EXPERIMENT, tracking_at

DAY = timedelta(days=1)
BEGIN = (datetime.now(UTC) - DAY / 24).replace(hour=0, minute=0, second=0, microsecond=0) - 2 * DAY
"""The start of the first day. Both days are over, and the monitor no longer waits for
their rows.
"""


@dataclass(frozen=True)
class TwoDays:
    """An endpoint `flights` whose second day has drifted. It has two daily monitors:
    `daily` for all columns, `answers` for the predictions.

    Attributes:
        settings: the environment variables of a process that judges.
    """

    store: Store
    mlflow: MlflowServer
    settings: dict[str, str]

    def verdicts(self, monitor):
        return [window.verdict for window in Monitors(self.store).windows("flights", monitor)]


@contextmanager
def two_captured_days(server, store_url, serve):
    """Capture the days. The process that judges must reach MLflow's server, the store
    and the environment's S3 API.

    Args:
        server: starts in this function.
        serve: starts `onnxserve serve` with this process's environment.
    """
    with own_bucket() as bucket, pytest.MonkeyPatch.context() as environment:
        settings = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
        settings |= {"ONNXSERVE_STORE_URI": store_url, "MLFLOW_TRACKING_URI": server.url}
        settings |= {"ONNXSERVE_LOG_URI": f"s3://{bucket.name}/log"}
        environment.setenv("ONNXSERVE_LOG_URI", settings["ONNXSERVE_LOG_URI"])
        store = open_store(store_url, lambda: BEGIN)
        server.start()
        try:
            with tracking_at(server.url):
                _register()
                _capture(serve("models:/flights/1", "--name", "flights").wait_ready())
            monitors = {"monitors.daily.kind": "drift", "monitors.answers.columns": "prediction"}
            store.add_endpoint(
                "onnxserve", apply_config(new_endpoint("flights", "models:/flights/1"), monitors)
            )
            yield TwoDays(store, server, settings)
        finally:
            store.close()
            server.kill()


def _register():
    """Return the model y = 2x, whose reference is forty days without drift."""
    times = pd.date_range(BEGIN - 40 * DAY, BEGIN, periods=3000, inclusive="left")
    rows = pd.DataFrame({"x": np.random.default_rng(0).normal(size=len(times))})
    with mlflow.start_run(experiment_id=DEFAULT_EXPERIMENT):
        mlflow_deploy_plugin.log_model(
            LinearRegression().fit(rows, 2 * rows.x),
            name="model",
            input_example=rows.head(50),
            reference_data=rows.assign(when=times),
            event_time="when",
            registered_model_name="flights",
            pip_requirements=["onnxruntime"],
        )


def _capture(served):
    rng = np.random.default_rng(1)
    for hour in range(48):
        rows = rng.normal(9 if hour >= 24 else 0, 1, size=(10, 1)).tolist()
        answer = requests.post(
            f"{served.url}/invocations",
            json={"dataframe_split": {"columns": ["x"], "data": rows}},
            headers={"X-Event-Time": (BEGIN + hour * DAY / 24).isoformat()},
            timeout=30,
        )
        assert answer.status_code == 200, answer.text
    assert served.end() == 0, served.log.read_text()
