"""Tests of nginx with four real servers of one registry."""

import os
import re
import shutil
import signal
import threading
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field

import grpc
import mlflow
import pytest
import requests
from mlflow import MlflowClient

from mlflow_deploy_plugin.contrib.replicas.routing import nginx_conf
from mlflow_deploy_plugin.core.spec.parts import ProxySpec, ServerSpec
from mlflow_deploy_plugin.serve.grpc import inference_pb2 as messages
from tests.support.commands import done
from tests.support.servers import single_model
from tests.support.serving import servers_below
from tests.support.waiting import free_port, wait_until

pytestmark = pytest.mark.long
NAMES = [f"team-{number}" for number in range(24)]
ROW = {"inputs": [[1.0, 2.0, 3.0]]}


class Replicas:
    """Four servers behind nginx; the settings of `server` apply to each."""

    def __init__(self, nginx, serve, options=(), **spec):
        self._serve = serve
        self._options = options
        self.ports = [free_port() for _ in range(4)]
        self.grpc_ports = [free_port() for _ in range(4)]
        self.served = [self.start(number) for number in range(4)]
        for served in self.served:
            served.wait_ready(250)
        listen = {"http": f"127.0.0.1:{free_port()}", "grpc": f"127.0.0.1:{free_port()}"}
        self.url = f"http://{listen['http']}"
        self.grpc = listen["grpc"]
        addresses = [
            {"http": f"127.0.0.1:{port}", "grpc": f"127.0.0.1:{grpc_port}"}
            for port, grpc_port in zip(self.ports, self.grpc_ports, strict=True)
        ]
        server = ServerSpec(api_keys="server.api_keys=true" in options)
        self.config = nginx_conf(ProxySpec(replicas=4, **spec), server, listen, addresses)
        self.proxy = nginx(self.config)

    def start(self, number):
        options = ["-p", str(self.ports[number]), "-C"]
        options += [f"server.grpc_port={self.grpc_ports[number]}", *self._options]
        return self._serve("--registry", "@champion", *options, state=f"state-{number}")

    def loaded(self):
        """Return the numbers of the replicas that have loaded each model."""
        places: dict[str, set[int]] = {name: set() for name in NAMES}
        for number, served in enumerate(self.served):
            for name in re.findall(r"loaded (\S+) ", served.log.read_text()):
                places[name].add(number)
        return places

    def ask(self, name, **headers):
        url = f"{self.url}/models/{name}/invocations"
        return requests.post(url, json=ROW, headers=headers, timeout=60)


def register(name, folder):
    """Register a new version and make it the champion."""
    client = MlflowClient()
    version = client.create_model_version(name, folder.as_uri()).version
    client.set_registered_model_alias(name, "champion", version)


