"""The HTTP surface as a function: headers, identities, capture, and the Flask shell that must not change a byte."""

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlflow_deploy_plugin.server.assembly import Server, open_server
from mlflow_deploy_plugin.server.capture.frames import segments
from mlflow_deploy_plugin.server.http.app import build_app
from mlflow_deploy_plugin.server.http.messages import RawRequest, RawResponse
from tests.support.spool import read_segment

JSON = {"content-type": "application/json"}
ROW = b'{"inputs": [[1, 2, 3]]}'


@pytest.fixture
def server(serve_here: Callable[..., Server], bias_folders: dict[str, Path], tools: Any) -> Server:
    return serve_here(
        {"e": {"v": tools.variant(bias_folders["1"], "1")}, "f": {"w": tools.variant(bias_folders["2"], "2")}}
    )


def ask(
    server: Server, path: str = "/invocations", method: str = "POST", body: bytes = ROW, **headers: str
) -> RawResponse:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return build_app(server).handle(RawRequest(method, path, {**JSON, **named}, body))


def captured(server: Server, tmp_path: Path) -> list[Any]:
    server.capture.close()
    return [request for path in segments(tmp_path / "state-0" / "spool") for request in read_segment(path)[0]]


@pytest.mark.parametrize("given", ["0001-01-01T00:00:00+14:00", "0999-01-01T00:00:00Z", "9999-12-31T23:59:59-14:00"])
def test_an_event_time_that_the_inference_log_cannot_hold_is_refused(server: Server, given: str) -> None:
    response = ask(server, x_event_time=given)
    assert response.status == 400
    assert "X-Event-Time" in json.loads(response.body)["message"]


def test_an_answer_says_which_version_gave_it(server: Server) -> None:
    response = ask(server, x_request_id="mine")
    assert response.status == 200
    assert response.headers.pop("X-Prediction-Id")
    assert response.headers == {"X-Request-Id": "mine", "X-Model-Name": "m", "X-Model-Version": "1"}


def test_an_endpoint_is_asked_by_its_name(server: Server) -> None:
    assert json.loads(ask(server, "/endpoints/f/invocations").body) == {"predictions": [[2006.0]]}
    assert ask(server, "/endpoints/f/invocations").headers["X-Model-Version"] == "2"
    assert ask(server, "/endpoints/g/invocations").status == 404


def test_a_refused_request_says_which_version_refused_it(server: Server) -> None:
    response = ask(server, body=b"{}")
    assert response.status == 400
    assert {"X-Request-Id", "X-Model-Name", "X-Model-Version"} == set(response.headers)


@pytest.mark.parametrize("given", ["", "a" * 129, "a b", "a\nb", "ü"])
def test_a_request_id_unfit_to_be_sent_back_is_replaced(server: Server, given: str) -> None:
    made = ask(server, x_request_id=given).headers["X-Request-Id"]
    assert made != given
    assert len(made) == 32


def test_what_is_answered_is_captured_with_its_ids_and_times(server: Server, tmp_path: Path) -> None:
    first = ask(server, x_request_id="mine", x_event_time="2013-07-01T08:30:00.5-04:00")
    second = ask(server, "/endpoints/f/invocations", x_request_id="mine")
    ask(server, body=b"{}")
    one, two, failed = captured(server, tmp_path)
    assert (one.record.endpoint, one.record.variant, one.record.request_id) == ("e", "v", "mine")
    assert one.record.event_time == 1_372_681_800_500_000
    assert one.record.prediction_id == first.headers["X-Prediction-Id"] != second.headers["X-Prediction-Id"]
    assert (two.record.endpoint, two.model.version, two.record.event_time) == ("f", "2", two.record.received_time)
    assert two.outputs["y"].tolist() == [[2006.0]]
    assert (one.record.status, failed.record.status, failed.feeds) == (200, 400, {})
    assert b'onnxserve_capture_requests_total{outcome="captured"} 2.0' in ask(server, "/metrics", "GET").body


@pytest.mark.parametrize(("fraction", "low", "high"), [(0.0, 0, 0), (0.5, 20, 80), (1.0, 100, 100)])
def test_a_fraction_of_the_requests_is_captured(
    serve_here: Callable[..., Server],
    bias_folders: dict[str, Path],
    tools: Any,
    tmp_path: Path,
    fraction: float,
    low: int,
    high: int,
) -> None:
    server = serve_here({"e": {"v": tools.variant(bias_folders["1"])}}, fraction=fraction)
    for _ in range(100):
        assert ask(server).status == 200
    assert low <= len(captured(server, tmp_path)) <= high


