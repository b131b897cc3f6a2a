"""The metrics of MLServer 1.7.1, computed from onnxserve's counters when they are read.

MLServer counts in `mlserver/handlers/dataplane.py`, and with starlette_exporter and
py-grpc-prometheus for each transport. It labels a request that names no version with
version="None", so all requests have this label here. The durations of REST have no
status, and onnxserve's bounds.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from mlflow_deploy_plugin.core.statedir.metric_files import (
    REQUEST_DURATION,
    REQUESTS,
    MetricFamily,
    MetricKind,
    MetricSeries,
)

_Labels = Mapping[str, str]
_CODES = {"200": "OK", "400": "INVALID_ARGUMENT", "404": "NOT_FOUND"}
_OTHER_CODE = "INTERNAL"


def _of_model(labels: _Labels) -> _Labels:
    # Requests for unknown models have no endpoint, because callers choose it.
    return {"model": labels["endpoint"], "version": "None"} if labels["endpoint"] else {}


def _of_rest(labels: _Labels) -> _Labels:
    if labels["protocol"] != "v2":
        return {}
    path = {"app_name": "mlserver", "method": "POST", "path": "/v2/models/{model_name}/infer"}
    return {**path, "status_code": labels["status"]} if "status" in labels else path


def _of_grpc(labels: _Labels) -> _Labels:
    if labels["protocol"] != "grpc":
        return {}
    return {
        "grpc_type": "UNARY",
        "grpc_service": "inference.GRPCInferenceService",
        "grpc_method": "ModelInfer",
        "grpc_code": _CODES.get(labels["status"], _OTHER_CODE),
    }


class _Named(NamedTuple):
    """A metric of MLServer.

    Attributes:
        source: the metric of onnxserve.
        labels: MLServer's labels for onnxserve's; empty to leave a series out.
        counts: True if a series with onnxserve's labels counts; otherwise it adds 0.
    """

    name: str
    text: str
    kind: MetricKind
    source: str
    labels: Callable[[_Labels], _Labels]
    counts: Callable[[_Labels], bool] = lambda labels: True


_METRICS = (
    _Named(
        "model_infer_request_success",
        "Model infer request success count",
        "counter",
        REQUESTS,
        _of_model,
        lambda labels: labels["status"] == "200",
    ),
    _Named(
        "model_infer_request_failure",
        "Model infer request failure count",
        "counter",
        REQUESTS,
        _of_model,
        lambda labels: labels["status"] != "200",
    ),
    _Named(
        "model_infer_request_duration",
        "Model infer request duration",
        "summary",
        REQUEST_DURATION,
        _of_model,
    ),
    _Named("rest_server_requests", "Total HTTP requests", "counter", REQUESTS, _of_rest),
    _Named(
        "rest_server_request_duration_seconds",
        "HTTP request duration, in seconds",
        "histogram",
        REQUEST_DURATION,
        _of_rest,
    ),
    _Named(
        "grpc_server_handled",
        "Total number of RPCs completed on the server, regardless of success or failure.",
        "counter",
        REQUESTS,
        _of_grpc,
    ),
)


def mlserver_families(families: Sequence[MetricFamily]) -> list[MetricFamily]:
    """Return MLServer's metrics.

    Args:
        families: the metrics of onnxserve, summed over its workers.
    """
    series = {family.name: family.series for family in families}
    made = []
    for metric in _METRICS:
        totals: dict[tuple[str, ...], MetricSeries] = {}
        for counted in series.get(metric.source, ()):
            labels = dict(metric.labels(counted.labels))
            if not labels:
                continue
            total = totals.setdefault(tuple(labels.values()), MetricSeries(labels))
            if metric.counts(counted.labels):
                total.value += counted.value
                before = dict(total.buckets)
                total.buckets = [
                    (bound, number + before.get(bound, 0.0)) for bound, number in counted.buckets
                ]
        made.append(MetricFamily(metric.name, metric.kind, metric.text, [*totals.values()]))
    return made
