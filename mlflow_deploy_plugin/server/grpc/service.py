"""The methods of the gRPC services: each a request to what answers it over HTTP, and its answer as a message.

An infer call goes the way of every prediction, `http/pipeline.py`, with the message as its body; what is asked about
models and the server (`asked.py`) goes to the views of V2's REST form. What the wire adds (metadata, status codes,
deadlines, streams) is here.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any
from urllib.parse import unquote

import grpc
import orjson
from google.protobuf import json_format

from mlflow_deploy_plugin.errors import InvalidRequest, OnnxserveError
from mlflow_deploy_plugin.server.assembly import Server
from mlflow_deploy_plugin.server.grpc import inference_pb2 as messages
from mlflow_deploy_plugin.server.grpc import management, tensors
from mlflow_deploy_plugin.server.grpc.calls import OpenCalls
from mlflow_deploy_plugin.server.grpc.watch import watch
from mlflow_deploy_plugin.server.http.access_log import observe_request
from mlflow_deploy_plugin.server.http.messages import (
    RawRequest,
    RawResponse,
    error_response,
    exception_response,
    safe_headers,
)
from mlflow_deploy_plugin.server.http.pipeline import infer
from mlflow_deploy_plugin.server.inference.dataplane import InferResponse
from mlflow_deploy_plugin.server.models.variants import ServedVariant
from mlflow_deploy_plugin.server.protocols.protocol_table import DecodedRequest, EncodedResponse, Protocol

logger = logging.getLogger(__name__)

_PROTOCOL = "grpc"
_MICROSECONDS = 1_000_000


def handlers(server: Server, calls: OpenCalls) -> list[grpc.GenericRpcHandler]:
    """What the listener answers; other methods of the services are UNIMPLEMENTED, by gRPC itself."""
    methods = {
        "ModelInfer": _unary(calls, partial(_model_infer, server)),
        "ModelStreamInfer": grpc.stream_stream_rpc_method_handler(partial(_model_stream_infer, server, calls)),
    }
    for name, ask in management.METHODS.items():
        methods[name] = _unary(calls, _about(server, name, ask))
    health = {
        "Check": _unary(calls, _about(server, "HealthCheck", management.health)),
        "Watch": grpc.stream_stream_rpc_method_handler(partial(watch, server, calls)),
    }
    return [
        grpc.method_handlers_generic_handler(management.INFERENCE, methods),
        grpc.method_handlers_generic_handler(management.HEALTH, health),
    ]


def _unary(calls: OpenCalls, answer: Callable[[bytes, grpc.ServicerContext], bytes]) -> grpc.RpcMethodHandler:
    """A method of one message; that message is waited for in `calls`."""

    def behaviour(bodies: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        body = calls.receive_one(context, bodies)
        if body is None:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the call has no message")
        return answer(body or b"", context)

    return grpc.stream_unary_rpc_method_handler(behaviour)


def _about(
    server: Server, name: str, ask: management.ManagementMethod
) -> Callable[[bytes, grpc.ServicerContext], bytes]:
    question, told = getattr(messages, f"{name}Request"), getattr(messages, f"{name}Response")

    def as_message(request: RawRequest) -> RawResponse:
        response = ask(server, request, tensors.read_message(question, request.body))
        if response.status >= 400:
            return response
        document = json_format.ParseDict(orjson.loads(response.body), told(), ignore_unknown_fields=True)
        return RawResponse(200, document.SerializeToString(), headers=response.headers)

    def answer(body: bytes, context: grpc.ServicerContext) -> bytes:
        request = _raw_request(name, body, context)
        response = _guarded(request, partial(as_message, request))
        _finish(context, response)
        return response.body

    return answer


def _model_infer(server: Server, body: bytes, context: grpc.ServicerContext) -> bytes:
    response = _infer(server, _raw_request("ModelInfer", body, context), context.time_remaining())
    _finish(context, response)
    return response.body


def _model_stream_infer(
    server: Server, calls: OpenCalls, bodies: Iterator[bytes], context: grpc.ServicerContext
) -> Iterator[bytes]:
    """One answer a request, in their order; an error is told in its place, and the stream goes on (Triton's way).

    There is no metadata for each answer: its ids are parameters of the answer.
    """
    with calls.stream(context) as refusal:
        if refusal:
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, refusal)
        for body in calls.receive_each(context, bodies):
            response = _infer(server, _raw_request("ModelStreamInfer", body, context), context.time_remaining())
            yield _streamed(body, response).SerializeToString()


def _streamed(body: bytes, response: RawResponse) -> messages.ModelStreamInferResponse:
    if response.status == 200:
        answer = messages.ModelInferResponse.FromString(response.body)
    else:
        answer = messages.ModelInferResponse(id=_id_of(body))
    for name, value in response.headers.items():
        answer.parameters[name.lower()].string_param = value
    told = messages.ModelStreamInferResponse(infer_response=answer)
    if response.status != 200:
        told.error_message = message_of(response)
    return told


def _id_of(body: bytes) -> str:
    """The id of a request that was refused, so that its caller knows which; empty where it cannot be read."""
    try:
        return str(tensors.read_message(messages.ModelInferRequest, body).id)
    except InvalidRequest:
        return ""


def _infer(server: Server, request: RawRequest, seconds_left: float | None) -> RawResponse:
    """The answer to an infer request: a message, or an error in JSON."""

    def answer() -> RawResponse:
        message = tensors.read_message(messages.ModelInferRequest, request.body)
        protocol = Protocol(_PROTOCOL, partial(_read, message, seconds_left))
        return infer(server, request, protocol, message.model_name or None, message.model_version or None)

    return observe_request(request, lambda: _guarded(request, answer), server.tracer, server.logs_requests)


def _read(
    message: messages.ModelInferRequest,
    seconds_left: float | None,
    headers: Mapping[str, str],
    body: bytes,
    variant: ServedVariant,
) -> DecodedRequest:
    predictor = variant.loaded.predictor
    question = tensors.decode(message, predictor.artifact, predictor.schema)

    def encode(variant: ServedVariant, response: InferResponse) -> EncodedResponse:
        answer = tensors.encode(question, variant.endpoint, response.id, response.version, response.outputs)
        return EncodedResponse(answer.SerializeToString())

    return DecodedRequest(
        question.feeds, encode, question.id, parameters=with_deadline(question.parameters, seconds_left)
    )


def with_deadline(parameters: Mapping[str, Any], seconds_left: float | None) -> Mapping[str, Any]:
    """The parameters with the call's deadline as `timeout`, in microseconds, unless they have a shorter one."""
    if seconds_left is None:
        return parameters
    left = max(1, int(seconds_left * _MICROSECONDS))
    said = parameters.get("timeout")
    is_shorter = type(said) is not int or 0 < said < left  # what is no number is refused by whoever reads it
    return parameters if said is not None and is_shorter else {**parameters, "timeout": left}


def _guarded(request: RawRequest, answer: Callable[[], RawResponse]) -> RawResponse:
    """The answer, or the error that it ended in; what is unexpected is logged with its traceback and told without."""
    try:
        return answer()
    except OnnxserveError as error:
        return exception_response(request.path, error)
    except Exception:
        logger.exception("answering %s failed", request.path)
        return error_response(request.path, 500, "INTERNAL_ERROR", "the server failed to answer; its log says why")


def _finish(context: grpc.ServicerContext, response: RawResponse) -> None:
    """Sets the trailing metadata; ends the call where the answer is an error."""
    context.set_trailing_metadata(metadata_of(response.headers))
    if response.status >= 400:
        context.abort(code_of(response), message_of(response))


def _raw_request(method: str, body: bytes, context: grpc.ServicerContext) -> RawRequest:
    headers = {name: value for name, value in context.invocation_metadata() if isinstance(value, str)}
    return RawRequest("POST", f"/{management.INFERENCE}/{method}", headers, body, address_of(context.peer()))


_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    409: grpc.StatusCode.ALREADY_EXISTS,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    415: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    501: grpc.StatusCode.UNIMPLEMENTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}


def code_of(response: RawResponse) -> grpc.StatusCode:
    """OK, or the code of an error; INTERNAL for what has no other."""
    return grpc.StatusCode.OK if response.status < 400 else _CODES.get(response.status, grpc.StatusCode.INTERNAL)


def message_of(response: RawResponse) -> str:
    """The message of an error's JSON body."""
    return str(orjson.loads(response.body)["message"])


def metadata_of(headers: Mapping[str, str]) -> list[tuple[str, str]]:
    """The headers of an answer as trailing metadata, names in lower case."""
    return [(name.lower(), value) for name, value in safe_headers(headers).items()]


def address_of(peer: str) -> str:
    """The address in gRPC's `ipv4:127.0.0.1:5001` or `ipv6:%5B::1%5D:5001`."""
    return unquote(peer).partition(":")[2].rpartition(":")[0].strip("[]")
