"""The trace span and the access log line of a request, each if it is asked for."""

import logging
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Protocol, TypeVar

from mlflow_deploy_plugin.server.inference.messages import RawRequest
from mlflow_deploy_plugin.server.observability.tracing import Tracer

logger = logging.getLogger("mlflow_deploy_plugin.request")

_FIELDS = {
    "X-Prediction-Id": "onnxserve.prediction_id",
    "X-Model-Name": "onnxserve.model",
    "X-Model-Version": "onnxserve.version",
    "X-Model-Variant": "onnxserve.variant",
    "X-Request-Id": "http.request.id",
}
"""The log field and span attribute of each header of a response (ECS's name if it has one)."""


class Response(Protocol):
    """What a span and a log line tell of the response of any transport."""

    headers: dict[str, str]
    body: bytes

    @property
    def status(self) -> int: ...


AnyResponse = TypeVar("AnyResponse", bound=Response)


def observe_request(
    request: RawRequest, handle: Callable[[], AnyResponse], tracer: Tracer | None, logs_requests: bool
) -> AnyResponse:
    """Handle the request within a span, and log it. With a tracer the response has `traceparent`."""
    path = request.path[:500]
    fields = {"http.request.method": request.method[:20], "url.path": path, "client.address": request.client}
    began = time.perf_counter()
    with tracer.request(_span_name(request), request.headers, fields) if tracer else nullcontext() as span:
        response = handle()
        named = {field: response.headers[header] for header, field in _FIELDS.items() if header in response.headers}
        if span:
            response.headers["traceparent"] = span.traceparent
            span.set_status(response.status, named)
    if logs_requests:
        seconds = time.perf_counter() - began
        extra = {
            **fields,
            **named,
            "http.response.status_code": response.status,
            "http.request.body.bytes": len(request.body),
            "http.response.body.bytes": len(response.body),
            "event.duration": int(seconds * 1e9),
        }
        if span:
            extra["trace.id"] = span.trace_id
        logger.info(
            "%s %s %d in %.2f ms, X-Request-Id %s",
            fields["http.request.method"],
            path,
            response.status,
            seconds * 1000,
            named.get("http.request.id", "-"),
            extra=extra,
        )
    return response


def _span_name(request: RawRequest) -> str:
    """Return the method and the route with placeholders for names: few distinct ones, as the HTTP conventions ask."""
    parts = request.path.split("/")[:8]
    for position in range(2, len(parts)):
        if parts[position - 1] in ("models", "versions", "endpoints"):
            parts[position] = "{" + parts[position - 1][:-1] + "}"
    return f"{request.method[:20]} {'/'.join(parts)[:100]}"
