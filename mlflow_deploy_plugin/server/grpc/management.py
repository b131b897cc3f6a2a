"""The methods about models and the server: metadata, readiness, configuration, statistics, repository and health.

`inference/management.py` makes their documents for V2's REST form, too: Triton made both with the same fields. Where
REST has a bare array or object, the message has it in a field.
"""

import base64
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from mlflow_deploy_plugin.errors import NotFound, NotReady
from mlflow_deploy_plugin.server.assembly import Server
from mlflow_deploy_plugin.server.grpc import inference_pb2 as messages
from mlflow_deploy_plugin.server.grpc.calls import OpenCalls
from mlflow_deploy_plugin.server.inference import management as documents
from mlflow_deploy_plugin.server.protocols import v2, v2_extensions

INFERENCE, HEALTH = "inference.GRPCInferenceService", "grpc.health.v1.Health"
_WATCH_SECONDS = 0.5
_STATUS = messages.HealthCheckResponse.ServingStatus

ManagementMethod = Callable[[Server, Any], dict[str, Any]]
"""Answers a method, given the server and its message: returns the fields of the response."""


def check_health(server: Server, message: messages.HealthCheckRequest) -> dict[str, Any]:
    """Answer `grpc.health.v1.Health/Check`, for the whole server or one of its services."""
    status = _health_status(server, message.service)
    if status == _STATUS.SERVICE_UNKNOWN:
        raise NotFound(f"there is no service {message.service[:100]!r}")
    return {"status": _STATUS.Name(status)}


def watch_health(
    server: Server, calls: OpenCalls, bodies: Iterator[bytes], context: grpc.ServicerContext
) -> Iterator[bytes]:
    """Answer `grpc.health.v1.Health/Watch` with the status now and after every change.

    https://github.com/grpc/grpc/blob/master/doc/health-checking.md: an unknown service is a status like another, and a
    server that ends says NOT_SERVING first. A watcher takes a place among the streams of its worker.
    """
    with calls.stream(context):
        try:
            service = messages.HealthCheckRequest.FromString(calls.receive_one(context, bodies) or b"").service
        except DecodeError:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the message is no HealthCheckRequest")
            raise
        sent, is_draining = None, False
        while context.is_active() and not is_draining:
            status = _health_status(server, service)
            if status != sent:
                yield messages.HealthCheckResponse(status=status).SerializeToString()
                sent = status
            is_draining = calls.wait_for_drain(_WATCH_SECONDS)
        if is_draining and sent == _STATUS.SERVING:
            yield messages.HealthCheckResponse(status=_STATUS.NOT_SERVING).SerializeToString()


def _health_status(server: Server, service: str) -> messages.HealthCheckResponse.ServingStatus:
    if service not in ("", INFERENCE, HEALTH):
        return _STATUS.SERVICE_UNKNOWN
    return _STATUS.NOT_SERVING if server.repository.not_ready_reason() else _STATUS.SERVING


def _model_ready(server: Server, message: messages.ModelReadyRequest) -> dict[str, Any]:
    """Call a missing model not ready, as Triton does: otherwise its clients' `is_model_ready` would raise."""
    try:
        return documents.model_ready(server, message.name, message.version or None)
    except (NotFound, NotReady):
        return {"ready": False}


def _control(change: Callable[[Server, str, Mapping[str, Any]], None]) -> ManagementMethod:
    """Return the method of a load or an unload; parameters that are bytes (files) come in base64, as over REST."""

    def method(server: Server, message: Any) -> dict[str, Any]:
        parameters: dict[str, Any] = {}
        for name, parameter in message.parameters.items():
            kind = parameter.WhichOneof("parameter_choice")
            value = getattr(parameter, kind) if kind else None
            parameters[name] = base64.b64encode(value).decode() if isinstance(value, bytes) else value
        change(server, message.model_name, parameters)
        return {}

    return method


METHODS: dict[str, ManagementMethod] = {
    "ServerLive": lambda server, message: {"live": True},
    "ServerReady": lambda server, message: {"ready": not server.repository.not_ready_reason()},
    "ServerMetadata": lambda server, message: v2.server_metadata(),
    "ModelReady": _model_ready,
    "ModelMetadata": lambda server, message: documents.model_metadata(server, message.name, message.version or None),
    "ModelConfig": lambda server, message: {
        "config": documents.model_config(server, message.name, message.version or None)
    },
    "ModelStatistics": lambda server, message: documents.model_statistics(
        server, message.name or None, message.version or None
    ),
    "RepositoryIndex": lambda server, message: {
        "models": v2_extensions.repository_index(server.repository, message.ready)
    },
    "RepositoryModelLoad": _control(documents.load_model),
    "RepositoryModelUnload": _control(documents.unload_model),
}
