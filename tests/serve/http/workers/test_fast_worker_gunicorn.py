"""gunicorn with workers: their ends and their successors."""

import contextlib
import os
import signal
import socket
import threading
from functools import partial
from pathlib import Path

import onnx
import pytest
import requests

from mlflow_deploy_plugin.core.spec.parts import ServerSpec
from mlflow_deploy_plugin.core.statedir.files import read_workers
from mlflow_deploy_plugin.serve.spool.frames import is_released, segments
from tests.support.models import write_model
from tests.support.servers import gunicorn, one_endpoint, ping, want
from tests.support.spool import read_segment
from tests.support.traffic import Traffic
from tests.support.waiting import wait_until

ROW = {"inputs": [[1.0, 2.0, 3.0]]}


@pytest.mark.long
def test_version_changes_under_load_fail_no_request(tmp_path, bias_folders):
    with gunicorn(tmp_path, one_endpoint(bias_folders["1"]), ServerSpec(workers=2)) as running:
        # Wait as the supervisor does: the last worker answers 503 until it has loaded
        # its model.
        wait_until(lambda: len(read_workers(tmp_path)) == 2)
        traffic = Traffic(running.url, 3)
        traffic.start()
        try:
            for generation in range(2, 8):
                version = str((generation - 1) % 4 + 1)
                want(tmp_path, generation, one_endpoint(bias_folders[version], version))
                wait_until(partial(are_at, tmp_path, generation), what="the new version")
                for _ in range(10):
                    response = running.post(json=ROW)
                    assert response.headers["X-Model-Version"] == version
                    assert response.json()["predictions"] == [[1000.0 * int(version) + 6]]
        finally:
            traffic.stop()
    assert {status for _, status in traffic.answers} == {200}
    assert {version for version, _ in traffic.answers} == {"1", "2", "3", "4"}


def are_at(state_dir, generation):
    return {state.generation for state in read_workers(state_dir)} == {generation}


def test_sigterm_waits_for_requests_not_idle_clients(tmp_path, bias_folders):
    started = threading.Event()

    def slowly():
        yield b'{"inputs": [[1, '
        started.set()
        stopped.wait()
        yield b"2, 3]]}"

    stopped = threading.Event()
    statuses = []
    with gunicorn(tmp_path, one_endpoint(bias_folders["1"])) as running, requests.Session() as idle:
        idle.get(running.url + "/ping", timeout=5)

        def post():
            headers = {"Content-Type": "application/json"}
            statuses.append(running.post(data=slowly(), headers=headers).status_code)

        thread = threading.Thread(target=post)
        thread.start()
        started.wait()
        running.process.send_signal(signal.SIGTERM)
        wait_until(lambda: ping(running) == 0, what="the listener's end")
        stopped.set()
        thread.join()
        assert running.process.wait(timeout=10) == 0
    assert statuses == [200]
    assert read_workers(tmp_path) == []
    (segment,) = segments(tmp_path / "spool")
    assert is_released(segment)
    assert len(read_segment(segment)[0]) == 1


def status(pid, field):
    """Return the first word of a field in the process's status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line.split()[1] for line in lines if line.startswith(f"{field}:"))


@pytest.mark.long
def test_unaccepted_clients_are_answered_after_sigterm(tmp_path, bias_folders):

    def is_told_to_end():
        return bool(int(status(worker.pid, "ShdPnd"), 16) >> (signal.SIGTERM - 1) & 1)

    with (
        gunicorn(tmp_path, one_endpoint(bias_folders["1"])) as running,
        contextlib.ExitStack() as waiting,
    ):
        (worker,) = read_workers(tmp_path)
        address = running.address
        os.kill(worker.pid, signal.SIGSTOP)
        # Wait, because of two pending signals the lower number is delivered first,
        # which is SIGTERM.
        wait_until(lambda: status(worker.pid, "State") == "T", what="the worker's stop")
        clients = [
            waiting.enter_context(socket.create_connection(address, timeout=30)) for _ in range(20)
        ]
        for client in clients:
            client.sendall(b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n")
        running.process.send_signal(signal.SIGTERM)
        wait_until(is_told_to_end, what="SIGTERM")
        os.kill(worker.pid, signal.SIGCONT)
        assert {client.recv(12) for client in clients} == {b"HTTP/1.1 200"}


def test_killed_worker_is_replaced_and_keeps_captures(tmp_path, bias_folders):
    with gunicorn(tmp_path, one_endpoint(bias_folders["1"])) as running:
        assert running.post(json=ROW).status_code == 200
        (killed,) = [state.pid for state in read_workers(tmp_path)]
        os.kill(killed, signal.SIGKILL)
        wait_until(lambda: [s.pid for s in read_workers(tmp_path) if s.pid != killed])
        assert running.post(json=ROW).status_code == 200
        left, new = segments(tmp_path / "spool")
        assert (is_released(left), is_released(new)) == (True, False)
        assert [len(read_segment(segment)[0]) for segment in (left, new)] == [1, 1]
        page = running.get("/metrics").text
    labels = 'endpoint="e",model="m",protocol="invocations",status="200",variant="v",version="1"'
    assert f"onnxserve_requests_total{{{labels}}} 2.0" in page


FAILING = """e (float[N] x) => (float[N] y) <float[1] table = {7}> {
  i = Cast<to = 7>(x)
  y = Gather(table, i)
}"""
ON_A_GPU = """
from mlflow_deploy_plugin.serve import gunicorn_conf
from mlflow_deploy_plugin.serve.gunicorn_conf import *

def post_worker_init(worker):
    gunicorn_conf.post_worker_init(worker)
    served = worker.wsgi.server.repository.table["e"]
    served.answering[0].loaded.predictor._is_on_nvidia = True
"""


def test_worker_of_a_lost_gpu_restarts(tmp_path):
    """ONNX Runtime's error contains the node's name, which is CUDA's message here."""
    folder = write_model(tmp_path / "model", FAILING)
    graph = onnx.load(folder / "model.onnx")
    graph.graph.node[1].name = "CUDA failure 719: unspecified launch failure ; GPU=0"
    onnx.save(graph, folder / "model.onnx")
    config = tmp_path / "conf.py"
    config.write_text(ON_A_GPU)
    with gunicorn(tmp_path, one_endpoint(folder), config=config) as running:
        [before] = read_workers(tmp_path)
        lost = running.post(json={"inputs": [5.0]})
        assert (lost.status_code, lost.headers["Retry-After"]) == (503, "1")
        wait_until(lambda: {state.pid for state in read_workers(tmp_path)} - {before.pid})
        wait_until(lambda: ping(running) == 200)
        assert running.post(json={"inputs": [0.0]}).json() == {"predictions": {"y": [7.0]}}
    assert "the GPU failed, and the worker starts again: " in running.log.read_text()
