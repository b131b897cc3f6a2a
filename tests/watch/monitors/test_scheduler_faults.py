"""The controller as a process with real monitors: it is killed, started twice, or loses
its MLflow server.
"""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

from mlflow_deploy_plugin.core.settings import Settings
from mlflow_deploy_plugin.core.store.database import open_store
from mlflow_deploy_plugin.core.store.monitor_tables import Monitors, MonitorWindow
from tests.support.monitored_endpoint import capture, make_endpoint
from tests.support.refusals import mentions
from tests.support.services.mlflow_server import MlflowServer
from tests.support.waiting import wait_until

SECONDS = 240.0
HOUR = timedelta(hours=1)
_LOOK_SECONDS = 0.5


class Machine:
    """A home with endpoints and a log, and the controllers that use it."""

    def __init__(self, folder: Path, tracking_uri: str) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.tracking_uri = tracking_uri
        self.begin = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - 3 * HOUR
        self.store = open_store(Settings(home=self.home).store_url)
        self.controllers: list[subprocess.Popen[bytes]] = []

    def endpoint(self, name: str, hours: int = 1, **more: str) -> None:
        make_endpoint(self.home, name, "1h", self.begin, **more)
        for number in range(hours):
            capture(self.home, self.begin + number * HOUR, name=name)

    def start(self) -> subprocess.Popen[bytes]:
        environment = {
            **os.environ,
            "ONNXSERVE_HOME": str(self.home),
            "MLFLOW_TRACKING_URI": self.tracking_uri,
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        }
        command = [
            sys.executable,
            "-m",
            "mlflow_deploy_plugin.cli",
            "controller",
            "--lease-seconds",
            "5",
        ]
        log = (self.folder / f"controller-{len(self.controllers)}.log").open("wb")
        controller = subprocess.Popen(
            command, env=environment, stdout=log, stderr=log, cwd=self.folder
        )
        self.controllers.append(controller)
        return controller

    def kill(self) -> None:
        for controller in self.controllers:
            if controller.poll() is None:
                controller.send_signal(signal.SIGTERM)
                controller.wait(SECONDS)
        self.store.close()

    def said(self) -> str:
        return "\n".join(path.read_text() for path in sorted(self.folder.glob("controller-*.log")))

    def windows(self, endpoint: str, state: str) -> list[MonitorWindow]:
        return [
            window for window in Monitors(self.store).windows(endpoint) if window.state == state
        ]

    def wait_for(self, endpoint: str, count: int, state: str = "judged") -> list[MonitorWindow]:
        def found() -> list[MonitorWindow]:
            windows = self.windows(endpoint, state)
            return windows if len(windows) >= count else []

        windows: list[MonitorWindow] = waited_for(
            found, SECONDS, f"{count} windows of {endpoint} are {state}"
        )
        return windows

    def runs(self, endpoint: str) -> Counter[tuple[str, str]]:
        """Return the number of MLflow runs per revision of each window."""
        client = MlflowClient(self.tracking_uri)
        experiment = client.get_experiment_by_name(f"onnxserve/{endpoint}")
        of_windows = "tags.`onnxserve.window.start` != ''"
        runs = (
            client.search_runs([experiment.experiment_id], of_windows)
            if experiment is not None
            else []
        )
        return Counter(
            (run.data.tags["onnxserve.window.start"], run.data.tags["onnxserve.window.revision"])
            for run in runs
        )


@pytest.fixture
def machine(tmp_path, new_database):
    made = Machine(tmp_path, new_database(tmp_path))
    yield made
    made.kill()


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_controller_killed_in_the_middle_of_a_judgement_is_replaced_and_mlflow_has_one_run(
    machine,
):
    machine.endpoint("flights", hours=2)
    first = machine.start()

    def run_is_begun():
        return bool(machine.runs("flights")) and bool(machine.windows("flights", "running"))

    waited_for(run_is_begun, SECONDS, "the run of a window is begun")
    children = psutil.Process(first.pid).children(recursive=True)
    first.kill()
    first.wait()
    waited_for(
        lambda: not any(map(is_alive, children)), SECONDS, "nobody goes on with what was begun"
    )
    assert machine.windows("flights", "running")

    machine.start()
    windows = machine.wait_for("flights", 2)

    assert [window.start for window in windows][:2] == [machine.begin, machine.begin + HOUR]
    assert set(machine.runs("flights").values()) == {1}
    assert {window.run_id for window in windows if window.run_id}


@pytest.mark.long
@pytest.mark.timeout(600)
def test_two_controllers_judge_each_window_once(machine):
    machine.endpoint("flights", hours=2)
    machine.endpoint("trains", hours=2)
    first = machine.start()
    machine.start()
    machine.wait_for("flights", 1)
    first.kill()

    flights = machine.wait_for("flights", 2)
    trains = machine.wait_for("trains", 2)

    assert {window.revision for window in flights + trains} == {1}
    assert set(machine.runs("flights").values()) == set(machine.runs("trains").values()) == {1}


@pytest.mark.long
@pytest.mark.timeout(600)
def test_reporting_is_retried_while_mlflow_is_down_and_other_monitors_continue(
    tmp_path, new_database
):
    new_database(tmp_path)
    server = MlflowServer(tmp_path)
    machine = Machine(tmp_path, server.url)
    machine.endpoint("flights")
    machine.endpoint("idle", hours=0)
    try:
        machine.start()
        machine.wait_for("idle", 1)
        (window,) = waited_for(
            lambda: [
                candidate
                for candidate in machine.windows("flights", "pending")
                if candidate.attempts
            ],
            SECONDS,
            "it has failed",
        )
        assert "MLflow" in window.reason

        server.start()
        windows = machine.wait_for("flights", 1)

        assert windows[0].verdict == "no drift"
        assert set(machine.runs("flights").values()) == {1}
    finally:
        machine.kill()
        server.kill()


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_judgement_whose_process_is_killed_is_made_again(machine):
    machine.endpoint("flights")
    controller = machine.start()
    waited_for(lambda: machine.windows("flights", "running"), SECONDS, "it is being judged")

    def judging():
        with suppress(psutil.NoSuchProcess):  # A process may have just ended.
            children = psutil.Process(controller.pid).children(recursive=True)
            return [
                child
                for child in children
                if "mlflow_deploy_plugin.core.processes.worker" in child.cmdline()
            ]
        return []

    (child,) = waited_for(judging, SECONDS, "a process judges")
    child.kill()

    windows = machine.wait_for("flights", 1)
    assert mentions(machine.said(), "SIGKILL", "memory")
    assert windows[0].verdict == "no drift"


def waited_for(condition, seconds, what):
    """Wait as `wait_until`, with pauses that leave CPU time to the processes."""
    looked = 0.0

    def slowly():
        nonlocal looked
        if time.monotonic() - looked < _LOOK_SECONDS:
            return None
        looked = time.monotonic()
        return condition()

    return wait_until(slowly, seconds, what)


def is_alive(process):
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
