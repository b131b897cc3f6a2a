"""The routes as a function, and the Flask application, which must not change a byte of
their responses.
"""

import contextlib
import json

import pytest

from mlflow_deploy_plugin.serve.assembly import open_server
from mlflow_deploy_plugin.serve.http.app import ServerApp
from mlflow_deploy_plugin.serve.http.routes import expand_path, list_routes
from mlflow_deploy_plugin.serve.messages import RawRequest
from tests.support.handling import ROW, V2_ROW, ask, handle
from tests.support.servers import variant


@pytest.fixture
def server(serve_here, bias_folders):
    return serve_here(
        {"e": {"v": variant(bias_folders["1"])}, "f": {"w": variant(bias_folders["2"], "2")}}
    )


def test_the_plain_pages_answer(server):
    assert ask(server, "/ping", "GET").status == 200
    assert ask(server, "/ping", "HEAD").status == 200
    assert ask(server, "/health", "GET").body == b'{"status":"ok"}'
    assert ask(server, "/version", "GET").body == b"3.17.2"
    page = ask(server, "/metrics", "GET").body.decode()
    assert 'onnxserve_served_version{endpoint="f",model="m",variant="w",version="2"} 1.0' in page


def test_v2_returns_the_server_and_model_metadata(server):
    document = json.loads(ask(server, "/v2", "GET").body)
    assert document["name"] == "onnxserve"
    assert document["extensions"] == [
        "binary_tensor_data",
        "model_configuration",
        "model_repository",
        "statistics",
    ]
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


@pytest.mark.parametrize(
    ("path", "document"),
    [
        ("/v2/health/live", {"live": True}),
        ("/v2/health/ready", {"ready": True}),
        ("/v2/models/f/ready", {"name": "f", "ready": True}),
        ("/v2/models/f/versions/2/ready", {"name": "f", "ready": True}),
    ],
)
def test_v2_readiness_routes_answer(server, path, document):
    response = ask(server, path, "GET")
    assert response.status == 200
    assert json.loads(response.body) == document
    assert ask(server, path, "HEAD").status == 200


def test_before_a_model_is_loaded_v2_lives_and_is_not_ready(tmp_path):
    with contextlib.closing(open_server(tmp_path)) as server:
        assert ask(server, "/v2/health/live", "GET").status == 200
        for method, path in [
            ("GET", "/health/ready"),
            ("GET", "/models/e/ready"),
            ("POST", "/models/e/infer"),
        ]:
            response = ask(server, "/v2" + path, method, V2_ROW)
            assert response.status == 503
            assert list(json.loads(response.body)) == ["error"]


@pytest.mark.parametrize(
    ("method", "path", "status", "told"),
    [
        ("GET", "/v2/models/g", 404, "'g'"),
        ("GET", "/v2/models/g/ready", 404, "'g'"),
        ("POST", "/v2/models/g/infer", 404, "'g'"),
        ("GET", "/v2/models/e/versions/9", 404, "'9'"),
        ("GET", "/v2/models/e/versions/9/ready", 404, "'9'"),
        ("POST", "/v2/models/e/versions/9/infer", 404, "'9'"),
        ("POST", "/v2/models/e/infer", 400, "inputs"),
        ("GET", "/v2/models/e/infer", 405, "POST"),
        ("GET", "/v2/model", 404, "/v2/models/NAME"),
        ("GET", "/v2/models/e/versions/1/nothing", 404, "/v2/models/e/infer"),
    ],
)
def test_errors_of_v2_have_its_form(server, method, path, status, told):
    response = ask(server, path, method)
    document = json.loads(response.body)
    assert response.status == status
    assert list(document) == ["error"]
    assert told in document["error"]


def test_errors_of_flask_have_the_form_of_v2(server):
    client = ServerApp(server).test_client()
    got = client.post("/v2/models/e/infer", data=bytes(server.max_body_bytes + 1))
    assert got.status_code == 413
    assert list(got.json or {}) == ["error"]
    got = client.post("/invocations", data=bytes(server.max_body_bytes + 1))
    assert (got.json or {})["error_code"] == "BAD_REQUEST"


