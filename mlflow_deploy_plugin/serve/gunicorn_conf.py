"""The command line of gunicorn for one server, and the hooks of its configuration (`-c
python:…gunicorn_conf`).
"""

import contextlib
import gc
import mmap
import os
import shutil
import ssl
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow_deploy_plugin.core.errors import OnnxserveError
from mlflow_deploy_plugin.core.logs import configure_logging
from mlflow_deploy_plugin.core.model_code import switch_model_code_off
from mlflow_deploy_plugin.core.settings import load_settings
from mlflow_deploy_plugin.core.spec.parts import ServerSpec, WorkerClass
from mlflow_deploy_plugin.core.statedir.files import METRICS, worker_file
from mlflow_deploy_plugin.core.statedir.metric_files import (
    make_metrics_folder,
    remove_metrics,
    shared_memory,
)
from mlflow_deploy_plugin.serve.http import request_limits
from mlflow_deploy_plugin.serve.runtime.session import available_cores, must_end

if sys.platform != "win32":
    import resource

    from gunicorn.errors import HaltServer

if TYPE_CHECKING:
    from gunicorn.arbiter import Arbiter
    from gunicorn.workers.base import Worker

STATE_DIR = "ONNXSERVE_STATE_DIR"
_MAY_FORK = "ONNXSERVE_MAY_FORK"
_HEARTBEATS = 3  # A healthy `gthread` worker notifies the arbiter once per second.
_MAX_LOAD_SECONDS = 30.0
_NOTIFY_SECONDS = 0.5
_MAX_FILES = 65536
_HTTP = f"{__package__}.http"
control_socket_disable = True
"""gunicorn 25.1 opens a control socket unless this setting is true. Earlier versions
ignore the setting.
"""
_WORKERS: dict[WorkerClass, tuple[str, str]] = {
    "fast": (f"{_HTTP}.workers.fast_worker.FastWorker", "workers.worker_app:create_worker_app"),
    "gthread": ("gthread", "app:create_app"),
}
"""The worker class in gunicorn's syntax, and the function that creates the worker's
application, by kind of worker.
"""