@pytest.fixture
def replicas(tmp_path, new_mlflow, new_home, nginx, monkeypatch):
    """Return a function that starts the replicas with options of `serve`."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow.get_tracking_uri())
    for number, name in enumerate(NAMES):
        MlflowClient().create_registered_model(name)
        register(name, single_model(tmp_path / f"m{number}", float(number)))
    with servers_below(tmp_path) as serve:
        yield lambda *options, **spec: Replicas(nginx, serve, options, **spec)


@dataclass
class Traffic:
    """Clients that ask the models in turn until they are stopped.

    Attributes:
        answered: the name and the status of each answer.
    """

    url: str
    answered: list[tuple[str, int]] = field(default_factory=list)
    stopped: threading.Event = field(default_factory=threading.Event)

    def run(self, names):
        with requests.Session() as session:
            while not self.stopped.is_set():
                for name in names:
                    url = f"{self.url}/models/{name}/invocations"
                    answer = session.post(url, json=ROW, timeout=60)
                    assert answer.json() == {"predictions": [[6.0 + NAMES.index(name)]]}
                    self.answered.append((name, answer.status_code))

    def wait(self, count):
        """Wait for further answers."""
        count += len(self.answered)
        wait_until(lambda: len(self.answered) > count, 120, "answers")

    @contextmanager
    def running(self):
        clients = [threading.Thread(target=self.run, args=(NAMES[part::3],)) for part in range(3)]
        for client in clients:
            client.start()
        try:
            yield
        finally:
            self.stopped.set()
            for client in clients:
                client.join(60)


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM])
def test_ending_replica_fails_no_request(replicas, ending):
    running = replicas()
    traffic = Traffic(running.url)
    with running.proxy:
        for name in NAMES:
            assert running.ask(name).status_code == 200
        before = running.loaded()
        assert {len(places) for places in before.values()} == {1}
        with traffic.running():
            traffic.wait(300)
            ended = running.served[1]
            if ending == signal.SIGKILL:
                # As if the machine fails: no process answers that another one is gone.
                os.killpg(ended.process.pid, signal.SIGSTOP)
                os.killpg(ended.process.pid, signal.SIGKILL)
            assert ended.end(ending) in (0, -signal.SIGKILL)
            traffic.wait(600)
            running.served.append(running.start(1).wait_ready(250))
            traffic.wait(600)
    assert Counter(status for _, status in traffic.answered) == {200: len(traffic.answered)}
    assert {name for name, _ in traffic.answered} == {*NAMES}
    after = running.loaded()
    moved = {name for name in NAMES if after[name] - {4} != before[name]}
    assert moved == {name for name in NAMES if before[name] == {1}}
    assert {len(after[name] - {1, 4}) for name in moved} == {1}


def test_hot_model_is_loaded_twice_and_others_once(replicas):
    running = replicas(hot_requests_per_second=20)
    with running.proxy, requests.Session() as session:
        for name in NAMES:
            assert running.ask(name).status_code == 200
        url = f"{running.url}/models/team-3/invocations"
        assert {session.post(url, json=ROW).status_code for _ in range(300)} == {200}
    loaded = running.loaded()
    assert {name: len(places) for name, places in loaded.items() if len(places) > 1} == {
        "team-3": 2
    }


def test_keys_and_broken_models_pass_the_proxy(replicas, tmp_path):
    broken = shutil.copytree(tmp_path / "m0", tmp_path / "broken")
    (broken / "model.onnx").write_bytes(b"not a graph")
    register("team-0", broken)
    key = done("keys create shop --endpoint team-1 --endpoint team-0 --scope infer").strip()
    running = replicas("-C", "server.api_keys=true")
    with running.proxy:
        mine = {"Authorization": f"Bearer {key}"}
        refused = running.ask("team-1")
        assert refused.status_code == 401
        assert "onnxserve keys create" in refused.json()["message"]
        assert running.ask("team-1", **mine).status_code == 200
        assert running.ask("team-2", **mine).status_code == 403
        answers = [running.ask("team-0", **mine) for _ in range(5)]
        assert {answer.status_code for answer in answers} == {503}
        assert "model.onnx" in answers[0].json()["message"]
        assert requests.get(f"{running.url}/v2/health/ready", timeout=30).ok
    assert running.loaded()["team-1"] != set()


def test_grpc_is_routed_by_its_header(replicas):
    running = replicas()
    infer = messages.ModelInferRequest(
        inputs=[
            messages.ModelInferRequest.InferInputTensor(
                name="X",
                datatype="FP32",
                shape=[1, 3],
                contents=messages.InferTensorContents(fp32_contents=[1, 2, 3]),
            )
        ]
    )
    with running.proxy, grpc.insecure_channel(running.grpc) as channel:
        call = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            messages.ModelInferRequest.SerializeToString,
            messages.ModelInferResponse.FromString,
        )
        for header in ("mm-model-id", "mm-vmodel-id"):
            for number, name in enumerate(NAMES[:6]):
                infer.model_name = name
                for _ in range(3):
                    answer = call(infer, metadata=[(header, name)], timeout=60)
                    assert answer.outputs[0].contents.fp32_contents == [6.0 + number]
        # The same replica answers over HTTP.
        for name in NAMES[:6]:
            assert running.ask(name).status_code == 200
        assert {len(places) for places in [*running.loaded().values()][:6]} == {1}
        infer.model_name = "team-9"
        assert call(infer, timeout=60).outputs[0].contents.fp32_contents == [15.0]
