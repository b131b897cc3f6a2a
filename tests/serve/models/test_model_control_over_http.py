"""Triton's own client loads and unloads endpoints of a running server, and a restart
keeps the changes.
"""

import json
import os
import signal
import time

import pytest
import requests
from tritonclient.http import InferenceServerClient
from tritonclient.utils import InferenceServerException

from mlflow_deploy_plugin.core.statedir.files import AGENT, CONTROL, read_state
from mlflow_deploy_plugin.core.statedir.models import AgentState, Control
from tests.support.servers import single_model
from tests.support.serving import servers_below
from tests.support.waiting import wait_until

EXPLICIT = "server.model_control_mode=explicit"


def client_of(served):
    return InferenceServerClient(
        served.url.removeprefix("http://"), network_timeout=60, connection_timeout=60
    )


def index(client):
    """Return the state and the reason by endpoint."""
    return {
        entry["name"]: (entry["state"], entry["reason"])
        for entry in client.get_model_repository_index()
    }


@pytest.fixture(scope="module")
def spec_file(tmp_path_factory, model_folders):
    documents = [
        f"name: {name}\nvariants: {{v: {{model: '{model_folders[kind]}'}}}}\n"
        for name, kind in (("first", "single"), ("second", "stock"))
    ]
    file = tmp_path_factory.mktemp("spec") / "spec.yaml"
    file.write_text("---\n".join(documents).replace("\n---", "\nserver: {workers: 2}\n---", 1))
    return file


@pytest.fixture(scope="module")
def served(tmp_path_factory, spec_file):
    """Run two workers with the endpoints first and second,
    in explicit model control.
    """
    with servers_below(tmp_path_factory.mktemp("served")) as start:
        yield start("--spec", str(spec_file), "-C", EXPLICIT).wait_ready()


@pytest.fixture
def client(served):
    client = client_of(served)
    yield client
    client.close()


def asked_twenty_times(served, path):
    """Return the statuses of GETs on separate connections, so that both workers receive
    some.
    """
    return {requests.get(served.url + path, timeout=10).status_code for _ in range(20)}


def test_an_unloaded_endpoint_is_gone_from_every_worker_and_comes_back(served, client):
    client.unload_model("second")
    assert asked_twenty_times(served, "/v2/models/second/ready") == {404}
    assert index(client) == {"first": ("READY", ""), "second": ("UNAVAILABLE", "unloaded")}
    assert not client.is_model_ready("second")
    assert client.is_server_ready()
    with pytest.raises(InferenceServerException, match="'second' is unloaded"):
        client.get_model_metadata("second")

    client.unload_model("second")  # This has no effect.
    client.load_model("second")
    assert asked_twenty_times(served, "/v2/models/second/ready") == {200}
    assert index(client) == {"first": ("READY", ""), "second": ("READY", "")}


def test_loading_a_loaded_model_changes_nothing(served, client):
    client.load_model("first")
    assert index(client)["first"] == ("READY", "")


def test_an_endpoint_is_added_by_a_config_or_a_model_uri(served, client, model_folders):
    config = {"name": "third", "variants": {"a": {"model": str(model_folders["tensor"])}}}
    client.load_model("third", config=json.dumps(config))
    assert asked_twenty_times(served, "/v2/models/third") == {200}

    answer = requests.post(
        f"{served.url}/v2/repository/models/fourth/load",
        json={"parameters": {"model_uri": str(model_folders["single"])}},
        timeout=60,
    )
    assert answer.status_code == 200
    assert answer.content == b""
    prediction = requests.post(
        f"{served.url}/endpoints/fourth/invocations", json={"inputs": [[1, 2, 3]]}, timeout=10
    )
    assert prediction.json() == {"predictions": [[6.0]]}
    assert client.get_model_config("third")["input"] == [
        {"name": "image", "data_type": "TYPE_FP32", "dims": [-1, 2, 2]}
    ]
    for name in ("third", "fourth"):
        client.unload_model(name)
        assert index(client)[name] == ("UNAVAILABLE", "unloaded")
    client.load_model("third")
    assert client.is_model_ready("third")
    client.unload_model("third")


