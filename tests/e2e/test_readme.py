"""README.md does what it says: its example and its commands are taken out of the page and run, in their order."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.waiting import free_port

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    """The fenced blocks of that language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.DOTALL | re.MULTILINE)


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A user's shell with the virtual environment active and nothing deployed yet."""
    own = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "ONNXSERVE_HOME": str(tmp_path / "onnxserve"),
        "MLFLOW_BACKEND_STORE_URI": f"sqlite:///{tmp_path / 'mlflow.db'}",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # eight processes that nothing here uses
        "MLFLOW_ARTIFACTS_DESTINATION": str(tmp_path / "artifacts"),
    }
    return {**os.environ, **own, "MLFLOW_TRACKING_URI": own["MLFLOW_BACKEND_STORE_URI"]}


@pytest.fixture
def run_script(tmp_path: Path, environment: dict[str, str]) -> Iterator[list[subprocess.Popen[str]]]:
    """What the test has started; whatever the script left in the background ends with the test."""
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        try:
            os.killpg(process.pid, signal.SIGTERM)
        except ProcessLookupError:
            continue
        process.wait(timeout=30)


def test_the_two_commands_are_targets_of_the_makefile() -> None:
    """`make test` is this run, `make demo` is run by test_demo.py."""
    commands = re.findall(r"^make ([\w-]+)", blocks("sh")[0], flags=re.MULTILINE)
    makefile = (ROOT / "Makefile").read_text()
    assert commands == ["demo", "test"]
    assert all(re.search(rf"^{target}: install$", makefile, re.MULTILINE) for target in commands)


def test_the_smallest_example_runs(tmp_path: Path, environment: dict[str, str]) -> None:
    (code,) = blocks("python")
    command = [sys.executable, "-c", code]
    result = subprocess.run(
        command, check=False, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200
    )
    assert result.returncode == 0, result.stderr
    assert "{'predictions': [0, 0, 0]} from http://127.0.0.1:" in result.stdout


def test_the_commands_of_by_hand_run_in_their_order(
    environment: dict[str, str], run_script: list[subprocess.Popen[str]]
) -> None:
    script = "set -euo pipefail\n" + "".join(blocks("sh")[1:])
    for port in ("5000", "8123"):
        script = script.replace(port, str(free_port()))
    process = subprocess.Popen(
        ["bash", "-c", script],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    run_script.append(process)
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "Deployment flights is deleted" in line:  # the last command; MLflow's server goes on in the background
            break
    output = "".join(lines)
    assert "onnxserve deployment flights is created" in output
    assert re.search(r'\{"predictions":\s*\[(true|false)\]\}', output)
    assert "parity: proven" in output
    assert re.search(r"^flights drift 2013-07-04.*: drift$", output, re.MULTILINE)
    assert re.search(r"^UA +\d+ +0\.\d+$", output, re.MULTILINE)
    assert "flights has the monitor daily" in output
    assert re.search(r"^flights +daily +drift +1d +waiting", output, re.MULTILINE)
    assert "create  flights: – → flights models:/flight-delay/Production 100" in output
    assert "Deployment flights is deleted" in output
