"""Endpoints through MLflow's own interface: created empty, filled, their traffic moved
while they serve, deleted.
"""

import json
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
import requests
from click.testing import CliRunner
from mlflow.deployments.cli import commands
from mlflow.exceptions import MlflowException

from mlflow_deploy_plugin.core.errors import DeploymentFailed
from mlflow_deploy_plugin.core.settings import Settings
from mlflow_deploy_plugin.core.spec.document import apply_config, new_endpoint
from mlflow_deploy_plugin.core.spec.parts import EndpointSpec
from mlflow_deploy_plugin.core.store.audit import current_actor
from mlflow_deploy_plugin.core.store.database import open_store
from mlflow_deploy_plugin.core.store.tables import EndpointRow
from mlflow_deploy_plugin.ship.deployments.backends.targets import parse_target
from mlflow_deploy_plugin.ship.deployments.endpoints import Endpoints
from mlflow_deploy_plugin.ship.deployments.lifecycle import open_deployments
from tests.support.clusters import silent_api
from tests.support.commands import said
from tests.support.deployments import empty_home
from tests.support.refusals import mentions, refused
from tests.support.traffic import Traffic
from tests.support.waiting import wait_until

ROWS = [[1, 2], [3, 4.5]]
ONCE = [{"y": 3.0}, {"y": 7.5}]


def silently(line):
    """Ignore progress."""


def events(endpoint):
    with open_deployments(silently) as deployments:
        return [*deployments.store.events(endpoint)]


def answered(client, count=40):
    """Return the first prediction of requests to the endpoint e, with its number."""
    url = client.get_endpoint("e")["url"]
    seen = Counter()
    with requests.Session() as session:
        for _ in range(count):
            answer = session.post(f"{url}/invocations", json={"inputs": ROWS}, timeout=30)
            seen[answer.json()["predictions"][0]["y"]] += 1
    return seen


@pytest.mark.long
def test_endpoint_lifecycle(client, models, free_port, tmp_path):
    created = client.create_endpoint(
        "e", {"server.port": str(free_port), "capture.fraction": "0.5"}
    )
    assert created["state"] == "empty"
    assert "--endpoint e" in created["reason"]
    with refused(MlflowException, "e", "empty", "no deployment", code="TEMPORARILY_UNAVAILABLE"):
        client.predict(None, ROWS, endpoint="e")
    with refused(MlflowException, "'e'", "--endpoint e", code="RESOURCE_ALREADY_EXISTS"):
        client.create_deployment("e", models.once)
    with refused(MlflowException, "ONNX Runtime", code="INTERNAL_ERROR"):
        client.create_deployment("champion", models.broken, endpoint="e")
    assert client.list_deployments("e") == []
    assert list((tmp_path / "home" / "deployments").glob("*")) == []

    client.create_deployment("champion", models.once, endpoint="e")
    client.create_deployment("challenger", models.twice, endpoint="e")
    url = client.get_endpoint("e")["url"]
    assert url == f"http://127.0.0.1:{free_port}"
    assert client.predict(None, ROWS, endpoint="e")["predictions"] == ONCE

    client.delete_deployment("challenger", endpoint="e")
    client.delete_deployment("champion", endpoint="e")
    assert client.get_endpoint("e")["state"] == "empty"
    again = client.create_deployment("other", models.twice, endpoint="e")
    assert again["url"] == url
    assert again["weight"] == 100

    client.delete_endpoint("e")
    assert [*client.list_endpoints(), *client.list_deployments()] == []
    assert [event.action for event in events("e")][:2] == ["create", "update"]
    assert [event.action for event in events("e")][-1] == "delete"
    undone = [event.why for event in events("e") if event.why]
    assert len(undone) == 1
    assert undone[0].startswith("undone: e: deployment champion: ONNX Runtime cannot load")


def write_spec(text, more=""):
    """Replace the stored spec of the endpoint e by a text, or add a text to it."""
    with open_deployments(silently) as deployments, deployments.store.transaction() as session:
        row = session.get(EndpointRow, "e")
        assert row is not None
        row.spec = text or row.spec + more


