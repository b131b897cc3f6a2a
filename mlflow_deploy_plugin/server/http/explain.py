"""`POST /explain`: what each column of a row has contributed to its prediction."""

import time

from mlflow_deploy_plugin.errors import InvalidRequest
from mlflow_deploy_plugin.server.assembly import Server
from mlflow_deploy_plugin.server.http.messages import RawRequest, RawResponse, request_id
from mlflow_deploy_plugin.server.http.predictions import failed, name_version
from mlflow_deploy_plugin.server.http.tables import read_feeds
from mlflow_deploy_plugin.server.models.explainable import check_explainable, features_of
from mlflow_deploy_plugin.server.models.variants import ServedVariant
from mlflow_deploy_plugin.server.observability.metrics import count_response
from mlflow_deploy_plugin.server.protocols import explain as protocol
from mlflow_deploy_plugin.server.protocols.content import JSON, media_name


def explain(server: Server, request: RawRequest, endpoint: str | None = None) -> RawResponse:
    """Contributions to the predictions of the endpoint (None: the default one). They are not captured."""
    headers = {"X-Request-Id": request_id(request.headers)}
    variant: ServedVariant | None = None
    is_let_in = False
    try:
        if server.limits.is_active:
            server.limits.enter(request.headers, request.client)
            is_let_in = True
        variant = server.dataplane.lease(endpoint, headers=request.headers)
        name_version(headers, variant)
        asked = _asked(server, request, variant)
        if (chosen := _chosen(server, variant, asked)) is not variant:
            variant = chosen
            name_version(headers, variant)
            asked = _asked(server, request, variant)
        result = RawResponse(200, _explanation(server, variant, asked), JSON, headers)
    except Exception as error:  # noqa: BLE001 - the boundary: logged with its traceback, answered without
        result = failed(request, error, headers)
    finally:
        if is_let_in:
            server.limits.leave()
    count_response(server.metrics, variant, "explain", str(result.status), time.perf_counter() - request.arrived)
    return result


def _asked(server: Server, request: RawRequest, variant: ServedVariant) -> protocol.Asked:
    """What the body asks for, as this variant reads it.

    Raises:
        InvalidRequest: the variant is not explained, or the body cannot be read.
    """
    if server.spec.explain_max_rows == 0:
        raise InvalidRequest("this server explains nothing (server.explain_max_rows is 0)")
    predictor = variant.loaded.predictor
    check_explainable(predictor.artifact)
    content_type = request.headers.get("content-type")
    if media_name(content_type) == JSON:
        return protocol.decode_json(content_type, request.body, predictor.schema)
    return protocol.Asked(read_feeds(request, predictor.schema, server.max_body_bytes))


def _chosen(server: Server, variant: ServedVariant, asked: protocol.Asked) -> ServedVariant:
    """The variant of the version that is asked for, or that a column keeps the caller to, or else this one.

    Raises:
        NotReady, NotFound: as `DataPlane.lease`.
    """
    if asked.version is not None:
        is_it = asked.version == variant.loaded.version
        return variant if is_it else server.dataplane.lease(variant.endpoint, asked.version)
    return variant if variant.key is None else server.dataplane.keep(variant, asked.feeds)


def _explanation(server: Server, variant: ServedVariant, asked: protocol.Asked) -> bytes:
    """The answer; what can be refused without the process that explains is refused without."""
    predictor = variant.loaded.predictor
    protocol.check_rows(asked.feeds, server.spec.explain_max_rows)
    features = features_of(predictor.artifact, asked.feeds)
    max_evals = protocol.evals(asked, len(features))
    outputs = predictor.run(asked.feeds)
    answer = server.explainer.explain(variant.loaded.folder, asked.feeds, max_evals, asked.seed)
    return protocol.encode(answer, predictor.prediction(outputs), max_evals)
