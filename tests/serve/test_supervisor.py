"""The supervisor and its children are real processes; each of them is killed in at
least one test.
"""

import os
import re
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
import requests

from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.core.spec.parts import ServerSpec
from mlflow_deploy_plugin.core.statedir.files import (
    AGENT,
    SERVER,
    WANTED,
    read_state,
    read_workers,
)
from mlflow_deploy_plugin.core.statedir.models import AgentState, ServerState
from mlflow_deploy_plugin.serve.supervisor import (
    check_exposure,
    open_listener,
    reserve_grpc_port,
    supervise,
)
from tests.support.disk import read_only
from tests.support.pyfuncs import save_pyfuncs
from tests.support.refusals import mentions, refused
from tests.support.servers import write_spec
from tests.support.serving import servers_below
from tests.support.waiting import free_port, wait_until


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
    return [child for child in children if child.name() == "gunicorn"]


def gunicorn_pid(served):
    return masters(served)[0].pid


def check_end(served, number):
    """Check that a signal ends all processes cleanly."""
    assert answers(served)
    assert served.end(number) == 0
    assert not (served.state_dir / SERVER).exists()
    assert not list((served.state_dir / "spool").iterdir())


@pytest.mark.long
def test_hanging_requests_delay_the_end(serve, tmp_path):
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
def test_killed_supervisor_ends_its_children(start):
    running = start("state", "-w", "2").wait_ready()
    assert len(running.members()) == 5
    assert running.end(signal.SIGKILL) == -signal.SIGKILL
    check_end(start("state").wait_ready(), signal.SIGHUP)


@pytest.mark.long
@pytest.mark.parametrize("is_abstract", [True, False])
def test_systemd_is_notified(start, tmp_path, monkeypatch, is_abstract):
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


def test_killed_agent_is_restarted(running):
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
def test_unstartable_agent_is_started_later(start):
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


def test_killed_worker_is_replaced_without_wanted_file(running):
    (worker,) = psutil.Process(gunicorn_pid(running)).children()
    assert worker_restarts(running) == 0
    (running.state_dir / WANTED).unlink()
    worker.kill()
    wait_until(
        lambda: [p.pid for p in psutil.Process(gunicorn_pid(running)).children()] != [worker.pid],
        20,
        "a new one",
    )
    wait_until(lambda: answers(running), what="an answer")
    assert worker_restarts(running) == 1


def server_state(served):
    state = read_state(served.state_dir / SERVER, ServerState)
    assert state is not None
    return state


def workers(served):
    return {worker.pid for worker in read_workers(served.state_dir)}


@pytest.mark.long
def test_clients_wait_for_a_restarted_gunicorn(start):
    running = start("state", "-w", "2").wait_ready()
    master = gunicorn_pid(running)
    old = workers(running)
    for worker in old:
        os.kill(worker, signal.SIGSTOP)  # An orphan that ignores signals must be killed.
    os.kill(master, signal.SIGKILL)
    wait_until(lambda: server_state(running).restarts == 1, what="the death is noticed")
    assert server_state(running).phase == "starting"
    with ThreadPoolExecutor(8) as clients:
        # All clients connect while no process accepts.
        assert all(clients.map(lambda _: answers(running), range(32)))
    assert gunicorn_pid(running) != master
    assert not [worker for worker in old if psutil.pid_exists(worker)]
    wait_until(lambda: server_state(running).phase == "serving", what="the server")
    assert len(workers(running) - old) == 2
    assert mentions(running.log.read_text(), "gunicorn", "killed by SIGKILL", "it is restarted")
    check_end(running, signal.SIGTERM)


@pytest.mark.long
def test_gunicorn_killed_during_the_start_is_restarted(start):
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


@pytest.mark.long
def test_gunicorn_restarts_on_a_read_only_disk(start):
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
def test_repeated_gunicorn_failure_ends_the_server(start):
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
def test_ended_gunicorn_ends_the_server(start):
    running = start("state").wait_ready()
    os.kill(gunicorn_pid(running), signal.SIGTERM)
    assert running.process.wait(timeout=40) == 1
    assert running.end() == 1
    assert mentions(running.log.read_text(), "gunicorn", "status 0", "while serving")


