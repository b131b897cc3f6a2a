"""Reading what a server counts, from its page /metrics."""

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest

from mlflow_deploy_plugin.controller.snapshot import (
    VersionCounters,
    fetch_counters,
    parse_counters,
    versions_by_last_answer,
)

PAGE = """# TYPE onnxserve_requests_total counter
onnxserve_requests_total{endpoint="f",variant="main",model="X",version="6",protocol="mlflow",status="200"} 90
onnxserve_requests_total{endpoint="f",variant="main",model="X",version="6",protocol="grpc",status="OK"} 5
onnxserve_requests_total{endpoint="f",variant="main",model="X",version="6",protocol="mlflow",status="400"} 3
onnxserve_requests_total{endpoint="f",variant="main",model="X",version="6",protocol="grpc",status="INTERNAL"} 2
onnxserve_requests_total{endpoint="f",variant="main",model="X",version="6",protocol="grpc",status="CANCELLED"} 7
onnxserve_requests_total{endpoint="f",variant="main",model="X",version="5",protocol="mlflow",status="200"} 8
onnxserve_requests_total{endpoint="f",variant="main",model="Y",version="4",protocol="mlflow",status="200"} 1
onnxserve_requests_total{endpoint="f",variant="new",model="X",version="7",protocol="mlflow",status="200"} 4
onnxserve_requests_total{endpoint="g",variant="main",model="X",version="6",protocol="mlflow",status="200"} 1000
onnxserve_requests_total{endpoint="",variant="",model="",version="",protocol="mlflow",status="404"} 11
# TYPE onnxserve_request_duration_seconds histogram
onnxserve_request_duration_seconds_bucket{endpoint="f",variant="main",version="6",protocol="mlflow",le="0.1"} 80
onnxserve_request_duration_seconds_bucket{endpoint="f",variant="main",version="6",protocol="mlflow",le="+Inf"} 93
onnxserve_request_duration_seconds_bucket{endpoint="f",variant="main",version="6",protocol="grpc",le="0.1"} 6
onnxserve_request_duration_seconds_bucket{endpoint="f",variant="main",version="6",protocol="grpc",le="+Inf"} 7
# TYPE onnxserve_shadow_rows_total counter
onnxserve_shadow_rows_total{endpoint="f",variant="copy",model="X",version="7",agreement="same"} 30
onnxserve_shadow_rows_total{endpoint="f",variant="copy",model="X",version="7",agreement="different"} 12
# TYPE onnxserve_shadow_requests_total counter
onnxserve_shadow_requests_total{endpoint="f",variant="copy",model="X",version="7",outcome="compared"} 42
onnxserve_shadow_requests_total{endpoint="f",variant="copy",model="X",version="7",outcome="failed"} 3
# TYPE onnxserve_last_request_timestamp_seconds gauge
onnxserve_last_request_timestamp_seconds{endpoint="f",model="X",version="5"} 100
onnxserve_last_request_timestamp_seconds{endpoint="f",model="X",version="6"} 200
onnxserve_last_request_timestamp_seconds{endpoint="f",model="X",version="7"} 300
"""


def test_the_counts_of_one_endpoint_are_added_up_over_protocols() -> None:
    found = parse_counters(PAGE, "f")

    assert found["main", "6"] == VersionCounters(100, 5, {0.1: 86, float("inf"): 100})
    assert found["new", "7"].requests == 4
    assert (found["copy", "7"].same, found["copy", "7"].different) == (30, 15)
    assert set(found) == {("main", "5"), ("main", "6"), ("main", "4"), ("new", "7"), ("copy", "7")}


def test_the_version_that_has_answered_last_under_a_name_comes_first() -> None:
    assert versions_by_last_answer(PAGE, "f", "main", "X") == ["6", "5"]


def test_versions_of_a_model_that_was_served_before_are_not_taken_for_this_ones() -> None:
    assert versions_by_last_answer(PAGE, "f", "main", "Y") == ["4"]


def test_counts_survive_being_written_down() -> None:
    counted = parse_counters(PAGE, "f")["main", "6"]

    assert VersionCounters.from_json(counted.to_json()) == counted


@pytest.fixture
def server() -> Iterator[HTTPServer]:
    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/metrics" else 404)
            self.end_headers()
            self.wfile.write(PAGE.encode())

    running = HTTPServer(("127.0.0.1", 0), Page)
    Thread(target=running.serve_forever, daemon=True).start()
    yield running
    running.shutdown()
    running.server_close()


def test_a_server_that_does_not_answer_gives_no_numbers(server: HTTPServer, free_port: int) -> None:
    url = f"http://127.0.0.1:{server.server_port}"

    assert fetch_counters(url, "f") == parse_counters(PAGE, "f")
    assert fetch_counters(f"{url}/elsewhere", "f") is None
    assert fetch_counters(f"http://127.0.0.1:{free_port}", "f") is None
