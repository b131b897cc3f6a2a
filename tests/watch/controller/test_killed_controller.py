"""A controller that is killed while it judges, and another one while it logs."""

import subprocess
import sys
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta

import psutil
import pytest
from mlflow import MlflowClient
from mlflow.entities import ViewType

from mlflow_deploy_plugin.core.settings import Settings
from mlflow_deploy_plugin.core.store.database import open_store
from mlflow_deploy_plugin.core.store.monitor_tables import Monitors
from tests.support.monitored_endpoint import capture, make_endpoint
from tests.support.tracking import tracking_at
from tests.support.waiting import is_gone, wait_until

HOUR = timedelta(hours=1)
SECONDS = 600.0


@contextmanager
def killed_controller(folder):
    """Run a controller that is killed at the end of the `with`. Its processes must also
    end, because its successor logs the same window.
    """
    command = [sys.executable, "-m", "mlflow_deploy_plugin.cli", "controller"]
    with (folder / "controller.log").open("ab") as log:
        controller = subprocess.Popen([*command, "--lease-seconds", "5"], stdout=log, stderr=log)
    try:
        yield
        children = psutil.Process(controller.pid).children(recursive=True)
    finally:
        controller.kill()
        controller.wait()
    wait_until(lambda: all(is_gone(child.pid) for child in children), what="its processes end")


@pytest.mark.release
@pytest.mark.long
@pytest.mark.timeout(1800)
def test_killed_controllers_leave_one_run(tmp_path, new_home, mlflow_server):
    home = tmp_path / "home"
    begin = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - HOUR
    make_endpoint(home, "killed", "1h", begin, grace="1s")
    capture(home, begin, name="killed")
    mlflow = MlflowClient(mlflow_server.url)

    def runs():
        experiment = mlflow.get_experiment_by_name("onnxserve/killed")
        if experiment is None:
            return []
        query = f"tags.`onnxserve.window.start` = '{begin.isoformat()}'"
        return mlflow.search_runs([experiment.experiment_id], query, ViewType.ALL)

    with (
        tracking_at(mlflow_server.url),
        closing(open_store(Settings(home=home).store_url)) as store,
    ):

        def windows(state):
            revisions = Monitors(store).revisions("killed", "daily", begin, begin + HOUR)
            return [window for window in revisions if window.state == state]

        with killed_controller(tmp_path):
            wait_until(lambda: windows("running"), SECONDS, "the window is judged")
        with killed_controller(tmp_path):
            wait_until(runs, SECONDS, "the verdict is logged")
        with killed_controller(tmp_path):
            (window,) = wait_until(lambda: windows("judged"), SECONDS, "the window has a verdict")
    (run,) = runs()
    assert (run.info.run_id, run.info.status) == (window.run_id, "FINISHED")