def test_an_error_that_nobody_foresaw_is_logged_and_answered_without_details(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("secret")

    monkeypatch.setattr(type(server.dataplane), "infer", broken)
    response = ask(server)
    assert (response.status, json.loads(response.body)["error_code"]) == (500, "INTERNAL_ERROR")
    assert b"secret" not in response.body
    assert "secret" in caplog.text
    assert response.headers["X-Request-Id"] in caplog.text


def test_the_plain_pages_answer(server: Server) -> None:
    assert (ask(server, "/ping", "GET").status, ask(server, "/ping", "HEAD").status) == (200, 200)
    assert ask(server, "/health", "GET").body == b'{"status":"ok"}'
    assert ask(server, "/version", "GET").body == b"3.17.2"
    page = ask(server, "/metrics", "GET").body.decode()
    assert 'onnxserve_served_version{endpoint="f",model="m",variant="w",version="2"} 1.0' in page


V2_ROW = b'{"inputs": [{"name": "X", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}]}'


def test_v2_says_what_is_served(server: Server) -> None:
    document = json.loads(ask(server, "/v2", "GET").body)
    assert (document["name"], document["extensions"]) == (
        "onnxserve",
        ["binary_tensor_data", "model_configuration", "model_repository", "statistics"],
    )
    assert document["version"]
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
def test_v2_says_what_is_ready(server: Server, path: str, document: dict[str, Any]) -> None:
    response = ask(server, path, "GET")
    assert (response.status, json.loads(response.body)) == (200, document)
    assert ask(server, path, "HEAD").status == 200


def test_before_a_model_is_loaded_v2_lives_and_is_not_ready(tmp_path: Path) -> None:
    with contextlib.closing(open_server(tmp_path)) as server:
        assert ask(server, "/v2/health/live", "GET").status == 200
        for method, path in [("GET", "/health/ready"), ("GET", "/models/e/ready"), ("POST", "/models/e/infer")]:
            response = ask(server, "/v2" + path, method, V2_ROW)
            assert (response.status, list(json.loads(response.body))) == (503, ["error"])


def test_a_loaded_version_is_asked_by_its_number_whatever_its_weight(
    serve_here: Callable[..., Server], bias_folders: dict[str, Path], tools: Any, tmp_path: Path
) -> None:
    variants = {
        "champion": tools.variant(bias_folders["1"], "1"),
        "idle": tools.variant(bias_folders["2"], "2", weight=0),
        "shadow": tools.variant(bias_folders["3"], "3", shadow=True),
    }
    server = serve_here({"e": variants})
    assert json.loads(ask(server, "/v2/models/e", "GET").body)["versions"] == ["1", "2", "3"]
    for version, biased in (("1", 1006.0), ("2", 2006.0), ("3", 3006.0)):
        response = ask(server, f"/v2/models/e/versions/{version}/infer", body=V2_ROW)
        document = json.loads(response.body)
        assert (document["model_name"], document["model_version"]) == ("e", version)
        assert (document["outputs"][0]["data"], response.headers["X-Model-Version"]) == ([biased], version)
    page = ask(server, "/metrics", "GET").body
    assert b'requests_total{endpoint="e",model="m",protocol="v2",status="200",variant="idle",version="2"} 1.0' in page
    assert [request.record.variant for request in captured(server, tmp_path)] == list(variants)


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
        ("GET", "/v2/", 404, "/v2;"),
        ("GET", "/v2/models/e/versions/1/nothing", 404, "/v2/models/NAME"),
    ],
)
def test_errors_of_v2_have_its_form(server: Server, method: str, path: str, status: int, told: str) -> None:
    response = ask(server, path, method)
    document = json.loads(response.body)
    assert (response.status, list(document)) == (status, ["error"])
    assert told in document["error"]


def test_what_flask_refuses_has_v2_s_form_too(server: Server) -> None:
    client = build_app(server).test_client()
    got = client.post("/v2/models/e/infer", data=bytes(server.max_body_bytes + 1))
    assert (got.status_code, list(got.json or {})) == (413, ["error"])
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
def test_flask_sends_what_the_function_answers(
    server: Server, method: str, path: str, body: bytes, content_type: str
) -> None:
    headers = {"content-type": content_type, "x-request-id": "mine"}
    expected = build_app(server).handle(RawRequest(method, path, headers, body))
    got = build_app(server).test_client().open(path, method=method, data=body, headers=headers)
    assert (got.status_code, got.data, got.headers["Content-Type"]) == (
        expected.status,
        expected.body,
        expected.content_type,
    )
    for name, value in expected.headers.items():
        assert name == "X-Prediction-Id" or got.headers[name] == value


def test_an_unknown_path_is_told_the_nearest_routes(serve_here: Callable[..., Server]) -> None:
    server = serve_here({})
    told = json.loads(build_app(server).handle(RawRequest("POST", "/invocation", {}, b"")).body)["message"]
    assert told.startswith("there is no /invocation here; the nearest are /invocations, ")
    assert told.endswith("; /docs shows every route")
    assert len(told) < 200
    assert "nearest" not in build_app(server).handle(RawRequest("GET", "/qqqqqqqqqqqq", {}, b"")).body.decode()
