"""The metrics of MLServer 1.7.1, computed from onnxserve's counters when they are read.

MLServer counts in `mlserver/handlers/dataplane.py`, and with starlette_exporter and
py-grpc-prometheus for each transport. It labels a request that names no version with
version="None", so all requests have this label here. The durations of REST have no
status, and onnxserve's bounds.
"""

from collections.abc import Mapping, Sequence

from mlflow_deploy_plugin.core.statedir.metric_files import (
    REQUEST_DURATION,
    REQUESTS,
    MetricFamily,
    MetricKind,
    MetricSeries,
)

_OF_REST = {"app_name": "mlserver", "method": "POST", "path": "/v2/models/{model_name}/infer"}
_OF_GRPC = {
    "grpc_type": "UNARY",
    "grpc_service": "inference.GRPCInferenceService",
    "grpc_method": "ModelInfer",
}
_CODES = {"200": "OK", "400": "INVALID_ARGUMENT", "404": "NOT_FOUND"}
_OTHER_CODE = "INTERNAL"


def mlserver_families(families: Sequence[MetricFamily]) -> list[MetricFamily]:
    """Return MLServer's metrics.

    Args:
        families: the metrics of onnxserve, summed over its workers.
    """
    series = {family.name: family.series for family in families}
    success = _Totals("model_infer_request_success", "Model infer request success count")
    failure = _Totals("model_infer_request_failure", "Model infer request failure count")
    duration = _Totals("model_infer_request_duration", "Model infer request duration", "summary")
    rest = _Totals("rest_server_requests", "Total HTTP requests")
    rest_duration = _Totals(
        "rest_server_request_duration_seconds", "HTTP request duration, in seconds", "histogram"
    )
    grpc = _Totals(
        "grpc_server_handled",
        "Total number of RPCs completed on the server, regardless of success or failure.",
    )
    for requests in series.get(REQUESTS, ()):
        labels = requests.labels
        status = labels["status"]
        # Requests for unknown models have no endpoint, because callers choose it.
        if labels["endpoint"]:
            answered, other = (success, failure) if status == "200" else (failure, success)
            answered.add(_of_model(labels), requests)
            other.add(_of_model(labels), MetricSeries({}))  # MLServer shows both counters.
        if labels["protocol"] == "v2":
            rest.add({**_OF_REST, "status_code": status}, requests)
        if labels["protocol"] == "grpc":
            grpc.add({**_OF_GRPC, "grpc_code": _CODES.get(status, _OTHER_CODE)}, requests)
    for durations in series.get(REQUEST_DURATION, ()):
        if durations.labels["endpoint"]:
            duration.add(_of_model(durations.labels), durations)
        if durations.labels["protocol"] == "v2":
            rest_duration.add(_OF_REST, durations)
    totals = (success, failure, duration, rest, rest_duration, grpc)
    return [total.family for total in totals]


class _Totals:
    """A family of MLServer, whose series are sums of onnxserve's."""

    def __init__(self, name: str, text: str, kind: MetricKind = "counter") -> None:
        self.family = MetricFamily(name, kind, text)
        self._series: dict[tuple[str, ...], MetricSeries] = {}

    def add(self, labels: Mapping[str, str], added: MetricSeries) -> None:
        total = self._series.get(tuple(labels.values()))
        if total is None:
            total = MetricSeries(dict(labels))
            self._series[tuple(labels.values())] = total
            self.family.series.append(total)
        total.value += added.value
        counts = dict(total.buckets)
        total.buckets = [(bound, count + counts.get(bound, 0.0)) for bound, count in added.buckets]


def _of_model(labels: Mapping[str, str]) -> dict[str, str]:
    return {"model": labels["endpoint"], "version": "None"}
