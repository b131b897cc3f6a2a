"""The environment of each cloud is read, and the server answers the requests that the
cloud sends.
"""

import json
import ssl
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest
import requests

from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.serve.cloud import Cloud, is_healthy, read_cloud
from tests.support.keypairs import Authority
from tests.support.serving import servers_below
from tests.support.waiting import free_port

VERTEX = {
    "AIP_HTTP_PORT": "8081",
    "AIP_HEALTH_ROUTE": "/v1/endpoints/1/deployedModels/2",
    "AIP_PREDICT_ROUTE": "/v1/endpoints/1/deployedModels/2:predict",
    "AIP_STORAGE_URI": "gs://bucket/model",
}


@pytest.fixture
def folders(tmp_path):
    """The model folders of SageMaker and KServe, both empty."""
    made = tmp_path / "sagemaker", tmp_path / "kserve"
    for folder in made:
        folder.mkdir()
    return made


def test_a_machine_outside_of_a_cloud_says_nothing(folders):
    cloud = read_cloud({"PORT": "3000"}, folders)
    assert cloud == Cloud()
    assert cloud.paths == frozenset()


def test_vertex_names_port_routes_and_model(folders):
    cloud = read_cloud(VERTEX, folders)
    assert cloud.port == 8081
    assert cloud.model_uri == "gs://bucket/model"
    assert cloud.paths == {VERTEX["AIP_HEALTH_ROUTE"], VERTEX["AIP_PREDICT_ROUTE"]}


def test_sagemaker_unpacks_the_model_and_may_name_a_port(folders):
    (folders[0] / "MLmodel").touch()
    assert read_cloud({}, folders) == Cloud(8080, str(folders[0]))
    assert read_cloud({"SAGEMAKER_BIND_TO_PORT": "9000"}, folders).port == 9000
    assert read_cloud({"ONNXSERVE_PORT": "9001"}, folders).port == 9001


def test_azure_names_a_folder_around_the_model(folders, tmp_path):
    folder = tmp_path / "azure"
    folder.mkdir()
    environment = {"AZUREML_MODEL_DIR": str(folder)}
    assert read_cloud(environment, folders) == Cloud(5001, str(folder))
    (folder / "flights").mkdir()
    (folder / "flights" / "MLmodel").touch()
    assert read_cloud(environment, folders) == Cloud(5001, str(folder / "flights"))


def test_kserve_has_fetched_the_model(folders):
    in_a_pod = {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}
    assert read_cloud(in_a_pod, folders) == Cloud()
    for folder in folders:
        (folder / "MLmodel").touch()
    assert read_cloud(in_a_pod, folders) == Cloud(8080, str(folders[1]))
    assert read_cloud({**in_a_pod, "K_SERVICE": "flights", "PORT": "9000"}, folders) == Cloud(
        9000, str(folders[1])
    )


def test_cloud_run_names_a_port(folders):
    assert read_cloud({"K_SERVICE": "flights", "PORT": "9000"}, folders) == Cloud(9000)
    assert read_cloud({"K_SERVICE": "flights"}, folders).port == 8080


@pytest.mark.parametrize(
    "told", [{"AIP_HTTP_PORT": "1"}, {"AZUREML_MODEL_DIR": "/none"}, {"K_SERVICE": "flights"}]
)
def test_the_model_of_the_image_is_served_where_the_platform_has_none(told, folders):
    (folders[0] / "MLmodel").touch()
    assert read_cloud(told, folders).model_uri == str(folders[0])


def test_a_container_is_healthy_where_its_server_answers(free_port):
    assert not is_healthy(environment={"K_SERVICE": "flights", "PORT": str(free_port)})


class _Pinged(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/ping" else 404)
        self.end_headers()


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_it_is_asked_at_an_address_that_is_named_also_by_tls(scheme, tmp_path):
    with ThreadingHTTPServer(("127.0.0.1", 0), _Pinged) as server:
        if scheme == "https":
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*Authority(tmp_path / "ours", "ours").issue("server"))
            server.socket = context.wrap_socket(server.socket, server_side=True)
        Thread(target=server.serve_forever, daemon=True).start()
        url = f"{scheme}://127.0.0.1:{server.server_port}"
        assert is_healthy(url)
        command = [sys.executable, "-m", "mlflow_deploy_plugin.cli", "health", url]
        assert subprocess.run(command, check=False).returncode == 0
        server.shutdown()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AIP_HTTP_PORT", "0"),
        ("AIP_HTTP_PORT", "http"),
        ("AIP_HTTP_PORT", "80800"),
        ("AIP_HTTP_PORT", "٨٠٨٠"),
        ("AIP_PREDICT_ROUTE", "predict"),
        ("AIP_HEALTH_ROUTE", "/a b"),
    ],
)
def test_a_variable_that_is_wrong_is_named(name, value, folders):
    with pytest.raises(InvalidConfig, match=name):
        read_cloud({**VERTEX, name: value}, folders)


