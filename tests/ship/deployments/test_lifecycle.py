"""Tests of creating, changing, repairing and deleting deployments through MLflow's
interface.
"""

import os
import re
import signal
import socket
import threading
from pathlib import Path

import psutil
import pytest
import requests
from mlflow.exceptions import MlflowException

from mlflow_deploy_plugin.core.settings import load_settings
from mlflow_deploy_plugin.core.store.database import open_store
from mlflow_deploy_plugin.ship.deployments.lifecycle import Deployments
from tests.support.cases import long_case
from tests.support.deployments import empty_home, working_in
from tests.support.refusals import mentions, refused

ROWS = [[1, 2], [3, 4.5]]
ONCE = [{"y": 3.0}, {"y": 7.5}]
TWICE = [{"y": 6.0}, {"y": 15.0}]


def answers(client, name="d", endpoint=None):
    return client.predict(name, ROWS, endpoint=endpoint)["predictions"]


def start(name):
    """Start the deployment as `onnxserve start NAME` does, and return the progress."""
    lines = []
    settings = load_settings()
    Deployments(open_store(settings.store_url), settings, lines.append).start(name)
    return lines


def stop(name):
    settings = load_settings()
    Deployments(open_store(settings.store_url), settings, lambda line: None).stop(name)


def left_behind(tmp_path, client):
    """Return the deployments, files and processes that a failed create should not have
    left.
    """
    return [*client.list_deployments(), *(tmp_path / "home" / "deployments").glob("*")]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("lifecycle")


@pytest.fixture(scope="module")
def opened(home):
    with empty_home(home) as client:
        yield client


@pytest.fixture
def deployed(opened, models):
    """Return a client whose deployment `d` serves the model `once`, regardless of
    earlier tests.
    """
    change = opened.update_deployment if opened.list_deployments() else opened.create_deployment
    change("d", models.once)
    return opened


@pytest.mark.long
def test_next_port_is_used_if_taken_meanwhile(client, models):
    settings = load_settings()
    taken = []

    def take(line):
        if not taken and (started := re.fullmatch(r"d: starting the server on port (\d+)", line)):
            taken.append(socket.create_server(("127.0.0.1", int(started[1]))))

    try:
        Deployments(open_store(settings.store_url), settings, take).create("d", models.once, {})
        assert answers(client) == ONCE
        assert client.get_deployment("d")["url"] != f"http://127.0.0.1:{taken[0].getsockname()[1]}"
    finally:
        for listener in taken:
            listener.close()


