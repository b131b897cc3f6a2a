"""The documents about models and the server, for V2's REST form and gRPC: Triton gave both the same fields.

A "model" is an endpoint here. Every function raises what `DataPlane.select_variant` or `Repository.versions` raise for
an endpoint or a version that is not served.
"""

from collections.abc import Mapping
from typing import Any

from mlflow_deploy_plugin.errors import NotReady
from mlflow_deploy_plugin.server.assembly import Server
from mlflow_deploy_plugin.server.protocols import v2, v2_extensions


def model_metadata(server: Server, endpoint: str, version: str | None = None) -> dict[str, Any]:
    """Return the loaded versions, and the inputs and outputs of this one."""
    variant = server.dataplane.select_variant(endpoint, version)
    versions = server.repository.versions(endpoint)
    return v2.model_metadata(endpoint, versions, variant.loaded.predictor.artifact)


def model_ready(server: Server, endpoint: str, version: str | None = None) -> dict[str, Any]:
    """Return the document of a model that is ready.

    Raises:
        NotReady: it is not; the message says why.
    """
    if reason := server.dataplane.select_variant(endpoint, version).loaded.unavailable_reason:
        raise NotReady(reason)
    return {"name": endpoint, "ready": True}


def model_config(server: Server, endpoint: str, version: str | None = None) -> dict[str, Any]:
    """Return the version as Triton's ModelConfig."""
    variant = server.dataplane.select_variant(endpoint, version)
    return v2_extensions.model_config(variant, server.repository.versions(endpoint), server.spec)


def model_statistics(server: Server, endpoint: str | None = None, version: str | None = None) -> dict[str, Any]:
    """Return the statistics of every endpoint, of one, or of one of its versions; all workers are summed up."""
    return v2_extensions.statistics(server.repository, server.metrics.statistics(), endpoint, version)


def load_model(server: Server, endpoint: str, parameters: Mapping[str, Any], actor: str) -> None:
    """Return once every worker serves the endpoint, by order of this caller. The thread is held until then.

    Raises:
        InvalidRequest, InvalidConfig: see `v2_extensions.endpoint_to_load`.
        NotFound, ModelError, RegistryUnavailable: see `ModelControl.load`.
    """
    server.model_control.load(endpoint, v2_extensions.endpoint_to_load(endpoint, parameters), actor)


def unload_model(server: Server, endpoint: str, parameters: Mapping[str, Any], actor: str) -> None:
    """Return once no worker serves the endpoint any more, by order of this caller. The thread is held until then.

    Raises:
        InvalidRequest: see `v2_extensions.check_unload_parameters`.
        NotFound: see `ModelControl.unload`.
    """
    v2_extensions.check_unload_parameters(parameters)
    server.model_control.unload(endpoint, actor)