@pytest.mark.parametrize(
    ("name", "parameters", "status", "words"),
    [
        ("nobody", {}, 404, "there is no endpoint 'nobody'"),
        ("new", {"model_uri": "/nowhere"}, 404, "/nowhere"),
        ("first", {"model_uri": "/nowhere"}, 400, "'first' is in the server's spec"),
        ("new", {"model_uri": ""}, 400, "variants.new.model"),
        ("new", {"config": "name: other\nvariants: {v: {model: x}}"}, 400, "'new' is expected"),
        (
            "new",
            {"config": "name: new\nvariants: {v: {model: x}}\nserver: {workers: 9}"},
            400,
            "`server` cannot",
        ),
        ("new", {"config": f"name: &a {'x' * 5000}\nvariants: [{'*a,' * 300}]"}, 400, "aliases"),
        (
            "new",
            {"config": "name: new\nvariants: " + "[" * 60_000},
            400,
            "nested more than 100 levels",
        ),
        ("new", {"config": "name: new\nvariants: {v: {model: 2001-99-99}}"}, 400, "not valid YAML"),
        ("new", {"config": "x" * 70_000}, 400, "at most 65536"),
        ("new", {"config": 1}, 400, "a string is expected"),
        ("new", {"config": "a", "model_uri": "b"}, 400, "either config or model_uri"),
        ("new", {"file:1/model.onnx": "AAAA"}, 400, "'file:1/model.onnx' of a load is not known"),
        ("a b", {"model_uri": "x"}, 400, "name: at most 63 letters, digits, . _ - are expected"),
    ],
)
def test_a_load_that_cannot_be_says_why_and_leaves_no_trace(
    served, client, name, parameters, status, words
):
    before = index(client)
    answer = requests.post(
        f"{served.url}/v2/repository/models/{name}/load",
        json={"parameters": parameters},
        timeout=60,
    )
    assert answer.status_code == status, answer.text
    assert words in answer.json()["error"]
    assert len(answer.json()["error"]) < 1000
    assert index(client) == before


def test_a_model_that_no_worker_can_load_is_refused_and_the_others_are_served_on(
    served, client, tmp_path
):
    broken = single_model(tmp_path / "broken")
    (broken / "model.onnx").write_bytes(b"not a graph")
    with pytest.raises(InferenceServerException, match=r"cannot load model\.onnx"):
        client.load_model(
            "broken",
            config=json.dumps({"name": "broken", "variants": {"v": {"model": str(broken)}}}),
        )
    wait_until(lambda: "broken" not in index(client), what="the broken endpoint is gone")
    assert asked_twenty_times(served, "/v2/models/first/ready") == {200}
    wait_until(lambda: _agent_error(served) == "", what="the agent says that all is well")


def _agent_error(served):
    state = read_state(served.state_dir / AGENT, AgentState)
    return state.error if state else None


