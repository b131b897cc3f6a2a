"""Tests of following a stage during failures, with real processes, a real MLflow
server, and a proxy in front of it.
"""

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import mlflow
import psutil
import pytest
import requests
from mlflow import MlflowClient

from benchmarks.serving.load import post
from benchmarks.serving.timeline import OpenLoop
from mlflow_deploy_plugin.core.statedir.files import AGENT, WANTED, read_state, read_workers
from mlflow_deploy_plugin.core.statedir.models import AgentState, Wanted
from tests.support.models import parse_graph
from tests.support.refusals import mentions
from tests.support.services.mlflow_server import MlflowServer
from tests.support.services.proxy import proxy_to
from tests.support.serving import Served
from tests.support.tracking import DEFAULT_EXPERIMENT, tracking_at
from tests.support.waiting import wait_until

PATIENCE = 60.0
BODY = b'{"inputs": [[10.0]]}'
BALLAST = 32_768
"""The count of unused numbers in the graph of each version, so that its file has 128
KiB.
"""

Serve = Callable[..., Served]


@dataclass(frozen=True)
class Model:
    """A registered model whose version n adds n. Version 1 is in Production."""

    name: str
    mlflow: MlflowServer

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(self.mlflow.url)

    @property
    def uri(self) -> str:
        return f"models:/{self.name}/Production"

    def promote(self, version: str) -> None:
        self.client.transition_model_version_stage(
            self.name, version, "Production", archive_existing_versions=True
        )

    def tags(self, version: str) -> dict[str, str]:
        return dict(self.client.get_model_version(self.name, version).tags)

    def file(self, version: str) -> Path:
        """Return the graph file of a version in the artifact store."""
        model_id = self.client.get_model_version(self.name, version).source.removeprefix("models:/")
        (file,) = self.mlflow.folder.glob(f"artifacts/**/{model_id}/artifacts/model.onnx")
        return file


@pytest.fixture(scope="module")
def sources(mlflow_server):
    """Log models that add 1, 2 and 3, and return their URIs."""
    uris = []
    with tracking_at(mlflow_server.url), mlflow.start_run(experiment_id=DEFAULT_EXPERIMENT):
        for amount in (1, 2, 3):
            ballast = ", ".join([str(amount)] * BALLAST)
            graph = parse_graph(
                f"adder (float[N,1] x) => (float[N,1] y) <float[{BALLAST}] many = {{{ballast}}}, "
                "int64[1] at = {7}> { one = Gather(many, at)\n y = Add(x, one) }"
            )
            uris.append(
                mlflow.onnx.log_model(
                    graph, name=f"add{amount}", pip_requirements=["onnxruntime"]
                ).model_uri
            )
    return uris


@pytest.fixture
def model(mlflow_server, sources, monkeypatch):
    monkeypatch.setenv("ONNXSERVE_POLL_SECONDS", "0.3")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server.url)
    model = Model(f"faults-{uuid.uuid4().hex[:8]}", mlflow_server)
    model.client.create_registered_model(model.name)
    for source in sources:
        model.client.create_model_version(
            model.name, source, model_id=source.removeprefix("models:/")
        )
    model.promote("1")
    return model


@pytest.fixture
def proxy(mlflow_server, model, monkeypatch):
    with proxy_to(mlflow_server.host, mlflow_server.port) as proxy:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.url)
        yield proxy


def agent(served):
    return read_state(served.state_dir / AGENT, AgentState) or AgentState(pid=0)


def wanted(served):
    (endpoint,) = (read_state(served.state_dir / WANTED, Wanted) or Wanted()).endpoints.values()
    return next(iter(endpoint.variants.values())).version


def loaded(served):
    """Return the version that each worker serves."""
    versions = []
    for worker in read_workers(served.state_dir):
        for variants in worker.endpoints.values():
            versions += [variant.version for variant in variants.values()]
    return versions


def serves(served, version):
    """Return True if this version answers; fail if the response is not a correct answer
    of any version.
    """
    answer = served.predict(10.0)
    assert answer.status_code == 200, answer.text
    number = answer.headers["X-Model-Version"]
    assert answer.json() == {"predictions": {"y": [[10.0 + int(number)]]}}
    return number == version


def wait_served(served, version):
    wait_until(lambda: serves(served, version), PATIENCE, f"version {version} answers")


def wait_error(served, words, version="1"):
    def is_said():
        assert serves(served, version)
        return words in agent(served).error

    wait_until(is_said, PATIENCE, f"{words!r} in the agent's error {agent(served).error!r}")


