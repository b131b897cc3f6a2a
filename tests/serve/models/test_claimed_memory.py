"""Rows and files of a few bytes that claim gigabytes: a process allocates at most its
limit, and a worker refuses the request and lives.
"""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mlflow_deploy_plugin.core.spec.parts import ServerSpec
from mlflow_deploy_plugin.core.statedir.files import read_workers
from tests.support.models import IDENTITY, write_model
from tests.support.servers import gunicorn, variant
from tests.support.traffic import Traffic
from tests.support.waiting import wait_until

LIMIT = 2**29
TOLERATED = 100 * 2**20
CLAIM = """claims (float[N,1] x) => (float[N,1] y) <int64[1] flat = {-1}> {
  sizes = Cast<to = 7>(x)
  size = Reshape(sizes, flat)
  cells = ConstantOfShape(size)
  sum = ReduceSum<keepdims = 0>(cells)
  y = Add(x, sum)
}"""
ANSWER = """claims (float[N,1] x) => (float[M] y) <int64[1] flat = {-1}> {
  sizes = Cast<to = 7>(x)
  size = Reshape(sizes, flat)
  y = ConstantOfShape(size)
}"""
USED_UP = """
from mlflow_deploy_plugin.core.processes.memory import limit_growth
from mlflow_deploy_plugin.serve.runtime.session import limit_memory, must_end
limit_memory(None)
limit_growth(2**28)
blocks = []
try:
    while True:
        blocks.append(bytes(2**19))
except MemoryError:
    print(must_end.is_set(), must_end.wait(60))
"""


def peak_bytes(pid):
    status = Path(f"/proc/{pid}/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


@pytest.mark.long
def test_claimed_bytes_leave_memory_for_other_callers(tmp_path):
    endpoints = {
        "e": {"v": variant(write_model(tmp_path / "honest", IDENTITY))},
        "claims": {"v": variant(write_model(tmp_path / "claims", CLAIM), "2")},
    }
    with gunicorn(tmp_path, endpoints, ServerSpec(max_worker_memory_bytes=LIMIT)) as running:

        def claim(cells):
            body = {"inputs": [[cells]]}
            return running.post("/endpoints/claims/invocations", json=body).status_code

        with ThreadPoolExecutor(16) as callers:
            statuses = {*callers.map(claim, 100 * [2e7, 1e8, 4e7])}
        honest = {"inputs": [[1.0]] * 50_000}

        def call():
            return running.post("/endpoints/e/invocations", json=honest)

        # A caller tries again after a 503.
        wait_until(lambda: call().ok, what="the worker returns the memory of the claims")
        answers = [call().status_code for _ in range(3)]
    assert statuses == {200, 503}
    assert answers == [200, 200, 200]


def test_claimed_bytes_are_refused_by_a_living_worker(tmp_path):
    endpoints = {
        "e": {"v": variant(write_model(tmp_path / "honest", IDENTITY))},
        "claims": {"v": variant(write_model(tmp_path / "claims", CLAIM), "2")},
    }
    spec = ServerSpec(max_worker_memory_bytes=LIMIT)
    with gunicorn(tmp_path, endpoints, spec) as running:
        [worker] = read_workers(tmp_path)
        traffic = Traffic(f"{running.url}/endpoints/e")
        traffic.start()
        answers = []
        for cells in (1e6, 1.3e8, 2.5e8, 4e8, 1e6):
            body = {"inputs": [[cells]]}
            answers.append(running.post("/endpoints/claims/invocations", json=body))
        traffic.stop()
        [still] = read_workers(tmp_path)
        peak = peak_bytes(worker.pid)
    assert [answer.status_code for answer in answers] == [200, 503, 503, 503, 200]
    assert {*traffic.answers} == {("1", 200)}
    assert still.pid == worker.pid
    assert peak < LIMIT + TOLERATED


def test_claimed_bytes_of_an_answer_are_refused_before_it_is_encoded(tmp_path):
    endpoints = {"claims": {"v": variant(write_model(tmp_path / "claims", ANSWER))}}
    with gunicorn(tmp_path, endpoints, ServerSpec(max_worker_memory_bytes=LIMIT)) as running:
        [worker] = read_workers(tmp_path)
        bodies = [{"inputs": [[cells]]} for cells in (1e6, 1.5e7, 1e6)]
        answers = [running.post(json=body).status_code for body in bodies]
        [still] = read_workers(tmp_path)
    assert answers == [200, 503, 200]
    assert still.pid == worker.pid


@pytest.mark.long
def test_stacks_of_many_threads_are_no_claimed_bytes(tmp_path):
    endpoints = {"e": {"v": variant(write_model(tmp_path / "honest", IDENTITY))}}
    spec = ServerSpec(max_worker_memory_bytes=LIMIT // 2, max_concurrent_requests=100)
    body = {"inputs": [[1.0]] * 3000}
    with gunicorn(tmp_path, endpoints, spec) as running, ThreadPoolExecutor(64) as callers:
        answers = {*callers.map(lambda _: running.post(json=body).status_code, range(200))}
        [worker] = read_workers(tmp_path)
        status = Path(f"/proc/{worker.pid}/status").read_text()
        limits = Path(f"/proc/{worker.pid}/limits").read_text()
    allocated = 1024 * int(status.partition("VmData:")[2].split()[0])
    assert allocated < int(limits.partition("Max data size")[2].split()[0]) - LIMIT // 4
    assert answers == {200}


@pytest.mark.long
def test_claimed_bytes_that_are_never_freed_end_the_worker():
    ran = subprocess.run(
        [sys.executable, "-c", USED_UP], capture_output=True, text=True, check=True, timeout=120
    )
    assert ran.stdout == "False True\n"
