"""gunicorn with workers: their ends and their successors."""

import contextlib
import json
import os
import re
import signal
import socket
import threading
import time
from pathlib import Path

import pytest
import requests

from mlflow_deploy_plugin.core.spec.parts import ServerSpec
from mlflow_deploy_plugin.core.statedir.files import read_workers
from mlflow_deploy_plugin.serve.spool.frames import is_released, segments
from tests.support.servers import gunicorn, one_endpoint, ping, want
from tests.support.spool import read_segment
from tests.support.waiting import wait_until

ROW = {"inputs": [[1.0, 2.0, 3.0]]}
PROBE = """
import sys
from pathlib import Path
from mlflow_deploy_plugin.serve.gunicorn_conf import *

def worker_exit(arbiter, worker):
    Path({path!r}).write_text("\\n".join(sys.modules))
"""


def bias_of(response):
    return float(response.json()["predictions"][0][0]) - 6.0


def test_a_live_worker_has_imported_neither_mlflow_nor_pandas(tmp_path, model_folders):
    config = tmp_path / "probe.py"
    modules = tmp_path / "modules.txt"
    config.write_text(PROBE.format(path=str(modules)))
    with gunicorn(tmp_path, one_endpoint(model_folders["single"]), config=config) as running:
        assert running.post(json=ROW).status_code == 200
        assert (
            running.post(data="a,b,c\n1,2,3", headers={"Content-Type": "text/csv"}).status_code
            == 200
        )
        pid = read_workers(tmp_path)[0].pid
        resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096
    roots = {name.partition(".")[0] for name in modules.read_text().split()}
    assert {"onnxruntime", "orjson", "flask", "uvloop"} <= roots
    assert not roots & {
        "mlflow",
        "pandas",
        "pyarrow",
        "sqlalchemy",
        "sklearn",
        "torch",
        "onnx",
        "evidently",
    }
    assert resident < 150e6


