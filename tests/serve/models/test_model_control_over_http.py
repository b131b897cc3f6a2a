"""Triton's own client reads the answers of a running server, and loads and unloads its
endpoints.
"""

import json
import os
import signal

import numpy as np
import pytest
import requests
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from mlflow_deploy_plugin.core.statedir.files import AGENT, read_state
from mlflow_deploy_plugin.core.statedir.models import AgentState
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
        for name, kind in (("first", "single"), ("second", "mixed"))
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


def test_client_finds_server_and_model_ready(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    metadata = client.get_model_metadata("second")
    (version,) = metadata["versions"]
    ready = [("second", ""), ("second", version), ("second", "8"), ("none", "")]
    assert [client.is_model_ready(*target) for target in ready] == [True, True, False, False]
    assert metadata["inputs"][0] == {"name": "carrier", "datatype": "BYTES", "shape": [-1, 1]}
    extensions = "binary_tensor_data model_configuration model_repository statistics"
    assert client.get_server_metadata()["extensions"] == extensions.split()


def tensor(name, array, is_binary):
    input_tensor = InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
    input_tensor.set_data_from_numpy(array, binary_data=is_binary)
    return input_tensor


@pytest.mark.parametrize("asks_binary", [False, True, None])
@pytest.mark.parametrize("is_binary", [False, True])
def test_client_reads_its_requested_outputs(client, is_binary, asks_binary):
    columns = {
        "carrier": np.array([["AA"], ["ÜÜ"]], dtype=object),
        "distance": np.zeros((2, 1)),
        "hour": np.zeros((2, 1), dtype=np.int32),
        "late": np.zeros((2, 1), dtype=np.bool_),
    }
    inputs = [tensor(name, array, is_binary) for name, array in columns.items()]
    wanted = None
    if asks_binary is not None:
        wanted = [
            InferRequestedOutput(name, binary_data=asks_binary)
            for name in ("probabilities", "label")
        ]
    (version,) = client.get_model_metadata("second")["versions"]
    result = client.infer("second", inputs, version, outputs=wanted, request_id="mine")
    answer = result.get_response()
    assert (answer["id"], answer["model_version"]) == ("mine", version)
    labels = result.as_numpy("label").tolist()
    assert labels in (["yes", "no"], [b"yes", b"no"])
    chances = np.array([[0.2689414, 0.7310586], [0.5, 0.5]], np.float32)
    np.testing.assert_allclose(result.as_numpy("probabilities"), chances, atol=1e-6, strict=True)


def test_unloaded_endpoint_is_gone_and_returns(served, client):
    client.unload_model("second")
    assert asked_twenty_times(served, "/v2/models/second/ready") == {404}
    assert index(client) == {"first": ("READY", ""), "second": ("UNAVAILABLE", "unloaded")}
    assert not client.is_model_ready("second")
    assert client.is_server_ready()
    with pytest.raises(InferenceServerException, match="'second' is unloaded"):
        client.get_model_metadata("second")

    client.unload_model("second")  # This has no effect.
    for _ in range(2):  # The second load has no effect.
        client.load_model("second")
    assert asked_twenty_times(served, "/v2/models/second/ready") == {200}
    assert index(client) == {"first": ("READY", ""), "second": ("READY", "")}


def test_endpoint_is_added_by_uri(served, client, model_folders):
    url = f"{served.url}/v2/repository/models/fourth/load"
    body = {"parameters": {"model_uri": str(model_folders["single"])}}
    answer = requests.post(url, json=body, timeout=60)
    assert (answer.status_code, answer.content) == (200, b"")
    assert asked_twenty_times(served, "/v2/models/fourth") == {200}
    url = f"{served.url}/endpoints/fourth/invocations"
    prediction = requests.post(url, json={"inputs": [[1, 2, 3]]}, timeout=10)
    assert prediction.json() == {"predictions": [[6.0]]}
    client.unload_model("fourth")
    assert index(client)["fourth"] == ("UNAVAILABLE", "unloaded")


@pytest.mark.parametrize(
    ("name", "parameters", "status", "words"),
    [
        ("nobody", {}, 404, "there is no endpoint 'nobody'"),
        ("new", {"model_uri": "/nowhere"}, 404, "/nowhere"),
        ("first", {"model_uri": "/nowhere"}, 400, "'first' is in the server's spec"),
        ("new", {"model_uri": ""}, 400, "variants.new.model"),
        ("new", {"file:1/model.onnx": "AAAA"}, 400, "'file:1/model.onnx' of a load is not known"),
        ("a b", {"model_uri": "x"}, 400, "name: at most 63 letters, digits, . _ - are expected"),
    ],
)
def test_invalid_load_changes_nothing(served, client, name, parameters, status, words):
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


def test_unloadable_model_is_refused(served, client, tmp_path):
    broken = single_model(tmp_path / "broken")
    (broken / "model.onnx").write_bytes(b"not a graph")
    config = {"name": "broken", "variants": {"v": {"model": str(broken)}}}
    with pytest.raises(InferenceServerException, match=r"cannot load model\.onnx"):
        client.load_model("broken", config=json.dumps(config))
    wait_until(lambda: "broken" not in index(client), what="the broken endpoint is gone")
    assert asked_twenty_times(served, "/v2/models/first/ready") == {200}
    wait_until(lambda: agent_state(served).error == "", what="the agent says that all is well")


def agent_state(served):
    return read_state(served.state_dir / AGENT, AgentState) or AgentState(pid=0)


@pytest.mark.parametrize("path", ["first/unload", "trial/load"])
def test_foreign_web_page_changes_nothing(served, client, path):
    name = path.partition("/")[0]
    before = index(client).get(name)
    url = f"{served.url}/v2/repository/models/{path}"
    headers = {"Sec-Fetch-Site": "cross-site"}
    assert requests.post(url, b"{}", headers=headers, timeout=10).status_code == 403
    assert index(client).get(name) == before  # Another worker may not know `broken` yet.


@pytest.mark.long
def test_command_outlives_a_killed_agent(served, client):
    os.kill(agent_state(served).pid, signal.SIGKILL)
    client.unload_model("second")
    assert index(client)["second"] == ("UNAVAILABLE", "unloaded")
    client.load_model("second")
