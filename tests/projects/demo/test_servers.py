"""Ending the demo's MLflow server, and no other process."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from projects.demo.place import Place
from projects.demo.servers import mlflow_url, stop_mlflow


@pytest.fixture
def place(tmp_path: Path) -> Place:
    place = Place(tmp_path)
    place.empty()
    return place


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        yield process
        process.kill()


def remember(place: Place, pid: int, created: float) -> None:
    place.server_file.write_text(json.dumps({"pid": pid, "created": created, "url": "http://127.0.0.1:5000"}))


def test_the_process_that_was_remembered_is_ended(place: Place, process: subprocess.Popen[bytes]) -> None:
    remember(place, process.pid, psutil.Process(process.pid).create_time())
    assert mlflow_url(place) == "http://127.0.0.1:5000"
    assert stop_mlflow(place)
    assert not psutil.pid_exists(process.pid)
    assert mlflow_url(place) is None


def test_another_process_that_got_the_same_id_later_is_left_alone(
    place: Place, process: subprocess.Popen[bytes]
) -> None:
    remember(place, process.pid, psutil.Process(process.pid).create_time() - 3600)
    assert not stop_mlflow(place)
    assert process.poll() is None


@pytest.mark.parametrize("content", [None, "", "{}", '{"pid": 0}', "[1]"])
def test_a_missing_or_damaged_note_means_that_nothing_runs(place: Place, content: str | None) -> None:
    if content is not None:
        place.server_file.write_text(content)
    assert mlflow_url(place) is None
    assert not stop_mlflow(place)
