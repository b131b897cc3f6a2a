"""The methods about models and the server: metadata, readiness, configuration, statistics, repository and health.

The views of V2's REST form answer them: their documents have the fields of the messages, since Triton made both so.
Where REST has a bare array or object, the message has it in a field.
"""

import base64
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from mlflow_deploy_plugin.errors import NotFound, NotReady
from mlflow_deploy_plugin.server.assembly import Server
from mlflow_deploy_plugin.server.grpc import inference_pb2 as messages
from mlflow_deploy_plugin.server.grpc.calls import OpenCalls
from mlflow_deploy_plugin.server.http import views
from mlflow_deploy_plugin.server.http.messages import RawRequest, RawResponse, error_response
from mlflow_deploy_plugin.server.protocols.content import dump_json

INFERENCE, HEALTH = "inference.GRPCInferenceService", "grpc.health.v1.Health"
_WATCH_SECONDS = 0.5
_STATUS = messages.HealthCheckResponse.ServingStatus

ManagementMethod = Callable[[Server, RawRequest, Any], RawResponse]
"""Answers a method, given the server, the request and its message; the body of the response is JSON."""


def check_health(server: Server, request: RawRequest, message: messages.HealthCheckRequest) -> RawResponse:
    """Answer `grpc.health.v1.Health/Check`, for the whole server or one of its services."""
    status = _health_status(server, message.service)
    if status == _STATUS.SERVICE_UNKNOWN:
        text = f"there is no service {message.service[:100]!r}"
        return error_response(request.path, 404, "RESOURCE_DOES_NOT_EXIST", text)
    return RawResponse(200, dump_json({"status": _STATUS.Name(status)}))


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


def _endpoint_view(view: Callable[..., RawResponse]) -> ManagementMethod:
    """Return the method of a view of one endpoint, or of one version of it if the message has one."""
    return lambda server, request, message: view(
        server, request, endpoint=message.name, version=message.version or None
    )


def _model_ready(server: Server, request: RawRequest, message: messages.ModelReadyRequest) -> RawResponse:
    """Call a missing model not ready, as Triton does: otherwise its clients' `is_model_ready` would raise."""
    try:
        return views.v2_model_ready(server, request, endpoint=message.name, version=message.version or None)
    except (NotFound, NotReady):
        return RawResponse(200, dump_json({"ready": False}))


def _config(server: Server, request: RawRequest, message: messages.ModelConfigRequest) -> RawResponse:
    response = views.v2_model_config(server, request, endpoint=message.name, version=message.version or None)
    return RawResponse(200, b'{"config":' + response.body + b"}")


def _index(server: Server, request: RawRequest, message: messages.RepositoryIndexRequest) -> RawResponse:
    response = views.v2_repository_index(server, replace(request, body=dump_json({"ready": message.ready})))
    return RawResponse(200, b'{"models":' + response.body + b"}")


def _model_control(view: Callable[..., RawResponse]) -> ManagementMethod:
    """Return the method of a load or unload; parameters that are bytes (files) are sent in base64, as over REST."""

    def method(server: Server, request: RawRequest, message: Any) -> RawResponse:
        parameters: dict[str, Any] = {}
        for name, parameter in message.parameters.items():
            kind = parameter.WhichOneof("parameter_choice")
            value = getattr(parameter, kind) if kind else None
            parameters[name] = base64.b64encode(value).decode() if isinstance(value, bytes) else value
        view(server, replace(request, body=dump_json({"parameters": parameters})), endpoint=message.model_name)
        return RawResponse(200, b"{}")

    return method


METHODS: dict[str, ManagementMethod] = {
    "ServerLive": lambda server, request, message: views.v2_live(server, request),
    "ServerReady": lambda server, request, message: RawResponse(
        200, dump_json({"ready": not server.repository.not_ready_reason()})
    ),
    "ServerMetadata": lambda server, request, message: views.v2_server(server, request),
    "ModelReady": _model_ready,
    "ModelMetadata": _endpoint_view(views.v2_model),
    "ModelConfig": _config,
    "ModelStatistics": lambda server, request, message: views.v2_statistics(
        server, request, endpoint=message.name or None, version=message.version or None
    ),
    "RepositoryIndex": _index,
    "RepositoryModelLoad": _model_control(views.v2_repository_load),
    "RepositoryModelUnload": _model_control(views.v2_repository_unload),
}
