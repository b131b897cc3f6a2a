"""Traces that a collector receives from a server with real gunicorn workers."""

import random
import re
import time

import pytest

from mlflow_deploy_plugin.serve.messages import RawRequest
from mlflow_deploy_plugin.serve.observability.tracing import Observer, open_tracer, tracing_is_on
from tests.support.models import write_pyfunc
from tests.support.servers import gunicorn, one_endpoint
from tests.support.services.collector import attributes, collector
from tests.support.waiting import wait_until

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"


@pytest.mark.parametrize(
    ("environment", "is_on"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://jaeger:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://jaeger:4318/v1/traces"}, True),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        (
            {"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://jaeger:4318"},
            False,
        ),
        ({"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://jaeger:4318"}, False),
    ],
)
def test_environment_switches_tracing(environment, is_on):
    assert tracing_is_on(environment) is is_on


@pytest.mark.long
def test_request_is_a_child_span(tmp_path, bias_folders, monkeypatch):
    with collector() as received:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", received.endpoint)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        with gunicorn(tmp_path, one_endpoint(bias_folders["1"])) as running:
            answer = running.post(
                "/endpoints/e/invocations",
                json={"inputs": [[1, 2, 3]]},
                headers={"traceparent": f"00-{TRACE}-{PARENT}-01", "X-Request-Id": "mine"},
            )
            refused = running.post("/invocations", json={"inputs": [[1]]})
            name = "POST /endpoints/{endpoint}/invocations"
            wait_until(
                lambda: received.named(name) and received.named("POST /invocations"),
                what="the spans",
            )
    (span,) = received.named(name)
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, PARENT)
    assert answer.headers["traceparent"] == f"00-{TRACE}-{span.span_id.hex()}-01"
    assert attributes(span) == {
        "http.request.method": "POST",
        "url.path": "/endpoints/e/invocations",
        "client.address": "127.0.0.1",
        "http.response.status_code": 200,
        "http.request.id": "mine",
        "onnxserve.model": "m",
        "onnxserve.version": "1",
        "onnxserve.prediction_id": answer.headers["X-Prediction-Id"],
    }
    parts = [part for part in received.spans if part.parent_span_id == span.span_id]
    parts.sort(key=lambda part: part.start_time_unix_nano)
    assert [part.name for part in parts] == ["decode", "infer", "encode"]
    for part in parts:
        assert span.start_time_unix_nano - 1_000_000 <= part.start_time_unix_nano
        assert part.start_time_unix_nano <= part.end_time_unix_nano
    (other,) = received.named("POST /invocations")
    assert attributes(other)["http.response.status_code"] == refused.status_code == 400
    assert other.trace_id.hex() != TRACE
    assert received.services == {"onnxserve"}


def test_unreachable_collector_delays_no_end(monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    tracer = open_tracer()
    assert tracer is not None
    with tracer.request("POST /invocations", {}, {}):
        pass
    began = time.monotonic()
    tracer.close()
    assert time.monotonic() - began < 9  # The exporter itself would try for 10 s.


def test_last_spans_are_sent(tmp_path, bias_folders, monkeypatch):
    with collector() as received:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", received.endpoint)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "600000")
        with gunicorn(tmp_path, one_endpoint(bias_folders["1"])) as running:
            assert running.post(json={"inputs": [[1, 2, 3]]}).status_code == 200
        assert len(received.named("POST /invocations")) == 1
    log = running.log.read_text()
    assert "Traceback" not in log
    assert "shutdown" not in log


RATIO = "parentbased_traceidratio"


@pytest.mark.parametrize(
    ("fraction", "sampler", "ratio", "traceparent", "expected"),
    [
        (0.0, None, "", "", 0),
        (0.5, None, "", "", 500),
        (1.0, None, "", "", 1000),
        (None, "parentbased_always_off", "", "", 0),
        (None, "traceidratio", "0", "", 1000),
        (None, RATIO, "10", "", 1000),
        (None, RATIO, "0", "", 0),
        (None, RATIO, "0", f"00-{TRACE}-{PARENT}-01", 1000),
        (None, RATIO, "1", f"00-{TRACE}-{PARENT}-00", 0),
        (None, RATIO, "1", f"01-{TRACE}-{PARENT}-02-later", 0),
        (0.5, RATIO, "1", f"00-{TRACE}-{PARENT}-00", 500),
        (None, RATIO, "0", f"00-{TRACE}-{PARENT}", 0),
    ],
)
def test_selected_requests(fraction, sampler, ratio, traceparent, expected, monkeypatch, caplog):
    if sampler is not None:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
        monkeypatch.setenv("OTEL_TRACES_SAMPLER", sampler)
        monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", ratio)
    observer = Observer(open_tracer(), fraction)
    request = RawRequest("POST", "/", {"traceparent": traceparent} if traceparent else {}, b"")
    random.seed(0)
    assert sum(observer.selects(request) for _ in range(1000)) == pytest.approx(expected, abs=40)
    assert ("OTEL_TRACES_SAMPLER_ARG" in caplog.text) == (ratio == "10")


def test_half_of_requests_is_logged_and_traced(tmp_path, bias_folders):
    """An untraced request without a `traceparent` in its response has used a plan."""
    traced = set()
    with collector() as received:
        environment = {
            "ONNXSERVE_LOG_REQUESTS": "true",
            "ONNXSERVE_LOG_FRACTION": "0.5",
            "OTEL_EXPORTER_OTLP_ENDPOINT": received.endpoint,
            "OTEL_TRACES_SAMPLER": RATIO,
            "OTEL_TRACES_SAMPLER_ARG": "0.5",
        }
        with gunicorn(
            tmp_path, one_endpoint(bias_folders["1"]), environment=environment
        ) as running:

            def ask(id_, row, **headers):
                headers["X-Request-Id"] = id_
                if "traceparent" in running.post(json={"inputs": [row]}, headers=headers).headers:
                    traced.add(id_)

            for number in range(100):
                ask(f"r{number}", [1, 2, 3])
            for flags in ("00", "01"):
                ask(flags, [1, 2, 3], traceparent=f"00-{TRACE}-{PARENT}-{flags}")
                ask(f"e{flags}", [1], traceparent=f"00-{TRACE}-{PARENT}-{flags}")
            page = running.get("/metrics").text
    spans = {attributes(span)["http.request.id"] for span in received.named("POST /invocations")}
    logged = set(re.findall(r"X-Request-Id (\w+)", running.log.read_text()))
    assert 25 < len(spans) < 75
    assert {"01", "e01"} < spans == traced - {"00", "e00"}
    assert logged - {"00", "01"} == {*spans, "e00"} - {"01"}
    count = r'onnxserve_requests_total\{endpoint="e",.*status="(\d+)".*\} (\d+)'
    assert re.findall(count, page) == [("200", "102"), ("400", "2")]


TRACED = """
import mlflow

class Agent:
    @mlflow.trace
    def predict(self, data, params=None):
        return data

def _load_pyfunc(path):
    return Agent()
"""


@pytest.mark.long
def test_spans_of_an_agent_are_collected(tmp_path, monkeypatch):
    write_pyfunc(tmp_path, "agent_with_spans", TRACED)
    with collector() as received:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", received.endpoint)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        monkeypatch.setenv("OTEL_SERVICE_NAME", "agents")
        with gunicorn(tmp_path / "state", one_endpoint(tmp_path)) as running:
            running.post("/invocations", json={"inputs": [1]})
            wait_until(lambda: received.named("predict"), what="the agent's span")
