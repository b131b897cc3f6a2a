"""Limits, cache, capture, traces and pyfuncs work over gRPC as over HTTP."""

from urllib.parse import unquote

import grpc
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from mlflow_deploy_plugin.core.spec.parts import ServerSpec
from tests.serve.grpc.conftest import calling, listening, message
from tests.support.handling import ask
from tests.support.names import WITHOUT_SURROGATES
from tests.support.servers import opened, variant
from tests.support.services.collector import attributes, collector
from tests.support.spool import read_spool
from tests.support.waiting import wait_until

IMAGE = np.array([[[1.5, 2.0], [3.0, 4.0]]], np.float32)
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"
LIMITS = {
    "rate_limit": "5/day",
    "rate_limit_header": "x-key",
    "max_concurrent_requests": 2,
    "max_batch_size": 8,
    "max_queue_delay_microseconds": 300_000,
}


CALL = message("tensor", raw_input_contents=[IMAGE.tobytes()])


def told(call):
    """Return the trailing metadata of a response or an error."""
    return dict(call.trailing_metadata())


BODY = {"inputs": IMAGE.tolist()}


@pytest.fixture(scope="module")
def limited(tmp_path_factory, model_folders):
    endpoints = {"tensor": {"v": variant(model_folders["tensor"])}}
    spec = ServerSpec.model_validate(LIMITS)
    folder = tmp_path_factory.mktemp("limited")
    with opened(folder, endpoints, spec) as server, listening(server) as called:
        yield called


def status_of_post(called, key):
    return ask(called.http, body=BODY, x_key=key).status


def test_rate_is_shared_with_http(limited):
    one = [("x-key", "one")]
    with limited.stub() as stub:
        for _ in range(3):
            assert stub.ModelInfer(CALL, metadata=one).outputs
        assert [status_of_post(limited, "one") for _ in range(2)] == [200, 200]
        with pytest.raises(grpc.RpcError, match="5/day") as refused:
            stub.ModelInfer(CALL, metadata=[*one, ("x-request-id", "mine")])
        assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert told(refused.value)["retry-after"].isdigit()
        assert told(refused.value)["x-request-id"] == "mine"
        assert stub.ModelInfer(CALL, metadata=[("x-key", "another")]).outputs
        streamed = next(stub.ModelStreamInfer(iter([CALL]), metadata=one))
        assert "5/day" in streamed.error_message
    assert status_of_post(limited, "one") == 429


def test_concurrency_is_shared_with_http(limited):
    """Concurrent requests wait until a batch is full, which takes longer than sending
    them.
    """
    with limited.stub() as stub:
        calls = [
            stub.ModelInfer.future(CALL, metadata=[("x-key", f"crowd {number}")])
            for number in range(8)
        ]
        errors = [error for call in calls if (error := call.exception(60)) is not None]
    assert 0 < len(errors) < 8
    assert {error.code() for error in errors} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert status_of_post(limited, "after") == 200


@pytest.mark.long
def test_answers_are_cached_captured_and_traced(tmp_path, model_folders, monkeypatch):
    metadata = [
        ("traceparent", f"00-{TRACE}-{PARENT}-01"),
        ("x-request-id", "mine"),
        ("x-event-time", "2013-07-04T12:00:00Z"),
    ]
    endpoints = {"tensor": {"v": variant(model_folders["tensor"])}}
    name = "POST /inference.GRPCInferenceService/ModelInfer"
    with collector() as received:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", received.endpoint)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        with (
            calling(tmp_path, endpoints, response_cache_bytes=1_000_000) as called,
            called.stub() as stub,
        ):
            first, call = stub.ModelInfer.with_call(CALL, metadata=metadata)
            again, second = stub.ModelInfer.with_call(CALL)
            over_http = called.http.post(json=BODY)
            wait_until(lambda: len(received.named(name)) == 2, 60, "the spans")
            page = called.http.get("/metrics").text
    assert first.raw_output_contents == again.raw_output_contents
    assert (told(call)["x-cache"], told(second)["x-cache"]) == ("miss", "hit")
    assert over_http.headers["X-Cache"] == "hit"
    assert 'protocol="grpc",status="200"' in page

    (span,) = (item for item in received.named(name) if item.trace_id.hex() == TRACE)
    assert span.parent_span_id.hex() == PARENT
    assert told(call)["traceparent"] == f"00-{TRACE}-{span.span_id.hex()}-01"
    assert attributes(span)["onnxserve.prediction_id"] == told(call)["x-prediction-id"]
    parts = {item.name for item in received.spans if item.parent_span_id == span.span_id}
    assert parts == {"decode", "infer", "encode"}

    captured = {entry.record.prediction_id: entry for entry in read_spool(tmp_path / "spool")}
    assert len(captured) == 3
    mine = captured[told(call)["x-prediction-id"]]
    assert mine.record.request_id == "mine"
    assert mine.record.event_time == 1_372_939_200_000_000
    np.testing.assert_array_equal(mine.feeds["image"], IMAGE)
    np.testing.assert_array_equal(mine.outputs["doubled"], IMAGE * 2)


@pytest.mark.long
def test_name_outside_ascii_is_answered_counted_and_traced(tmp_path, model_folders, monkeypatch):
    versions = [variant(model_folders["tensor"], model=name) for name in WITHOUT_SURROGATES]
    endpoints = {f"e{number}": {"v": version} for number, version in enumerate(versions)}
    with collector() as received:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", received.endpoint)
        with calling(tmp_path, endpoints, response_cache_bytes=1_000_000) as called:
            for endpoint, name in zip(endpoints, WITHOUT_SURROGATES, strict=True):
                call = message(endpoint, raw_input_contents=[IMAGE.tobytes()])
                with called.stub() as stub:
                    _, answer = stub.ModelInfer.with_call(call)
                over_http = called.http.post(f"/endpoints/{endpoint}/invocations", json=BODY)
                headers = told(answer)
                assert headers["x-model-name"] == over_http.headers["X-Model-Name"]
                assert unquote(headers["x-model-name"]) == name
                assert (headers["x-cache"], over_http.headers["X-Cache"]) == ("miss", "hit")
            page = called.http.get("/metrics").text
    families = {family.name: family for family in text_string_to_metric_families(page)}
    counted = {sample.labels["model"] for sample in families["onnxserve_requests"].samples}
    traced = {attributes(span).get("onnxserve.model") for span in received.spans} - {None}
    assert counted == traced == {*WITHOUT_SURROGATES}
