"""The way of one request for predictions, whatever protocol it speaks: lease → decode → infer → encode → count."""

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

from mlflow_deploy_plugin.errors import OnnxserveError
from mlflow_deploy_plugin.runtime import Array, Feeds, OpaqueBody
from mlflow_deploy_plugin.server.assembly import Server
from mlflow_deploy_plugin.server.capture.codec import FIRST_ERROR_STATUS
from mlflow_deploy_plugin.server.http.messages import (
    RawRequest,
    RawResponse,
    error_response,
    event_time,
    exception_response,
    request_id,
)
from mlflow_deploy_plugin.server.inference.dataplane import InferRequest, InferResponse
from mlflow_deploy_plugin.server.models.variants import ServedVariant
from mlflow_deploy_plugin.server.observability.metrics import count_response
from mlflow_deploy_plugin.server.protocols.content import JSON

logger = logging.getLogger(__name__)


_NOTHING: Mapping[str, Any] = MappingProxyType({})


class EncodedResponse(NamedTuple):
    """The body of an answer, and the headers that belong to its form."""

    body: bytes
    content_type: str = JSON
    headers: Mapping[str, str] = _NOTHING


class DecodedRequest(NamedTuple):
    """What a body asks for, and how that is answered.

    Attributes:
        id: the body's own, empty where it has none.
        body: what the version reads itself, in place of `feeds`.
        parameters: the request's, for the data plane: `timeout` in microseconds.
    """

    feeds: Feeds
    encode: Callable[[ServedVariant, InferResponse], EncodedResponse]
    id: str = ""
    body: OpaqueBody | None = None
    parameters: Mapping[str, Any] = _NOTHING


@dataclass(frozen=True)
class Protocol:
    """A way to ask for predictions over HTTP: `decode` reads a request to this variant."""

    name: str
    decode: Callable[[RawRequest, ServedVariant], DecodedRequest]


def infer(
    server: Server, request: RawRequest, protocol: Protocol, endpoint: str | None = None, version: str | None = None
) -> RawResponse:
    """Predictions from the endpoint (None: the default one), by one version from the first to the last byte."""
    headers = {"X-Request-Id": request_id(request.headers)}
    variant: ServedVariant | None = None
    outputs: Mapping[str, Array] | None = None
    limits, tracer = server.limits, server.tracer
    is_let_in = False
    marks = [("decode", time.perf_counter())] if tracer else []
    try:
        if limits.is_active:
            limits.acquire(request.headers, request.client)
            is_let_in = True
        variant = server.dataplane.select_variant(endpoint, version, request.headers)
        set_version_headers(headers, variant)
        question, asked = build_request(request, protocol, variant, headers)
        if variant.key is not None and version is None:
            variant, question, asked = _kept(server, request, protocol, variant, headers, question, asked)
        if tracer:
            marks.append(("infer", time.perf_counter()))
        response = server.dataplane.infer(variant, asked)
        if tracer:
            marks.append(("encode", time.perf_counter()))
        result = build_response(question, variant, response, headers)
        outputs = response.outputs
        if tracer:
            tracer.phases([*marks, ("", time.perf_counter())])
    except Exception as error:  # noqa: BLE001 - the boundary: logged with its traceback, answered without
        result = failure_response(request, error, headers)
    finally:
        if is_let_in:
            limits.release()
    seconds = time.perf_counter() - request.arrived
    count_response(server.metrics, variant, protocol.name, str(result.status), seconds, outputs)
    if result.status >= FIRST_ERROR_STATUS and variant is not None:
        capture_failure(server, request, variant, result, seconds)
    return result


def capture_failure(
    server: Server, request: RawRequest, variant: ServedVariant, result: RawResponse, seconds: float
) -> None:
    """Into the log of failures, at the time that the caller has said, where it can be read."""
    moment = None
    with suppress(OnnxserveError):
        moment = event_time(request.headers)
    server.dataplane.capture_failure(variant, result.headers.get("X-Request-Id", ""), result.status, seconds, moment)


def set_version_headers(headers: dict[str, str], variant: ServedVariant) -> None:
    """Says in an answer's headers which version gives it."""
    headers["X-Model-Name"], headers["X-Model-Version"] = variant.loaded.model, variant.loaded.version
    if variant.has_others:
        headers["X-Model-Variant"] = variant.name