def metrics(served):
    return requests.get(f"{served.url}/metrics", timeout=PATIENCE).text


def asked(served, folder, rate):
    values = {str(version): f"[[{10.0 + version}]]".encode() for version in (1, 2, 3)}
    return OpenLoop(
        int(served.url.rpartition(":")[2]),
        post("/invocations", BODY),
        values,
        rate,
        folder / "kept.npy",
    )


def swap(model, served, times):
    for number in range(times):
        version = "2" if number % 2 == 0 else "1"
        model.promote(version)
        wait_until(
            lambda: loaded(served) == [version] * 2,  # noqa: B023
            PATIENCE,
            f"both workers serve {version}",
        )


def assert_unnoticed(answers, least):
    assert answers.failed == 0
    assert answers.mixed == 0
    assert len(answers.due) >= least
    assert {1, 2} <= set(answers.version.tolist())


@pytest.mark.long
@pytest.mark.timeout(900)
def test_fifty_swaps_at_half_the_peak_rate_are_not_noticed(serve, model, tmp_path):
    from benchmarks.serving.load import Target, closed_loop

    served = serve(model.uri, "-w", "2").wait_ready()
    port = int(served.url.rpartition(":")[2])
    peak = closed_loop(Target(port, post("/invocations", BODY), b"[[11.0]]"), 16, 3.0).rate
    with asked(served, tmp_path, rate=peak / 2) as load:
        swap(model, served, 50)
        answers = load.stop()
    assert_unnoticed(answers, least=1000)


@pytest.mark.long
def test_a_registry_that_hangs_or_talks_nonsense_is_outlived_also_by_a_server_that_is_started_anew(
    serve, model, proxy
):
    served = serve(model.uri).wait_ready()
    proxy.turn("<html><body>Welcome to the portal</body></html>")
    wait_error(served, "does not answer correctly")
    assert served.url not in agent(served).error
    assert re_metric(metrics(served), "onnxserve_agent_errors") == 1.0
    proxy.turn("hang")
    model.promote("2")
    assert served.end() == 0

    again = serve(model.uri).wait_ready()
    assert serves(again, "1")
    proxy.turn("honest")
    wait_served(again, "2")
    wait_until(lambda: agent(again).error == "", PATIENCE, "all is well")
    assert re_metric(metrics(again), "onnxserve_agent_errors") == 0.0


def re_metric(page, name):
    return float(
        next(line for line in page.splitlines() if line.startswith(name + " ")).rpartition(" ")[2]
    )


@pytest.mark.long
@pytest.mark.parametrize(
    ("mood", "status"),
    [("refuse", 200), ("oops", 500), ('{"registered_model": 7}', 200), ("[]", 200), ("hang", 200)],
)
def test_whatever_the_registry_does_serving_goes_on_and_following_comes_back(
    serve, model, proxy, mood, status
):
    served = serve(model.uri).wait_ready()
    proxy.turn(mood, status=status)
    model.promote("2")
    wait_until(
        lambda: serves(served, "1") and agent(served).error,
        PATIENCE,
        "the agent says what is wrong",
    )
    proxy.turn("honest")
    wait_served(served, "2")


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_registry_that_is_stopped_for_a_minute_is_not_missed(serve, model, tmp_path, monkeypatch):
    registry = MlflowServer(tmp_path / "own")
    shutil.copytree(model.mlflow.folder, registry.folder)
    registry.start()
    try:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", registry.url)
        served = serve(model.uri).wait_ready()
        registry.kill()
        until = time.monotonic() + 60
        while time.monotonic() < until:
            assert serves(served, "1")
            time.sleep(0.05)
        assert "does not answer" in agent(served).error
        registry.start()
        Model(model.name, registry).promote("2")
        wait_served(served, "2")
    finally:
        registry.kill()


