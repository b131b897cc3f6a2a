"""The routes as a function."""

import contextlib
import json

import pytest

from mlflow_deploy_plugin.serve.assembly import open_server
from mlflow_deploy_plugin.serve.http.routes import expand_path, list_routes
from mlflow_deploy_plugin.serve.messages import RawRequest
from tests.support.handling import ask, handle
from tests.support.servers import variant


@pytest.fixture
def server(serve_here, bias_folders):
    return serve_here(
        {"e": {"v": variant(bias_folders["1"])}, "f": {"w": variant(bias_folders["2"], "2")}}
    )


def test_plain_pages_are_answered(server):
    assert ask(server, "/ping", "HEAD").status == 200
    assert ask(server, "/version", "GET").body == b"3.17.2"
    page = ask(server, "/metrics", "GET").body.decode()
    assert 'onnxserve_served_version{endpoint="f",model="m",variant="w",version="2"} 1.0' in page


def test_v2_describes_server_and_model(server):
    document = json.loads(ask(server, "/v2", "GET").body)
    assert document["name"] == "onnxserve"
    assert "binary_tensor_data" in document["extensions"]
    assert document["version"]
    # the path in the standard's OpenAPI document
    assert json.loads(ask(server, "/v2/", "GET").body) == document
    metadata = {
        "name": "f",
        "versions": ["2"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "X", "datatype": "FP32", "shape": [-1, 3]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 1]}],
    }
    assert json.loads(ask(server, "/v2/models/f", "GET").body) == metadata
    assert json.loads(ask(server, "/v2/models/f/versions/2", "GET").body) == metadata


def test_server_without_model_is_not_ready(tmp_path):
    with contextlib.closing(open_server(tmp_path)) as server:
        for path in ("/v2/health/live", "/metrics"):
            assert ask(server, path, "GET").status == 200
        for path in ("/ping", "/health", "/version"):
            response = ask(server, path, "GET")
            assert response.status == 503
            assert json.loads(response.body)["error_code"] == "TEMPORARILY_UNAVAILABLE"
        for method, path in (("GET", "/v2/health/ready"), ("POST", "/v2/models/e/infer")):
            response = ask(server, path, method)
            assert response.status == 503
            assert list(json.loads(response.body)) == ["error"]


@pytest.mark.parametrize(
    ("method", "path", "status", "told"),
    [
        ("GET", "/v2/models/e/infer", 405, "POST"),
        ("GET", "/v2/model", 404, "/v2/models/NAME"),
        ("GET", "/v2/models/e/versions/1/nothing", 404, "/v2/models/e/config"),
    ],
)
def test_v2_errors_have_its_form(server, method, path, status, told):
    response = ask(server, path, method)
    document = json.loads(response.body)
    assert response.status == status
    assert list(document) == ["error"]
    assert told in document["error"]


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [("text/html,*/*;q=0.8", "text/html"), ("*/*", "application/json")],
)
def test_root_is_page_for_browsers(server, accept, content_type):
    answer = handle(server, RawRequest("GET", "/", {"accept": accept}, b""))
    assert answer.status == 200
    assert answer.content_type.partition(";")[0] == content_type
    assert (answer.body == b'{"status":"alive"}') == (content_type == "application/json")


def test_error_of_odd_path_suggests_no_route(serve_here):
    assert b"nearest" not in ask(serve_here({}), "/qqqqqqqqqqqq", "GET").body


@pytest.mark.parametrize(
    ("path", "paths"),
    [
        ("/metrics", ["/metrics"]),
        (
            "/v1/models/{endpoint}[/versions/{version}|/labels/{label}]/metadata",
            [
                "/v1/models/{endpoint}/metadata",
                "/v1/models/{endpoint}/versions/{version}/metadata",
                "/v1/models/{endpoint}/labels/{label}/metadata",
            ],
        ),
    ],
)
def test_template_is_expanded_to_paths(path, paths):
    assert expand_path(path) == paths


def test_plain_routes_exist_per_endpoint():
    paths = {route.path for route in list_routes() if route.need == "infer"}
    # Azure specifies /score.
    plain = {
        path for path in paths if not path.startswith(("/endpoints/", "/models/", "/v1/", "/v2/"))
    }
    assert {f"/endpoints/{{endpoint}}{path}" for path in plain - {"/score"}} <= paths
