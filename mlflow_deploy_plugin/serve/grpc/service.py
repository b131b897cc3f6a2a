"""The methods of the gRPC services: metadata, status codes, deadlines and streams
around `serve/inference/`.

HTTP status codes become gRPC codes as in
https://github.com/googleapis/googleapis/blob/master/google/rpc/code.proto, except that
413 and 429 both become RESOURCE_EXHAUSTED, as gRPC itself does for a message above its
limit.

While grpcio waits for the rest of a message, it occupies a thread without a time limit.
Therefore every method is registered as a stream, which is the same on the wire. The
wait is then bounded, and ends when the server drains.
"""

import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from urllib.parse import unquote

import grpc
import orjson
from google.protobuf import json_format
from google.protobuf.message import DecodeError

from mlflow_deploy_plugin.core.errors import (
    InvalidRequest,
    NotFound,
    NotReady,
    OnnxserveError,
    pass_exit,
)
from mlflow_deploy_plugin.serve.grpc import inference_pb2 as messages
from mlflow_deploy_plugin.serve.grpc import tensors
from mlflow_deploy_plugin.serve.inference import management as documents
from mlflow_deploy_plugin.serve.inference.auth import UNNAMED, Need
from mlflow_deploy_plugin.serve.inference.pipeline import failure, infer
from mlflow_deploy_plugin.serve.inference.server import Server
from mlflow_deploy_plugin.serve.messages import RawRequest, Reply, safe_headers
from mlflow_deploy_plugin.serve.protocols.content import dump_json
from mlflow_deploy_plugin.serve.protocols.protocol import (
    DecodedRequest,
    EncodedResponse,
    InferResponse,
    Protocol,
)
from mlflow_deploy_plugin.serve.variants import ServedVariant

_CHECK_SECONDS = 0.5
_STRANGER_SECONDS = 10.0
"""The time after which a stream of a caller without a key ends."""
_MICROSECONDS = 1_000_000

_CODES = {
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    409: grpc.StatusCode.ALREADY_EXISTS,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    501: grpc.StatusCode.UNIMPLEMENTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}

INFERENCE = "inference.GRPCInferenceService"
HEALTH = "grpc.health.v1.Health"
_NEEDS: Mapping[str, Need | None] = {
    **dict.fromkeys(("ServerLive", "ServerReady", "HealthCheck"), None),
    **dict.fromkeys(("RepositoryModelLoad", "RepositoryModelUnload"), "admin"),
    **dict.fromkeys(("ModelReady", "ModelMetadata", "ModelConfig"), "describe"),
}
"""The scope that a method needs; None if no key is needed. Methods that are not in this
table need `read`.
"""
_WATCH_SECONDS = 0.5
_STATUS = messages.HealthCheckResponse.ServingStatus

ManagementMethod = Callable[..., dict[str, object]]
"""A function that returns the response's fields from the server, the message and, for
`admin`, the caller.
"""


class OpenCalls:
    """The open calls of one worker. A call is open until its response is on the way to
    the client.

    Args:
        max_streams: the maximum number of concurrent streams, and of concurrent public
            streams (which need no key).
        message_seconds: the time limit for receiving the complete message of a unary
            call.
    """

    def __init__(
        self,
        max_streams: int,
        message_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_streams = max_streams
        self._message_seconds = message_seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._streams: set[grpc.ServicerContext] = set()
        self._public_streams: set[grpc.ServicerContext] = set()
        self._idle: set[grpc.ServicerContext] = set()
        self._arriving: dict[grpc.ServicerContext, float] = {}  # the deadlines
        self.open = 0
        self.draining = threading.Event()
        threading.Thread(target=self._cancel_late, name="onnxserve-grpc-late", daemon=True).start()

    def receive_one(
        self,
        context: grpc.ServicerContext,
        bodies: Iterator[bytes],
    ) -> bytes | None:
        """Return the message of a unary call, or None if the call has no message.

        Raises grpc.RpcError if the client has closed the call, or the time limit has
        passed.
        """
        self._open_call(context)
        with self._lock:
            self._arriving[context] = self._clock() + self._message_seconds
        try:
            return next(bodies, None)
        finally:
            with self._lock:
                del self._arriving[context]

    @contextmanager
    def stream(
        self,
        context: grpc.ServicerContext,
        is_public: bool = False,
    ) -> Iterator[None]:
        """Reserve a slot for a stream. If all slots are taken, end the call with
        RESOURCE_EXHAUSTED.
        """
        self._open_call(context)
        streams = self._public_streams if is_public else self._streams
        with self._lock:
            is_full = len(streams) >= self._max_streams
            if not is_full:
                streams.add(context)
        if is_full:
            text = f"{self._max_streams} streams are open in this worker, which is the limit"
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, text)
        try:
            yield
        finally:
            with self._lock:
                streams.discard(context)

    def receive_each(
        self,
        context: grpc.ServicerContext,
        bodies: Iterator[bytes],
    ) -> Iterator[bytes]:
        """Yield the messages of a stream, until the client or `drain` ends the
        stream.
        """
        while True:
            with self._lock:
                if self.draining.is_set():
                    return
                self._idle.add(context)
            try:
                body = next(bodies, None)
            except grpc.RpcError:
                return
            finally:
                with self._lock:
                    self._idle.discard(context)
            if body is None:
                return
            yield body

    def drain(self) -> None:
        """Cancel the streams that wait for a message. The other streams end after their
        current response.
        """
        with self._lock:
            self.draining.set()
            idle = list(self._idle)
        for context in idle:
            context.cancel()

    def _open_call(self, context: grpc.ServicerContext) -> None:
        """Count the call as open until it ends."""
        with self._lock:
            self.open += 1
        if not context.add_callback(self._close_call):  # The client has already closed the call.
            self._close_call()

    def _close_call(self) -> None:
        with self._lock:
            self.open -= 1

    def _cancel_late(self) -> None:
        """Cancel unary calls whose message does not arrive in time, until `drain`."""
        while not self.draining.wait(_CHECK_SECONDS):
            with self._lock:
                now = self._clock()
                late = [context for context, deadline in self._arriving.items() if deadline < now]
            for context in late:
                context.cancel()


