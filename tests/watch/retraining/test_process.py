"""A training writes heartbeats, and ends when its run was ended in MLflow."""

import os
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager

import pytest
from mlflow import MlflowClient

from mlflow_deploy_plugin.watch.retraining.process import MARK, beat_until_ended, get_run
from tests.support.tracking import tracking_at
from tests.support.waiting import free_port, wait_until


@pytest.fixture
def run_id(new_mlflow):
    return MlflowClient().create_run(MlflowClient().create_experiment("trainings")).info.run_id


@contextmanager
def training(run_id):
    """Start a process of the run that runs until it is ended."""
    command = [sys.executable, "-c", "import time; time.sleep(600)"]
    process = subprocess.Popen(command, env=os.environ | {MARK: run_id})
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@contextmanager
def beating(run_id, process):
    thread = threading.Thread(target=beat_until_ended, args=(run_id, process, 0.02))
    thread.start()
    try:
        yield
    finally:
        process.kill()
        thread.join()


def test_training_writes_heartbeats(run_id):
    with training(run_id) as process, beating(run_id, process):
        wait_until(lambda: get_run(run_id).alive_at is not None, 30, "it has said so")
        first = get_run(run_id).alive_at
        wait_until(lambda: get_run(run_id).alive_at != first, 30, "it has said so again")


def test_training_ends_with_its_run(run_id):
    with training(run_id) as process, beating(run_id, process):
        wait_until(lambda: get_run(run_id).alive_at is not None, 30, "it has said so")
        assert process.poll() is None
        MlflowClient().set_terminated(run_id, "KILLED")
        wait_until(lambda: process.poll() is not None, 30, "it has ended")
        assert process.returncode == -signal.SIGTERM


def test_training_continues_while_mlflow_is_down(run_id, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with tracking_at(f"http://127.0.0.1:{free_port()}"):
        process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(0.2)"])
        assert beat_until_ended(run_id, process, 0.02) == 0