def test_many_commands_at_a_time_are_all_answered_and_leave_no_files(served, client, model_folders):
    bodies = {
        f"n{number}": {"parameters": {"model_uri": str(model_folders["single"])}}
        for number in range(6)
    }
    answers = [
        requests.post(f"{served.url}/v2/repository/models/{name}/load", json=body, timeout=60)
        for name, body in bodies.items()
    ]
    assert {answer.status_code for answer in answers} == {200}
    assert all(client.is_model_ready(name) for name in bodies)
    for name in bodies:
        client.unload_model(name)
    assert [list((served.state_dir / name).iterdir()) for name in ("commands", "answers")] == [
        [],
        [],
    ]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content-Type": "text/plain"}, 415),
        ({"Origin": "http://evil.example"}, 403),
        ({"Host": "evil.example", "Origin": "http://evil.example"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
    ],
)
def test_a_web_page_of_elsewhere_changes_nothing(served, client, headers, status):
    before = index(client)
    for path in ("first/unload", "trial/load"):
        url = f"{served.url}/v2/repository/models/{path}"
        assert requests.post(url, b"{}", headers=headers, timeout=10).status_code == status
    assert index(client) == before


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/v2/repository/index", b"[]", "a JSON array; an object is expected"),
        ("/v2/repository/index", b'{"ready": 1}', "ready is 1; true or false is expected"),
        ("/v2/repository/index", b"{", "not valid JSON"),
        ("/v2/repository/models/first/load", b'{"parameters": []}', "parameters is a JSON array"),
        (
            "/v2/repository/models/first/unload",
            b'{"parameters": {"now": true}}',
            "'now' of an unload",
        ),
    ],
)
def test_an_invalid_request_body_is_refused(served, path, body, words):
    answer = requests.post(served.url + path, data=body, timeout=10)
    assert answer.status_code == 400
    assert words in answer.json()["error"]


def test_the_statistics_of_all_workers_are_added_up(served, client):
    def counted():
        (entry,) = client.get_inference_statistics("first")["model_stats"]
        return entry

    before = counted()
    version = before["version"]
    for _ in range(10):
        requests.post(
            f"{served.url}/endpoints/first/invocations",
            json={"inputs": [[1, 2, 3]] * 4},
            timeout=10,
        )
    requests.post(f"{served.url}/endpoints/first/invocations", json={"inputs": "far"}, timeout=10)
    after = counted()
    grown = {
        name: after["inference_stats"][name]["count"] - before["inference_stats"][name]["count"]
        for name in ("success", "fail")
    }
    assert grown == {"success": 10, "fail": 1}
    assert after["inference_count"] - before["inference_count"] == 40
    assert abs(after["last_inference"] / 1000 - time.time()) < 60
    assert after["inference_stats"]["success"]["ns"] > before["inference_stats"]["success"]["ns"]
    assert client.get_inference_statistics("first", version)["model_stats"] == [after]
    assert {entry["name"] for entry in client.get_inference_statistics()["model_stats"]} >= {
        "first",
        "second",
    }
    with pytest.raises(InferenceServerException, match="no version '99'"):
        client.get_inference_statistics("first", "99")


@pytest.mark.long
def test_explicit_loads_and_unloads_survive_a_restart_until_control_is_disabled(
    serve, spec_file, model_folders
):
    arguments = ("--spec", str(spec_file), "-w", "1")
    served = serve(*arguments, "-C", EXPLICIT).wait_ready()
    client = client_of(served)
    config = {"name": "third", "variants": {"v": {"model": str(model_folders["stock"])}}}
    client.load_model("third", config=json.dumps(config))
    for name in ("first", "second"):
        client.unload_model(name)
    served.end()

    client = client_of(again := serve(*arguments, "-C", EXPLICIT).wait_ready())
    unloaded = ("UNAVAILABLE", "unloaded")
    assert index(client) == {"third": ("READY", ""), "first": unloaded, "second": unloaded}
    client.unload_model("third")
    assert client.is_server_ready()
    again.end()

    control = read_state(again.state_dir / CONTROL, Control)
    assert control is not None
    assert control.unloaded == ("first", "second", "third")

    empty = serve(*arguments, "-C", EXPLICIT).wait_ready()
    assert client_of(empty).is_server_ready()
    empty.end()

    client = client_of(serve(*arguments).wait_ready())
    assert index(client) == {"first": ("READY", ""), "second": ("READY", "")}
    with pytest.raises(InferenceServerException, match="model_control_mode=explicit"):
        client.load_model("first")


@pytest.mark.long
def test_a_command_outlives_the_agent_that_is_killed(served, client):
    state = read_state(served.state_dir / AGENT, AgentState)
    assert state is not None
    os.kill(state.pid, signal.SIGKILL)
    client.unload_model("second")
    assert index(client)["second"] == ("UNAVAILABLE", "unloaded")
    client.load_model("second")