@pytest.mark.long
def test_workers_of_a_dead_gunicorn_end_first(start):
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


@pytest.mark.long
def test_state_folder_belongs_to_one_server(running, start):
    second = start(str(running.state_dir))
    assert second.process.wait(timeout=30) == 1
    assert mentions(second.log.read_text(), "Error:", str(running.state_dir), "already")
    assert answers(running)


@pytest.mark.long
def test_port_is_free_again_at_once(start, free_port):
    port = str(free_port)  # Servers of other tests use the first ports from 8080.
    check_end(start("state", "-p", port).wait_ready(), signal.SIGTERM)
    again = start("state", "-p", port).wait_ready()
    assert again.url.endswith(f":{port}")
    check_end(again, signal.SIGINT)


def test_crashing_agent_ends_the_server(start, monkeypatch):
    monkeypatch.setenv("ONNXSERVE_POLL_SECONDS", "soon")
    running = start("state")
    assert running.process.wait(timeout=30) == 1
    assert "Error: ONNXSERVE_POLL_SECONDS: " in running.log.read_text()
    assert not (running.state_dir / "workers").exists(), "gunicorn has ended before it may fork"


def test_used_port_is_refused():
    with open_listener("127.0.0.1", None) as first:
        port = first.getsockname()[1]
        with pytest.raises(InvalidConfig, match=f"port {port} .*--port"):
            open_listener("127.0.0.1", port)


def test_first_free_port_is_taken():
    address = "127.77.0.1"  # Other tests' servers use 127.0.0.1.
    with open_listener(address, None) as first, open_listener(address, None) as second:
        assert 8080 <= first.getsockname()[1] < second.getsockname()[1]


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        ("192.0.2.1", "Cannot assign"),
        ("no.such.host.invalid", "(not known|failure in name resolution)"),
    ],
)
def test_foreign_host_is_refused(host, reason):
    with pytest.raises(InvalidConfig, match=f"{re.escape(host)}:8080: .*{reason}"):
        open_listener(host, 8080)


def test_ipv6_is_supported():
    if not socket.has_ipv6:
        pytest.skip("no IPv6 in this Python")
    try:
        listener = open_listener("::1", None)
    except InvalidConfig:
        pytest.skip("no IPv6 on this machine")
    with listener:
        assert listener.family == socket.AF_INET6


def test_missing_grpc_port_reserves_nothing():
    with reserve_grpc_port(ServerSpec()):
        pass


def test_reserved_port_is_shared_by_workers():
    spec = ServerSpec(grpc_port=free_port())
    assert spec.grpc_port is not None
    with reserve_grpc_port(spec):
        with pytest.raises(InvalidConfig, match="is in use"):
            open_listener(spec.host, spec.grpc_port)
        for _ in range(2):
            with socket.socket() as worker:
                worker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                worker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                worker.bind((spec.host, spec.grpc_port))
                worker.listen()
                with socket.create_connection((spec.host, spec.grpc_port), timeout=5):
                    pass
    open_listener(spec.host, spec.grpc_port).close()


@pytest.mark.parametrize("field", ["server.grpc_port", "server.metrics_port"])
def test_used_port_stops_the_start(tmp_path, field):
    with socket.socket() as taken:
        # Otherwise a gRPC server would share it silently.
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        spec = ServerSpec.model_validate({field.removeprefix("server."): port})
        write_spec(tmp_path, "e", spec)
        with refused(InvalidConfig, str(port), "127.0.0.1", f"-C {field}"):
            supervise(tmp_path, follow=False, announce=print)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.0.1", "::1", "[::1]", "localhost"])
def test_local_server_needs_no_keys(host):
    messages = []
    check_exposure(ServerSpec(host=host), messages.append)
    assert messages == []


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "models.example"])
def test_public_server_needs_keys(host):
    messages = []
    with pytest.raises(InvalidConfig, match=r"-C server\.api_keys=true .*--insecure"):
        check_exposure(ServerSpec(host=host), messages.append)
    check_exposure(ServerSpec(host=host, api_keys=True), messages.append)
    assert messages == []
    check_exposure(ServerSpec(host=host, insecure=True), messages.append)
    assert messages == [f"insecure: everybody who can connect to {host} may use this server"]