@pytest.mark.long
def test_create_update_and_delete(client, models, free_port, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(Path(models.once).parent)
    created = client.create_deployment("d", "once", config={"server.port": str(free_port)})
    assert created["model_uri"] == models.once
    assert created["url"] == f"http://127.0.0.1:{free_port}"
    assert mentions(capsys.readouterr().err, "d: ready", f"http://127.0.0.1:{free_port}")
    assert answers(client) == ONCE

    updated = client.update_deployment("d", models.twice, config={"capture.fraction": "0.5"})
    assert updated["pid"] == created["pid"]
    assert updated["model_uri"] == models.twice
    assert updated["version"] != created["version"]
    assert answers(client) == TWICE

    with refused(MlflowException, "ONNX Runtime", code="INTERNAL_ERROR"):
        client.update_deployment("d", models.broken)
    assert client.get_deployment("d")["model_uri"] == models.twice
    assert answers(client) == TWICE

    client.delete_deployment("d")
    assert left_behind(tmp_path, client) == []
    with pytest.raises(requests.ConnectionError):
        requests.get(f"{created['url']}/ping", timeout=5)


@pytest.mark.long
def test_killed_server_is_restarted_on_its_port(deployed, home):
    before = deployed.get_deployment("d")
    os.kill(before["pid"], signal.SIGKILL)
    psutil.wait_procs([p for p in working_in(home) if p.pid == before["pid"]], timeout=60)

    dead = deployed.get_deployment("d")
    assert dead["state"] == "failed"
    assert mentions(dead["reason"], "`onnxserve start d`")
    assert dead["url"] == ""
    assert dead["pid"] == ""
    assert dead["workers"] == {}
    with refused(MlflowException, "`onnxserve start d`", code="TEMPORARILY_UNAVAILABLE"):
        answers(deployed)

    assert start("d")[-1].startswith(f"d: ready at {before['url']}")
    assert answers(deployed) == ONCE
    assert start("d") != []  # Starting a running deployment is not an error.
    deployment = deployed.get_deployment("d")
    assert deployment["url"] == before["url"]
    assert deployment["restarts"] == 0


@pytest.mark.long
def test_stopped_deployment_keeps_its_port(deployed, models, home):
    url = deployed.get_deployment("d")["url"]

    stop("d")
    stop("d")
    stopped = deployed.get_deployment("d")
    assert stopped["state"] == "stopped"
    assert stopped["reason"] == "`onnxserve start d` starts it"
    assert working_in(home) == []

    with refused(
        MlflowException, f"port {url.rpartition(':')[2]}", "'d'", code="INVALID_PARAMETER_VALUE"
    ):
        deployed.create_deployment(
            "other", models.once, config={"server.port": url.rpartition(":")[2]}
        )
    with refused(MlflowException, "'d'", code="RESOURCE_ALREADY_EXISTS"):
        deployed.create_deployment("d", models.once)
    with refused(MlflowException, "ONNX Runtime", code="INTERNAL_ERROR"):
        deployed.update_deployment("d", models.broken)
    assert deployed.get_deployment("d")["state"] == "stopped"
    assert working_in(home) == []

    server = home / "home" / "deployments" / "d" / "server.json"
    server.write_text(f'{{"pid": {os.getpid()}, "host": "127.0.0.1", "port": 1, "started_at": 1}}')
    assert deployed.get_deployment("d")["state"] == "stopped"
    stop("d")  # The process id is reused, and the other process is not ended.

    updated = deployed.update_deployment("d", models.twice)
    assert updated["state"] == "running"
    assert updated["url"] == url
    assert answers(deployed) == TWICE


@pytest.mark.long
def test_one_of_concurrent_creates_wins(client, models, processes):
    outcomes = []

    def create():
        try:
            outcomes.append(client.create_deployment("d", models.once)["state"])
        except MlflowException as error:
            outcomes.append(error.error_code)

    threads = [threading.Thread(target=create) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(outcomes) == ["RESOURCE_ALREADY_EXISTS", "RESOURCE_ALREADY_EXISTS", "running"]
    assert len({os.getsid(p.pid) for p in processes() if "serve" in p.cmdline()}) == 1


@pytest.mark.parametrize(
    ("model", "said", "code"),
    [
        # tests/serve/runtime tests the message.
        long_case("broken", "ONNX Runtime cannot load model.onnx", "INTERNAL_ERROR"),
        ("nowhere", "the folder /nowhere does not exist", "RESOURCE_DOES_NOT_EXIST"),
        (
            "models:/nowhere",
            "'models:/nowhere' does not select a version",
            "INVALID_PARAMETER_VALUE",
        ),
    ],
)
def test_failed_create_leaves_nothing(client, models, tmp_path, processes, model, said, code):
    uri = getattr(models, model, model if ":" in model else f"/{model}")

    with pytest.raises(MlflowException) as caught:
        client.create_deployment("d", uri)

    assert said in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.error_code == code
    assert left_behind(tmp_path, client) == []
    assert processes() == []


def test_unwritable_home_is_an_error(client, models, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("ONNXSERVE_STORE_URI", f"sqlite:///{tmp_path}/elsewhere.db")
    monkeypatch.setenv("ONNXSERVE_HOME", str(tmp_path / "file" / "home"))
    with refused(MlflowException, f"{tmp_path}/file/home/deployments", "Not a directory"):
        client.create_deployment("d", models.once)
    assert client.list_deployments() == []


@pytest.mark.long
def test_time_limit_ends_a_create(client, models, tmp_path, monkeypatch):
    monkeypatch.setenv("ONNXSERVE_READY_TIMEOUT_SECONDS", "0.2")

    with refused(
        MlflowException, "0.2 s", "ONNXSERVE_READY_TIMEOUT_SECONDS", code="INTERNAL_ERROR"
    ):
        client.create_deployment("d", models.once)

    assert left_behind(tmp_path, client) == []


@pytest.mark.long
def test_only_valid_server_changes_restart_it(deployed, free_port, taken_port):
    before = deployed.get_deployment("d")

    with refused(MlflowException, f"port {taken_port}", "in use", code="INVALID_PARAMETER_VALUE"):
        deployed.update_deployment("d", config={"server.port": taken_port})
    assert deployed.get_deployment("d")["pid"] == before["pid"]

    moved = deployed.update_deployment("d", config={"server.port": free_port, "server.workers": 2})
    assert moved["pid"] != before["pid"]
    assert moved["url"] == f"http://127.0.0.1:{free_port}"
    assert len(moved["workers"]) == 2
    assert answers(deployed) == ONCE
