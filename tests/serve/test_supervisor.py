"""The supervisor and its children are real processes; each of them is killed in at
least one test.
"""

import errno
import os
import re
import signal
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import psutil
import pytest
import requests

from mlflow_deploy_plugin.core.errors import AlreadyExists, InvalidConfig
from mlflow_deploy_plugin.core.statedir.files import (
    AGENT,
    SERVER,
    WANTED,
    claim_state_dir,
    read_state,
    read_workers,
)
from mlflow_deploy_plugin.core.statedir.models import AgentState, ServerState
from tests.support.disk import read_only
from tests.support.pyfuncs import save_pyfuncs
from tests.support.refusals import mentions
from tests.support.serving import Served, servers_below
from tests.support.waiting import wait_until

Start = Callable[..., Served]


@pytest.fixture
def start(serve, model_folders):
    """Starts a server of the stock model in a state folder."""
    return lambda state, *arguments: serve(str(model_folders["stock"]), *arguments, state=state)


@pytest.fixture(scope="module")
def running(tmp_path_factory, model_folders):
    """A server for tests that do not stop it."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("supervised")
        patch.setenv("ONNXSERVE_HOME", str(folder / "home"))
        with servers_below(folder) as start:
            yield start(str(model_folders["stock"])).wait_ready()


def answers(served):
    return served.predict(1, 2, 3).ok


def agent_pid(served):
    state = read_state(served.state_dir / AGENT, AgentState)
    return state.pid if state else 0


def masters(served):
    """Return gunicorn's main process; an empty list before it has started."""
    children = psutil.Process(served.process.pid).children()
    return [child for child in children if "gunicorn" in child.cmdline()]


def gunicorn_pid(served):
    return masters(served)[0].pid


def check_end(served, number):
    """Check that a signal ends all processes cleanly."""
    assert answers(served)
    assert served.end(number) == 0
    assert not (served.state_dir / SERVER).exists()
    assert not list((served.state_dir / "spool").iterdir())


@pytest.mark.long
def test_requests_that_hold_every_thread_hold_the_end_back_for_the_graceful_timeout_and_no_longer(
    serve, tmp_path
):
    model = save_pyfuncs(tmp_path, ["troubled"])["troubled"]
    running = serve(str(model), "-C", "server.graceful_timeout_seconds=2").wait_ready()
    hanging = {"dataframe_split": {"columns": ["do"], "data": [["hang"]]}}
    with ThreadPoolExecutor(4) as clients:
        pending = [
            clients.submit(requests.post, f"{running.url}/invocations", json=hanging, timeout=60)
            for _ in range(4)
        ]
        port = int(running.url.rpartition(":")[2])
        wait_until(lambda: len(connections_to(port)) == 4, what="all of them")
        wait_until(lambda: "the model hangs" in running.log.read_text(), what="one of them in hand")
        began = time.monotonic()
        assert running.end() == 0
        assert 1.5 < time.monotonic() - began < 15  # not the 60 s that a request may take
        assert {type(future.exception()) for future in pending} == {requests.ConnectionError}


def connections_to(port):
    return [
        connection
        for connection in psutil.Process().net_connections("tcp4")
        if connection.raddr
        and connection.raddr.port == port
        and connection.status == psutil.CONN_ESTABLISHED
    ]


@pytest.mark.long
def test_a_supervisor_that_is_killed_takes_its_children_along_and_another_one_ends_by_sighup(start):
    running = start("state", "-w", "2").wait_ready()
    assert len(running.members()) == 5
    assert running.end(signal.SIGKILL) == -signal.SIGKILL
    check_end(start("state").wait_ready(), signal.SIGHUP)


@pytest.mark.long
@pytest.mark.parametrize("is_abstract", [True, False])
def test_systemd_receives_only_ready_and_stopping(start, tmp_path, monkeypatch, is_abstract):
    address = f"@{tmp_path.name}" if is_abstract else f"{tmp_path}/user@1.s"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(f"\0{address[1:]}" if is_abstract else address)
        systemd.settimeout(60)
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        running = start("state")
        assert systemd.recv(100) == b"READY=1"
        assert answers(running.wait_ready())
        assert running.end() == 0
        assert systemd.recv(100) == b"STOPPING=1"
        systemd.setblocking(False)
        with pytest.raises(BlockingIOError):  # gunicorn has not sent a message.
            systemd.recv(100)


def test_a_killed_agent_is_started_anew_while_serving_goes_on(running):
    before = agent_pid(running)
    os.kill(before, signal.SIGKILL)

    def another():
        assert answers(running)
        return agent_pid(running) != before

    wait_until(another, what="another agent")
    state = read_state(running.state_dir / SERVER, ServerState)
    assert state is not None
    assert state.pid == running.process.pid
    assert state.phase == "serving"