@pytest.mark.parametrize("more", ["sampling: often\n", "server.port: 1\n"])
def test_unreadable_spec_keeps_its_port(client, free_port, more):
    client.create_endpoint("e", {"server.port": str(free_port)})
    write_spec("", more)
    with refused(MlflowException, f"port {free_port}", "'e'", code="INVALID_PARAMETER_VALUE"):
        client.create_endpoint("f", {"server.port": free_port})


@pytest.mark.parametrize("text", ["{", "server: 8080", "- e", "server: {port: soon}"])
def test_unreadable_spec_without_port_keeps_none(client, free_port, text):
    client.create_endpoint("e", {})
    write_spec(text)
    assert client.create_endpoint("f", {"server.port": free_port})["state"] == "empty"


@pytest.mark.long
def test_traffic_changes_fail_no_request(client, models):
    client.create_deployment("champion", models.once, config={"server.workers": 2}, endpoint="e")
    client.create_deployment("challenger", models.twice, endpoint="e")
    before = client.get_endpoint("e")
    traffic = Traffic(before["url"], width=2)
    traffic.start()
    try:
        assert answered(client) == {3.0: 40}
        client.update_endpoint("e", {"traffic": {"champion": 0, "challenger": 5}})
        assert answered(client) == {6.0: 40}
        client.update_endpoint(
            "e", {"traffic.champion": "50", "traffic.challenger": "50", "capture.fraction": "0"}
        )
        assert set(answered(client)) == {3.0, 6.0}
        with open_deployments(silently) as deployments:
            observed = deployments.set_traffic(
                "e", {"champion": 100}, why="enough seen", actor="anna@desk"
            )
        assert observed.endpoint.spec.variants["challenger"].weight == 0
        assert answered(client) == {3.0: 40}
        client.create_deployment(
            "third", models.twice, endpoint="e", config={"traffic.third": 1, "traffic.champion": 0}
        )
        client.delete_deployment("champion", endpoint="e")
        assert answered(client) == {6.0: 40}
    finally:
        traffic.stop()
    assert {status for _, status in traffic.answers} == {200}
    after = client.get_endpoint("e")
    assert after["pid"] == before["pid"]
    assert set(after["workers"]) == set(before["workers"])

    change = next(event for event in events("e") if event.action == "traffic")
    assert change.actor == "anna@desk"
    assert change.why == "enough seen"
    assert change.before.split(", ") == ["champion 50", "challenger 50"]
    assert change.after.split(", ") == ["champion 100", "challenger 0"]


@pytest.fixture(scope="module")
def shared(tmp_path_factory, models):
    """A client with an endpoint e, which no test changes: of champion, challenger and a
    shadow.
    """
    with empty_home(tmp_path_factory.mktemp("shared")) as opened:
        opened.create_deployment("champion", models.once, endpoint="e")
        opened.create_deployment("challenger", models.twice, endpoint="e")
        opened.create_deployment(
            "copy", models.twice, endpoint="e", config={"variants.copy.shadow": "true"}
        )
        opened.create_endpoint("empty")
        yield opened


@pytest.mark.long
def test_monitor_change_keeps_the_server(shared):
    lines = []
    with open_deployments(lines.append) as deployments:
        deployments.update_endpoint(
            "e", {"monitors.daily.kind": "service_level", "monitors.daily.require": "p99<1s"}
        )
        assert list(deployments.store.require_endpoint("e").spec.monitors) == ["daily"]
        deployments.remove_monitor("e", "daily", "")
    assert lines == []


