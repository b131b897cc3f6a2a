"""The supervisor and its children as processes: what happens when any of them is killed."""

import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import requests

from mlflow_deploy_plugin.errors import AlreadyExists, InvalidConfig
from mlflow_deploy_plugin.server.state import AGENT, SERVER, AgentState, ServerState, read_state
from mlflow_deploy_plugin.server.supervisor import claimed
from support.serving import Served
from support.waiting import wait_until

Start = Callable[..., Served]


@pytest.fixture
def start(serve: Start, model_folders: dict[str, Path]) -> Start:
    """Starts a server of the stock model in a state folder."""
    return lambda state, *arguments: serve("-m", str(model_folders["stock"]), *arguments, state=state)


def answers(served: Served) -> bool:
    return served.predict(1, 2, 3).ok


def agent_pid(served: Served) -> int:
    state = read_state(served.state_dir / AGENT, AgentState)
    return state.pid if state else 0


def gunicorn_pid(served: Served) -> int:
    """The master: a child of the supervisor that has children."""
    children = psutil.Process(served.process.pid).children()
    return next(child.pid for child in children if child.pid != agent_pid(served))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_everything_in_order(start: Start, number: signal.Signals) -> None:
    running = start("state").wait_ready()
    assert answers(running)
    assert running.end(number) == 0
    assert not (running.state_dir / SERVER).exists()
    assert not list((running.state_dir / "spool").iterdir())


def test_a_supervisor_that_is_killed_takes_its_children_along(start: Start) -> None:
    running = start("state", "-w", "2").wait_ready()
    assert len(running.members()) == 5
    assert running.end(signal.SIGKILL) == -signal.SIGKILL
    assert answers(start("state").wait_ready())


def test_a_killed_agent_is_started_anew_while_serving_goes_on(start: Start) -> None:
    running = start("state").wait_ready()
    before = agent_pid(running)
    os.kill(before, signal.SIGKILL)

    def another() -> bool:
        assert answers(running)
        return agent_pid(running) != before

    wait_until(another, 20, "another agent")
    state = read_state(running.state_dir / SERVER, ServerState)
    assert (state.pid, state.phase) == (running.process.pid, "serving")


def test_a_killed_worker_is_replaced(start: Start) -> None:
    running = start("state").wait_ready()
    (worker,) = psutil.Process(gunicorn_pid(running)).children()
    worker.kill()
    wait_until(
        lambda: [p.pid for p in psutil.Process(gunicorn_pid(running)).children()] != [worker.pid], 20, "a new one"
    )
    wait_until(lambda: requests.get(f"{running.url}/ping", timeout=20).ok, 20, "it answers")


def test_when_gunicorn_is_killed_everything_ends_with_the_reason(start: Start) -> None:
    running = start("state").wait_ready()
    os.kill(gunicorn_pid(running), signal.SIGKILL)
    assert running.process.wait(timeout=40) == 1
    assert running.end() == 1
    assert "Error: gunicorn was ended by SIGKILL while serving; the log says why" in running.log.read_text()
    assert not (running.state_dir / SERVER).exists()


def test_a_state_folder_belongs_to_one_server(start: Start) -> None:
    first = start("state").wait_ready()
    second = start("state")
    assert second.process.wait(timeout=30) == 1
    assert second.log.read_text() == f"Error: a server runs in the state folder {first.state_dir} already\n"
    assert answers(first)


def test_servers_without_a_port_find_one_each(start: Start) -> None:
    running = [start("one"), start("two")]
    assert len({server.wait_ready().url for server in running}) == 2
    assert all(answers(server) for server in running)


def test_the_port_is_free_again_at_once(start: Start, free_port: int) -> None:
    first = start("state", "-p", str(free_port)).wait_ready()
    assert answers(first)
    first.end()
    assert start("state", "-p", str(free_port)).wait_ready().url.endswith(f":{free_port}")


def test_an_agent_that_crashes_again_and_again_is_said_to(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONNXSERVE_POLL_SECONDS", "soon")
    running = start("state")
    assert running.process.wait(timeout=30) == 1
    assert "Error: ONNXSERVE_POLL_SECONDS: " in running.log.read_text()


def test_a_disk_that_fills_up_at_the_start_is_said_in_one_line(tmp_path: Path) -> None:
    with (
        pytest.raises(
            InvalidConfig, match=rf"^no server can run in the state folder {tmp_path}: No space left on device$"
        ),
        claimed(tmp_path),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with claimed(tmp_path), pytest.raises(AlreadyExists), claimed(tmp_path):
        pass
