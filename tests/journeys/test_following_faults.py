"""Tests of following a stage during failures, with real processes, a real MLflow
server, and a proxy in front of it.
"""

import resource
import subprocess
import sys
import uuid
from dataclasses import dataclass

import mlflow
import psutil
import pytest
import requests
from mlflow import MlflowClient

from mlflow_deploy_plugin.core.statedir.files import AGENT, read_state
from mlflow_deploy_plugin.core.statedir.models import AgentState
from tests.support.models import parse_graph
from tests.support.refusals import mentions
from tests.support.services.mlflow_server import MlflowServer
from tests.support.services.proxy import proxy_to
from tests.support.tracking import DEFAULT_EXPERIMENT, tracking_at
from tests.support.waiting import wait_until

PATIENCE = 60.0
BALLAST = 32_768
"""The count of unused numbers in the graph of each version, so that its file has 128
KiB.
"""


@dataclass(frozen=True)
class Model:
    """A registered model whose version n adds n. Version 1 is in Production."""

    name: str
    mlflow: MlflowServer

    @property
    def client(self):
        return MlflowClient(self.mlflow.url)

    @property
    def uri(self):
        return f"models:/{self.name}/Production"

    def promote(self, version):
        self.client.transition_model_version_stage(
            self.name, version, "Production", archive_existing_versions=True
        )

    def tags(self, version):
        return dict(self.client.get_model_version(self.name, version).tags)

    def file(self, version):
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


def wait_error(served, words):
    def is_said():
        assert serves(served, "1")
        return words in agent(served).error

    wait_until(is_said, PATIENCE, f"{words!r} in the agent's error {agent(served).error!r}")


def metrics(served):
    return requests.get(f"{served.url}/metrics", timeout=PATIENCE).text


@pytest.mark.long
def test_server_starts_while_registry_hangs(serve, model, proxy):
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
@pytest.mark.parametrize("fault", ["gone", "corrupt", "disk full"])
def test_unfetchable_version_is_reported_and_served_later(serve, model, sources, fault):
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
def test_second_agent_ends_at_once(serve, model):
    served = serve(model.uri).wait_ready()
    before = agent(served).pid
    command = [sys.executable, "-m", "mlflow_deploy_plugin.serve.agent", str(served.state_dir)]
    second = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert second.returncode == 1
    assert "another agent" in second.stderr
    assert agent(served).pid == before
    model.promote("2")
    wait_served(served, "2")
