"""The supervisor and its children as processes: what happens when any of them is killed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

from mlflow_deploy_plugin.server.state import AGENT, SERVER, AgentState, ServerState, read_state

Start = Callable[..., "Running"]


def wait_until(condition: Callable[[], Any], seconds: float, what: str) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"after {seconds} s still not: {what}"
        time.sleep(0.02)
    return value


@dataclass
class Running:
    """A server in a session of its own."""

    process: subprocess.Popen[bytes]
    state_dir: Path
    log: Path

    @property
    def url(self) -> str:
        state = read_state(self.state_dir / SERVER, ServerState)
        assert state is not None
        return f"http://{state.host}:{state.port}"

    @property
    def agent_pid(self) -> int:
        state = read_state(self.state_dir / AGENT, AgentState)
        return state.pid if state else 0

    def phase(self) -> str:
        assert self.process.poll() is None, self.log.read_text()
        state = read_state(self.state_dir / SERVER, ServerState)
        return state.phase if state and state.pid == self.process.pid else ""

    def wait_ready(self) -> "Running":
        wait_until(lambda: self.phase() == "serving", 60, "serving")
        return self

    def answers(self) -> bool:
        return requests.post(f"{self.url}/invocations", json={"inputs": [[1, 2, 3]]}, timeout=20).ok

    def members(self) -> list[psutil.Process]:
        return [process for process in psutil.process_iter() if session_of(process) == self.process.pid]

    def gunicorn_pid(self) -> int:
        """The master: a child of the supervisor that has children."""
        children = psutil.Process(self.process.pid).children()
        return next(child.pid for child in children if child.pid != self.agent_pid)

    def wait_gone(self, seconds: float = 40) -> int:
        code = self.process.wait(timeout=seconds)
        wait_until(lambda: not self.members(), seconds, "no process is left")
        return code


def session_of(process: psutil.Process) -> int:
    try:
        return 0 if process.status() == psutil.STATUS_ZOMBIE else os.getsid(process.pid)
    except (ProcessLookupError, psutil.NoSuchProcess):
        return 0


@pytest.fixture
def start(tmp_path: Path, model_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Starts a server of the stock model; whatever is still there at the end of the test is ended."""
    monkeypatch.setenv("ONNXSERVE_HOME", str(tmp_path / "home"))
    started: list[Running] = []

    def run(state: str, *arguments: str) -> Running:
        log = tmp_path / f"{len(started)}.log"
        command = [sys.executable, "-m", "mlflow_deploy_plugin.cli", "serve", "-m", str(model_folders["stock"])]
        command += ["--state-dir", str(tmp_path / state), *arguments]
        with log.open("wb") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
        started.append(Running(process, tmp_path / state, log))
        return started[-1]

    yield run
    for running in started:
        running.process.terminate()
        running.wait_gone()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_everything_in_order(start: Start, number: signal.Signals) -> None:
    running = start("state").wait_ready()
    assert running.answers()
    running.process.send_signal(number)
    assert running.wait_gone() == 0
    assert not (running.state_dir / SERVER).exists()
    assert not list((running.state_dir / "spool").iterdir())


def test_a_supervisor_that_is_killed_takes_its_children_along(start: Start) -> None:
    running = start("state", "-w", "2").wait_ready()
    assert len(running.members()) == 5
    running.process.kill()
    assert running.wait_gone() == -signal.SIGKILL
    assert start("state").wait_ready().answers()


def test_a_killed_agent_is_started_anew_while_serving_goes_on(start: Start) -> None:
    running = start("state").wait_ready()
    before = running.agent_pid
    os.kill(before, signal.SIGKILL)

    def another() -> bool:
        assert running.answers()
        return running.agent_pid != before

    wait_until(another, 20, "another agent")
    assert running.phase() == "serving"


def test_a_killed_worker_is_replaced(start: Start) -> None:
    running = start("state").wait_ready()
    (worker,) = psutil.Process(running.gunicorn_pid()).children()
    worker.kill()
    wait_until(
        lambda: [p.pid for p in psutil.Process(running.gunicorn_pid()).children()] != [worker.pid], 20, "a new one"
    )
    wait_until(lambda: requests.get(f"{running.url}/ping", timeout=20).ok, 20, "it answers")


def test_when_gunicorn_is_killed_everything_ends_with_the_reason(start: Start) -> None:
    running = start("state").wait_ready()
    os.kill(running.gunicorn_pid(), signal.SIGKILL)
    assert running.wait_gone() == 1
    assert "Error: gunicorn was ended by SIGKILL while serving; the log says why" in running.log.read_text()
    assert not (running.state_dir / SERVER).exists()


def test_a_state_folder_belongs_to_one_server(start: Start) -> None:
    first = start("state").wait_ready()
    second = start("state")
    assert second.process.wait(timeout=30) == 1
    assert second.log.read_text() == f"Error: a server runs in the state folder {first.state_dir} already\n"
    assert first.answers()


def test_servers_without_a_port_find_one_each(start: Start) -> None:
    running = [start("one"), start("two")]
    assert len({server.wait_ready().url for server in running}) == 2
    assert all(server.answers() for server in running)


def test_the_port_is_free_again_at_once(start: Start) -> None:
    first = start("state").wait_ready()
    port = first.url.rpartition(":")[2]
    assert first.answers()
    first.process.terminate()
    first.wait_gone()
    assert start("state", "-p", port).wait_ready().url.endswith(f":{port}")


def test_an_agent_that_crashes_again_and_again_is_said_to(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONNXSERVE_POLL_SECONDS", "soon")
    running = start("state")
    assert running.process.wait(timeout=30) == 1
    assert "Error: ONNXSERVE_POLL_SECONDS: " in running.log.read_text()