@pytest.mark.long
def test_an_agent_that_cannot_be_started_is_started_later_while_serving_goes_on(start):
    running = start("state").wait_ready()
    before = agent_pid(running)
    supervisor = psutil.Process(running.process.pid)
    limits = supervisor.rlimit(psutil.RLIMIT_NOFILE)
    held = {int(name) for name in os.listdir(f"/proc/{supervisor.pid}/fd")}
    free = next(number for number in range(limits[0]) if number not in held)
    supervisor.rlimit(psutil.RLIMIT_NOFILE, (free, limits[1]))  # No file can be opened.
    os.kill(before, signal.SIGKILL)
    message = "the agent cannot be started: Too many open files"
    wait_until(lambda: message in running.log.read_text(), what="the reason")
    assert answers(running)
    supervisor.rlimit(psutil.RLIMIT_NOFILE, limits)
    wait_until(lambda: agent_pid(running) != before, what="another agent")
    check_end(running, signal.SIGTERM)


def worker_restarts(served):
    page = requests.get(f"{served.url}/metrics", timeout=20).text
    return float(re.findall(r"^onnxserve_worker_restarts_total (\S+)$", page, re.MULTILINE)[0])


def test_a_killed_worker_is_replaced_and_counted(running):
    (worker,) = psutil.Process(gunicorn_pid(running)).children()
    assert worker_restarts(running) == 0
    worker.kill()
    wait_until(
        lambda: [p.pid for p in psutil.Process(gunicorn_pid(running)).children()] != [worker.pid],
        20,
        "a new one",
    )
    wait_until(lambda: requests.get(f"{running.url}/ping", timeout=20).ok, what="it answers")
    assert worker_restarts(running) == 1


def test_a_worker_that_starts_after_wanted_json_was_deleted_answers(running):
    (running.state_dir / WANTED).unlink()
    for worker in psutil.Process(gunicorn_pid(running)).children():
        worker.kill()
    wait_until(lambda: answers(running), 20, "an answer")


def server_state(served):
    state = read_state(served.state_dir / SERVER, ServerState)
    assert state is not None
    return state


def workers(served):
    return {worker.pid for worker in read_workers(served.state_dir)}


@pytest.mark.long
def test_a_killed_gunicorn_is_started_anew_and_new_clients_wait_for_it(start):
    running = start("state", "-w", "2").wait_ready()
    master = gunicorn_pid(running)
    old = workers(running)
    for worker in old:
        os.kill(worker, signal.SIGSTOP)  # An orphan that ignores signals must be killed.
    os.kill(master, signal.SIGKILL)
    noticed = wait_until(
        lambda: (state := server_state(running)).restarts == 1 and state,
        what="the death is noticed",
    )
    assert noticed.phase == "starting"
    with ThreadPoolExecutor(8) as clients:
        # All clients connect while no process accepts.
        assert all(clients.map(lambda _: answers(running), range(32)))
    assert gunicorn_pid(running) != master
    assert not [worker for worker in old if psutil.pid_exists(worker)]
    wait_until(lambda: server_state(running).phase == "serving", what="the server")
    assert len(workers(running) - old) == 2
    assert mentions(running.log.read_text(), "gunicorn", "killed by SIGKILL", "it is restarted")
    assert running.end() == 0
    assert not list((running.state_dir / "spool").iterdir())


@pytest.mark.long
def test_a_gunicorn_killed_after_the_first_answer_and_before_all_workers_are_ready_is_restarted(
    start,
):
    running = start("state", "-w", "2")
    master = wait_until(lambda: next(iter(masters(running)), None), 60, "gunicorn")
    held = wait_until(lambda: next(iter(master.children()), None), 60, "its first worker")
    held.suspend()  # It is never ready, so that the server is not announced.
    url = f"http://127.0.0.1:{server_state(running).port}/invocations"
    answer = requests.post(url, json={"inputs": [[1, 2, 3]]}, timeout=60)
    master.kill()
    assert answer.ok
    assert answers(running.wait_ready())
    assert server_state(running).restarts == 1
    assert not held.is_running()
    assert running.end() == 0


@pytest.mark.long
def test_on_a_disk_that_has_become_read_only_a_killed_gunicorn_comes_back_and_the_end_is_in_order(
    start,
):
    running = start("state").wait_ready()
    (worker,) = workers(running)
    logged = running.log.read_text()
    with read_only(running.state_dir):
        os.kill(gunicorn_pid(running), signal.SIGKILL)
        wait_until(lambda: not psutil.pid_exists(worker), what="the end of its worker")
        assert answers(running)
        assert 'outcome="captured"' in requests.get(f"{running.url}/metrics", timeout=20).text
        assert running.end() == 0
    new_log = running.log.read_text().removeprefix(logged)
    assert mentions(new_log, "[gunicorn] ERROR", "state folder")
    assert "Traceback" not in new_log


