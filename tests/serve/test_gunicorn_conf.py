"""The command line that the supervisor runs."""

import os
import resource
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import requests

from mlflow_deploy_plugin.core.spec.parts import ServerSpec
from mlflow_deploy_plugin.core.statedir.files import METRICS, SPEC, read_workers
from mlflow_deploy_plugin.serve.gunicorn_conf import gunicorn_command
from mlflow_deploy_plugin.serve.supervisor import open_listener
from tests.support import servers
from tests.support.waiting import wait_until


def option(spec, name):
    command = gunicorn_command(Path("/s"), spec, 7)
    return command[command.index(name) + 1]


def test_gunicorn_options_come_from_the_spec():
    spec = ServerSpec(workers=3, threads=7, request_timeout_seconds=11, graceful_timeout_seconds=12)
    names = ("--workers", "--threads", "--timeout", "--graceful-timeout", "--bind")
    assert [option(spec, name) for name in names] == ["3", "7", "11", "12", "fd://7"]
    command = gunicorn_command(Path("/with 'quotes'/and space"), spec, 7)
    assert "--preload" not in command
    assert eval(command[-1].partition("create_worker_app")[2]) == "/with 'quotes'/and space"


@pytest.mark.parametrize(("files", "connections"), [(256, 192), (1024, 768), (1_048_576, 1000)])
def test_connections_are_limited_by_files(files, connections, monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (64, files))
    assert option(ServerSpec(), "--worker-connections") == str(connections)


def test_pyfunc_libraries_share_the_cores(monkeypatch):
    def threads(spec):
        return [
            part
            for part in gunicorn_command(Path("/s"), spec, 7)
            if part.startswith("OMP_NUM_THREADS=")
        ]

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert threads(ServerSpec(workers=4)) == ["OMP_NUM_THREADS=2"]
    assert threads(ServerSpec(intra_op_num_threads=3)) == ["OMP_NUM_THREADS=3"]
    assert threads(ServerSpec(workers=1)) == []  # The libraries determine their own number.
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert threads(ServerSpec(workers=4)) == []


def test_threaded_worker_answers(tmp_path, bias_folders):
    # gthread waits for idle clients that long.
    spec = ServerSpec(worker_class="gthread", graceful_timeout_seconds=1)
    with servers.gunicorn(tmp_path, servers.one_endpoint(bias_folders["1"]), spec) as running:
        assert running.post(json={"inputs": [[1, 2, 3]]}).json() == {"predictions": [[1006.0]]}
        assert (
            running.post(data="{", headers={"Content-Type": "application/json"}).status_code == 400
        )
        lines = running.post(
            data=iter([b"[1, 2, 3]\n"] * 3), headers={"Content-Type": "application/jsonl"}
        )
        assert lines.content == b"[1006.0]\n" * 3
        assert running.post("/nowhere").status_code == 404
    assert "Traceback" not in running.log.read_text()


def test_gunicorn_receives_certificate_and_key():
    spec = ServerSpec(certfile="/c.pem", keyfile="/k.pem")
    assert option(spec, "--certfile") == "/c.pem"
    assert option(spec, "--keyfile") == "/k.pem"
    with pytest.raises(ValueError, match="must be set together"):
        ServerSpec(certfile="/c.pem")


def metrics_of(state_dir, pid):
    """Return a worker's metrics files in memory."""
    files = list((state_dir / METRICS).readlink().glob(f"*_{pid}.db"))
    assert all(path.is_relative_to("/dev/shm") for path in files)
    return files


def are_gone(paths):
    return paths != [] and not any(path.exists() for path in paths)


PROBE = """
import sys
from pathlib import Path
from mlflow_deploy_plugin.serve import gunicorn_conf
from mlflow_deploy_plugin.serve.gunicorn_conf import *

def worker_exit(arbiter, worker):
    Path({path!r}).write_text("\\n".join(sys.modules))
    gunicorn_conf.worker_exit(arbiter, worker)
"""


@pytest.fixture(scope="module")
def ended(tmp_path_factory, bias_folders):
    """The files and libraries of a server that answered requests and ended."""
    state_dir = tmp_path_factory.mktemp("ended")
    runtime = tmp_path_factory.mktemp("runtime")
    endpoints = servers.one_endpoint(bias_folders["1"])
    config = runtime.with_name("probe.py")
    modules = runtime.with_name("modules.txt")
    config.write_text(PROBE.format(path=str(modules)))
    with servers.gunicorn(
        state_dir, endpoints, None, config, environment={"XDG_RUNTIME_DIR": str(runtime)}
    ) as running:
        (worker,) = read_workers(state_dir)
        assert running.post(json={"instances": [[1, 2, 3]]}).status_code == 200
        answer = running.post(data="a,b,c\n1,2,3", headers={"Content-Type": "text/csv"})
        assert answer.status_code == 200
        loaded = Path(f"/proc/{running.process.pid}/maps").read_text()
        memory = psutil.Process(worker.pid).memory_full_info()
        sockets = list(runtime.iterdir())
        metrics = metrics_of(state_dir, worker.pid)
    return SimpleNamespace(
        state_dir=state_dir,
        loaded=loaded,
        sockets=sockets,
        metrics=metrics,
        memory=memory,
        packages={name.partition(".")[0] for name in modules.read_text().split()},
    )