@pytest.fixture(scope="module")
def serve(tmp_path_factory):
    with servers_below(tmp_path_factory.mktemp("clouds")) as start:
        yield start


@pytest.fixture
def port():
    return free_port()


def test_vertex_is_answered_on_its_port_at_its_routes(serve, model_folders, port, monkeypatch):
    """The route is `/predict`, which most containers choose, and which is also a route
    of ours.
    """
    environment = {
        "AIP_HTTP_PORT": str(port),
        "AIP_HEALTH_ROUTE": "/healthz",
        "AIP_PREDICT_ROUTE": "/predict",
    }
    for name, value in {**environment, "AIP_STORAGE_URI": str(model_folders["tensor"])}.items():
        monkeypatch.setenv(name, value)
    serve(state="vertex").wait_ready()
    url = f"http://127.0.0.1:{port}"
    assert requests.get(f"{url}/healthz", timeout=30).status_code == 200

    body = {"instances": [[[1, 2], [3, 4]], [[0, 0], [0, 1]]], "parameters": {"threshold": 0.5}}
    answered = requests.post(f"{url}/predict", json=body, timeout=30)
    rows = [{"doubled": [[2, 4], [6, 8]], "total": 10}, {"doubled": [[0, 0], [0, 2]], "total": 1}]
    assert answered.status_code == 200
    assert answered.json() == {"predictions": rows}

    refused = requests.post(f"{url}/predict", json={**body, "parameters": [1]}, timeout=30)
    assert (refused.status_code, "parameters" in refused.json()["message"]) == (400, True)
    raw = requests.post(
        f"{url}/predict",
        data="[[1, 2], [3, 4]]\n",
        headers={"Content-Type": "application/jsonl"},
        timeout=30,
    )
    assert raw.status_code == 200
    assert raw.json()["total"] == 10
    assert requests.get(f"{url}/predict", timeout=30).status_code == 405
    assert requests.get(f"{url}/ping", timeout=30).status_code == 200


def test_sagemaker_sends_csv_without_a_header(serve, model_folders, port, monkeypatch):
    monkeypatch.setenv("SAGEMAKER_BIND_TO_PORT", str(port))
    serve(str(model_folders["mixed"]), state="sagemaker").wait_ready()
    url = f"http://127.0.0.1:{port}"
    assert requests.get(f"{url}/ping", timeout=30).status_code == 200

    def ask(body, content_type):
        headers = {"Content-Type": content_type, "X-Amzn-SageMaker-Custom-Attributes": "trace=1"}
        return requests.post(f"{url}/invocations", data=body, headers=headers, timeout=30)

    rows = "AA,100.5,3,true\nUA,100,3,false\n"
    headed = ask("carrier,distance,hour,late\n" + rows, "text/csv; header=present")
    bare = ask(rows, "text/csv; header=absent")
    assert bare.status_code == 200
    assert bare.json() == headed.json()
    assert len(bare.json()["predictions"]) == 2
    short = ask("AA,100.5\n", "text/csv; header=absent")
    assert short.status_code == 400
    assert short.json()["message"] == "row 0 has 2 fields; the model's signature has 4"
    assert ask(rows, "text/csv; header=maybe").status_code == 415


def test_azure_asks_score(serve, model_folders, port, monkeypatch):
    monkeypatch.setenv("AZUREML_MODEL_DIR", str(model_folders["single"]))
    serve("-p", str(port), state="azure").wait_ready()
    url = f"http://127.0.0.1:{port}"

    def ask(document):
        response = requests.post(
            f"{url}/score", data=json.dumps(document), headers=JSON, timeout=30
        )
        return response.status_code, response.json()

    table = {"columns": ["a", "b", "c"], "index": [0, 1], "data": [[1, 2, 3], [4, 5, 6]]}
    assert ask({"input_data": table}) == (200, [[6], [15]])
    assert ask({"input_data": [[1, 2, 3]], "params": {}}) == (200, [[6]])
    assert ask({"input_data": [{"a": 1, "b": 2, "c": 3}]}) == (200, [[6]])
    assert ask({"input_data": {"a": [1], "b": [2], "c": [3]}}) == (200, [[6]])
    malformed: tuple[Any, ...] = (
        {},
        [],
        {"input_data": 5},
        {"input_data": {**table, "data": 5}},
        {"input_data": None},
    )
    for document in malformed:
        assert ask(document)[0] == 400
    assert requests.get(f"{url}/ping", timeout=30).status_code == 200


JSON = {"Content-Type": "application/json"}
