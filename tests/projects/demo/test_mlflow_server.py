"""Tests that only the demo's MLflow server is stopped."""

import json
import subprocess
import sys

import psutil
import pytest

from projects.demo.mlflow_server import mlflow_url, stop_mlflow
from projects.demo.workspace import Workspace


@pytest.fixture
def workspace(tmp_path):
    workspace = Workspace(tmp_path)
    workspace.empty()
    return workspace


@pytest.fixture
def process():
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        yield process
        process.kill()


def remember(workspace, pid, created):
    workspace.server_file.write_text(
        json.dumps({"pid": pid, "created": created, "url": "http://127.0.0.1:5000"})
    )


def test_remembered_process_is_ended(workspace, process):
    remember(workspace, process.pid, psutil.Process(process.pid).create_time())
    assert mlflow_url(workspace) == "http://127.0.0.1:5000"
    assert stop_mlflow(workspace)
    assert not psutil.pid_exists(process.pid)
    assert mlflow_url(workspace) is None


def test_reused_process_id_is_ignored(workspace, process):
    remember(workspace, process.pid, psutil.Process(process.pid).create_time() - 3600)
    assert not stop_mlflow(workspace)
    assert process.poll() is None
