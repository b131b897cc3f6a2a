"""MLServer's names on the page of metrics, compared with a page of MLServer 1.7.1.

`mlserver-metrics.txt` was scraped from it after requests to a scikit-learn model: four
with an answer, one of them for a version, one that failed, and one for an unknown
model. Lines of other paths and of Python's own metrics were left out.
"""

from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from mlflow_deploy_plugin.serve.observability.metrics import Metrics

OK = ("iris", "main", "m", "7", "v2", "200")
NOT_OURS = {
    "grpc_server_started",
    "grpc_server_msg_received",
    "grpc_server_msg_sent",
    "grpc_server_handling_seconds",
    "grpc_server_handled_latency_seconds",
    "rest_server_requests_in_progress",
}
"""MLServer's metrics that cannot be computed from counters of answers."""
MODEL = {"model": "iris", "version": "None"}
REST = {"app_name": "mlserver", "method": "POST", "path": "/v2/models/{model_name}/infer"}
GRPC = {
    "grpc_type": "UNARY",
    "grpc_service": "inference.GRPCInferenceService",
    "grpc_method": "ModelInfer",
}


@pytest.fixture
def metrics(tmp_path, monkeypatch):
    """Return the metrics of a worker that has answered requests."""
    monkeypatch.setenv("ONNXSERVE_METRICS_NAMES", "mlserver")
    made = Metrics(tmp_path)
    for seconds in (0.003, 0.004, 0.3):
        made.count_request(OK, seconds)
    made.count_request((*OK[:5], "400"), 0.001)
    made.count_request(("iris", "other", "m", "8", "grpc", "200"), 0.002)
    made.count_request(("iris", "main", "m", "7", "grpc", "503"), 0.002)
    made.count_request(("", "", "", "", "v2", "404"), 0.001)
    return made


def families(page):
    return {family.name: family for family in text_string_to_metric_families(page)}


def value(family, name, labels):
    (found,) = [
        sample.value for sample in family.samples if sample.name == name and sample.labels == labels
    ]
    return found


def test_mlserver_names_have_types_and_labels_of_recording(metrics):
    page = families(metrics.page().decode())
    recorded = families((Path(__file__).parent / "mlserver-metrics.txt").read_text())
    for name, family in recorded.items():
        if name in NOT_OURS:
            assert name not in page
            continue
        assert (page[name].type, page[name].documentation) == (family.type, family.documentation)
        if not family.samples:  # The recorded server has answered no gRPC.
            continue
        labels = {frozenset(sample.labels) for sample in family.samples}
        if name == "rest_server_request_duration_seconds":
            labels = {names - {"status_code"} for names in labels}
        assert {frozenset(sample.labels) for sample in page[name].samples} == labels
        assert {sample.name for sample in page[name].samples} == {
            sample.name for sample in family.samples
        }


@pytest.mark.parametrize(
    ("name", "sample", "labels", "expected"),
    [
        ("model_infer_request_success", "_total", MODEL, 4),
        ("model_infer_request_failure", "_total", MODEL, 2),
        ("model_infer_request_duration", "_count", MODEL, 6),
        ("model_infer_request_duration", "_sum", MODEL, 0.312),
        ("rest_server_requests", "_total", {**REST, "status_code": "200"}, 3),
        ("rest_server_requests", "_total", {**REST, "status_code": "400"}, 1),
        ("rest_server_requests", "_total", {**REST, "status_code": "404"}, 1),
        ("rest_server_request_duration_seconds", "_count", REST, 5),
        ("rest_server_request_duration_seconds", "_bucket", {**REST, "le": "0.25"}, 4),
        ("rest_server_request_duration_seconds", "_bucket", {**REST, "le": "+Inf"}, 5),
        ("grpc_server_handled", "_total", {**GRPC, "grpc_code": "OK"}, 1),
        ("grpc_server_handled", "_total", {**GRPC, "grpc_code": "INTERNAL"}, 1),
    ],
)
def test_mlserver_metric_is_computed(metrics, name, sample, labels, expected):
    family = families(metrics.page().decode())[name]
    assert value(family, f"{name}{sample}", labels) == pytest.approx(expected)


def test_mlserver_names_need_the_setting(metrics, monkeypatch):
    monkeypatch.delenv("ONNXSERVE_METRICS_NAMES")
    names = families(metrics.page().decode())
    assert "onnxserve_requests" in names
    assert not [name for name in names if name.startswith(("model_infer", "rest_", "grpc_"))]
