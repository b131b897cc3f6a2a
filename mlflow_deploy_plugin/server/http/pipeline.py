"""The pipeline of a prediction, whatever its protocol: limits → variant → decode → infer → encode → count.

`infer` blocks its thread from the first step to the last. `infer_async` takes the same steps for an event loop: it
decodes on the loop, and encodes in the thread that has computed the batch. A failure is captured, too.

The fast worker first tries a plan (`plan.py`), which composes these steps once for the usual request.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress

from mlflow_deploy_plugin.errors import OnnxserveError
from mlflow_deploy_plugin.runtime import Array
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
from mlflow_deploy_plugin.server.protocols.protocol_table import DecodedRequest, Protocol

logger = logging.getLogger(__name__)


def infer(
    server: Server, request: RawRequest, protocol: Protocol, endpoint: str | None = None, version: str | None = None
) -> RawResponse:
    """Return predictions of the endpoint (None: the default one). One version decodes, computes and encodes."""
    headers = {"X-Request-Id": request_id(request.headers)}
    variant: ServedVariant | None = None
    outputs: Mapping[str, Array] | None = None
    limits, tracer = server.limits, server.tracer
    is_admitted = False
    marks = [("decode", time.perf_counter())] if tracer else []
    try:
        if limits.is_active:
            limits.acquire(request.headers, request.client)
            is_admitted = True
        variant = server.dataplane.select_variant(endpoint, version, request.headers)
        set_version_headers(headers, variant)
        decoded, infer_request = build_request(request, protocol, variant, headers)
        if variant.key is not None and version is None:
            sticky = server.dataplane.sticky_variant(variant, decoded.feeds)
            if sticky is not variant:
                variant = sticky
                set_version_headers(headers, variant)
                decoded, infer_request = build_request(request, protocol, variant, headers)
        if tracer:
            marks.append(("infer", time.perf_counter()))
        inferred = server.dataplane.infer(variant, infer_request)
        if tracer:
            marks.append(("encode", time.perf_counter()))
        response = build_response(decoded, variant, inferred, headers)
        outputs = inferred.outputs
        if tracer:
            tracer.phases([*marks, ("", time.perf_counter())])
    except Exception as error:  # noqa: BLE001 - the boundary: logged with its traceback, answered without
        response = failure_response(request, error, headers)
    finally:
        if is_admitted:
            limits.release()
    seconds = time.perf_counter() - request.arrived
    count_response(server.metrics, variant, protocol.name, str(response.status), seconds, outputs)
    if response.status >= FIRST_ERROR_STATUS and variant is not None:
        _capture_failure(server, request, variant, response, seconds)
    return response


def infer_async(
    server: Server,
    request: RawRequest,
    done: Callable[[RawResponse], None],
    protocol: Protocol,
    endpoint: str | None = None,
    version: str | None = None,
) -> bool:
    """Submit the request to its version's batcher, without blocking.

    Returns:
        True if `done` is called once with the response, in this thread or another. False if nothing has happened,
        since the request cannot be answered so; the caller has to call `infer`.
    """
    dataplane = server.dataplane
    if server.limits.may_block or not dataplane.can_infer_async(endpoint):
        return False
    try:
        variant = dataplane.select_variant(endpoint, version, request.headers)
    except OnnxserveError:
        return False  # `infer` makes the error response
    if variant.loaded.batcher is None or variant.key is not None:
        return False  # swapped a moment ago; or the variant is known only once the request is decoded
    headers = {"X-Request-Id": request_id(request.headers)}
    set_version_headers(headers, variant)

    def finish(response: RawResponse, outputs: Mapping[str, Array] | None = None) -> None:
        seconds = time.perf_counter() - request.arrived
        count_response(server.metrics, variant, protocol.name, str(response.status), seconds, outputs)
        if response.status >= FIRST_ERROR_STATUS:
            _capture_failure(server, request, variant, response, seconds)
        done(response)

    try:
        server.limits.acquire(request.headers, request.client)
    except OnnxserveError as error:
        finish(exception_response(request.path, error, headers))
        return True

    def encode(inferred: InferResponse | Exception) -> None:
        outputs = None
        try:
            if isinstance(inferred, Exception):
                response = failure_response(request, inferred, headers)
            else:
                response, outputs = build_response(decoded, variant, inferred, headers), inferred.outputs
        except Exception as error:  # noqa: BLE001 - the boundary: logged with its traceback, answered without
            response = failure_response(request, error, headers)
        server.limits.release()
        finish(response, outputs)

    try:
        decoded, infer_request = build_request(request, protocol, variant, headers)
        dataplane.infer_async(variant, infer_request, encode)
    except Exception as error:  # noqa: BLE001 - as above; nothing was submitted
        encode(error)
    return True


@contextmanager
def admitted(server: Server, request: RawRequest) -> Iterator[None]:
    """Hold a place within the server's limits. `infer` does the same without the cost of a context manager.

    Raises:
        TooManyRequests: there is none.
    """
    if not server.limits.is_active:
        yield
        return
    server.limits.acquire(request.headers, request.client)
    try:
        yield
    finally:
        server.limits.release()


def set_version_headers(headers: dict[str, str], variant: ServedVariant) -> None:
    """Name the version that answers in the headers of its response."""
    headers["X-Model-Name"], headers["X-Model-Version"] = variant.loaded.model, variant.loaded.version
    if variant.has_others:
        headers["X-Model-Variant"] = variant.name


def build_request(
    request: RawRequest, protocol: Protocol, variant: ServedVariant, headers: dict[str, str]
) -> tuple[DecodedRequest, InferRequest]:
    """Decode the request for this variant. The request's id goes into the headers of its response."""
    moment = event_time(request.headers) if "x-event-time" in request.headers else None
    decoded = protocol.decode(request.headers, request.body, variant)
    feeds, _, body_id, body, parameters = decoded
    if body_id and "x-request-id" not in request.headers:
        headers["X-Request-Id"] = request_id({"x-request-id": body_id})
    return decoded, InferRequest(
        headers["X-Request-Id"], variant.endpoint, feeds, None, parameters, moment, body, request.arrived
    )


def build_response(
    decoded: DecodedRequest, variant: ServedVariant, inferred: InferResponse, headers: dict[str, str]
) -> RawResponse:
    """Encode the outputs of this variant in the protocol of the request."""
    headers["X-Prediction-Id"] = inferred.prediction_id
    if inferred.is_cached is not None:
        headers["X-Cache"] = "hit" if inferred.is_cached else "miss"
    body, content_type, format_headers = decoded.encode(variant, inferred)
    if format_headers:
        headers.update(format_headers)
    return RawResponse(200, body, content_type, headers)


def failure_response(request: RawRequest, error: Exception, headers: dict[str, str]) -> RawResponse:
    """Return the response to a request that has failed. An error that is not ours is logged with its traceback."""
    if isinstance(error, OnnxserveError):
        return exception_response(request.path, error, headers)
    logger.error("answering %s failed, X-Request-Id %s", request.path[:200], headers["X-Request-Id"], exc_info=error)
    message = "the server failed to answer; its log says why under this X-Request-Id"
    return error_response(request.path, 500, "INTERNAL_ERROR", message, headers)


def _capture_failure(
    server: Server, request: RawRequest, variant: ServedVariant, response: RawResponse, seconds: float
) -> None:
    """Capture a failure, at the caller's event time if that can be read."""
    moment = None
    with suppress(OnnxserveError):
        moment = event_time(request.headers)
    server.dataplane.capture_failure(
        variant, response.headers.get("X-Request-Id", ""), response.status, seconds, moment
    )
