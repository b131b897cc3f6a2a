"""The HTTP surface as a function: `answer(server, request)`. Every HTTP front calls it, and adds only bytes."""

import logging
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
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
from mlflow_deploy_plugin.server.protocols import mlflow, predict, v2
from mlflow_deploy_plugin.server.protocols.content import JSON
from mlflow_deploy_plugin.server.repository import ServedVariant

logger = logging.getLogger(__name__)

View = Callable[..., RawResponse]
"""Answers `(server, request)`, and what its path names by keyword."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The body of an answer, and the headers that belong to its form."""

    body: bytes
    content_type: str = JSON
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Question:
    """What a body asks for, and how that is answered; `id` is the body's own, empty where it has none."""

    feeds: Feeds
    encode: Callable[[ServedVariant, InferResponse], Answer]
    id: str = ""


@dataclass(frozen=True)
class Protocol:
    """A way to ask for predictions over HTTP: `decode` reads a request to this variant."""

    name: str
    decode: Callable[[RawRequest, ServedVariant], Question]


def _plain(
    name: str,
    decode: Callable[[str | None, bytes, Schema], Feeds],
    encode: Callable[[ServedVariant, InferResponse], bytes],
) -> Protocol:
    """A protocol whose answer has the same form whatever the request says."""

    def answer_in_json(variant: ServedVariant, response: InferResponse) -> Answer:
        return Answer(encode(variant, response))

    def read(request: RawRequest, variant: ServedVariant) -> Question:
        feeds = decode(request.headers.get("content-type"), request.body, variant.loaded.onnx.schema)
        return Question(feeds, answer_in_json)

    return Protocol(name, read)


def _encode_mlflow(variant: ServedVariant, response: InferResponse) -> bytes:
    return mlflow.encode(variant.loaded.onnx.prediction(response.outputs))


def _encode_predict(variant: ServedVariant, response: InferResponse) -> bytes:
    return predict.encode(variant.loaded.onnx.artifact, response.model, response.version, response.outputs)


def _encode_batch(variant: ServedVariant, response: InferResponse) -> bytes:
    return predict.encode_batch(variant.loaded.onnx.artifact, response.model, response.version, response.outputs)


def _read_v2(request: RawRequest, variant: ServedVariant) -> Question:
    onnx = variant.loaded.onnx
    question = v2.decode(request.headers, request.body, onnx.artifact, onnx.schema)

    def encode(variant: ServedVariant, response: InferResponse) -> Answer:
        body, binary_headers = v2.encode(question, variant.endpoint, response.id, response.version, response.outputs)
        return Answer(body, v2.OCTETS if binary_headers else JSON, binary_headers)

    return Question(question.feeds, encode, question.id)


INVOCATIONS = _plain("invocations", mlflow.decode, _encode_mlflow)
PREDICT = _plain("predict", predict.decode, _encode_predict)
PREDICT_BATCH = _plain("predict_batch", predict.decode_batch, _encode_batch)
V2 = Protocol("v2", _read_v2)


def answer(server: Server, request: RawRequest) -> RawResponse:
    """The answer to any request. Never raises: what is unexpected is logged with its traceback and answered without."""
    try:
        return _dispatch(server, request)
    except OnnxserveError as error:
        return refused(request.path, error)
    except Exception:
        logger.exception("answering %s %s failed", request.method, request.path[:200])
        message = "the server failed to answer; its log says why"
        return error_response(request.path, 500, "INTERNAL_ERROR", message)


def _dispatch(server: Server, request: RawRequest) -> RawResponse:
    methods = _methods(request.path)
    if methods is None:
        known = ", ".join([*_ROUTES, *(pattern.shown for pattern in _PATTERNS)])
        message = f"there is no {request.path[:200]} here; there is {known}"
        return error_response(request.path, 404, "ENDPOINT_NOT_FOUND", message)
    view = methods.get("GET" if request.method == "HEAD" else request.method)
    if view is None:
        allowed = ", ".join(methods)
        message = f"{request.path[:200]} takes {allowed}, not {request.method[:20]}"
        return error_response(request.path, 405, "BAD_REQUEST", message, {"Allow": allowed})
    return view(server, request)


def _methods(path: str) -> dict[str, View] | None:
    """What answers at this path, by HTTP method; None: there is nothing."""
    if path in _ROUTES:
        return _ROUTES[path]
    for pattern in _PATTERNS:
        if match := pattern.path.fullmatch(path):
            return {pattern.method: partial(pattern.view, **match.groupdict())}
    return None


