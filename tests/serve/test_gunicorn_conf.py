"""The command line that the supervisor runs."""

import importlib
import os
import resource
import shutil
import subprocess
from pathlib import Path

import psutil
import pytest
from gunicorn.util import load_class
from gunicorn.workers.base import Worker

from mlflow_deploy_plugin.core.spec.parts import ServerSpec
from mlflow_deploy_plugin.core.statedir.files import METRICS, read_workers
from mlflow_deploy_plugin.serve.gunicorn_conf import gunicorn_command
from mlflow_deploy_plugin.serve.supervisor import open_listener
from tests.support import servers
from tests.support.waiting import wait_until


def test_the_spec_decides_and_the_state_folder_may_have_any_name():
    spec = ServerSpec(workers=3, threads=7, request_timeout_seconds=11, graceful_timeout_seconds=12)
    command = gunicorn_command(Path("/with 'quotes'/and space"), spec, 7)
    options = {
        option: command[command.index(option) + 1]
        for option in ("--workers", "--threads", "--timeout", "--graceful-timeout")
    }
    assert options == {
        "--workers": "3",
        "--threads": "7",
        "--timeout": "11",
        "--graceful-timeout": "12",
    }
    assert command[command.index("--bind") + 1] == "fd://7"
    assert "--preload" not in command
    assert eval(command[-1].partition("create_worker_app")[2]) == "/with 'quotes'/and space"


@pytest.mark.parametrize(("files", "connections"), [(256, 192), (1024, 768), (1_048_576, 1000)])
def test_a_worker_takes_no_more_clients_than_it_has_files_for(files, connections, monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (64, files))
    command = gunicorn_command(Path("/s"), ServerSpec(), 7)
    assert command[command.index("--worker-connections") + 1] == str(connections)


def test_the_libraries_of_pyfuncs_have_the_cores_of_one_worker(monkeypatch):
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


@pytest.mark.parametrize("kind", ["fast", "gthread"])
def test_gunicorn_can_import_both_worker_classes_and_the_app(kind):
    command = gunicorn_command(Path("/s"), ServerSpec(worker_class=kind), 7)
    assert issubclass(load_class(command[command.index("--worker-class") + 1]), Worker)
    module, _, function = command[-1].partition("(")[0].partition(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_gunicorn_s_own_threaded_worker_starts_and_answers(tmp_path, bias_folders):
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


def test_a_certificate_is_handed_to_gunicorn_with_its_key_only():
    command = gunicorn_command(Path("/s"), ServerSpec(certfile="/c.pem", keyfile="/k.pem"), 7)
    assert command[command.index("--certfile") + 1] == "/c.pem"
    assert command[command.index("--keyfile") + 1] == "/k.pem"
    with pytest.raises(ValueError, match="must be set together"):
        ServerSpec(certfile="/c.pem")


def test_gunicorn_opens_no_socket_for_commands(tmp_path, bias_folders):
    """gunicorn 25.1 would open `gunicorn.ctl` there; version 23 ignores the setting."""
    runtime = tmp_path / "runtime"
    runtime.mkdir()
    environment = {"XDG_RUNTIME_DIR": str(runtime)}
    with servers.gunicorn(
        tmp_path, servers.one_endpoint(bias_folders["1"]), environment=environment
    ):
        assert list(runtime.iterdir()) == []


def test_a_worker_has_more_files_than_a_shell_allows(tmp_path, bias_folders):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    in_use = max(int(path.name) for path in Path("/proc/self/fd").iterdir())
    resource.setrlimit(resource.RLIMIT_NOFILE, (in_use + 100, hard))
    try:
        with servers.gunicorn(tmp_path, servers.one_endpoint(bias_folders["1"])):
            (worker,) = read_workers(tmp_path)
            assert resource.prlimit(worker.pid, resource.RLIMIT_NOFILE) == (min(hard, 65536), hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_workers_share_the_modules_of_their_arbiter_which_does_not_load_onnx_runtime(
    tmp_path, bias_folders
):
    with servers.gunicorn(tmp_path, servers.one_endpoint(bias_folders["1"])) as running:
        loaded = Path(f"/proc/{running.process.pid}/maps").read_text()
    assert "/numpy/" in loaded
    assert "/onnxruntime/" not in loaded


def metrics_of(state_dir, pid):
    """Return a worker's metrics files in memory."""
    files = list((state_dir / METRICS).readlink().glob(f"*_{pid}.db"))
    assert all(path.is_relative_to("/dev/shm") for path in files)
    return files


def are_gone(paths):
    return paths != [] and not any(path.exists() for path in paths)


def test_metrics_lie_where_a_full_disk_does_not_matter_and_are_taken_away(tmp_path, bias_folders):
    with servers.gunicorn(tmp_path, servers.one_endpoint(bias_folders["1"])) as running:
        (worker,) = read_workers(tmp_path)
        assert running.post(json={"instances": [[1, 2, 3]]}).status_code == 200
        metrics = metrics_of(tmp_path, worker.pid)
    assert are_gone(metrics)
    assert {path.name for path in tmp_path.iterdir()} == {
        "counted.json",
        "loading",
        "server.log",
        "spec.yaml",
        "spool",
        "wanted.json",
        "workers",
    }


def test_an_arbiter_that_is_ended_before_it_may_fork_leaves_nothing(tmp_path):
    may_fork, held = os.pipe()
    with open_listener("127.0.0.1", 0) as listener:
        command = gunicorn_command(tmp_path, ServerSpec(), listener.fileno(), may_fork=may_fork)
        with subprocess.Popen(command, pass_fds=[listener.fileno(), may_fork]) as gunicorn:
            wait_until(
                lambda: "/numpy/" in Path(f"/proc/{gunicorn.pid}/maps").read_text(),
                what="its imports",
            )
            gunicorn.terminate()
    os.close(may_fork)
    os.close(held)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
def test_metrics_that_a_killed_server_has_left_are_taken_away_by_the_next(tmp_path, bias_folders):
    with servers.gunicorn(tmp_path, servers.one_endpoint(bias_folders["1"])) as running:
        (worker,) = read_workers(tmp_path)
        running.process.kill()
        running.process.wait()
        metrics = metrics_of(tmp_path, worker.pid)
        with servers.gunicorn(tmp_path):
            assert are_gone(metrics)


@pytest.mark.long
def test_metrics_of_a_killed_server_wait_for_its_state_folder_and_go_once_that_is_gone(
    tmp_path, bias_folders
):
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
        wait_until(
            lambda: not psutil.pid_exists(worker.pid), what="the end of the killed server's worker"
        )
        shutil.rmtree(killed)
        with servers.gunicorn(other):
            assert are_gone(metrics)
