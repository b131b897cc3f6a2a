"""Webhooks of a real MLflow server without our app, and deliveries that must be
refused.
"""

import base64
import hashlib
import hmac
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import mlflow
import mlflow.onnx
import pytest
import requests
from cryptography.fernet import Fernet
from mlflow import MlflowClient

from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.core.settings import Settings
from mlflow_deploy_plugin.core.spec.document import new_endpoint
from mlflow_deploy_plugin.core.statedir.files import LOOK
from mlflow_deploy_plugin.core.store.database import open_store
from mlflow_deploy_plugin.core.store.store import Store
from mlflow_deploy_plugin.serve.supervisor import open_listener
from mlflow_deploy_plugin.ship.deployments.lifecycle import Deployments
from mlflow_deploy_plugin.watch.controller.webhooks import start_webhook_receiver
from tests.support.deployments import SIGNATURE, empty_home, weighted_sum
from tests.support.refusals import mentions, refused
from tests.support.services.mlflow_server import MlflowServer
from tests.support.tracking import DEFAULT_EXPERIMENT, NewDatabase, tracking_at
from tests.support.waiting import free_port, wait_until

SECRET = "s3cret of the webhook"
ALIAS_EVENT = "model_version_alias"


@dataclass(frozen=True)
class Receiver:
    """A running receiver of the endpoints `flights` and `trips`, which follow models of
    the same names.
    """

    url: str
    settings: Settings

    def send(
        self,
        body: bytes,
        *,
        secret: str = SECRET,
        age: float = 0.0,
        method: str = "POST",
        path: str = "/",
        timestamp: str = "",
    ) -> requests.Response:
        """Send a body that is signed as MLflow signs it."""
        delivery = "7b2e"
        timestamp = timestamp or str(int(time.time() - age))
        digest = hmac.new(
            secret.encode(),
            f"{delivery}.{timestamp}.".encode() + body,
            hashlib.sha256,
        ).digest()
        headers = {
            "X-MLflow-Delivery-Id": delivery,
            "X-MLflow-Timestamp": timestamp,
            "X-MLflow-Signature": f"v1,{base64.b64encode(digest).decode()}",
        }
        return requests.request(
            method,
            self.url + path,
            data=body,
            headers=headers,
            timeout=30,
        )

    def asks(self, endpoint: str) -> bool:
        """Return True if the agent of the endpoint was asked to poll."""
        return (self.settings.state_dir(endpoint) / LOOK).exists()


def event(entity: str = ALIAS_EVENT, model: object = "flights") -> bytes:
    return json.dumps(
        {"entity": entity, "action": "created", "data": {"name": model, "version": "2"}},
    ).encode()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with closing(open_store(f"sqlite:///{tmp_path}/store.db")) as opened:
        for name in ("flights", "trips"):
            opened.add_endpoint("onnxserve", new_endpoint(name, f"models:/{name}@champion"))
        yield opened


@contextmanager
def receiving(store: Store, tmp_path: Path, **options: Any) -> Iterator[Receiver]:
    settings = Settings(home=tmp_path, webhook_secret=SECRET)
    for name in ("flights", "trips"):
        settings.state_dir(name).mkdir(parents=True)
    listener = open_listener("127.0.0.1", 0)
    server = start_webhook_receiver(Deployments(store, settings, print), listener, **options)
    yield Receiver(f"http://127.0.0.1:{listener.getsockname()[1]}", settings)
    server.should_exit = True


@pytest.fixture
def receiver(store: Store, tmp_path: Path) -> Iterator[Receiver]:
    with receiving(store, tmp_path) as receiver:
        yield receiver


@pytest.mark.parametrize(
    "entity",
    ["registered_model", "model_version", "model_version_tag", "model_version_alias"],
)
def test_an_event_of_a_model_makes_only_its_agents_poll(receiver: Receiver, entity: str) -> None:
    assert receiver.send(event(entity), path="/mlflow/hook").status_code == 200
    wait_until(lambda: receiver.asks("flights"))
    assert not receiver.asks("trips")


