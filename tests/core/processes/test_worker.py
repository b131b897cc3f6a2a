"""A worker calls functions. If it hangs, crashes or ends, other workers are not
affected.
"""

import errno
import math
import os
import signal
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from mlflow_deploy_plugin.core.errors import (
    DeadlineExceeded,
    NotFound,
    OnnxserveError,
    RegistryUnavailable,
)
from mlflow_deploy_plugin.core.processes.worker import (
    ProcessCrashed,
    ProcessEnded,
    Worker,
    WorkerPool,
)
from tests.support.raising import Panic, raise_it
from tests.support.waiting import is_gone

SECONDS = 60.0


def pid_of(workers):
    return workers.call(os.getpid, seconds=SECONDS)


def prepare():
    os.environ["PREPARED"] = "1"


@pytest.fixture(scope="module")
def worker():
    instance = Worker(kept_errors=[RegistryUnavailable])
    yield instance
    instance.end()


def test_hanging_or_dead_worker_is_replaced(worker):
    first = pid_of(worker)
    assert pid_of(worker) == first != os.getpid()

    with pytest.raises(DeadlineExceeded, match=r"0\.1 s"):
        worker.call(time.sleep, 600, seconds=0.1)
    assert is_gone(first)
    second = pid_of(worker)
    assert second != first

    with pytest.raises(ProcessCrashed, match="killed by SIGKILL"):
        worker.call(os.kill, second, signal.SIGKILL, seconds=SECONDS)
    with pytest.raises(ProcessCrashed, match=r"status 7$"):
        # In this process, coverage replaces os._exit.
        worker.call(exec, "import os; os._exit(7)", seconds=SECONDS)
    assert pid_of(worker) != second


def test_kept_errors_keep_their_class(worker):
    with pytest.raises(OnnxserveError, match=r"^ValueError: "):
        worker.call(math.sqrt, -1, seconds=SECONDS)
    with pytest.raises(OnnxserveError, match=r"^FileNotFoundError: .*/nowhere"):
        worker.call(os.stat, "/nowhere", seconds=SECONDS)
    with pytest.raises(OnnxserveError, match=r"^MemoryError: "):
        worker.call(bytearray, 2**62, seconds=SECONDS)
    with pytest.raises(RegistryUnavailable, match=r"^MLflow is away$"):
        worker.call(raise_it, RegistryUnavailable("MLflow is away"), seconds=SECONDS)
    with pytest.raises(OnnxserveError, match=r"^no such model$") as raised:
        worker.call(raise_it, NotFound("no such model"), seconds=SECONDS)
    assert type(raised.value) is OnnxserveError


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ((raise_it, Panic("a regular expression failed")), "^Panic: a regular expression failed$"),
        ((threading.Lock,), "pickle"),
    ],
    ids=["a panic", "a result that cannot be pickled"],
)
def test_failed_call_keeps_worker(worker, call, message):
    pid = pid_of(worker)
    with pytest.raises(OnnxserveError, match=message):
        worker.call(*call, seconds=SECONDS)
    assert pid_of(worker) == pid


def test_failed_start_is_retried_by_next_call(monkeypatch):
    worker = Worker()

    def refuse(*_, **__):
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    with monkeypatch.context() as patched:
        patched.setattr(subprocess, "Popen", refuse)
        with pytest.raises(ProcessCrashed, match="Cannot allocate memory"):
            pid_of(worker)
    assert pid_of(worker) != os.getpid()
    worker.end()


def test_worker_is_prepared_and_replaced_after_max_calls():
    worker = Worker(prepare, max_calls=2)
    try:
        pids = [pid_of(worker) for _ in range(3)]
        assert pids[0] == pids[1] != pids[2]
        assert worker.call(os.getenv, "PREPARED", seconds=SECONDS) == "1"
    finally:
        worker.end()


def test_worker_ends_when_idle_or_requested():
    worker = Worker()
    pid = pid_of(worker)
    worker.end_if_idle(600)
    assert pid_of(worker) == pid
    worker.end_if_idle(-1)
    assert is_gone(pid)
    pid = pid_of(worker)
    timer = threading.Timer(0.3, worker.end)
    timer.start()

    with pytest.raises(ProcessEnded):
        worker.call(time.sleep, 600, seconds=SECONDS)

    timer.join()
    assert is_gone(pid)
    with pytest.raises(ProcessEnded):
        pid_of(worker)


def test_pool_uses_all_its_processes():
    pool = WorkerPool([Worker(), Worker()])
    try:
        with ThreadPoolExecutor(4) as threads:
            began = [threads.submit(pool.call, time.sleep, 0.2, seconds=SECONDS) for _ in range(4)]
            assert [future.result() for future in began] == [None] * 4
        warm = pid_of(pool)
        assert pid_of(pool) == warm
        pool.end_idle(-1)
        assert is_gone(warm)
    finally:
        pool.end()
    with pytest.raises(ProcessEnded):
        pid_of(pool)


def test_worker_imports_from_parent_path(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "pickle.py").write_text("raise SystemExit(9)")
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "found_by_path.py").write_text("def answer():\n    return 42\n")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.syspath_prepend(tmp_path / "path")
    from found_by_path import answer  # type: ignore[import-not-found]

    worker = Worker()
    try:
        assert worker.call(answer, seconds=SECONDS) == 42
    finally:
        worker.end()