def handlers(server: Server, calls: OpenCalls) -> list[grpc.GenericRpcHandler]:
    """Return the handlers of all methods; gRPC itself returns UNIMPLEMENTED for unknown
    methods.
    """

    def infer_one(body: bytes, context: grpc.ServicerContext) -> bytes:
        request = _raw_request(server, "ModelInfer", body, context)
        return _finish(context, _infer(server, request, context.time_remaining()))

    def infer_each(bodies: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        """Yield one response per request, in order. The stream continues after an
        error, as in Triton.
        """
        if _is_stranger(server, context):
            request = _raw_request(server, "ModelStreamInfer", b"", context)
            _finish(context, _infer(server, request, None))
        with calls.stream(context):
            for body in calls.receive_each(context, bodies):
                request = _raw_request(server, "ModelStreamInfer", body, context)
                reply = _infer(server, request, context.time_remaining())
                if reply.error is None:
                    message = messages.ModelInferResponse.FromString(reply.body)
                else:
                    message = messages.ModelInferResponse()
                    # If the id can be parsed, it identifies the rejected request.
                    with suppress(InvalidRequest):
                        message.id = str(tensors.read_message(messages.ModelInferRequest, body).id)
                # A message of a stream has no metadata, so its ids are parameters.
                for name, value in reply.headers.items():
                    message.parameters[name.lower()].string_param = value
                # for Triton's clients
                message.parameters["triton_final_response"].bool_param = True
                streamed = messages.ModelStreamInferResponse(infer_response=message)
                if reply.error is not None:
                    streamed.error_message = reply.error.message
                yield streamed.SerializeToString()

    methods = {
        "ModelInfer": _unary(server, calls, "ModelInfer", infer_one),
        "ModelStreamInfer": grpc.stream_stream_rpc_method_handler(infer_each),
    }
    for name, method in METHODS.items():
        methods[name] = _management(server, calls, name, method)
    health = {
        "Check": _management(server, calls, "HealthCheck", check_health),
        "Watch": grpc.stream_stream_rpc_method_handler(partial(watch_health, server, calls)),
    }
    return [
        grpc.method_handlers_generic_handler(INFERENCE, methods),
        grpc.method_handlers_generic_handler(HEALTH, health),
    ]


def _unary(
    server: Server,
    calls: OpenCalls,
    name: str,
    answer: Callable[[bytes, grpc.ServicerContext], bytes],
) -> grpc.RpcMethodHandler:
    """Return the handler of a unary method, which does not wait for a message that is
    empty, or of a caller without a key, who may only check the health of the server.
    """
    is_empty = not getattr(messages, f"{name}Request").DESCRIPTOR.fields

    def behaviour(bodies: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        if is_empty or _is_stranger(server, context):
            return answer(b"", context)
        body = calls.receive_one(context, bodies)
        if body is None:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the call has no message")
        return answer(body or b"", context)

    return grpc.stream_unary_rpc_method_handler(behaviour)


def _management(
    server: Server,
    calls: OpenCalls,
    name: str,
    method: ManagementMethod,
) -> grpc.RpcMethodHandler:
    """Return the handler of a management method: it authenticates the caller, and
    converts the message and the response's fields.
    """
    request_type = getattr(messages, f"{name}Request")
    response_type = getattr(messages, f"{name}Response")
    need = _NEEDS.get(name, "read")

    def respond(request: RawRequest) -> Reply:
        message = tensors.read_message(request_type, request.body)
        if need is not None:
            endpoint = getattr(message, "name", "") or getattr(message, "model_name", "")
            server.auth.identify(request, need, endpoint or None)
        if need == "admin":
            fields = method(server, message, request.caller)
        else:
            fields = method(server, message)
        # The dump converts numpy's values, which protobuf does not accept.
        document = orjson.loads(dump_json(fields))
        response = json_format.ParseDict(document, response_type(), ignore_unknown_fields=True)
        return Reply({}, response.SerializeToString())

    def answer(body: bytes, context: grpc.ServicerContext) -> bytes:
        request = _raw_request(server, name, body, context)
        return _finish(context, _reply(server, request, respond))

    return _unary(server, calls, name, answer)


def _infer(server: Server, request: RawRequest, seconds_left: float | None) -> Reply:
    """Answer an infer request within `seconds_left`; None: without a deadline of the
    call.
    """

    def respond(request: RawRequest) -> Reply:
        """Parse the message, and answer it with the pipeline of all protocols."""
        raw: list[memoryview] = []
        message = tensors.read_message(messages.ModelInferRequest, request.body, raw)

        # `infer` decodes a request after it has selected the version.
        def decode(
            headers: Mapping[str, str],
            body: bytes,
            variant: ServedVariant,
            limit: int,
        ) -> DecodedRequest:
            artifact = variant.loaded.predictor.artifact
            decoded = tensors.decode(message, artifact, variant.schema, raw, server.names)
            is_raw = bool(raw or message.raw_input_contents)

            def encode(variant: ServedVariant, response: InferResponse) -> EncodedResponse:
                answer = server.names.answer(decoded, variant, response)
                encoded = tensors.encode(variant.endpoint, answer, is_raw)
                return EncodedResponse(encoded.SerializeToString(), headers=answer.headers)

            parameters = with_deadline(decoded.parameters, seconds_left)
            return DecodedRequest(
                decoded.feeds, encode, decoded.id, decoded.body, parameters=parameters
            )

        protocol = Protocol("grpc", decode, takes_pyfuncs=True)
        return infer(
            server,
            request,
            protocol,
            message.model_name or None,
            message.model_version or None,
        )

    return _reply(server, request, respond)


def with_deadline(
    parameters: Mapping[str, object],
    seconds_left: float | None,
) -> Mapping[str, object]:
    """Return parameters with the call's deadline as `timeout` in microseconds, unless
    they have a shorter timeout.
    """
    if seconds_left is None:
        return parameters
    left_microseconds = max(1, int(seconds_left * _MICROSECONDS))
    timeout = parameters.get("timeout")
    # The data plane rejects a timeout that is not an int; 0 means no timeout.
    is_shorter = type(timeout) is not int or 0 != timeout < left_microseconds
    if timeout is not None and is_shorter:
        return parameters
    return {**parameters, "timeout": left_microseconds}


def _reply(
    server: Server,
    request: RawRequest,
    respond: Callable[[RawRequest], Reply],
) -> Reply:
    """Answer a request, with the same trace and log entry as an HTTP request. Never
    raises.
    """

    def guarded() -> Reply:
        try:
            return respond(request)
        except BaseException as error:  # noqa: BLE001 - the traceback is logged, and the response omits it
            pass_exit(error)
            return failure(request, error)

    return server.observer.observe(request, guarded)


def _finish(context: grpc.ServicerContext, reply: Reply) -> bytes:
    """Set the trailing metadata and return the message, or end the call if the reply is
    an error.
    """
    context.set_trailing_metadata(metadata_of(reply.headers))
    if reply.error is not None:
        context.abort(code_of(reply.error), reply.error.message)
    return reply.body


def _raw_request(
    server: Server,
    method: str,
    body: bytes,
    context: grpc.ServicerContext,
) -> RawRequest:
    """Return a call as a request, whose headers are the metadata in text. `caller` is
    the name in the client certificate, or empty if the server asks for none.
    """
    headers: dict[str, str] = {}
    for name, value in context.invocation_metadata():
        # Join the values of a repeated name, so that checks see all of them.
        if isinstance(value, str):
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
    caller = ""
    if server.spec.ca_certs is not None:  # TLS has verified the client certificate.
        common_names = context.auth_context().get("x509_common_name") or (UNNAMED.encode(),)
        caller = common_names[0].decode("utf-8", "replace")[:100]
    path = f"/{HEALTH}/Check" if method == "HealthCheck" else f"/{INFERENCE}/{method}"
    return RawRequest(
        "POST",
        path,
        headers,
        body,
        address_of(context.peer()),
        caller=caller,
    )


def _is_stranger(server: Server, context: grpc.ServicerContext) -> bool:
    """Return True if the caller needs a key and has none: this caller's message, which
    would occupy a thread and memory, is not read.
    """
    if not server.auth.is_required:
        return False
    request = _raw_request(server, "", b"", context)
    return server.auth.is_stranger(request.headers, request.caller)


def code_of(error: OnnxserveError) -> grpc.StatusCode:
    """Return the gRPC code for an error; a status outside `_CODES` becomes
    INVALID_ARGUMENT or INTERNAL.
    """
    if error.http_status < 500:
        other = grpc.StatusCode.INVALID_ARGUMENT
    else:
        other = grpc.StatusCode.INTERNAL
    return _CODES.get(error.http_status, other)


def metadata_of(headers: Mapping[str, str]) -> list[tuple[str, str]]:
    return [(name.lower(), value) for name, value in safe_headers(headers).items()]


def address_of(peer: str) -> str:
    """Return the address in a peer string of gRPC, such as `ipv4:127.0.0.1:5001` or
    `ipv6:%5B::1%5D:5001`.
    """
    return unquote(peer).partition(":")[2].rpartition(":")[0].strip("[]")


def check_health(server: Server, message: messages.HealthCheckRequest) -> dict[str, object]:
    """Return the fields of the current status. Raises NotFound for an unknown
    service.
    """
    status = _health_status(server, message.service)
    if status == _STATUS.SERVICE_UNKNOWN:
        raise NotFound(f"there is no service {message.service[:100]!r}")
    return {"status": _STATUS.Name(status)}


def watch_health(
    server: Server,
    calls: OpenCalls,
    bodies: Iterator[bytes],
    context: grpc.ServicerContext,
) -> Iterator[bytes]:
    """Answer `grpc.health.v1.Health/Watch` with the current status, and again after
    every change.

    https://github.com/grpc/grpc/blob/master/doc/health-checking.md: an unknown service
    has a status, not an error.
    """
    is_stranger = _is_stranger(server, context)
    ends_at = time.monotonic() + _STRANGER_SECONDS if is_stranger else math.inf
    # Strangers do not take the places of callers with a key.
    with calls.stream(context, is_stranger or not server.auth.is_required):
        try:
            body = None if is_stranger else calls.receive_one(context, bodies)
            service = messages.HealthCheckRequest.FromString(body or b"").service
        except DecodeError:
            context.abort(
                grpc.StatusCode.INVALID_ARGUMENT,
                "the message is not a HealthCheckRequest",
            )
            raise
        sent = None
        while context.is_active() and not calls.draining.is_set() and time.monotonic() < ends_at:
            status = _health_status(server, service)
            if status != sent:
                yield messages.HealthCheckResponse(status=status).SerializeToString()
                sent = status
            calls.draining.wait(_WATCH_SECONDS)
        if calls.draining.is_set() and sent == _STATUS.SERVING:
            yield messages.HealthCheckResponse(status=_STATUS.NOT_SERVING).SerializeToString()


def _health_status(server: Server, service: str) -> messages.HealthCheckResponse.ServingStatus:
    if service not in ("", INFERENCE, HEALTH):
        return _STATUS.SERVICE_UNKNOWN
    if server.repository.not_ready_reason():
        return _STATUS.NOT_SERVING
    return _STATUS.SERVING


def _model_ready(server: Server, message: messages.ModelReadyRequest) -> dict[str, object]:
    """Report a missing model as not ready, as Triton does, because the clients'
    `is_model_ready` raises on an error.
    """
    try:
        return documents.model_ready(server, message.name, message.version or None)
    except (NotFound, NotReady):
        return {"ready": False}


def _control(
    change: Callable[
        [
            Server,
            str,
            Mapping[str, object],
            str,
        ],
        None,
    ],
) -> ManagementMethod:
    """Return the method that loads or unloads an endpoint with `change`."""

    def method(
        server: Server,
        message: messages.RepositoryModelLoadRequest,
        actor: str,
    ) -> dict[str, object]:
        change(server, message.model_name, tensors.parameter_values(message.parameters), actor)
        return {}

    return method


METHODS: dict[str, ManagementMethod] = {
    "ServerLive": lambda server, message: {"live": True},
    "ServerReady": lambda server, message: {"ready": not server.repository.not_ready_reason()},
    "ServerMetadata": lambda server, message: server.names.server_metadata(),
    "ModelReady": _model_ready,
    "ModelMetadata": lambda server, message: documents.model_metadata(
        server,
        message.name,
        message.version or None,
    ),
    "ModelConfig": lambda server, message: {
        "config": documents.model_config(server, message.name, message.version or None),
    },
    "ModelStatistics": lambda server, message: documents.model_statistics(
        server,
        message.name or None,
        message.version or None,
    ),
    "RepositoryIndex": lambda server, message: {
        "models": documents.repository_index(server.repository, message.ready),
    },
    "RepositoryModelLoad": _control(documents.load_model),
    "RepositoryModelUnload": _control(documents.unload_model),
}