@pytest.mark.parametrize(
    ("delivery", "status"),
    [
        pytest.param({"secret": "another"}, 401, id="another secret"),
        pytest.param({"age": 301}, 401, id="a replay after five minutes"),
        pytest.param({"age": -310}, 401, id="a clock that is ahead"),
        pytest.param(
            {"body": event().ljust(1024**2 + 1)},
            413,
            id="too large",
        ),
        pytest.param({"method": "GET"}, 405, id="GET"),
        pytest.param({"method": "PUT"}, 405, id="PUT"),
        pytest.param({"body": b"{"}, 400, id="malformed JSON"),
        pytest.param({"body": b"\xff"}, 400, id="not UTF-8"),
        pytest.param({"timestamp": "yesterday"}, 400, id="a timestamp that is not a number"),
        pytest.param({"timestamp": "9" * 5000}, 400, id="a timestamp of too many digits"),
        pytest.param({"timestamp": "9" * 30}, 401, id="a timestamp of the far future"),
        pytest.param({"body": b"[" * 100_000}, 400, id="a deep list"),
        pytest.param(
            {"body": event(model="deep").replace(b'"deep"', b"[" * 900 + b"]" * 900)},
            200,
            id="a deep name",
        ),
        pytest.param({"body": b"[]"}, 400, id="a list"),
        pytest.param({"body": b"{}"}, 400, id="no entity"),
        pytest.param(
            {"body": b'{"entity": "model_version", "data": "flights"}'},
            400,
            id="no data",
        ),
        pytest.param({"body": event("prompt_alias")}, 200, id="a prompt"),
        pytest.param({"body": b'{"entity": "budget_policy", "data": {}}'}, 200, id="a budget"),
        pytest.param(
            {"body": event(model="of another team")},
            200,
            id="a model that is not served",
        ),
        pytest.param(
            {"body": event(model=["flights"])},
            200,
            id="a list of models",
        ),
    ],
)
def test_other_deliveries_make_no_agent_poll(
    receiver: Receiver,
    delivery: dict[str, Any],
    status: int,
) -> None:
    answer = receiver.send(**{"body": event(), **delivery})

    assert answer.status_code == status
    receiver.send(event(model="trips"))
    # The receiver continues, and has polled for the earlier delivery.
    wait_until(lambda: receiver.asks("trips"))
    assert not receiver.asks("flights")
    assert SECRET not in answer.text


def test_a_delivery_without_headers_is_refused(receiver: Receiver) -> None:
    assert requests.post(receiver.url, data=event(), timeout=30).status_code == 401


def test_silent_connections_do_not_prevent_an_event(receiver: Receiver) -> None:
    address = ("127.0.0.1", int(receiver.url.rpartition(":")[2]))
    with ExitStack() as opened:
        silent = [
            opened.enter_context(socket.create_connection(address, timeout=20)) for _ in range(110)
        ]
        begun = opened.enter_context(socket.create_connection(address, timeout=20))
        begun.sendall(b"POST / HTTP/1.1\r\n")
        assert receiver.send(event()).status_code == 200
        assert is_closed(silent[0])  # The oldest silent connections were closed for the new ones.
        assert receiver.send(event()).status_code == 200
        begun.sendall(b"Host: x\r\nContent-Length: 2\r\n\r\n{}")
        assert begun.recv(100).startswith(b"HTTP/1.1 401 ")


def test_an_upgrade_to_websocket_is_refused_and_does_not_prevent_an_event(
    receiver: Receiver,
) -> None:
    address = ("127.0.0.1", int(receiver.url.rpartition(":")[2]))
    with ExitStack() as opened:
        upgrade = opened.enter_context(socket.create_connection(address, timeout=20))
        upgrade.sendall(
            b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
        )
        assert upgrade.recv(100).startswith(b"HTTP/1.1 405 ")
        silent = [
            opened.enter_context(socket.create_connection(address, timeout=20)) for _ in range(110)
        ]
        assert receiver.send(event()).status_code == 200
        assert is_closed(silent[0])


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"POST / HTTP/1.1\r\nHost: x\r\n", id="an incomplete head"),
        pytest.param(
            b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{",
            id="an incomplete body",
        ),
    ],
)
def test_a_request_that_does_not_arrive_in_time_ends(
    store: Store,
    tmp_path: Path,
    sent: bytes,
) -> None:
    with receiving(store, tmp_path, request_seconds=0.2) as receiver:
        address = ("127.0.0.1", int(receiver.url.rpartition(":")[2]))
        with socket.create_connection(address, timeout=20) as client:
            client.sendall(sent)
            assert is_closed(client)
        assert receiver.send(event()).status_code == 200


def is_closed(client: socket.socket) -> bool:
    """Wait until the server closes the connection, and return False if it sends bytes
    instead.
    """
    try:
        return client.recv(1) == b""
    except ConnectionError:
        return True


