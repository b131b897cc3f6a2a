"""Tiny models whose bias identifies the version, and servers of a state folder, in this
process or with gunicorn.
"""

import os
import signal
import subprocess
from collections.abc import Callable
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import requests
import yaml

from mlflow_deploy_plugin.core.spec.parts import ServerSpec
from mlflow_deploy_plugin.core.statedir.files import SPEC, WANTED, read_workers, write_state
from mlflow_deploy_plugin.core.statedir.metric_files import remove_metrics
from mlflow_deploy_plugin.core.statedir.models import Wanted
from mlflow_deploy_plugin.serve.assembly import open_server
from mlflow_deploy_plugin.serve.gunicorn_conf import gunicorn_command
from mlflow_deploy_plugin.serve.inference.server import Server
from mlflow_deploy_plugin.serve.supervisor import open_listener
from tests.support.models import columns, graph_tensor, numbers_section, write_model
from tests.support.waiting import wait_until


def single(bias, width=3):
    """y = the sum of X's columns + bias, as [N,1]."""
    return f"""
single (float[N,{width}] X) => (float[N,1] y) <float[1] bias = {{{bias}}}, int64[1] axis = {{1}}> {{
  s = ReduceSum(X, axis)
  y = Add(s, bias)
}}"""


def single_model(folder, bias=0.0):
    """Make a model of the columns a, b, c, which are stacked into X. The bias of y
    identifies the version.
    """
    section = numbers_section(graph_tensor("X", "float32", -1, 3, columns=["a", "b", "c"]))
    return write_model(folder, single(bias), columns(a="double", b="double", c="double"), section)


def stock_model(folder):
    """Make a model of MLflow's own onnx flavor, without a signature."""
    return write_model(folder, single(0.5))


def variant(folder, version="1", **more):
    return {
        "model_uri": f"models:/m/{version}",
        "model": "m",
        "version": version,
        "folder": str(folder),
        **more,
    }


def one_endpoint(folder, version="1", **more):
    """Return the endpoint e with one variant, for `gunicorn`, `want` and the fixture
    `serve_here`.
    """
    return {"e": {"v": variant(folder, version, **more)}}


def want(
    state_dir,
    generation,
    endpoints,
    steps=None,
    guard=None,
    **capture,
):
    """Write wanted.json from endpoint → variant → fields, and endpoint → source of its
    steps.
    """
    document = {
        name: {"variants": fields, "capture": capture, "guard": guard}
        for name, fields in endpoints.items()
    }
    for name, source in (steps or {}).items():
        document[name]["serve"] = {"steps": source}
    write_state(
        state_dir / WANTED, Wanted.model_validate({"generation": generation, "endpoints": document})
    )


Serve = Callable[..., Server]
"""The fixture `serve_here`, or a function that calls it."""


@dataclass(frozen=True)
class Running:
    """A gunicorn server on a free port."""

    url: str
    process: subprocess.Popen[bytes]
    state_dir: Path
    log: Path
    trusted: str | None = None

    @property
    def address(self):
        return "127.0.0.1", int(self.url.rpartition(":")[2])

    def get(self, path, timeout=30, **arguments):
        return requests.get(
            self.url + path, timeout=timeout, verify=self.trusted or True, **arguments
        )

    def post(self, path="/invocations", timeout=30, **arguments):
        return requests.post(
            self.url + path, timeout=timeout, verify=self.trusted or True, **arguments
        )


def write_spec(state_dir, name, server):
    """Write spec.yaml of the endpoint `name`; `server` specifies its server."""
    fields = server.model_dump(mode="json", exclude_unset=True)
    document = {"name": name, "variants": {"v": {"model": "models:/m/1"}}, "server": fields}
    (state_dir / SPEC).write_text(yaml.safe_dump(document))


@contextmanager
def opened(
    state_dir,
    endpoints,
    spec=None,
    **capture,
):
    """Open a server of endpoint → variant → fields in this process, and yield it when
    it is ready.
    """
    want(state_dir, 1, endpoints, **capture)
    write_spec(state_dir, next(iter(endpoints), "e"), spec or ServerSpec())
    with closing(open_server(state_dir)) as server:
        # On a busy machine, 1,300 models took a minute, and a side process took longer.
        seconds = 250 + len(endpoints) / 10
        wait_until(lambda: not server.repository.not_ready_reason(), seconds, "the server")
        yield server


@contextmanager
def gunicorn(
    state_dir,
    endpoints=None,
    spec=None,
    config=None,
    awaited=200,
    environment=None,
):
    """Run and yield a real server of endpoint → variant → fields (None: the content of
    the state folder).

    Args:
        config: a file that replaces onnxserve's configuration of gunicorn.
        awaited: the status of /ping to wait for.
    """
    spec = spec or ServerSpec()
    if endpoints is not None:
        want(state_dir, 1, endpoints)
        write_spec(state_dir, next(iter(endpoints)), spec)
    log = state_dir / "server.log"
    listener = open_listener(spec.host, 0)
    port = listener.getsockname()[1]
    descriptor = listener.fileno()
    command = gunicorn_command(state_dir, spec, descriptor)
    if config is not None:
        command[command.index("--config") + 1] = str(config)
    with log.open("wb") as output, listener:
        variables = {**os.environ, **(environment or {})}
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=variables, pass_fds=[descriptor]
        )
    running = Running(f"{spec.scheme}://127.0.0.1:{port}", process, state_dir, log, spec.certfile)
    try:
        wait_until(lambda: ping(running) == awaited, 90, "gunicorn")
        if awaited == 200:  # A worker is ready shortly before its state file exists.
            wait_until(lambda: read_workers(state_dir), what="a worker's state file")
        yield running
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        # A server that ends in another way removes its metrics from shared memory.
        if process.returncode == -signal.SIGKILL:
            remove_metrics(state_dir)


def ping(running):
    """Return the status of /ping, or 0 if the server does not respond."""
    assert running.process.poll() is None, running.log.read_text()
    try:
        return requests.get(
            running.url + "/ping", timeout=5, verify=running.trusted or True
        ).status_code
    except (
        requests.ConnectionError,
        requests.Timeout,
    ):  # On a busy machine, a worker may take long to import.
        return 0