def test_arbiter_shares_modules_without_a_socket(ended):
    """gunicorn 25.1 would open `gunicorn.ctl` there; version 23 ignores the setting."""
    assert ended.sockets == []
    assert "/numpy/" in ended.loaded
    assert "/onnxruntime/" not in ended.loaded


def test_worker_imports_neither_mlflow_nor_grpc(ended):
    assert {"onnxruntime", "orjson", "flask", "uvloop"} <= ended.packages
    assert not ended.packages & {
        "mlflow",
        "pandas",
        "pyarrow",
        "sqlalchemy",
        "sklearn",
        "torch",
        "onnx",
        "evidently",
        "grpc",
        "opentelemetry",
    }


def test_worker_is_small(ended):
    assert ended.memory.rss < 150 * 1024**2
    assert ended.memory.uss < 60 * 1024**2  # Other pages are shared with the arbiter.


MANY_FILES = """
import os
from mlflow_deploy_plugin.serve.gunicorn_conf import *

def post_fork(arbiter, worker):
    worker.held = [os.open("/dev/null", os.O_RDONLY) for _ in range(1100)]
"""


@pytest.mark.long
def test_worker_answers_with_over_1024_files(tmp_path, bias_folders, pyfunc_folders):
    config = tmp_path / "probe.py"
    config.write_text(MANY_FILES)
    endpoints = servers.one_endpoint(bias_folders["1"])
    endpoints |= {"p": {"v": servers.variant(pyfunc_folders["troubled"])}}
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, limits[1]))
    try:
        with servers.gunicorn(tmp_path, endpoints, None, config) as running:
            (worker,) = read_workers(tmp_path)
            assert psutil.Process(worker.pid).num_fds() > 1100
            answer = running.post("/endpoints/e/invocations", json={"inputs": [[1, 2, 3]]})
            assert answer.json() == {"predictions": [[1006.0]]}
            rows = {"dataframe_split": {"columns": ["do"], "data": [["answer"]]}}
            wait_until(lambda: running.post("/endpoints/p/invocations", json=rows).ok, 90)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_metrics_are_in_memory_until_the_end(ended):
    assert are_gone(ended.metrics)
    assert {path.name for path in ended.state_dir.iterdir()} == {
        "counted.json",
        "loading",
        "server.log",
        "spec.yaml",
        "spool",
        "wanted.json",
        "workers",
    }


@pytest.mark.long
@pytest.mark.parametrize("is_removed", [False, True], ids=["the next server", "no state folder"])
def test_metrics_of_a_killed_server_are_removed(tmp_path, bias_folders, is_removed):
    killed = tmp_path / "killed"
    other = tmp_path / "other"
    for state_dir in (killed, other):
        servers.want(state_dir, 1, servers.one_endpoint(bias_folders["1"]))
    with servers.gunicorn(killed) as running:
        (worker,) = read_workers(killed)
        running.process.kill()
        running.process.wait()
        metrics = metrics_of(killed, worker.pid)
        with servers.gunicorn(other):
            # The folder's next server keeps their counts.
            assert metrics_of(killed, worker.pid) == metrics
        wait_until(lambda: not psutil.pid_exists(worker.pid), what="the end of the worker")
        if is_removed:
            shutil.rmtree(killed)
        with servers.gunicorn(other if is_removed else killed):
            assert are_gone(metrics)


@pytest.mark.parametrize(("status", "worker"), [(3, "fast"), (4, "gthread")])
def test_exit_of_a_worker_ends_only_the_worker(tmp_path, bias_folders, status, worker):
    # gunicorn's own statuses of a worker that cannot boot
    step = f"import os\ndef before(request):\n    os._exit({status})\n"
    endpoints = {name: {"v": servers.variant(bias_folders["1"])} for name in ("plain", "ends")}
    servers.want(tmp_path, 1, endpoints, {"ends": step})
    spec = ServerSpec(workers=2, worker_class=worker)
    servers.write_spec(tmp_path, "plain", spec)
    rows = {"inputs": [[1, 2, 3]]}
    with servers.gunicorn(tmp_path, spec=spec) as running:
        wait_until(lambda: len(read_workers(tmp_path)) == 2, what="both workers")
        before = {state.pid for state in read_workers(tmp_path)}
        with pytest.raises(requests.ConnectionError):
            running.post("/endpoints/ends/invocations", json=rows)
        assert running.post(json=rows).ok
        kept = before.intersection
        wait_until(
            lambda: len(kept(state.pid for state in read_workers(tmp_path))) == 1, what="the end"
        )
        wait_until(lambda: len(read_workers(tmp_path)) == 2, what="another worker")
        assert running.process.poll() is None
        assert running.post(json=rows).ok


def test_workers_that_cannot_start_end_gunicorn(tmp_path):
    (tmp_path / SPEC).write_text("no spec")
    with open_listener("127.0.0.1", None) as listener:
        descriptor = listener.fileno()
        command = gunicorn_command(tmp_path, ServerSpec(workers=2), descriptor)
        ended = subprocess.run(
            command, check=False, pass_fds=[descriptor], capture_output=True, timeout=60
        )
    assert ended.returncode == 3
    assert b"Reason: a worker cannot be started" in ended.stderr
