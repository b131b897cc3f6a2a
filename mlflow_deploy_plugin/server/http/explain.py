"""`POST /explain`: what each column of a row has contributed to its prediction."""

import time

from mlflow_deploy_plugin.errors import InvalidRequest
from mlflow_deploy_plugin.server.answered import count_answer
from mlflow_deploy_plugin.server.assembly import Server
from mlflow_deploy_plugin.server.explained import check_explainable, features_of
from mlflow_deploy_plugin.server.http.messages import RawRequest, RawResponse, request_id
from mlflow_deploy_plugin.server.http.predictions import failed
from mlflow_deploy_plugin.server.http.tables import read_feeds
from mlflow_deploy_plugin.server.protocols import explain as protocol
from mlflow_deploy_plugin.server.protocols.content import JSON
from mlflow_deploy_plugin.server.served import ServedVariant


def explain(server: Server, request: RawRequest, endpoint: str | None = None) -> RawResponse:
    """Contributions to the predictions of the endpoint (None: the default one). They are not captured."""
    headers = {"X-Request-Id": request_id(request.headers)}
    variant: ServedVariant | None = None
    is_let_in = False
    try:
        server.limits.enter(request.headers, request.client)
        is_let_in = True
        variant = server.dataplane.lease(endpoint)
        headers["X-Model-Name"], headers["X-Model-Version"] = variant.loaded.model, variant.loaded.version
        result = RawResponse(200, _explanation(server, request, variant), JSON, headers)
    except Exception as error:  # noqa: BLE001 - the boundary: logged with its traceback, answered without
        result = failed(request, error, headers)
    finally:
        if is_let_in:
            server.limits.leave()
    count_answer(server.metrics, variant, "explain", str(result.status), time.perf_counter() - request.arrived)
    return result


def _explanation(server: Server, request: RawRequest, variant: ServedVariant) -> bytes:
    """The answer; what can be refused without the process that explains is refused without."""
    predictor = variant.loaded.predictor
    most_rows = server.spec.explain_max_rows
    if most_rows == 0:
        raise InvalidRequest("this server explains nothing (server.explain_max_rows is 0)")
    check_explainable(predictor.artifact)
    asked = _asked(request, variant, server.max_body_bytes)
    protocol.check_rows(asked.feeds, most_rows)
    features = features_of(predictor.artifact, asked.feeds)
    max_evals = protocol.evals(asked, len(features))
    outputs = predictor.run(asked.feeds)
    answer = server.explainer.explain(variant.loaded.folder, asked.feeds, max_evals, asked.seed)
    return protocol.encode(answer, predictor.prediction(outputs), max_evals)


def _asked(request: RawRequest, variant: ServedVariant, limit: int) -> protocol.Asked:
    schema = variant.loaded.predictor.schema
    content_type = request.headers.get("content-type")
    if content_type and content_type.partition(";")[0].strip().lower() == JSON:
        return protocol.decode_json(content_type, request.body, schema)
    return protocol.Asked(read_feeds(request, schema, limit))