@pytest.mark.long
def test_versions_change_under_load_without_one_failure(tmp_path, bias_folders):
    answers: list[tuple[int, str, float]] = []
    stop = threading.Event()

    def post(url):
        with requests.Session() as session:
            while not stop.is_set():
                response = session.post(url + "/invocations", json=ROW, timeout=30)
                bias = bias_of(response) if response.status_code == 200 else -1.0
                answers.append(
                    (response.status_code, response.headers.get("X-Model-Version", ""), bias)
                )

    def wait_for_generation(generation):
        wait_until(lambda: {state.generation for state in read_workers(tmp_path)} == {generation})

    def wait_for_answers(count):
        wait_until(lambda: len(answers) >= count)

    with gunicorn(tmp_path, one_endpoint(bias_folders["1"]), ServerSpec(workers=2)) as running:
        # Wait as the supervisor does: the last worker answers 503 until it has loaded
        # its model.
        wait_until(lambda: len(read_workers(tmp_path)) == 2)
        threads = [threading.Thread(target=post, args=(running.url,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        try:
            for generation in range(2, 10):
                version = str((generation - 1) % 4 + 1)
                want(tmp_path, generation, one_endpoint(bias_folders[version], version))
                wait_for_generation(generation)
                before = len(answers)
                wait_for_answers(before + 20)
                assert {seen for _, seen, _ in answers[before + 8 :]} == {version}
        finally:
            stop.set()
            for thread in threads:
                thread.join()
    assert {status for status, _, _ in answers} == {200}
    assert {(version, bias) for _, version, bias in answers} == {
        (str(v), 1000.0 * v) for v in range(1, 5)
    }


def test_a_version_that_cannot_be_loaded_leaves_the_old_one_serving(tmp_path, bias_folders):
    (tmp_path / "broken").mkdir()
    with gunicorn(tmp_path, one_endpoint(bias_folders["1"])) as running:
        want(tmp_path, 2, one_endpoint(tmp_path / "broken", "2"))
        state = wait_until(
            lambda: next((s for s in read_workers(tmp_path) if s.generation == 2), None)
        )
        assert state.endpoints["e"]["v"].version == "1"
        assert "no MLmodel file" in state.endpoints["e"]["v"].error
        assert running.post(json=ROW).headers["X-Model-Version"] == "1"
        assert running.get("/ping").status_code == 200


def test_sigterm_lets_the_request_in_flight_finish_and_waits_for_no_idle_client(
    tmp_path, bias_folders
):
    started = threading.Event()

    def slowly():
        yield b'{"inputs": [[1, '
        started.set()
        stopped.wait()
        yield b"2, 3]]}"

    stopped = threading.Event()
    statuses: list[int] = []
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
        began = time.monotonic()
        assert running.process.wait(timeout=20) == 0
        assert time.monotonic() - began < 10
    assert statuses == [200]
    assert read_workers(tmp_path) == []
    (segment,) = segments(tmp_path / "spool")
    assert is_released(segment)
    assert len(read_segment(segment)[0]) == 1


def status(pid, field):
    """Return the first word of a field in the process's status."""
    match = re.search(rf"^{field}:\s*(\w+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return match[1] if match else ""


def test_clients_that_are_connected_and_not_accepted_yet_are_answered_after_sigterm(
    tmp_path, bias_folders
):

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


def test_a_killed_worker_is_replaced_and_keeps_its_captured_requests(tmp_path, bias_folders):
    with gunicorn(tmp_path, one_endpoint(bias_folders["1"])) as running:
        assert running.post(json=ROW).status_code == 200
        (killed,) = [state.pid for state in read_workers(tmp_path)]
        os.kill(killed, signal.SIGKILL)
        wait_until(lambda: [s.pid for s in read_workers(tmp_path) if s.pid != killed])
        assert [state.pid for state in read_workers(tmp_path)] != [killed]
        assert running.post(json=ROW).status_code == 200
        left, new = segments(tmp_path / "spool")
        assert (is_released(left), is_released(new)) == (True, False)
        assert [len(read_segment(segment)[0]) for segment in (left, new)] == [1, 1]
        page = running.get("/metrics").text
    labels = 'endpoint="e",model="m",protocol="invocations",status="200",variant="v",version="1"'
    counted = f"onnxserve_requests_total{{{labels}}} 2.0"
    assert counted in page
    assert 'onnxserve_capture_requests_total{outcome="captured"} 2.0' in page
    assert 'onnxserve_served_version{endpoint="e",model="m",variant="v",version="1"} 1.0' in page


def test_a_server_without_a_model_says_so(tmp_path):
    with gunicorn(tmp_path, awaited=503) as running:
        for path in ("/ping", "/health", "/version"):
            response = running.get(path)
            assert response.status_code == 503
            assert response.json()["error_code"] == "TEMPORARILY_UNAVAILABLE"
        assert running.post(json=ROW).status_code == 503
        assert running.get("/metrics").status_code == 200


@pytest.mark.long
def test_one_row_costs_little_more_than_an_answer_without_a_model(tmp_path, model_folders):
    """The bound is a ratio to a bare /ping, because the machine is shared. It covers
    the complete path.
    """
    row = {"dataframe_records": [{"carrier": "AA", "distance": 1.0, "hour": 2, "late": True}]}
    body = json.dumps(row)
    with (
        gunicorn(tmp_path, one_endpoint(model_folders["mixed"])) as running,
        requests.Session() as session,
    ):

        def seconds(call):
            began = time.perf_counter()
            assert call().status_code == 200
            return time.perf_counter() - began

        headers = {"Content-Type": "application/json"}
        pings = []
        scores = []
        for _ in range(100):  # Alternate, so that both have the same neighbours.
            pings.append(seconds(lambda: session.get(running.url + "/ping", timeout=5)))
            scores.append(
                seconds(
                    lambda: session.post(
                        running.url + "/invocations", data=body, headers=headers, timeout=5
                    )
                )
            )
    assert sorted(scores)[50] < 4 * sorted(pings)[50]


def test_silent_clients_do_not_hold_the_threads_for_ever(tmp_path, bias_folders):
    """There are as many clients of each kind as threads."""
    spec = ServerSpec(threads=2, request_timeout_seconds=1)
    with (
        gunicorn(tmp_path, one_endpoint(bias_folders["1"]), spec) as running,
        contextlib.ExitStack() as silent,
    ):
        address = running.address
        for begun in (
            b"POST /invocations HT",
            b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{",
        ):
            for _ in range(2):
                silent.enter_context(socket.create_connection(address)).sendall(begun)
        assert running.post(json=ROW).status_code == 200
