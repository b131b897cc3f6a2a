"""A real MLflow server with tiny ONNX models, and `onnxserve serve` as a process beside it."""

import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlflow
import mlflow.onnx
import onnx
import psutil
import pytest
import requests
from mlflow import MlflowClient

_numbers = itertools.count(1)

HEADER = '<ir_version: 10, opset_import: ["": 21]>'


def adder(amount: float) -> onnx.ModelProto:
    """y = x + amount: the answer tells which version gave it."""
    return onnx.parser.parse_model(
        f"{HEADER} adder (float[N,1] x) => (float[N,1] y) <float[1] amount = {{{amount}}}> {{ y = Add(x, amount) }}"
    )


def counter() -> onnx.ModelProto:
    """Counts to the number it is given, one step after the other: a request that takes as long as one likes."""
    return onnx.parser.parse_model(
        f"""{HEADER} counter (int64[N] x) => (int64[N] y)
        <int64[1] axes = {{0}}, int64[1] first = {{0}}, int64[1] zero = {{0}}, bool go = {{1}}> {{
          one = Gather(x, first)
          trips = Squeeze(one, axes)
          total = Loop(trips, go, zero) <body = step (int64 i, bool c, int64[1] s) => (bool d, int64[1] t)
            <int64[1] unit = {{1}}> {{ d = Identity(c)
              t = Add(s, unit) }}>
          nothing = Sub(x, x)
          y = Add(nothing, total)
        }}"""
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(condition: Callable[[], Any], seconds: float, what: str) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"after {seconds} s still not: {what}"
        time.sleep(0.02)
    return value


def status(url: str) -> int:
    try:
        return requests.get(url, timeout=5).status_code
    except requests.RequestException:
        return 0


@dataclass
class Mlflow:
    """An MLflow server that can be stopped and started again."""

    folder: Path
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--port", str(self.port), "--workers", "1"]
        command += ["--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        with (self.folder / f"{self.port}.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        wait_until(lambda: status(f"{self.url}/health") == 200, 90, "MLflow answers")

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mlflow]:
    server = Mlflow(tmp_path_factory.mktemp("mlflow"))
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="session")
def logged(mlflow_server: Mlflow) -> dict[str, str]:
    """URIs of logged models: adders by what they add, a slow one, one without ONNX, one whose ONNX is broken."""
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(mlflow_server.url)
    requirements: dict[str, Any] = {"pip_requirements": ["onnxruntime"]}
    with mlflow.start_run():
        uris = {f"+{n}": mlflow.onnx.log_model(adder(n), name=f"add{n}", **requirements).model_uri for n in (1, 2, 3)}
        uris["slow"] = mlflow.onnx.log_model(counter(), name="slow", **requirements).model_uri
        uris["pyfunc"] = mlflow.pyfunc.log_model(
            name="pyfunc", loader_module="json", pip_requirements=["mlflow"]
        ).model_uri
        uris["broken"] = mlflow.onnx.log_model(adder(9), name="broken", **requirements).model_uri
    model_id = uris["broken"].removeprefix("models:/")
    (file,) = mlflow_server.folder.glob(f"artifacts/**/{model_id}/artifacts/model.onnx")
    file.write_bytes(b"not a graph")
    mlflow.set_tracking_uri(before)
    return uris


@dataclass
class Registered:
    """A registered model of this test's own."""

    client: MlflowClient
    name: str

    def promote(self, version: int, stage: str = "Production") -> None:
        self.client.transition_model_version_stage(self.name, str(version), stage)


@pytest.fixture
def register(
    mlflow_server: Mlflow, logged: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Registered]:
    """Registers logged models as versions 1, 2, … of a model of this test's own."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server.url)

    def make(*kinds: str) -> Registered:
        client = MlflowClient(mlflow_server.url)
        name = f"model-{next(_numbers)}"
        client.create_registered_model(name)
        for kind in kinds:
            client.create_model_version(name, logged[kind], model_id=logged[kind].removeprefix("models:/"))
        return Registered(client, name)

    return make


@dataclass
class Served:
    """`onnxserve serve` in a session of its own."""

    process: subprocess.Popen[bytes]
    state_dir: Path
    log: Path

    @property
    def url(self) -> str:
        return self._announced()[0].rpartition(" at ")[2]

    def _announced(self) -> list[str]:
        return [line for line in self.log.read_text().splitlines() if line.startswith("onnxserve: ")]

    def wait_ready(self) -> "Served":
        wait_until(lambda: self._announced() or self.process.poll() is not None, 60, "ready")
        assert self.process.poll() is None, self.log.read_text()
        return self

    def predict(self, x: float) -> requests.Response:
        return requests.post(f"{self.url}/invocations", json={"inputs": [[x]]}, timeout=30)

    def version(self) -> str:
        return self.predict(0).headers["X-Model-Version"]

    def members(self) -> list[psutil.Process]:
        """Every process of the session: supervisor, agent, gunicorn, workers."""
        return [process for process in psutil.process_iter() if _session(process) == self.process.pid]

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait(timeout=40)
        wait_until(lambda: not self.members(), 40, "no process is left")
        return code


def _session(process: psutil.Process) -> int:
    try:
        return 0 if process.status() == psutil.STATUS_ZOMBIE else os.getsid(process.pid)
    except (ProcessLookupError, psutil.NoSuchProcess):
        return 0


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Served]]:
    """Starts `onnxserve serve ARGUMENTS --state-dir …`; whatever is still there at the end of the test is ended."""
    monkeypatch.setenv("ONNXSERVE_HOME", str(tmp_path / "home"))
    started: list[Served] = []

    def start(*arguments: str, state: str = "state") -> Served:
        log = tmp_path / f"{len(started)}.log"
        command = [sys.executable, "-m", "mlflow_deploy_plugin.cli", "serve", *arguments]
        command += ["--state-dir", str(tmp_path / state)]
        with log.open("wb") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True, cwd=tmp_path)
        started.append(Served(process, tmp_path / state, log))
        return started[-1]

    yield start
    for served in started:
        served.end()


@pytest.fixture
def own_mlflow(mlflow_server: Mlflow, tmp_path: Path) -> Iterator[Mlflow]:
    """A copy of the MLflow server that a test may kill."""
    shutil.copytree(mlflow_server.folder, tmp_path / "mlflow")
    server = Mlflow(tmp_path / "mlflow")
    server.start()
    yield server
    server.kill()


@pytest.fixture
def until() -> Callable[[Callable[[], Any], float, str], Any]:
    return wait_until


@contextmanager
def _listening() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield int(listener.getsockname()[1])


@pytest.fixture
def used_port() -> Iterator[int]:
    """A port that somebody listens on."""
    with _listening() as port:
        yield port