def _kept(
    server: Server,
    request: RawRequest,
    protocol: Protocol,
    variant: ServedVariant,
    headers: dict[str, str],
    question: DecodedRequest,
    asked: InferRequest,
) -> tuple[ServedVariant, DecodedRequest, InferRequest]:
    """The variant that a column of the question keeps its caller to; the question anew, as that variant reads it."""
    other = server.dataplane.sticky_variant(variant, question.feeds)
    if other is variant:
        return variant, question, asked
    set_version_headers(headers, other)
    return other, *build_request(request, protocol, other, headers)


def build_request(
    request: RawRequest, protocol: Protocol, variant: ServedVariant, headers: dict[str, str]
) -> tuple[DecodedRequest, InferRequest]:
    """What the data plane is asked."""
    moment = event_time(request.headers) if "x-event-time" in request.headers else None
    question = protocol.decode(request, variant)
    feeds, _, own_id, body, parameters = question
    if own_id and "x-request-id" not in request.headers:
        headers["X-Request-Id"] = request_id({"x-request-id": own_id})
    return question, InferRequest(
        headers["X-Request-Id"], variant.endpoint, feeds, None, parameters, moment, body, request.arrived
    )


def build_response(
    question: DecodedRequest, variant: ServedVariant, response: InferResponse, headers: dict[str, str]
) -> RawResponse:
    """The answer to a question."""
    headers["X-Prediction-Id"] = response.prediction_id
    if response.is_cached is not None:
        headers["X-Cache"] = "hit" if response.is_cached else "miss"
    body, content_type, of_form = question.encode(variant, response)
    if of_form:
        headers.update(of_form)
    return RawResponse(200, body, content_type, headers)


def failure_response(request: RawRequest, error: Exception, headers: dict[str, str]) -> RawResponse:
    """The answer to a request that ended in an error; the log has the traceback of one that is not ours."""
    if isinstance(error, OnnxserveError):
        return exception_response(request.path, error, headers)
    logger.error("answering %s failed, X-Request-Id %s", request.path[:200], headers["X-Request-Id"], exc_info=error)
    message = "the server failed to answer; its log says why under this X-Request-Id"
    return error_response(request.path, 500, "INTERNAL_ERROR", message, headers)


# The way of a prediction for an event loop: decoded on it, computed in a batch, answered from the batch's thread.


def infer_async(
    server: Server,
    request: RawRequest,
    done: Callable[[RawResponse], None],
    protocol: Protocol,
    endpoint: str | None = None,
    version: str | None = None,
) -> bool:
    """As `predictions.infer`, without blocking.

    True: `done` is given the answer once, in this thread or another. False: nothing has happened, ask `infer`.
    """
    dataplane = server.dataplane
    if server.limits.may_block or not dataplane.can_infer_async(endpoint):
        return False
    try:
        variant = dataplane.select_variant(endpoint, version, request.headers)
    except OnnxserveError:
        return False  # `infer` says what is wrong
    if variant.loaded.batcher is None or variant.key is not None:
        return False  # swapped a moment ago; or the variant is known only once the request is read
    headers = {"X-Request-Id": request_id(request.headers)}
    set_version_headers(headers, variant)

    def finish(result: RawResponse, outputs: Mapping[str, Array] | None = None) -> None:
        seconds = time.perf_counter() - request.arrived
        count_response(server.metrics, variant, protocol.name, str(result.status), seconds, outputs)
        if result.status >= FIRST_ERROR_STATUS:
            capture_failure(server, request, variant, result, seconds)
        done(result)

    try:
        server.limits.acquire(request.headers, request.client)
    except OnnxserveError as error:
        finish(exception_response(request.path, error, headers))
        return True

    def answered(response: InferResponse | Exception) -> None:
        outputs = None
        try:
            if isinstance(response, Exception):
                result = failure_response(request, response, headers)
            else:
                result, outputs = build_response(question, variant, response, headers), response.outputs
        except Exception as error:  # noqa: BLE001 - the boundary: logged with its traceback, answered without
            result = failure_response(request, error, headers)
        server.limits.release()
        finish(result, outputs)

    try:
        question, asked = build_request(request, protocol, variant, headers)
        dataplane.infer_async(variant, asked, answered)
    except Exception as error:  # noqa: BLE001 - as above; nothing was submitted
        answered(error)
    return True
