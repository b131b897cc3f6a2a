"""What is answered without asking a model: readiness, versions, metadata, metrics."""

from collections.abc import Sequence

from mlflow_deploy_plugin.errors import NotReady
from mlflow_deploy_plugin.server.assembly import Server
from mlflow_deploy_plugin.server.http.messages import RawRequest, RawResponse, error_response
from mlflow_deploy_plugin.server.observability import metrics
from mlflow_deploy_plugin.server.observability.exposition import agent_metrics_page
from mlflow_deploy_plugin.server.protocols import v2


def readiness(server: Server, request: RawRequest, body: bytes) -> RawResponse:
    """200 with `body` when what is wanted is loaded and some endpoint can answer, else 503 with the reason."""
    if reason := server.repository.not_ready_reason():
        return error_response(request.path, 503, "TEMPORARILY_UNAVAILABLE", reason)
    return RawResponse(200, body)


def version(server: Server, request: RawRequest) -> RawResponse:
    """The version of MLflow that the served model was logged with."""
    artifact = server.dataplane.select_variant(None).loaded.predictor.artifact
    return RawResponse(200, artifact.mlflow_version.encode(), "text/plain; charset=utf-8")


def metrics_page(server: Server, request: RawRequest) -> RawResponse:
    page = server.metrics.page() + agent_metrics_page(server.repository.state_dir)
    return RawResponse(200, page, metrics.CONTENT_TYPE)


def v2_live(server: Server, request: RawRequest) -> RawResponse:
    return RawResponse(200, b'{"live":true}')


def v2_server(server: Server, request: RawRequest) -> RawResponse:
    return RawResponse(200, v2.server_metadata())


def v2_model(server: Server, request: RawRequest, endpoint: str, version: str | None) -> RawResponse:
    variant = server.dataplane.select_variant(endpoint, version)
    versions = server.repository.versions(endpoint)
    return RawResponse(200, v2.model_metadata(endpoint, versions, variant.loaded.predictor.artifact))


def v2_model_ready(server: Server, request: RawRequest, endpoint: str, version: str | None) -> RawResponse:
    if absence := server.dataplane.select_variant(endpoint, version).loaded.unavailable_reason:
        raise NotReady(absence)
    return RawResponse(200, v2.model_ready(endpoint))


# The pages are imported where they are asked for: a server that nobody looks at need not hold their templates.
def openapi(server: Server, routes: Sequence[tuple[str, str]], endpoint: str | None = None) -> RawResponse:
    from mlflow_deploy_plugin.server.http.pages import site

    return site.openapi(server, routes, endpoint)


def try_page(server: Server, request: RawRequest, endpoint: str | None = None) -> RawResponse:
    from mlflow_deploy_plugin.server.http.pages import site

    return site.try_page(server, endpoint)


def docs_page(
    server: Server, request: RawRequest, routes: Sequence[tuple[str, str]], endpoint: str | None = None
) -> RawResponse:
    from mlflow_deploy_plugin.server.http.pages import site

    return site.docs_page(server, request, endpoint, routes)


def page_asset(server: Server, request: RawRequest, name: str) -> RawResponse:
    from mlflow_deploy_plugin.server.http.pages import site

    return site.asset(name)