def test_unsigned_events_are_logged_once_per_minute(
    store: Store,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    now = 1000.0
    with receiving(store, tmp_path, clock=lambda: now) as receiver:
        for _ in range(3):
            assert receiver.send(event(), secret="another").status_code == 401
        assert len(caplog.records) == 1
        now += 61
        receiver.send(event(), secret="another")
        assert len(caplog.records) == 2
    assert mentions(caplog.records[0].getMessage(), "not signed", "ONNXSERVE_WEBHOOK_SECRET")


def test_a_poll_that_fails_does_not_end_the_receiver(
    receiver: Receiver,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    failed = threading.Event()

    def fail(self: Store) -> NoReturn:
        failed.set()
        raise ValueError("a defect")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "endpoints", fail)
        assert receiver.send(event()).status_code == 200
        assert failed.wait(30)
    assert receiver.send(event()).status_code == 200
    wait_until(lambda: receiver.asks("flights"))


def test_a_receiver_without_a_secret_is_refused(store: Store) -> None:
    with (
        open_listener("127.0.0.1", 0) as listener,
        refused(InvalidConfig, "--webhook-port", "ONNXSERVE_WEBHOOK_SECRET"),
    ):
        start_webhook_receiver(Deployments(store, Settings(), print), listener)


@pytest.mark.long
def test_a_port_in_use_is_refused_in_one_line(
    taken_port: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ONNXSERVE_HOME", str(tmp_path))
    monkeypatch.setenv("ONNXSERVE_WEBHOOK_SECRET", SECRET)
    command = [
        sys.executable,
        "-m",
        "mlflow_deploy_plugin.cli",
        "controller",
        "--webhook-port",
        str(taken_port),
    ]

    ended = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )

    assert ended.returncode == 1
    assert ended.stderr.count("\n") == 1
    assert mentions(ended.stderr, str(taken_port), "--webhook-port")


@pytest.fixture
def mlflow_with_webhooks(
    tmp_path: Path,
    new_database: NewDatabase,
) -> Iterator[MlflowServer]:
    """An MLflow server without our app that sends webhooks to this machine."""
    server = MlflowServer(tmp_path / "mlflow")
    server.folder.mkdir()
    new_database(server.folder)
    server.variables = {
        "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http",
        "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
        "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": Fernet.generate_key().decode(),
    }
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.fixture
def controller_port(
    mlflow_with_webhooks: MlflowServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[int]:
    """The port of a controller that receives webhooks. Its agents poll MLflow every
    five minutes.
    """
    port = free_port()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_with_webhooks.url)
    monkeypatch.setenv("ONNXSERVE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ONNXSERVE_POLL_SECONDS", "300")
    monkeypatch.setenv("ONNXSERVE_WEBHOOK_SECRET", SECRET)
    command = [
        sys.executable,
        "-m",
        "mlflow_deploy_plugin.cli",
        "controller",
        "--webhook-port",
        str(port),
    ]
    with subprocess.Popen(command) as controller:
        wait_until(lambda: is_open(port), what="the controller listens")
        yield port
        controller.terminate()
        assert controller.wait(60) == 0
    assert not is_open(port)


def is_open(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.long
def test_an_alias_that_is_set_in_mlflow_is_served_within_seconds(
    mlflow_with_webhooks: MlflowServer,
    controller_port: int,
    tmp_path: Path,
) -> None:
    registry = MlflowClient(mlflow_with_webhooks.url)
    with tracking_at(mlflow_with_webhooks.url), mlflow.start_run(experiment_id=DEFAULT_EXPERIMENT):
        for factor in (1.0, 2.0):
            graph = weighted_sum(factor)
            options = {"signature": SIGNATURE, "pip_requirements": ["onnxruntime"]}
            mlflow.onnx.log_model(graph, name="model", registered_model_name="flights", **options)
    url = f"http://127.0.0.1:{controller_port}"
    events = ["model_version_alias.created", "model_version_tag.set"]
    webhook = registry.create_webhook("onnxserve", url, events, secret=SECRET)
    assert registry.test_webhook(webhook.webhook_id).response_status == 200
    registry.set_registered_model_alias("flights", "champion", "1")
    with empty_home(tmp_path) as client:
        client.create_deployment("flights", "models:/flights@champion")
        assert client.get_deployment("flights")["version"] == "1"

        registry.set_registered_model_alias("flights", "champion", "2")

        wait_until(
            lambda: client.get_deployment("flights")["version"] == "2",
            60,
            "version 2 is served",
        )
