"""Tests of the workflow on a simulated Mac (`tests/support/macos`): wrap, judge, ship,
and try the server.
"""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import requests

from mlflow_deploy_plugin.core.statedir.files import SERVER, read_state
from mlflow_deploy_plugin.core.statedir.models import ServerState
from tests.support.macos import MACOS
from tests.support.refusals import mentions
from tests.support.waiting import free_port, is_gone, wait_until

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]

LOGS_TWO_MODELS = """
import sys
assert sys.platform == "darwin"
import mlflow
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression

import onnxserve

X, y = load_breast_cancer(return_X_y=True, as_frame=True)
model = LogisticRegression(max_iter=5000).fit(X, y)
onnxserve.log_model(model, name="model", input_example=X, registered_model_name="cancer")
assert onnxserve.load_model("models:/cancer/1") is not None
with mlflow.start_run():
    mlflow.sklearn.log_model(model, name="plain", input_example=X.head(), \
registered_model_name="plain")
"""
ROW = {"inputs": [[1.0] * 30]}


class Mac:
    """A shell of the Mac that runs programs of this environment, with the model
    registry in a folder.
    """

    def __init__(self, folder):
        self.folder = folder
        self.environment = {
            name: value for name, value in os.environ.items() if not name.startswith("KUBE")
        } | {
            "PYTHONPATH": str(MACOS),
            "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
            "ONNXSERVE_HOME": str(folder / "home"),
            "HOME": str(folder),
            "DOCKER_HOST": f"unix://{folder}/none.sock",
        }

    def run(self, program, *arguments, status=0):
        command = [str(Path(sys.executable).with_name(program)), *arguments]
        places = {"cwd": self.folder, "env": self.environment}
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=300, **places
        )
        assert done.returncode == status, done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout + (done.stderr if status else "")


@pytest.fixture(scope="module")
def mac(tmp_path_factory):
    mac = Mac(tmp_path_factory.mktemp("mac"))
    mac.run("python", "-c", LOGS_TWO_MODELS)
    return mac


@pytest.fixture
def endpoint(mac):
    """Return the address of a deployment on the Mac, and the process id of its
    supervisor.
    """
    port = free_port()
    create = (
        "deployments",
        "create",
        "-t",
        "onnxserve",
        "--name",
        "tried",
        "-m",
        "models:/cancer/1",
    )
    mac.run("mlflow", *create, "-C", f"server.port={port}")
    state = read_state(mac.folder / "home/deployments/tried" / SERVER, ServerState)
    assert state is not None
    yield f"http://127.0.0.1:{port}", state.pid
    mac.run("mlflow", "deployments", "delete", "-t", "onnxserve", "--name", "tried")


def test_registered_model_is_wrapped_and_judged(mac):
    assert "proven on" in mac.run("onnxserve", "wrap", "models:/plain/1")
    assert mentions(mac.run("onnxserve", "gate", "models:/cancer/1"), "cancer", "version 1: passed")


def test_deployment_answers_and_restarts(mac, endpoint):
    url, supervisor = endpoint
    assert requests.post(f"{url}/invocations", json=ROW, timeout=60).json()["predictions"]
    assert requests.get(f"{url}/metrics", timeout=60).ok
    (gunicorn,) = (
        child for child in psutil.Process(supervisor).children() if "gunicorn" in child.cmdline()
    )
    gunicorn.kill()
    wait_until(lambda: is_gone(gunicorn.pid) and _answers(url), what="gunicorn's restart")


def _answers(url):
    try:
        return requests.get(f"{url}/ping", timeout=5).ok
    except requests.RequestException:
        return False