def infer(
    server: Server, request: RawRequest, protocol: Protocol, endpoint: str | None = None, version: str | None = None
) -> RawResponse:
    """Predictions from the endpoint (None: the default one), by one version from the first to the last byte."""
    started = time.perf_counter()
    headers = {"X-Request-Id": request_id(request.headers)}
    variant: ServedVariant | None = None
    try:
        variant = server.dataplane.lease(endpoint, version)
        loaded = variant.loaded
        headers["X-Model-Name"], headers["X-Model-Version"] = loaded.model, loaded.version
        moment = event_time(request.headers)
        question = protocol.decode(request, variant)
        if question.id and "x-request-id" not in request.headers:
            headers["X-Request-Id"] = request_id({"x-request-id": question.id})
        response = server.dataplane.infer(
            variant, InferRequest(headers["X-Request-Id"], variant.endpoint, question.feeds, event_time=moment)
        )
        headers["X-Prediction-Id"] = response.prediction_id
        told = question.encode(variant, response)
        result = RawResponse(200, told.body, told.content_type, {**headers, **told.headers})
    except OnnxserveError as error:
        result = refused(request.path, error, headers)
    except Exception:
        logger.exception("answering %s failed, X-Request-Id %s", request.path[:200], headers["X-Request-Id"])
        message = "the server failed to answer; its log says why under this X-Request-Id"
        result = error_response(request.path, 500, "INTERNAL_ERROR", message, headers)
    _count(server, variant, protocol, result.status, time.perf_counter() - started)
    return result


def _count(server: Server, variant: ServedVariant | None, protocol: Protocol, status: int, seconds: float) -> None:
    """A request that no variant was leased for has empty labels: its endpoint is the caller's text."""
    names = (variant.endpoint, variant.loaded.model, variant.loaded.version) if variant else ("", "", "")
    server.metrics.count_request((*names, protocol.name, str(status)), seconds)


def _readiness(server: Server, request: RawRequest, body: bytes) -> RawResponse:
    """200 with `body` when every endpoint can answer, else 503 with the reason."""
    if reason := server.repository.not_ready():
        return error_response(request.path, 503, "TEMPORARILY_UNAVAILABLE", reason)
    return RawResponse(200, body)


def _version(server: Server, request: RawRequest) -> RawResponse:
    """The version of MLflow that the served model was logged with."""
    artifact = server.dataplane.lease(None).loaded.onnx.artifact
    return RawResponse(200, artifact.mlflow_version.encode(), "text/plain; charset=utf-8")


def _metrics(server: Server, request: RawRequest) -> RawResponse:
    return RawResponse(200, server.metrics.page(), metrics.CONTENT_TYPE)


def _v2_live(server: Server, request: RawRequest) -> RawResponse:
    return RawResponse(200, b'{"live":true}')


def _v2_server(server: Server, request: RawRequest) -> RawResponse:
    return RawResponse(200, v2.server_metadata())


def _v2_model(server: Server, request: RawRequest, endpoint: str, version: str | None) -> RawResponse:
    variant = server.dataplane.lease(endpoint, version)
    versions = server.repository.versions(endpoint)
    return RawResponse(200, v2.model_metadata(endpoint, versions, variant.loaded.onnx.artifact))


def _v2_model_ready(server: Server, request: RawRequest, endpoint: str, version: str | None) -> RawResponse:
    server.dataplane.lease(endpoint, version)
    return RawResponse(200, v2.model_ready(endpoint))


_ROUTES: dict[str, dict[str, View]] = {
    "/invocations": {"POST": partial(infer, protocol=INVOCATIONS)},
    "/predict": {"POST": partial(infer, protocol=PREDICT)},
    "/predict/batch": {"POST": partial(infer, protocol=PREDICT_BATCH)},
    "/ping": {"GET": partial(_readiness, body=b"\n")},  # MLflow's: an empty line
    "/health": {"GET": partial(_readiness, body=b'{"status":"ok"}')},
    "/version": {"GET": _version},
    "/metrics": {"GET": _metrics},
    "/v2": {"GET": _v2_server},
    "/v2/health/live": {"GET": _v2_live},
    "/v2/health/ready": {"GET": partial(_readiness, body=b'{"ready":true}')},
}


@dataclass(frozen=True, slots=True)
class _Pattern:
    """A route whose path names things: its groups are the view's keywords."""

    shown: str
    path: re.Pattern[str]
    method: str
    view: View


_V2_MODEL = r"/v2/models/(?P<endpoint>[^/]+)(?:/versions/(?P<version>[^/]+))?"
_PATTERNS = (
    _Pattern(
        "/endpoints/NAME/invocations",
        re.compile(r"/endpoints/(?P<endpoint>[^/]+)/invocations"),
        "POST",
        partial(infer, protocol=INVOCATIONS),
    ),
    _Pattern(
        "/v2/models/NAME[/versions/V]/infer", re.compile(_V2_MODEL + "/infer"), "POST", partial(infer, protocol=V2)
    ),
    _Pattern("/v2/models/NAME[/versions/V]/ready", re.compile(_V2_MODEL + "/ready"), "GET", _v2_model_ready),
    _Pattern("/v2/models/NAME[/versions/V]", re.compile(_V2_MODEL), "GET", _v2_model),
)
