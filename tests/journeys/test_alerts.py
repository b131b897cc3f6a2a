"""Tests of the path from rows in the log to a message, with a controller that is
started as users start it.
"""

import os
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import requests
from mlflow import MlflowClient

from tests.support.monitored_endpoint import capture, make_endpoint
from tests.support.refusals import mentions
from tests.support.services.alert_receiver import Receiver
from tests.support.services.alert_receiver import receiver as a_receiver
from tests.support.waiting import free_port, wait_until

SECONDS = 240.0
HOUR = timedelta(hours=1)


@dataclass(frozen=True)
class Watched:
    home: Path
    begin: datetime
    receiver: Receiver
    log: Path
    metrics: str


@pytest.fixture
def watched(tmp_path, mlflow_server):
    """Start an endpoint with an hourly monitor. Its first hour is like the reference;
    its second hour has drifted.
    """
    home = tmp_path / "home"
    log = tmp_path / "controller.log"
    port = free_port()
    begin = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - 2 * HOUR
    # A grace of 1 s makes the window due in the first minutes of an hour.
    make_endpoint(home, "watched", "1h", begin, alert="ops", grace="1s")
    capture(home, begin, name="watched")
    capture(home, begin + HOUR, shift=9, name="watched")
    with a_receiver() as receiver:
        (tmp_path / "alerts.conf").write_text(
            f"ops={receiver.url('ops')}\nscience={receiver.url('science')}\n"
        )
        environment = {
            **os.environ,
            "ONNXSERVE_HOME": str(home),
            "ONNXSERVE_ALERT_CONFIG": str(tmp_path / "alerts.conf"),
            "MLFLOW_TRACKING_URI": mlflow_server.url,
        }
        command = [
            sys.executable,
            "-m",
            "mlflow_deploy_plugin.cli",
            "controller",
            "--metrics-port",
            str(port),
        ]
        with log.open("wb") as output:
            controller = subprocess.Popen(
                command, env=environment, stdout=output, stderr=output, cwd=tmp_path
            )
        try:
            yield Watched(home, begin, receiver, log, f"http://127.0.0.1:{port}/metrics")
        finally:
            controller.terminate()
            controller.wait(60)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_hourly_drift_sends_one_alert_with_its_report(watched, mlflow_server):
    posted = watched.receiver.got
    wait_until(lambda: posted.get("/ops"), SECONDS, f"the message; {watched.log.read_text()}")
    alarm = posted["/ops"][0]

    assert mentions(alarm["title"], "watched", "Alarm", "daily")
    assert "- x, " in alarm["message"]
    link, actions = alarm["message"].splitlines()[-2:]
    run = MlflowClient(mlflow_server.url).get_run(link.split("/runs/")[1].split("/")[0])
    assert link.endswith("/artifacts/report.html")
    assert actions.startswith("next: onnxserve ")
    assert run.data.tags["onnxserve.window.start"] == (watched.begin + HOUR).isoformat()
    for gauge in ("alerts_firing", "drift_share"):
        sample = f'onnxserve_{gauge}{{endpoint="watched",monitor="daily"}} 1.0'
        wait_until(
            lambda: sample in requests.get(watched.metrics, timeout=30).text,  # noqa: B023
            what=sample,
        )
    assert len(watched.receiver.got["/ops"]) == 1
    assert "/science" not in watched.receiver.got
    assert "s3cret" not in watched.log.read_text()