@pytest.mark.long
@pytest.mark.parametrize("fault", ["gone", "corrupt", "disk full"])
def test_unfetchable_version_is_reported_everywhere_and_served_once_it_can_be(
    serve, model, sources, fault
):
    served = serve(model.uri).wait_ready()
    file = model.file("2")
    saved = file.read_bytes()
    process = psutil.Process(agent(served).pid)
    if fault == "gone":
        file.unlink()
    elif fault == "corrupt":
        file.write_bytes(b"\0" + saved[1:-1])
    else:
        process.rlimit(psutil.RLIMIT_FSIZE, (64 * 1024, resource.RLIM_INFINITY))
    try:
        model.promote("2")
        wait_until(lambda: serves(served, "1") and agent(served).refused, PATIENCE, "it is refused")
        (refused,) = agent(served).refused
        assert refused.model == model.name
        assert refused.version == "2"
        assert refused.cause in ("fetch", "load")
        assert mentions(served.log.read_text(), "version 2", "cannot be")
        labels = f'model="{model.name}",variant="{model.name}",version="2"'
        wait_until(lambda: f"{labels}}} 1.0" in metrics(served), PATIENCE, "the metric")
        wait_until(lambda: model.tags("2").get("onnxserve.error"), PATIENCE, "the tag")
    finally:
        file.write_bytes(saved)
        process.rlimit(psutil.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    if refused.cause == "fetch":
        wait_served(served, "2")
        wait_until(lambda: "onnxserve.error" not in model.tags("2"), PATIENCE, "the tag goes")
    else:
        # The worker keeps the fetched version, because the registry guarantees that a
        # version never changes.
        model.promote("3")
        wait_served(served, "3")


@pytest.mark.long
@pytest.mark.parametrize("who", ["agent", "worker"])
def test_who_is_killed_in_the_middle_of_a_swap_is_replaced_and_the_swap_is_finished(
    serve, model, who
):
    served = serve(model.uri, "-w", "2").wait_ready()
    for version in ("2", "1", "2"):
        model.promote(version)
        if who == "agent":
            wait_until(
                lambda: "version" in agent(served).error or wanted(served) == version,  # noqa: B023
                PATIENCE,
            )
            wait_until(
                lambda: psutil.pid_exists(agent(served).pid), PATIENCE, "the one before is replaced"
            )
            os.kill(agent(served).pid, signal.SIGKILL)
        else:
            wait_until(lambda: wanted(served) == version, PATIENCE)  # noqa: B023
            os.kill(read_workers(served.state_dir)[0].pid, signal.SIGKILL)
        wait_until(
            lambda: loaded(served) == [version] * 2,  # noqa: B023
            PATIENCE,
            f"both workers serve {version}",
        )
        wait_until(lambda: _answers(served) == version, PATIENCE, "it answers")  # noqa: B023
    assert agent(served).error == ""


def _answers(served):
    """Return the version that answers; connections to a killed worker break."""
    try:
        return served.version()
    except requests.ConnectionError:
        return ""


@pytest.mark.long
def test_a_master_that_is_killed_in_the_middle_of_a_swap_is_started_anew_and_the_swap_is_finished(
    serve, model
):
    served = serve(model.uri).wait_ready()
    children = psutil.Process(served.process.pid).children()
    master = next(child for child in children if child.pid != agent(served).pid)
    model.promote("2")
    wait_until(lambda: wanted(served) == "2", PATIENCE)
    master.kill()
    wait_until(lambda: _answers(served) == "2", PATIENCE, "it answers")
    assert served.process.poll() is None
    assert served.end() == 0


@pytest.mark.long
def test_a_second_agent_of_a_state_folder_ends_at_once(serve, model):
    served = serve(model.uri).wait_ready()
    before = agent(served).pid
    command = [sys.executable, "-m", "mlflow_deploy_plugin.serve.agent", str(served.state_dir)]
    second = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert second.returncode == 1
    assert "another agent" in second.stderr
    assert agent(served).pid == before
    model.promote("2")
    wait_served(served, "2")


@pytest.mark.long
def test_a_version_for_which_memory_lacks_is_refused_politely(serve, model, tmp_path):
    with tracking_at(model.mlflow.url), mlflow.start_run(experiment_id=DEFAULT_EXPERIMENT):
        many = ", ".join(["1"] * (8 * 2**20 // 4))
        graph = parse_graph(
            f"big (float[N,1] x) => (float[N,1] y) <float[{8 * 2**20 // 4}] many = {{{many}}}, "
            "int64[1] at = {7}> { one = Gather(many, at)\n"
            " y = Add(x, one) }"
        )
        mlflow.onnx.log_model(
            graph, name="big", registered_model_name=model.name, pip_requirements=["onnxruntime"]
        )
    served = serve(model.uri, "-C", f"server.max_worker_memory_bytes={64 * 2**20}").wait_ready()
    used = max(
        psutil.Process(worker.pid).memory_info().rss for worker in read_workers(served.state_dir)
    )
    assert used > 48 * 2**20, "the limit is too wide for this test"
    model.promote("4")
    wait_error(served, "limit is 64 MiB")
