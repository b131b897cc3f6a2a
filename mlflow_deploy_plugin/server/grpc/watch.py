"""`grpc.health.v1.Health/Watch`: how the server is, at once and whenever that changes.

https://github.com/grpc/grpc/blob/master/doc/health-checking.md: a service that is not known is a status like another,
and a server that ends says NOT_SERVING first. A watcher holds a place among the streams of its worker.
"""

from collections.abc import Iterator

import grpc
from google.protobuf.message import DecodeError

from mlflow_deploy_plugin.server.assembly import Server
from mlflow_deploy_plugin.server.grpc import inference_pb2 as messages
from mlflow_deploy_plugin.server.grpc.calls import OpenCalls
from mlflow_deploy_plugin.server.grpc.management import HEALTH, INFERENCE

_LOOK_SECONDS = 0.5
_STATUS = messages.HealthCheckResponse.ServingStatus


def watch(server: Server, calls: OpenCalls, bodies: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
    """One message for the present status, and one for every other that follows."""
    with calls.stream(context) as refusal:
        if refusal:
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, refusal)
        service = _service(calls.receive_one(context, bodies), context)
        told, is_ending = None, False
        while context.is_active() and not is_ending:
            status = _status(server, service)
            if status != told:
                yield messages.HealthCheckResponse(status=status).SerializeToString()
                told = status
            is_ending = calls.wait_for_drain(_LOOK_SECONDS)
        if is_ending and told == _STATUS.SERVING:
            yield messages.HealthCheckResponse(status=_STATUS.NOT_SERVING).SerializeToString()


def _service(body: bytes | None, context: grpc.ServicerContext) -> str:
    try:
        return str(messages.HealthCheckRequest.FromString(body or b"").service)
    except DecodeError:
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the message is no HealthCheckRequest")
        raise


def _status(server: Server, service: str) -> messages.HealthCheckResponse.ServingStatus:
    if service not in ("", INFERENCE, HEALTH):
        return _STATUS.SERVICE_UNKNOWN
    return _STATUS.NOT_SERVING if server.repository.not_ready_reason() else _STATUS.SERVING
