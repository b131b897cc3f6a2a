"""The pipeline of a request: authenticate → limits → variant → decode → infer → encode
→ count.

`infer` runs in one thread. `infer_async` decodes on an event loop, and encodes in the
thread that computed the batch. `explain.py` returns explanations. All use
`RequestContext`.

A plan (`http/plan.py`) composes these steps once for the usual request, and
intentionally repeats the rules of `infer`. Change a rule in both modules together;
`tests/serve/http/test_plan.py` compares them.
"""

import logging
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import closing, suppress
from copy import copy
from itertools import chain

from mlflow_deploy_plugin.core import errors
from mlflow_deploy_plugin.core.errors import (
    ClientDisconnected,
    InferenceError,
    InvalidRequest,
    OnnxserveError,
    pass_exit,
)
from mlflow_deploy_plugin.core.messages import REPEATED_HEADER
from mlflow_deploy_plugin.serve import messages
from mlflow_deploy_plugin.serve.inference.applied_steps import add_steps
from mlflow_deploy_plugin.serve.inference.dataplane import InferRequest
from mlflow_deploy_plugin.serve.inference.server import Server
from mlflow_deploy_plugin.serve.messages import (
    RawRequest,
    Reply,
    error_reply,
    event_time,
    request_id,
)
from mlflow_deploy_plugin.serve.protocols.content import EVENTS, dump_json
from mlflow_deploy_plugin.serve.protocols.protocol import DecodedRequest, InferResponse, Protocol
from mlflow_deploy_plugin.serve.runtime.feeds import Array
from mlflow_deploy_plugin.serve.variants import ServedVariant

logger = logging.getLogger(__name__)

_LAST_EVENT = b"data: [DONE]\n\n"
_NOT_FOR_PYFUNCS = (
    "this version has no ONNX form (it is a pyfunc), and does not answer this route: send the "
    "request to /invocations or to V2"
)
_REFUSALS = (InvalidRequest, InferenceError)
"""The errors of a body that is refused again whenever it is repeated."""