@pytest.mark.long
def test_get_and_list_describe_endpoints(shared, models):
    got = shared.get_endpoint("e")

    assert json.loads(json.dumps(got))["traffic"] == {"champion": 100, "challenger": 0}
    assert got["shadows"] == ["copy"]
    assert got["reason"] == ""
    assert got["error"] == ""
    champion = got["deployments"]["champion"]
    assert champion["model_uri"] == models.once
    assert champion["state"] == "running"
    assert champion["flavor"] == "onnx"
    (versions,) = got["workers"].values()
    assert versions == {name: entry["version"] for name, entry in got["deployments"].items()}
    listed = shared.list_endpoints()
    assert json.loads(json.dumps(listed)) == listed
    assert [(entry["name"], entry["state"], entry["deployments"]) for entry in listed] == [
        ("e", "running", ["champion", "challenger", "copy"]),
        ("empty", "empty", []),
    ]


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A client with the endpoints of `shared`, without a server."""
    variants = {
        "champion": {"model": "m"},
        "challenger": {"model": "m", "weight": 0},
        "copy": {"model": "m", "shadow": True},
    }
    with empty_home(tmp_path_factory.mktemp("stored")) as opened:
        opened.create_endpoint("empty")
        with open_deployments(silently) as deployments:
            spec = EndpointSpec.model_validate({"name": "e", "variants": variants})
            deployments.store.add_endpoint("onnxserve", spec)
        yield opened


@pytest.mark.parametrize(
    ("call", "names", "code"),
    [
        (lambda c: c.create_endpoint("e"), ["'e'"], "RESOURCE_ALREADY_EXISTS"),
        (lambda c: c.create_endpoint("../x"), ["letters, digits"], "INVALID_PARAMETER_VALUE"),
        (lambda c: c.get_endpoint("no"), ["no endpoint 'no'"], "RESOURCE_DOES_NOT_EXIST"),
        (lambda c: c.update_endpoint("no", {}), ["no endpoint 'no'"], "RESOURCE_DOES_NOT_EXIST"),
        (
            lambda c: c.update_endpoint("e", {"traffic": {"no": 1}}),
            ["'no'", "champion, challenger"],
            "INVALID_PARAMETER_VALUE",
        ),
        (
            lambda c: c.update_endpoint("e", {"traffic": {"champion": 101}}),
            ["at most 100"],
            "INVALID_PARAMETER_VALUE",
        ),
        (
            lambda c: c.update_endpoint("e", {"traffic": {"champion": 0}}),
            ["no variant"],
            "INVALID_PARAMETER_VALUE",
        ),
        (
            lambda c: c.update_endpoint("e", {"traffic": {"copy": 1}}),
            ["'copy'", "a shadow"],
            "INVALID_PARAMETER_VALUE",
        ),
        (
            lambda c: c.predict("challenger", ROWS, "e"),
            ["'challenger'", "--endpoint e"],
            "INVALID_PARAMETER_VALUE",
        ),
        (
            lambda c: c.delete_deployment("champion"),
            ["'champion'", "`onnxserve endpoint delete e`"],
            "INVALID_PARAMETER_VALUE",
        ),
        (
            lambda c: c.get_deployment("no", "e"),
            ["deployment 'no'", "endpoint 'e'"],
            "RESOURCE_DOES_NOT_EXIST",
        ),
        (
            lambda c: c.create_deployment("copy", "m", endpoint="e"),
            ["'copy'"],
            "RESOURCE_ALREADY_EXISTS",
        ),
    ],
)
def test_failed_call_raises_mlflow_exception(stored, call, names, code):
    with refused(MlflowException, *names, code=code):
        call(stored)
    assert stored.get_endpoint("e")["traffic"] == {"champion": 100, "challenger": 0}


def test_mlflow_endpoint_commands_work_except_create(stored):
    def typed(command, *arguments):
        return CliRunner().invoke(commands, [command, "-t", "onnxserve", *arguments])

    assert "'name': 'e'" in typed("list-endpoints").stdout
    shown = typed("get-endpoint", "--endpoint", "e").stdout.splitlines()
    assert {"state: failed", "traffic: {'champion': 100, 'challenger': 0}"} <= {*shown}
    update = ("update-endpoint", "--endpoint", "empty", "-C", "capture.fraction=0.5")
    assert typed(*update).exit_code == 0
    deleted = typed("delete-endpoint", "--endpoint", "nobody")
    assert mentions(said(deleted), "no endpoint 'nobody'")
    # This is a bug of MLflow.
    assert isinstance(typed("create-endpoint", "--endpoint", "x").exception, TypeError)


def test_messages_name_the_target_of_the_endpoint(client):
    with open_deployments(silently, parse_target("onnxserve:/docker")) as deployments:
        reason = deployments.create_endpoint("e", {}).observation.reason
    assert mentions(reason, "`mlflow deployments create -t onnxserve:/docker --endpoint e …`")
    with refused(MlflowException, "`-t onnxserve:/docker`"):
        client.get_endpoint("e")


def test_cluster_changes_are_serialized_across_machines(tmp_path):
    url = f"sqlite:///{tmp_path}/store.db"
    target = parse_target("onnxserve:/kubernetes/ml")
    messages = []
    done = []
    with closing(open_store(url)) as store, closing(open_store(url)) as same:
        here, there = (
            Endpoints(opened, Settings(home=tmp_path / name), messages.append, target)
            for name, opened in {"here": store, "there": same}.items()
        )
        store.add_endpoint(str(target), new_endpoint("flights", "models:/flight-delay/1"))

        def change():
            with there.lock("flights"):
                done.append("there")

        with here.lock("flights"):
            changing = threading.Thread(target=change)
            changing.start()
            wait_until(lambda: messages, 30, "it waits")
            done.append("here")
        changing.join()

    assert done == ["here", "there"]
    assert [line.split(" (")[0] for line in messages] == [f"flights: waiting for {current_actor()}"]


def test_failed_change_keeps_a_newer_one(tmp_path):
    """A laptop sleeps during its change, whose lease is over when it wakes up."""
    before = new_endpoint("flights", "models:/flight-delay/1")
    mine, theirs = (
        apply_config(before, {"variants.flights.model": f"models:/flight-delay/{n}"})
        for n in (2, 3)
    )
    applied = []

    class Cluster:
        def is_running(self, name):
            return True

        def apply(self, spec, progress):
            applied.append(spec)
            store.replace_spec(theirs)
            raise DeploymentFailed("the pods serve another spec")

    class OfCluster(Endpoints):
        def backend(self, stored):
            return Cluster()

    with closing(open_store(f"sqlite:///{tmp_path}/store.db")) as store:
        target = parse_target("onnxserve:/kubernetes/ml")
        stored = store.add_endpoint(str(target), before)
        endpoints = OfCluster(store, Settings(home=tmp_path), silently, target)

        with pytest.raises(DeploymentFailed, match="serve another spec"):
            endpoints.change(stored, mine)

        assert store.require_endpoint("flights").spec == theirs
        assert applied == [mine]


def is_open(connection):
    """Return True if the other side has not closed the connection."""
    connection.setblocking(False)
    try:
        while connection.recv(65536):
            pass
    except BlockingIOError:
        return True
    return False


def test_endpoints_of_a_hanging_cluster_are_asked_concurrently(tmp_path, monkeypatch):
    monkeypatch.setenv("ONNXSERVE_HOME", str(tmp_path))
    with silent_api(tmp_path) as (config, listener), open_deployments(silently) as deployments:
        monkeypatch.setenv("KUBECONFIG", str(config))
        for name in ("a", "b", "c"):
            deployments.store.add_endpoint(
                "onnxserve:/kubernetes/ml", new_endpoint(name, "models:/X/1")
            )
        with ThreadPoolExecutor(1) as pool:
            listed = pool.submit(deployments.list_endpoints)
            at_once = [listener.accept()[0] for _ in range(3)]
            assert all(map(is_open, at_once))  # The requests are concurrent.
            listener.close()  # Retries are refused.
            for connection in at_once:
                connection.close()

    assert [observed.observation.state for observed in listed.result()] == ["failed"] * 3
    assert all("does not answer" in observed.observation.reason for observed in listed.result())
