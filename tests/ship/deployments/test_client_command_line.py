"""Tests of `mlflow deployments … -t onnxserve` as users type it, in separate processes
if it starts servers.
"""

import signal
import subprocess
import sys

import mlflow.deployments.cli
import pytest
import requests
from click.testing import CliRunner

from tests.support.commands import said
from tests.support.refusals import mentions
from tests.support.tracking import tracking_at
from tests.support.waiting import answers, wait_until

ROWS = {"dataframe_split": {"columns": ["a", "b"], "data": [[1, 2], [3, 4.5]]}}
# This is `python -m mlflow deployments` without MLflow's other commands, whose import
# takes two seconds.
COMMAND = [sys.executable, "-c", "from mlflow.deployments.cli import commands; commands()"]


def typed(*arguments):
    """Run the command in a new process, which ends before the processes that it has
    started.
    """
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_create_can_be_cleaned_up(client, models, free_port, tmp_path, number):
    """Ctrl-C leaves no process or deployment. After a kill, the deployment is listed
    and can be deleted.
    """
    create = [*COMMAND, "create", "-t", "onnxserve", "--name", "cut", "-m", models.once]
    process = subprocess.Popen(
        [*create, "-C", f"server.port={free_port}"], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    assert any("starting the server" in line for line in process.stderr)

    process.send_signal(number)
    process.communicate(timeout=60)

    left = [deployment["name"] for deployment in client.list_deployments()]
    assert left == ([] if number == signal.SIGINT else ["cut"])
    for name in left:
        client.delete_deployment(name)
    assert list((tmp_path / "home" / "deployments").glob("*")) == []


def called(*arguments):
    """Run the command in this process, which has already imported MLflow."""
    return CliRunner().invoke(mlflow.deployments.cli.commands, [*arguments])


def test_invalid_tracking_uri_is_one_line(new_home):
    with tracking_at("mlflow.example:5000"):
        refused = called("create", "-t", "onnxserve", "--name", "x", "-m", "models:/x/1")

    assert mentions(said(refused), "http://mlflow.example:5000")


def test_help_is_printed():
    assert "TARGET URI" in called("help", "-t", "onnxserve").stdout


@pytest.mark.long
def test_run_local_refuses_unknown_model(client):
    refused = called("run-local", "-t", "onnxserve", "--name", "front", "-m", "models:/nope/1")
    assert refused.exit_code == 1
    assert refused.stdout == ""
    # MLflow logs the creation of its database.
    lines = [line for line in refused.stderr.splitlines() if " INFO mlflow." not in line]
    assert mentions(*lines, "Error", "no registered model nope")


@pytest.mark.long
def test_run_local_serves_until_interrupted(models, free_port, tmp_path):
    command = [*COMMAND, "run-local", "-t", "onnxserve", "--name", "front"]
    command += ["-m", models.once, "-C", f"server.port={free_port}"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, cwd=tmp_path, start_new_session=True
        )
    url = f"http://127.0.0.1:{free_port}"

    try:
        wait_until(
            lambda: answers(f"{url}/ping") or process.poll() is not None, 120, "the server answers"
        )
        assert process.poll() is None, (tmp_path / "log").read_text()
        assert requests.post(f"{url}/invocations", json=ROWS, timeout=60).json() == {
            "predictions": [{"y": 3.0}, {"y": 7.5}]
        }
    finally:
        process.send_signal(signal.SIGTERM)
        status = process.wait(60)

    log_text = (tmp_path / "log").read_text()
    assert status == 0, log_text
    assert mentions(log_text, "front", url, "Ctrl-C")
    with pytest.raises(requests.ConnectionError):
        requests.get(f"{url}/ping", timeout=5)