def gunicorn_command(
    state_dir: Path,
    server: ServerSpec,
    *listeners: int,
    may_fork: int | None = None,
) -> list[str]:
    """Return the command that serves the state folder until SIGTERM.

    Modules are imported before the fork. Each worker loads ONNX Runtime and its models
    after the fork, because ONNX Runtime's threads do not survive a fork.

    Args:
        listeners: inherited file descriptors of bound sockets; the second socket is
            shared with other servers.
        may_fork: an inherited file descriptor; workers are forked once it reaches end
            of file (None: at once).
    """
    worker, application = _WORKERS[server.worker_class]
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    ports = 1 if server.grpc_port is None else 2
    options = {
        "--config": f"python:{__name__}",
        "--workers": server.workers,
        "--worker-class": worker,
        "--threads": server.threads,
        # The share of each port. The spool and the models need the remaining
        # descriptors.
        "--worker-connections": min(request_limits.MAX_CONNECTIONS, most_files * 3 // 4 // ports),
        "--timeout": max(_HEARTBEATS, server.request_timeout_seconds),
        "--graceful-timeout": server.graceful_timeout_seconds,
        "--keep-alive": request_limits.KEEP_ALIVE_SECONDS,
        "--limit-request-line": request_limits.REQUEST_LINE_BYTES,
        "--limit-request-fields": request_limits.FIELDS,
        "--limit-request-field_size": request_limits.FIELD_BYTES,
        "--log-level": "warning",
    }
    if (memory := shared_memory()) is not None:
        options["--worker-tmp-dir"] = str(memory)  # The heartbeat must not wait for a disk.
    if server.certfile and server.keyfile:
        options |= {"--certfile": server.certfile, "--keyfile": server.keyfile}
    # Requests without a certificate are rejected later, because health checks have
    # none.
    if server.ca_certs:
        options |= {"--ca-certs": server.ca_certs, "--cert-reqs": int(ssl.CERT_OPTIONAL)}
    command = [sys.executable, "-m", "gunicorn", "--no-sendfile"]
    for listener in listeners:
        command += ["--bind", f"fd://{listener}"]
    for name, value in options.items():
        command += [name, str(value)]
    threads = server.intra_op_num_threads or available_cores(server.workers)
    if "OMP_NUM_THREADS" not in os.environ and threads < (os.cpu_count() or 1):
        # Limit the threads of a pyfunc's libraries (torch, boosters, BLAS), which
        # ignore CPU quotas and other workers.
        command += ["--env", f"OMP_NUM_THREADS={threads}"]
    if may_fork is not None:
        command += ["--env", f"{_MAY_FORK}={may_fork}"]
    return [
        *command,
        "--env",
        f"{STATE_DIR}={state_dir}",
        f"{_HTTP}.{application}({str(state_dir)!r})",
    ]


def on_starting(arbiter: "Arbiter") -> None:
    """Import the workers' modules, wait until workers may be forked, and recreate the
    workers' folders.
    """
    configure_logging(load_settings().log_format, "gunicorn")
    # gunicorn ends after a worker that exits with one of these statuses, which a
    # library may use too. No status equals a text. A worker that cannot be started sets
    # a shared byte instead, for `child_exit`.
    arbiter.WORKER_BOOT_ERROR = "a worker cannot be started"
    arbiter.APP_LOAD_ERROR = arbiter.WORKER_BOOT_ERROR
    arbiter.boot_failure = mmap.mmap(-1, 1)
    switch_model_code_off()  # The process of a pyfunc that may run switches it on.
    gc.disable()  # Otherwise the collector would scan the imported modules repeatedly.
    try:
        import_module(arbiter.app.app_uri.partition(":")[0])
    except OnnxserveError as error:  # A protocol of another distribution cannot be used.
        sys.exit(f"Error: {error.message}")
    gc.enable()
    gc.freeze()  # Otherwise a collection in a worker would write to shared pages.
    if (may_fork := os.environ.pop(_MAY_FORK, None)) is not None:
        with open(int(may_fork), "rb") as held:
            held.read()
    # Raise the soft limit, often 1024 for select(2).
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    raised = max(soft, min(hard, _MAX_FILES))
    resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
    state_dir = Path(os.environ[STATE_DIR])
    workers = state_dir / "workers"
    shutil.rmtree(workers, ignore_errors=True)
    try:
        workers.mkdir(parents=True, exist_ok=True)
        make_metrics_folder(state_dir)
    except OSError as error:  # On a read-only disk, keep the previous metrics.
        if not (state_dir / METRICS).is_dir():
            raise
        arbiter.log.error("the state folder cannot be written: %s", error.strerror)


def on_exit(arbiter: "Arbiter") -> None:
    with contextlib.suppress(OSError):  # If this fails, the next server removes the metrics.
        remove_metrics(Path(os.environ[STATE_DIR]))


def post_worker_init(worker: "Worker") -> None:
    """Wait until the versions are loaded, and open the gRPC listener if the spec has a
    port.

    In the meantime, new clients wait in the kernel's queue. After `_MAX_LOAD_SECONDS`
    the worker accepts clients, so that `/ping` can report the reason. A worker that
    shares its listener with another server continues to wait.
    """
    deadline = time.monotonic() + _MAX_LOAD_SECONDS
    server = worker.wsgi.server
    is_shared = len(worker.sockets) > 1
    repository = server.repository
    while worker.alive and not must_end.is_set():
        is_applied = repository.wait_until_applied(_NOTIFY_SECONDS)
        is_late = time.monotonic() >= deadline
        can_answer = repository.is_complete or (is_late and not repository.not_ready_reason())
        if is_shared:
            is_ready = is_applied and can_answer
        else:
            is_ready = is_applied or is_late
        if is_ready:
            break
        if is_applied:
            time.sleep(_NOTIFY_SECONDS)
        worker.notify()
    # A higher age means a replaced worker.
    server.metrics.count_worker_restarts(int(worker.age > worker.cfg.workers))
    if server.spec.grpc_port is not None:
        # Imported here, because gRPC is optional.
        from mlflow_deploy_plugin.serve.grpc.grpc_server import GrpcServer

        worker.grpc = GrpcServer(server, worker.cfg.worker_connections)


def worker_exit(arbiter: "Arbiter", worker: "Worker") -> None:
    """Report a worker that could not be started, and wait for the current gRPC calls.
    All HTTP requests are already answered.
    """
    if worker.alive and not worker.booted:
        arbiter.boot_failure[0] = 1
    if getattr(worker, "grpc", None) is not None:
        worker.grpc.wait()
    if must_end.is_set():  # Python would wait for threads that compute without end.
        worker.wsgi.server.close()
        os._exit(1)


def child_exit(arbiter: "Arbiter", worker: "Worker") -> None:
    """Remove the state and the gauges of a worker that has ended. Raises HaltServer
    after a worker that could not be started, because the next worker would fail too.
    """
    if arbiter.boot_failure[0] and arbiter.LISTENERS:  # gunicorn does not end yet.
        raise HaltServer(arbiter.WORKER_BOOT_ERROR, 3)
    state_dir = Path(os.environ[STATE_DIR])
    for file in (
        worker_file(state_dir, worker.pid),
        state_dir / METRICS / f"gauges_{worker.pid}.db",
    ):
        with contextlib.suppress(OSError):
            file.unlink(missing_ok=True)