@pytest.mark.parametrize(
    ("method", "path", "body", "content_type"),
    [
        ("GET", "/v2", b"", "application/json"),
        ("GET", "/v2/models/f", b"", "application/json"),
        ("GET", "/v2/models/g", b"", "application/json"),
        ("POST", "/v2/models/f/infer", b"{", "application/json"),
        ("POST", "/invocations", ROW, "application/json"),
        ("POST", "/invocations", b"a,b,c\n1,2,3", "text/csv"),
        ("POST", "/invocations", b"{", "application/json"),
        ("POST", "/invocations", b"x", "text/plain"),
        ("POST", "/predict", b'{"a": 1, "b": 2, "c": 3}', "application/json"),
        ("POST", "/predict/batch", b"[[1, 2, 3]]", "application/json"),
        ("POST", "/endpoints/f/invocations", ROW, "application/json"),
        ("POST", "/endpoints/g/invocations", ROW, "application/json"),
        ("GET", "/invocations", b"", "application/json"),
        ("GET", "/ping", b"", "application/json"),
        ("GET", "/health", b"", "application/json"),
        ("GET", "/version", b"", "application/json"),
        ("GET", "/", b"", "application/json"),
        ("GET", "/nowhere", b"", "application/json"),
    ],
)
def test_flask_returns_the_same_response_as_the_handler(server, method, path, body, content_type):
    headers = {"content-type": content_type, "x-request-id": "mine"}
    expected = handle(server, RawRequest(method, path, headers, body))
    got = ServerApp(server).test_client().open(path, method=method, data=body, headers=headers)
    assert got.status_code == expected.status
    assert got.data == expected.body
    assert got.headers["Content-Type"] == expected.content_type
    for name, value in expected.headers.items():
        assert name == "X-Prediction-Id" or got.headers[name] == value


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("text/html,*/*;q=0.8", "text/html"),
        ("*/*", "application/json"),
        ("application/json", "application/json"),
    ],
)
def test_a_browser_gets_the_page_and_kserves_client_that_the_server_is_alive(
    server, accept, content_type
):
    answer = handle(server, RawRequest("GET", "/", {"accept": accept}, b""))
    assert answer.status == 200
    assert answer.content_type.partition(";")[0] == content_type
    assert (answer.body == b'{"status":"alive"}') == (content_type == "application/json")


def test_the_error_of_an_unknown_path_lists_no_route_if_none_is_near(serve_here):
    assert b"nearest" not in ask(serve_here({}), "/qqqqqqqqqqqq", "GET").body


@pytest.mark.parametrize(
    ("path", "paths"),
    [
        ("/metrics", ["/metrics"]),
        ("/endpoints/NAME/openapi.json", ["/endpoints/<endpoint>/openapi.json"]),
        (
            "/v2/models/NAME[/versions/V]",
            ["/v2/models/<endpoint>", "/v2/models/<endpoint>/versions/<version>"],
        ),
        (
            "/v1/models/NAME[/versions/V|/labels/L]/metadata",
            [
                "/v1/models/<endpoint>/metadata",
                "/v1/models/<endpoint>/versions/<version>/metadata",
                "/v1/models/<endpoint>/labels/<label>/metadata",
            ],
        ),
    ],
)
def test_a_template_stands_for_the_paths_with_and_without_its_part_in_brackets(path, paths):
    assert expand_path(path, "<{}>") == paths


def test_every_plain_route_has_a_route_per_endpoint():
    paths = {route.path for route in list_routes() if route.need == "infer"}
    # Azure specifies /score.
    plain = {path for path in paths if not path.startswith(("/endpoints/", "/v1/", "/v2/"))}
    assert {f"/endpoints/{{endpoint}}{path}" for path in plain - {"/score"}} <= paths
