"""The controller as a process that is killed while a real monitor judges."""

import os
import subprocess
import sys
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import psutil
import pytest
from mlflow import MlflowClient

from mlflow_deploy_plugin.core.settings import Settings
from mlflow_deploy_plugin.core.store.database import open_store
from mlflow_deploy_plugin.core.store.monitor_tables import Monitors
from tests.support.monitored_endpoint import capture, make_endpoint
from tests.support.waiting import is_gone, wait_until

SECONDS = 240.0
HOUR = timedelta(hours=1)


@contextmanager
def controller(home, uri):
    environment = {**os.environ, "ONNXSERVE_HOME": str(home), "MLFLOW_TRACKING_URI": uri}
    command = [sys.executable, "-m", "mlflow_deploy_plugin.cli", "controller"]
    process = subprocess.Popen([*command, "--lease-seconds", "5"], env=environment, cwd=home)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(SECONDS)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_window_of_a_killed_controller_has_one_run(tmp_path, new_database):
    uri = new_database(tmp_path)
    home = tmp_path / "home"
    begin = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - 3 * HOUR
    make_endpoint(home, "flights", "1h", begin)
    for hour in (begin, begin + HOUR):
        capture(home, hour)
    monitors = Monitors(open_store(Settings(home=home).store_url))
    client = MlflowClient(uri)

    def runs():
        experiment = client.get_experiment_by_name("onnxserve/flights")
        if experiment is None:
            return []
        of_windows = "tags.`onnxserve.window.start` != ''"
        return client.search_runs([experiment.experiment_id], of_windows)

    with controller(home, uri) as first:
        wait_until(
            lambda: runs() and monitors.windows("flights", states=("running",)),
            SECONDS,
            "the run of a window is begun",
        )
        children = psutil.Process(first.pid).children(recursive=True)
        first.kill()
    wait_until(lambda: all(is_gone(child.pid) for child in children), SECONDS, "all have ended")
    assert monitors.windows("flights", states=("running",))
    with controller(home, uri):
        wait_until(lambda: len(monitors.windows("flights", states=("judged",))) >= 2, SECONDS)

    starts = sorted(run.data.tags["onnxserve.window.start"] for run in runs())
    assert starts[:2] == [begin.isoformat(), (begin + HOUR).isoformat()]
    assert len(starts) == len(set(starts))
    monitors.store.close()
