"""A training says that it runs, and ends itself where somebody else has ended its run."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from mlflow import MlflowClient

from mlflow_deploy_plugin.controller.retrain import child, tracked
from mlflow_deploy_plugin.controller.retrain.heartbeat import beat
from support.tracking import tracking_at
from support.waiting import free_port, wait_until


@pytest.fixture
def run_id(tmp_path: Path, new_database, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.chdir(tmp_path)
    with tracking_at(new_database(tmp_path)):
        yield MlflowClient().create_run(MlflowClient().create_experiment("trainings")).info.run_id


@contextmanager
def beating(run_id: str) -> Iterator[None]:
    stopped = threading.Event()
    thread = threading.Thread(target=beat, args=(run_id, stopped, 0.02))
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


def test_it_says_again_and_again_that_it_runs(run_id: str) -> None:
    with beating(run_id):
        wait_until(lambda: tracked.seen(run_id).alive_at is not None, 30, "it has said so")
        first = tracked.seen(run_id).alive_at
        wait_until(lambda: tracked.seen(run_id).alive_at != first, 30, "it has said so again")


def test_what_it_has_started_ends_with_its_run(run_id: str) -> None:
    environment = os.environ | {child.MARK: run_id}
    training = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], env=environment)
    with beating(run_id):
        wait_until(lambda: tracked.seen(run_id).alive_at is not None, 30, "it has said so")
        assert training.poll() is None
        MlflowClient().set_terminated(run_id, "KILLED")
        assert training.wait(30) != 0


def test_it_lives_on_while_mlflow_is_down(run_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    stopped = threading.Event()
    with tracking_at(f"http://127.0.0.1:{free_port()}"):
        monkeypatch.setattr(stopped, "wait", lambda seconds: stopped.set())
        beat(run_id, stopped)  # raises nothing
