"""The HTTP surface as a function: `answer(server, request)`. Every HTTP front calls it, and adds only bytes."""

import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from mlflow_deploy_plugin.errors import OnnxserveError
from mlflow_deploy_plugin.runtime.schema import Feeds, Schema
from mlflow_deploy_plugin.server import metrics
from mlflow_deploy_plugin.server.assembly import Server
from mlflow_deploy_plugin.server.dataplane import InferRequest, InferResponse
from mlflow_deploy_plugin.server.http.messages import (
    RawRequest,
    RawResponse,
    error_response,
    event_time,
    refused,
    request_id,
)
from mlflow_deploy_plugin.server.protocols import mlflow, predict
from mlflow_deploy_plugin.server.repository import ServedVariant

logger = logging.getLogger(__name__)

View = Callable[[Server, RawRequest], RawResponse]


@dataclass(frozen=True)
class Protocol:
    """A way to ask for predictions over HTTP: `decode` gives the feeds in a body, `encode` the body of the answer."""

    name: str
    decode: Callable[[str | None, bytes, Schema], Feeds]
    encode: Callable[[ServedVariant, InferResponse], bytes]


def _encode_mlflow(variant: ServedVariant, response: InferResponse) -> bytes:
    return mlflow.encode(variant.loaded.onnx.prediction(response.outputs))


def _encode_predict(variant: ServedVariant, response: InferResponse) -> bytes:
    return predict.encode(variant.loaded.onnx.artifact, response.model, response.version, response.outputs)


def _encode_batch(variant: ServedVariant, response: InferResponse) -> bytes:
    return predict.encode_batch(variant.loaded.onnx.artifact, response.model, response.version, response.outputs)


INVOCATIONS = Protocol("invocations", mlflow.decode, _encode_mlflow)
PREDICT = Protocol("predict", predict.decode, _encode_predict)
PREDICT_BATCH = Protocol("predict_batch", predict.decode_batch, _encode_batch)


def answer(server: Server, request: RawRequest) -> RawResponse:
    """The answer to any request. Never raises: what is unexpected is logged with its traceback and answered without."""
    try:
        return _dispatch(server, request)
    except OnnxserveError as error:
        return refused(error)
    except Exception:
        logger.exception("answering %s %s failed", request.method, request.path[:200])
        return error_response(500, "INTERNAL_ERROR", "the server failed to answer; its log says why")


def _dispatch(server: Server, request: RawRequest) -> RawResponse:
    methods = _methods(request.path)
    if methods is None:
        known = ", ".join([*_ROUTES, "/endpoints/NAME/invocations"])
        return error_response(404, "ENDPOINT_NOT_FOUND", f"there is no {request.path[:200]} here; there is {known}")
    view = methods.get("GET" if request.method == "HEAD" else request.method)
    if view is None:
        allowed = ", ".join(methods)
        message = f"{request.path[:200]} takes {allowed}, not {request.method[:20]}"
        return error_response(405, "BAD_REQUEST", message, {"Allow": allowed})
    return view(server, request)


def _methods(path: str) -> dict[str, View] | None:
    """What answers at this path, by HTTP method; None: there is nothing."""
    if match := _ENDPOINT_INVOCATIONS.fullmatch(path):
        return {"POST": partial(infer, protocol=INVOCATIONS, endpoint=match["endpoint"])}
    return _ROUTES.get(path)


def infer(server: Server, request: RawRequest, protocol: Protocol, endpoint: str | None = None) -> RawResponse:
    """Predictions from the endpoint (None: the default one), by one version from the first to the last byte."""
    started = time.perf_counter()
    headers = {"X-Request-Id": request_id(request.headers)}
    variant: ServedVariant | None = None
    try:
        variant = server.dataplane.lease(endpoint)
        loaded = variant.loaded
        headers["X-Model-Name"], headers["X-Model-Version"] = loaded.model, loaded.version
        moment = event_time(request.headers)
        feeds = protocol.decode(request.headers.get("content-type"), request.body, loaded.onnx.schema)
        response = server.dataplane.infer(
            variant, InferRequest(headers["X-Request-Id"], variant.endpoint, feeds, event_time=moment)
        )
        headers["X-Prediction-Id"] = response.prediction_id
        result = RawResponse(200, protocol.encode(variant, response), headers=headers)
    except OnnxserveError as error:
        result = refused(error, headers)
    except Exception:
        logger.exception("answering %s failed, X-Request-Id %s", request.path[:200], headers["X-Request-Id"])
        message = "the server failed to answer; its log says why under this X-Request-Id"
        result = error_response(500, "INTERNAL_ERROR", message, headers)
    _count(server, variant, protocol, result.status, time.perf_counter() - started)
    return result


def _count(server: Server, variant: ServedVariant | None, protocol: Protocol, status: int, seconds: float) -> None:
    """A request that no variant was leased for has empty labels: its endpoint is the caller's text."""
    names = (variant.endpoint, variant.loaded.model, variant.loaded.version) if variant else ("", "", "")
    server.metrics.count_request((*names, protocol.name, str(status)), seconds)


def _ping(server: Server, request: RawRequest) -> RawResponse:
    """MLflow's health check: 200 with an empty line, or 503 with the reason."""
    if reason := server.repository.not_ready():
        return error_response(503, "TEMPORARILY_UNAVAILABLE", reason)
    return RawResponse(200, b"\n")


def _health(server: Server, request: RawRequest) -> RawResponse:
    if reason := server.repository.not_ready():
        return error_response(503, "TEMPORARILY_UNAVAILABLE", reason)
    return RawResponse(200, b'{"status":"ok"}')


def _version(server: Server, request: RawRequest) -> RawResponse:
    """The version of MLflow that the served model was logged with."""
    artifact = server.dataplane.lease(None).loaded.onnx.artifact
    return RawResponse(200, artifact.mlflow_version.encode(), "text/plain; charset=utf-8")


def _metrics(server: Server, request: RawRequest) -> RawResponse:
    return RawResponse(200, server.metrics.page(), metrics.CONTENT_TYPE)


_ENDPOINT_INVOCATIONS = re.compile(r"/endpoints/(?P<endpoint>[^/]+)/invocations")
_ROUTES: dict[str, dict[str, View]] = {
    "/invocations": {"POST": partial(infer, protocol=INVOCATIONS)},
    "/predict": {"POST": partial(infer, protocol=PREDICT)},
    "/predict/batch": {"POST": partial(infer, protocol=PREDICT_BATCH)},
    "/ping": {"GET": _ping},
    "/health": {"GET": _health},
    "/version": {"GET": _version},
    "/metrics": {"GET": _metrics},
}