class RequestContext:
    """The state of a request in the pipeline.

    `headers` are the headers of the reply. `variant` is None until it is selected. `id`
    is the prediction id, also of a failed request. `rows` is 0 if it is unknown.
    """

    __slots__ = (
        "_error",
        "_is_admitted",
        "_protocol",
        "headers",
        "id",
        "request",
        "rows",
        "server",
        "variant",
    )

    def __init__(self, server: Server, request: RawRequest, protocol: str) -> None:
        self.server = server
        self.request = request
        self._protocol = protocol
        self.headers = {"X-Request-Id": request_id(request.headers)}
        self.variant: ServedVariant | None = None
        self._error: OnnxserveError | None = None
        self.id = ""
        self.rows = 0
        self._is_admitted = False

    def __enter__(self) -> "RequestContext":
        return self

    def __exit__(self, *raised: object) -> None:
        self.release()

    def admit(self, endpoint: str | None) -> None:
        """Authenticate and count the caller. Raises the errors of
        `Authenticator.require` and `RequestLimits`.
        """
        server = self.server
        request = self.request
        endpoint_name = server.repository.default_endpoint if endpoint is None else endpoint
        key = server.auth.identify(request, "infer", endpoint_name)
        server.limits.check_rates(request, key)
        server.limits.acquire()
        self._is_admitted = True

    def release(self) -> None:
        if self._is_admitted:
            self._is_admitted = False
            self.server.limits.release()
            lazy = self.server.repository.lazy
            if lazy is not None and self.variant is not None:
                lazy.release(self.variant.endpoint, self.request)

    def hand_over(self) -> "RequestContext":
        """Return a second context of the request, which remains admitted after this
        context ends.
        """
        context = copy(self)
        self._is_admitted = False
        return context

    def select_variant(
        self, endpoint: str | None, version: str | None = None, label: str | None = None
    ) -> ServedVariant:
        """Select the variant that answers, as `Repository.select_variant` does for the
        headers of the request.
        """
        repository = self.server.repository
        request = self.request
        return self.answer_by(
            repository.select_variant(
                endpoint, version, request.headers, draw=request.draw, label=label
            )
        )

    def answer_by(self, variant: ServedVariant) -> ServedVariant:
        """Use this variant for the answer, and set the model and version in the headers
        of the reply.
        """
        self.variant = variant
        if self.server.repository.lazy is not None:
            self.server.repository.lazy.hold(variant.endpoint, self.request)
        self.headers["X-Model-Name"] = variant.loaded.model
        self.headers["X-Model-Version"] = variant.loaded.version
        if variant.has_others:
            self.headers["X-Model-Variant"] = variant.name
        return variant

    def fail(self, error: BaseException) -> Reply:
        """Return the reply to the failed request, which gets a new prediction id."""
        reply = failure(self.request, error, self.headers)
        self._error = reply.error
        self.id = messages.new_id()
        return reply

    def count(self, status: int, outputs: Mapping[str, Array] | None = None) -> float:
        """Count and remember the reply, and return the seconds since the request
        arrived.
        """
        variant = self.variant
        seconds = time.perf_counter() - self.request.arrived
        self.server.metrics.count_response(
            variant, self._protocol, str(status), seconds, outputs or {}
        )
        endpoint, name, _, version = variant.labels if variant is not None else ("", "", "", "")
        origin = status, endpoint, name, version, self._protocol
        self.server.recent.add(origin, seconds, self.rows, self.id, self._error)
        return seconds

    def finish(self, reply: Reply, outputs: Mapping[str, Array] | None = None) -> Reply:
        """Count the reply to a prediction, capture the failure if it failed, and return
        the reply.
        """
        seconds = self.count(reply.status, outputs)
        error = reply.error
        if error is None or self.variant is None:
            return reply
        # `onnxserve predict` sends rows of a refused request again to find the refused
        # row. Its cause counts once.
        if isinstance(error, _REFUSALS) and REPEATED_HEADER.lower() in self.request.headers:
            return reply
        moment = None
        with suppress(OnnxserveError):  # The caller's event time may be invalid.
            moment = event_time(self.request.headers)
        ids = self.headers["X-Request-Id"], self.id
        self.server.dataplane.capture_failure(self.variant, ids, error, seconds, moment)
        return reply

    def build_request(
        self, protocol: Protocol, variant: ServedVariant
    ) -> tuple[DecodedRequest, InferRequest]:
        """Decode a prediction for this variant. An id in the body becomes the request
        id of the reply.
        """
        if not protocol.accepts(variant.loaded.predictor.artifact):
            raise InvalidRequest(_NOT_FOR_PYFUNCS)
        if self.request.failure is not None:
            raise self.request.failure
        sent_headers = self.request.headers
        headers = self.headers
        moment = event_time(sent_headers) if "x-event-time" in sent_headers else None
        decoded = protocol.decode(
            sent_headers, self.request.body, variant.sent, self.server.max_body_bytes
        )
        feeds, encode, body_id, body, parameters = decoded
        if body_id and "x-request-id" not in sent_headers:
            headers["X-Request-Id"] = request_id({"x-request-id": body_id})
        infer_request = InferRequest(
            headers["X-Request-Id"], feeds, parameters, moment, body, self.request.arrived
        )
        if variant.steps is not None:
            feeds, around = add_steps(
                self.server,
                variant,
                (feeds, encode),
                sent_headers,
                infer_request.id,
                self.server.dataplane.deadline(infer_request),
            )
            infer_request.inputs = feeds
            decoded = decoded._replace(feeds=feeds, encode=around or encode)
        return decoded, infer_request

    def build_reply(
        self, decoded: DecodedRequest, variant: ServedVariant, inferred: InferResponse
    ) -> Reply:
        """Return the encoded response of the variant, and set the headers that describe
        it.
        """
        headers = self.headers
        self.id = inferred.prediction_id
        headers["X-Prediction-Id"] = self.id
        self.rows = variant.schema.count_rows(decoded.feeds) if decoded.feeds else 0
        if inferred.is_cached is not None:
            headers["X-Cache"] = "hit" if inferred.is_cached else "miss"
        if inferred.outside is not None:
            texts = inferred.outside[inferred.outside != ""]
            headers["X-Guard"] = f"{texts[0][:200]}; rows={len(texts)}"
        body, content_type, format_headers = decoded.encode(variant, inferred)
        if format_headers:
            headers.update(format_headers)
        return Reply(headers, body, content_type)


def failure(
    request: RawRequest | None, error: BaseException, headers: dict[str, str] | None = None
) -> Reply:
    """Return the reply to a failed request (None if it could not be parsed), and log an
    unexpected error.
    """
    if isinstance(error, MemoryError):
        error = errors.NotReady(
            "the server lacks memory for this request; retry in a moment, or send less data", 1
        )
        logger.warning("requests are refused: %s", error.message)
    if isinstance(error, OnnxserveError):
        return error_reply(error, headers)
    if request is None:
        description = ""
    else:
        description = f" {request.method[:20]} {messages.without_keys(request.path)[:200]}"
    suffix = ""
    message = "the server failed to answer; its log has the reason"
    if headers and headers.get("X-Request-Id"):
        suffix = f", X-Request-Id {headers['X-Request-Id']}"
        message = f"{message} under this X-Request-Id"
    logger.error("answering%s failed%s", description, suffix, exc_info=error)
    return error_reply(errors.InternalError(message), headers)