@pytest.mark.long
def test_a_gunicorn_that_does_not_come_back_ends_everything_with_the_reason(start):
    running = start("state").wait_ready()
    # No worker of the next gunicorn can start.
    (running.state_dir / "spec.yaml").write_text("no spec")
    os.kill(gunicorn_pid(running), signal.SIGKILL)
    assert running.process.wait(timeout=60) == 1
    assert running.end() == 1
    last = running.log.read_text().splitlines()[-1]
    assert mentions(last, "gunicorn", "status 3", "4th time")
    assert not (running.state_dir / SERVER).exists()


@pytest.mark.long
def test_the_server_exits_when_gunicorn_is_ended(start):
    running = start("state").wait_ready()
    os.kill(gunicorn_pid(running), signal.SIGTERM)
    assert running.process.wait(timeout=40) == 1
    assert running.end() == 1
    assert mentions(running.log.read_text(), "gunicorn", "status 0", "while serving")
    assert not (running.state_dir / SERVER).exists()


@pytest.mark.long
def test_sigterm_between_a_death_and_the_next_start_ends_in_order(start):
    running = start("state").wait_ready()
    (worker,) = workers(running)
    os.kill(worker, signal.SIGSTOP)
    os.kill(gunicorn_pid(running), signal.SIGKILL)
    wait_until(lambda: server_state(running).restarts == 1, what="its death to be noticed")
    assert running.end() == 0
    assert not (running.state_dir / SERVER).exists()


@pytest.mark.long
def test_the_workers_of_a_gunicorn_that_dies_at_the_end_end_before_the_agent(start):
    running = start("state").wait_ready()
    assert answers(running)
    master = psutil.Process(gunicorn_pid(running))
    running.process.send_signal(signal.SIGSTOP)  # It receives the death and the end together.
    master.kill()
    wait_until(lambda: master.status() == psutil.STATUS_ZOMBIE, what="its death")
    running.process.send_signal(signal.SIGTERM)
    running.process.send_signal(signal.SIGCONT)
    assert running.end() == 0
    assert not list((running.state_dir / "spool").iterdir())


def test_a_state_folder_belongs_to_one_server(running, start):
    second = start(str(running.state_dir))
    assert second.process.wait(timeout=30) == 1
    assert mentions(second.log.read_text(), "Error:", str(running.state_dir), "already")
    assert answers(running)


@pytest.mark.long
def test_servers_without_a_port_find_one_each(running, start):
    other = start("state").wait_ready()
    assert other.url != running.url
    check_end(other, signal.SIGTERM)
    assert answers(running)


@pytest.mark.long
def test_a_port_is_free_again_at_once(start, free_port):
    port = str(free_port)  # Servers of other tests use the first ports from 8080.
    check_end(start("state", "-p", port).wait_ready(), signal.SIGTERM)
    again = start("state", "-p", port).wait_ready()
    assert again.url.endswith(f":{port}")
    check_end(again, signal.SIGINT)


def test_an_agent_that_crashes_repeatedly_ends_the_server_with_its_error(start, monkeypatch):
    monkeypatch.setenv("ONNXSERVE_POLL_SECONDS", "soon")
    running = start("state")
    assert running.process.wait(timeout=30) == 1
    assert "Error: ONNXSERVE_POLL_SECONDS: " in running.log.read_text()
    assert not (running.state_dir / "workers").exists(), "gunicorn has ended before it may fork"


@pytest.mark.long
def test_an_agent_that_is_killed_three_times_before_it_is_ready_ends_the_start(start):
    running = start("state")
    supervisor = psutil.Process(running.process.pid)

    def has_ended():
        with suppress(psutil.Error):
            for child in supervisor.children():
                if "mlflow_deploy_plugin.serve.agent" in child.cmdline():
                    child.kill()
        return running.process.poll() is not None

    wait_until(has_ended, 60, "the end of the server")
    assert running.process.returncode == 1
    assert mentions(running.log.read_text(), "the agent", "killed by SIGKILL", "repeatedly")


@pytest.mark.parametrize(
    "number", [errno.ENOSPC, errno.EAGAIN], ids=["full disk", "no more processes"]
)
def test_a_system_error_in_the_state_folder_is_reported_in_one_line(tmp_path, number):
    reason = os.strerror(number)
    with (
        pytest.raises(InvalidConfig, match=rf"state folder {tmp_path}: {reason}$"),
        claim_state_dir(tmp_path),
    ):
        raise OSError(number, reason)
    with claim_state_dir(tmp_path), pytest.raises(AlreadyExists), claim_state_dir(tmp_path):
        pass
