"""The pipeline of a prediction: its headers, ids, event times and captured rows."""

import json
from unittest.mock import Mock

import orjson
import pytest

from tests.support.handling import V2_ROW, ask
from tests.support.servers import one_endpoint, variant
from tests.support.spool import read_spool


@pytest.fixture
def server(serve_here, bias_folders):
    return serve_here(
        {"e": {"v": variant(bias_folders["1"])}, "f": {"w": variant(bias_folders["2"], "2")}}
    )


def captured(server, tmp_path):
    server.capture.close()
    return read_spool(tmp_path / "state-0" / "spool")


def test_answer_names_its_version(server):
    response = ask(server, x_request_id="mine")
    assert response.status == 200
    assert response.headers.pop("X-Prediction-Id")
    assert response.headers == {"X-Request-Id": "mine", "X-Model-Name": "m", "X-Model-Version": "1"}


def test_refusal_names_its_version(server):
    response = ask(server, body=b"{}")
    assert response.status == 400
    assert {"X-Request-Id", "X-Model-Name", "X-Model-Version"} == set(response.headers)


@pytest.mark.parametrize(
    "scarce",
    [
        orjson.JSONDecodeError("Not enough memory to allocate buffer for parsing", "", 0),
        MemoryError(),
    ],
)
def test_lack_of_memory_answers_503(server, scarce, monkeypatch):
    monkeypatch.setattr(orjson, "loads", Mock(side_effect=scarce))
    response = ask(server)
    assert response.status == 503
    assert response.headers["Retry-After"] == "1"
    assert json.loads(response.body.decode())["message"].startswith(
        "the server lacks memory for this request"
    )


@pytest.mark.parametrize("given", ["", "a" * 129, "a b", "a\nb", "ü"])
def test_invalid_request_id_is_replaced(server, given):
    made = ask(server, x_request_id=given).headers["X-Request-Id"]
    assert made != given
    assert len(made) == 32


def test_requests_are_captured_with_ids_and_times(server, tmp_path):
    first = ask(server, x_request_id="mine", x_event_time="2013-07-01T08:30:00.5-04:00")
    second = ask(server, "/endpoints/f/invocations", x_request_id="mine")
    assert json.loads(second.body) == {"predictions": [[2006.0]]}
    ask(server, body=b"{}")
    page = ask(server, "/metrics", "GET").body
    assert b'onnxserve_capture_requests_total{outcome="captured"} 2.0' in page
    one, two, failed = captured(server, tmp_path)
    prediction_ids = [response.headers["X-Prediction-Id"] for response in (first, second)]
    assert [entry.record.prediction_id for entry in (one, two)] == prediction_ids
    assert prediction_ids[0] != prediction_ids[1]
    record = one.record
    assert (record.endpoint, record.variant, record.request_id) == ("e", "v", "mine")
    assert record.event_time == 1_372_681_800_500_000
    assert (two.record.endpoint, two.model.version) == ("f", "2")
    assert two.record.event_time == two.record.received_time
    assert two.outputs["y"].tolist() == [[2006.0]]
    assert (record.status, failed.record.status, failed.feeds) == (200, 400, {})


@pytest.mark.parametrize(
    ("fraction", "low", "high"),
    [
        (0.0, 0, 0),
        (0.5, 20, 80),
    ],
)
def test_fraction_of_requests_is_captured(serve_here, bias_folders, tmp_path, fraction, low, high):
    server = serve_here(one_endpoint(bias_folders["1"]), fraction=fraction)
    for _ in range(100):
        assert ask(server).status == 200
    assert low <= len(captured(server, tmp_path)) <= high


def test_unexpected_error_is_answered_without_details(server, monkeypatch, caplog):
    broken = Mock(side_effect=RuntimeError("secret"))
    monkeypatch.setattr(type(server.dataplane), "infer", broken)
    response = ask(server)
    assert response.status == 500
    assert json.loads(response.body)["error_code"] == "INTERNAL_ERROR"
    assert b"secret" not in response.body
    assert "secret" in caplog.text
    assert response.headers["X-Request-Id"] in caplog.text


def test_any_loaded_version_is_asked_by_number(serve_here, bias_folders, tmp_path):
    variants = {
        "champion": variant(bias_folders["1"]),
        "idle": variant(bias_folders["2"], "2", weight=0),
        "shadow": variant(bias_folders["3"], "3", shadow=True),
    }
    server = serve_here({"e": variants})
    assert json.loads(ask(server, "/v2/models/e", "GET").body)["versions"] == ["1", "2", "3"]
    for version in "123":
        response = ask(server, f"/v2/models/e/versions/{version}/infer", body=V2_ROW)
        document = json.loads(response.body)
        assert (document["model_name"], document["model_version"]) == ("e", version)
        assert document["outputs"][0]["data"] == [1000.0 * int(version) + 6]
        assert response.headers["X-Model-Version"] == version
    page = ask(server, "/metrics", "GET").body
    assert b'protocol="v2",status="200",variant="idle",version="2"} 1.0' in page
    names = [request.record.variant for request in captured(server, tmp_path)]
    assert "shadow" in names  # It appears again if the shadow has already computed the request.
    assert [name for name in names if name != "shadow"] == ["champion", "idle"]
