"""The environment of each cloud is read, and the server answers the requests that the
cloud sends.
"""

import ssl
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
import requests

from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.serve.cloud import Cloud, is_healthy, read_cloud
from tests.support.keypairs import Authority

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


IN_A_POD = {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}
CLOUD_RUN = {"K_SERVICE": "flights", "PORT": "9000"}


@pytest.mark.parametrize(
    ("environment", "port", "model"),
    [
        ({"PORT": "3000"}, None, ""),
        (VERTEX, 8081, "gs://bucket/model"),
        (IN_A_POD, None, ""),
        (CLOUD_RUN, 9000, ""),
        ({"K_SERVICE": "flights"}, 8080, ""),
    ],
)
def test_environment_names_port_and_model(environment, port, model, folders):
    cloud = read_cloud(environment, folders)
    assert (cloud.port, cloud.model_uri) == (port, model)
    paths = {VERTEX["AIP_HEALTH_ROUTE"], VERTEX["AIP_PREDICT_ROUTE"]}
    assert cloud.paths == (paths if environment is VERTEX else set())


def test_kserve_model_is_found(folders):
    for folder in folders:
        (folder / "MLmodel").touch()
    assert read_cloud(IN_A_POD, folders) == Cloud(8080, str(folders[1]))
    assert read_cloud(IN_A_POD | CLOUD_RUN, folders) == Cloud(9000, str(folders[1]))


def test_sagemaker_names_model_and_port(folders):
    (folders[0] / "MLmodel").touch()
    assert read_cloud({}, folders) == Cloud(8080, str(folders[0]))
    assert read_cloud({"SAGEMAKER_BIND_TO_PORT": "9000"}, folders).port == 9000
    assert read_cloud({"ONNXSERVE_PORT": "9001"}, folders).port == 9001


def test_azure_model_folder_is_found(folders, tmp_path):
    folder = tmp_path / "azure"
    folder.mkdir()
    environment = {"AZUREML_MODEL_DIR": str(folder)}
    assert read_cloud(environment, folders) == Cloud(5001, str(folder))
    (folder / "flights").mkdir()
    (folder / "flights" / "MLmodel").touch()
    assert read_cloud(environment, folders) == Cloud(5001, str(folder / "flights"))


@pytest.mark.parametrize(
    "told", [{"AIP_HTTP_PORT": "1"}, {"AZUREML_MODEL_DIR": "/none"}, {"K_SERVICE": "flights"}]
)
def test_image_model_is_the_fallback(told, folders):
    (folders[0] / "MLmodel").touch()
    assert read_cloud(told, folders).model_uri == str(folders[0])


def test_container_without_a_server_is_unhealthy(free_port):
    assert not is_healthy(environment={"K_SERVICE": "flights", "PORT": str(free_port)})


class _Pinged(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/ping" else 404)
        self.end_headers()


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_named_address_is_checked_over_tls(scheme, tmp_path):
    with ThreadingHTTPServer(("127.0.0.1", 0), _Pinged) as server:
        if scheme == "https":
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*Authority(tmp_path / "ours", "ours").issue("server"))
            server.socket = context.wrap_socket(server.socket, server_side=True)
        Thread(target=server.serve_forever, daemon=True).start()
        url = f"{scheme}://127.0.0.1:{server.server_port}"
        assert is_healthy(url)
        if scheme == "https":
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
def test_invalid_variable_is_named(name, value, folders):
    with pytest.raises(InvalidConfig, match=name):
        read_cloud({**VERTEX, name: value}, folders)


@pytest.mark.long
def test_vertex_routes_and_port_are_served(serve, model_folders, free_port, monkeypatch):
    """The route is `/predict`, which most containers choose, and which is also a route
    of ours.
    """
    environment = {
        "AIP_HTTP_PORT": str(free_port),
        "AIP_HEALTH_ROUTE": "/healthz",
        "AIP_PREDICT_ROUTE": "/predict",
        "AIP_STORAGE_URI": str(model_folders["tensor"]),
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    serve().wait_ready()
    url = f"http://127.0.0.1:{free_port}"
    assert requests.get(f"{url}/healthz", timeout=30).status_code == 200
    body = {"instances": [[[1, 2], [3, 4]], [[0, 0], [0, 1]]], "parameters": {"threshold": 0.5}}
    answered = requests.post(f"{url}/predict", json=body, timeout=30)
    rows = [{"doubled": [[2, 4], [6, 8]], "total": 10}, {"doubled": [[0, 0], [0, 2]], "total": 1}]
    assert answered.json() == {"predictions": rows}
    assert requests.get(f"{url}/predict", timeout=30).status_code == 405
