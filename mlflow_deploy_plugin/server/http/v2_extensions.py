"""Triton's extensions of V2 over HTTP: the model repository, statistics, configuration."""

from mlflow_deploy_plugin.server.assembly import Server
from mlflow_deploy_plugin.server.http.messages import RawRequest, RawResponse
from mlflow_deploy_plugin.server.protocols import v2_config, v2_repository, v2_statistics
from mlflow_deploy_plugin.server.protocols.content import dump_json


def index(server: Server, request: RawRequest) -> RawResponse:
    only_ready = v2_repository.decode_index(request.body)
    return RawResponse(200, dump_json(v2_repository.index(server.repository, only_ready)))


def load(server: Server, request: RawRequest, endpoint: str) -> RawResponse:
    """Answered once every worker serves the endpoint; holds its thread until then."""
    parameters = v2_repository.decode_parameters(request.body)
    server.commands.load(endpoint, v2_repository.added_endpoint(endpoint, parameters))
    return RawResponse(200, b"")


def unload(server: Server, request: RawRequest, endpoint: str) -> RawResponse:
    """Answered once no worker serves the endpoint any more; holds its thread until then."""
    v2_repository.check_unload(v2_repository.decode_parameters(request.body))
    server.commands.unload(endpoint)
    return RawResponse(200, b"")


def stats(server: Server, request: RawRequest, endpoint: str | None = None, version: str | None = None) -> RawResponse:
    counted = server.metrics.statistics()
    return RawResponse(200, dump_json(v2_statistics.statistics(server.repository, counted, endpoint, version)))


def config(server: Server, request: RawRequest, endpoint: str, version: str | None) -> RawResponse:
    variant = server.dataplane.lease(endpoint, version)
    versions = server.repository.versions(endpoint)
    return RawResponse(200, dump_json(v2_config.model_config(variant, versions, server.spec)))