def infer(
    server: Server,
    request: RawRequest,
    protocol: Protocol,
    endpoint: str | None = None,
    version: str | None = None,
    label: str | None = None,
) -> Reply:
    """Return predictions of the endpoint (None: the default). The same version decodes,
    computes and encodes.
    """
    outputs: Mapping[str, Array] | None = None
    began = time.perf_counter()
    with RequestContext(server, request, protocol.name) as context:
        try:
            context.admit(endpoint)
            variant = context.select_variant(endpoint, version, label)
            decoded, infer_request = context.build_request(protocol, variant)
            if variant.key is not None and version is None and label is None:
                sticky = server.dataplane.sticky_variant(variant, decoded.feeds)
                if sticky is not variant:
                    variant = context.answer_by(sticky)
                    decoded, infer_request = context.build_request(protocol, variant)
            if infer_request.body is not None and infer_request.body.is_streamed:
                context.id = messages.new_id()
                context.headers["X-Prediction-Id"] = context.id
                parts = server.dataplane.stream(variant, infer_request, context.id)
                return _begin_events(context, parts)
            decoded_at = time.perf_counter()
            inferred = server.dataplane.infer(variant, infer_request)
            inferred_at = time.perf_counter()
            reply = context.build_reply(decoded, variant, inferred)
            outputs = inferred.outputs
            if server.observer.tracer:
                server.observer.tracer.phases(
                    [
                        ("decode", began),
                        ("infer", decoded_at),
                        ("encode", inferred_at),
                        ("", time.perf_counter()),
                    ]
                )
        except BaseException as error:  # noqa: BLE001 - the traceback is logged, and the response omits it
            pass_exit(error)
            reply = context.fail(error)
    return context.finish(reply, outputs)


def may_wait_for_limits(server: Server, request: RawRequest) -> bool:
    """Return True if checking a limit of this request may block on Redis; an event loop
    must not check it then.
    """
    if not server.limits.are_shared:
        return False
    key = server.auth.known(request)
    return (key is None and server.auth.is_required) or server.limits.may_wait(request, key)


def infer_async(
    server: Server,
    request: RawRequest,
    done: Callable[[Reply], None],
    protocol: Protocol,
    endpoint: str | None = None,
    version: str | None = None,
    label: str | None = None,
) -> bool:
    """Submit the request to its version's batcher, without blocking.

    Return True if `done` is called once with the reply in any thread. Return False if
    the request was not started; the caller must then call `infer`.
    """
    dataplane = server.dataplane
    if not dataplane.can_infer_async(endpoint) or may_wait_for_limits(server, request):
        return False
    context = RequestContext(server, request, protocol.name)
    try:
        variant = context.select_variant(endpoint, version, label)
    except OnnxserveError:
        return False  # The caller then calls `infer`, which creates the error reply.
    if variant.loaded.batcher is None or variant.key is not None:
        # The version was just replaced, or the variant depends on the decoded request.
        return False

    def encode(inferred: InferResponse | BaseException) -> None:
        """Call `done` with the reply to the request, and end the request."""
        outputs = None
        try:
            if isinstance(inferred, BaseException):
                reply = context.fail(inferred)
            else:
                reply = context.build_reply(decoded, variant, inferred)
                outputs = inferred.outputs
        except BaseException as error:  # noqa: BLE001 - the client waits, and the batcher needs its thread
            reply = context.fail(error)
        context.release()
        done(context.finish(reply, outputs))

    try:
        context.admit(endpoint)
        decoded, infer_request = context.build_request(protocol, variant)
        dataplane.infer_async(variant, infer_request, encode)
    except BaseException as error:  # noqa: BLE001 - an error before the submission is answered like a later error
        encode(error)
        pass_exit(error)
    return True


def _begin_events(context: RequestContext, parts: Generator[bytes, None, None]) -> Reply:
    """Return the reply that sends the parts of a response, each a JSON text, as
    server-sent events, and counts the response when it ends.

    The events are the same as MLflow's. If the first part fails, the reply is an error;
    after a later error, the event before the last event is an object with `error`.
    """
    try:
        first = next(parts, None)
    except BaseException as error:  # noqa: BLE001 - the traceback is logged, and the response omits it
        pass_exit(error)
        context.headers.pop("X-Prediction-Id")
        return context.finish(context.fail(error))
    context.headers["X-Accel-Buffering"] = "no"  # Otherwise nginx would buffer the events.
    handed = context.hand_over()

    def events() -> Generator[bytes, None, None]:
        """Yield an empty piece first, with which the generator begins."""
        all_parts = parts if first is None else chain((first,), parts)
        reply = None
        status = ClientDisconnected.http_status
        try:
            with closing(parts):
                yield b""
                for part in all_parts:
                    yield b"data: %b\n\n" % part
                yield _LAST_EVENT
            status = 200
        except BaseException as error:  # noqa: BLE001 - the traceback is logged, and the response omits it
            pass_exit(error)
            reply = handed.fail(error)
            if reply.error is not None:
                code = reply.error.error_code
                document = {"error": {"code": code, "message": reply.error.message}}
                yield b"data: %b\n\n" % dump_json(document) + _LAST_EVENT
        finally:
            handed.release()
            if reply is None:
                handed.count(status)
            else:
                handed.finish(reply)

    pieces = events()
    next(pieces)  # Begin the generator; otherwise `finally` would not run when it is closed.
    return Reply(handed.headers, b"", EVENTS, pieces=pieces)
