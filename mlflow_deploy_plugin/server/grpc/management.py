"""What is asked about models and the server: method → the view of V2's REST form that answers it.

The views' documents have the fields of the messages, since Triton made both so; where REST has a bare array or a bare
object, the message has it in a field.
"""

import base64
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from mlflow_deploy_plugin.errors import NotFound, NotReady
from mlflow_deploy_plugin.server.assembly import Server
from mlflow_deploy_plugin.server.grpc import inference_pb2 as messages
from mlflow_deploy_plugin.server.http import views
from mlflow_deploy_plugin.server.http.messages import RawRequest, RawResponse, error_response
from mlflow_deploy_plugin.server.protocols.content import dump_json

INFERENCE, HEALTH = "inference.GRPCInferenceService", "grpc.health.v1.Health"

ManagementMethod = Callable[[Server, RawRequest, Any], RawResponse]
"""What answers a method: given the server, the request and its message, an answer whose body is JSON."""


def health(server: Server, request: RawRequest, asked: messages.HealthCheckRequest) -> RawResponse:
    """gRPC's own health check, of the whole server or of one of its services."""
    if asked.service not in ("", INFERENCE, HEALTH):
        message = f"there is no service {asked.service[:100]!r}"
        return error_response(request.path, 404, "RESOURCE_DOES_NOT_EXIST", message)
    return RawResponse(200, dump_json({"status": "NOT_SERVING" if server.repository.not_ready_reason() else "SERVING"}))


def _live(server: Server, request: RawRequest, asked: messages.ServerLiveRequest) -> RawResponse:
    return views.v2_live(server, request)


def _ready(server: Server, request: RawRequest, asked: messages.ServerReadyRequest) -> RawResponse:
    return RawResponse(200, dump_json({"ready": not server.repository.not_ready_reason()}))


def _metadata(server: Server, request: RawRequest, asked: messages.ServerMetadataRequest) -> RawResponse:
    return views.v2_server(server, request)


def _of_endpoint(view: Callable[..., RawResponse]) -> ManagementMethod:
    """A view of one endpoint, or of one version of it where the message says which."""
    return lambda server, request, asked: view(server, request, endpoint=asked.name, version=asked.version or None)


def _model_ready(server: Server, request: RawRequest, asked: messages.ModelReadyRequest) -> RawResponse:
    """A model that is not there is not ready either, as in Triton: its clients' `is_model_ready` would raise else."""
    try:
        return views.v2_model_ready(server, request, endpoint=asked.name, version=asked.version or None)
    except (NotFound, NotReady):
        return RawResponse(200, dump_json({"ready": False}))


def _config(server: Server, request: RawRequest, asked: messages.ModelConfigRequest) -> RawResponse:
    told = views.v2_model_config(server, request, endpoint=asked.name, version=asked.version or None)
    return RawResponse(200, b'{"config":' + told.body + b"}")


def _statistics(server: Server, request: RawRequest, asked: messages.ModelStatisticsRequest) -> RawResponse:
    return views.v2_statistics(server, request, endpoint=asked.name or None, version=asked.version or None)


def _index(server: Server, request: RawRequest, asked: messages.RepositoryIndexRequest) -> RawResponse:
    told = views.v2_repository_index(server, _with_body(request, {"ready": asked.ready}))
    return RawResponse(200, b'{"models":' + told.body + b"}")


def _changed(view: Callable[..., RawResponse]) -> ManagementMethod:
    """A load or an unload: parameters that are bytes (files) go in base64, as over REST."""

    def ask(server: Server, request: RawRequest, asked: Any) -> RawResponse:
        parameters: dict[str, Any] = {}
        for name, parameter in asked.parameters.items():
            kind = parameter.WhichOneof("parameter_choice")
            value = getattr(parameter, kind) if kind else None
            parameters[name] = base64.b64encode(value).decode() if isinstance(value, bytes) else value
        view(server, _with_body(request, {"parameters": parameters}), endpoint=asked.model_name)
        return RawResponse(200, b"{}")

    return ask


def _with_body(request: RawRequest, document: dict[str, Any]) -> RawRequest:
    return replace(request, body=dump_json(document))


METHODS: dict[str, ManagementMethod] = {
    "ServerLive": _live,
    "ServerReady": _ready,
    "ServerMetadata": _metadata,
    "ModelReady": _model_ready,
    "ModelMetadata": _of_endpoint(views.v2_model),
    "ModelConfig": _config,
    "ModelStatistics": _statistics,
    "RepositoryIndex": _index,
    "RepositoryModelLoad": _changed(views.v2_repository_load),
    "RepositoryModelUnload": _changed(views.v2_repository_unload),
}
