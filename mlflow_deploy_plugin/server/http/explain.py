"""`POST /explain`: what each column of a row has contributed to its prediction."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlflow_deploy_plugin.errors import InvalidRequest, SchemaMismatch
from mlflow_deploy_plugin.runtime import Array, Feeds, Schema, row_count, short_repr
from mlflow_deploy_plugin.server.assembly import Server
from mlflow_deploy_plugin.server.http.messages import RawRequest, RawResponse, request_id
from mlflow_deploy_plugin.server.http.negotiation import read_feeds
from mlflow_deploy_plugin.server.http.pipeline import failure_response, set_version_headers
from mlflow_deploy_plugin.server.models.explainable import check_explainable, explained_features
from mlflow_deploy_plugin.server.models.side_messages import SideMessage
from mlflow_deploy_plugin.server.models.variants import ServedVariant
from mlflow_deploy_plugin.server.observability.metrics import count_response
from mlflow_deploy_plugin.server.protocols import mlflow
from mlflow_deploy_plugin.server.protocols.content import JSON, dump_json, load_json_object, media_name

# `/explain`: a body as `/invocations` takes it, answered with what each column has contributed.
# The names and shapes of the answer are SHAP's (`shap.Explanation`): `base_values` and `values`, so that its plots take
# them as they are.

_PERMUTATIONS = 10
MOST_EVALS = 20_000
_MOST_SEED = 2**32 - 1
_PARAMS = ("max_evals", "seed", "version")


@dataclass(frozen=True, slots=True)
class ExplainRequest:
    """The rows, and how they are to be explained.

    Attributes:
        max_evals: what the caller says; None: as many as `evals` finds right.
        version: the loaded version that is to be explained; None: that of the variant which would predict.
    """

    feeds: Feeds
    max_evals: int | None = None
    seed: int = 0
    version: str | None = None


def decode_explain_request(content_type: str | None, body: bytes, schema: Schema) -> ExplainRequest:
    """A JSON document of `/invocations`; its `params` say `max_evals`, `seed` and `version`.

    Raises:
        UnsupportedMediaType, InvalidRequest, SchemaMismatch: as `mlflow.decode`, or a param is none that is known.
    """
    document = load_json_object(content_type, body)
    feeds = mlflow.decode_document(document, schema)
    params = document.get("params") or {}
    if unknown := [name for name in params if name not in _PARAMS]:
        raise InvalidRequest(f"params holds {unknown[0][:60]!r}; explaining takes {', '.join(_PARAMS)}")
    evals = None if params.get("max_evals") is None else _whole(params, "max_evals", 1, MOST_EVALS)
    seed = 0 if params.get("seed") is None else _whole(params, "seed", 0, _MOST_SEED)
    version = params.get("version")
    if not isinstance(version, str | None):
        raise InvalidRequest(f"params.version is {short_repr(version)}; a text is expected, as X-Model-Version has it")
    return ExplainRequest(feeds, evals, seed, version)


def check_row_count(feeds: Feeds, most: int) -> None:
    """Refuses more rows than a request may ask for.

    Raises:
        SchemaMismatch
    """
    rows = row_count(feeds)
    if rows > most:
        raise SchemaMismatch(
            f"the request has {rows} rows; at most {most} are explained at once (server.explain_max_rows)"
        )


def evaluations_per_row(asked: ExplainRequest, columns: int) -> int:
    """How often the model is evaluated a row.

    Raises:
        InvalidRequest: too seldom for so many columns.
    """
    once = 2 * columns + 1
    if asked.max_evals is None:
        return _PERMUTATIONS * once
    if asked.max_evals < once:
        raise InvalidRequest(
            f"params.max_evals is {asked.max_evals}; {columns} columns need at least {once}, twice as many and one"
        )
    return asked.max_evals


def encode_explanation(answer: SideMessage, prediction: Array | dict[str, Array], max_evals: int) -> bytes:
    """`{"columns", "outputs", "base_values", "values", "predictions", "background", "max_evals"}`.

    `values` is [rows][columns][outputs] and `base_values` [rows][outputs]; where one number a row is explained, both
    lack their last dimension.
    """
    arrays = answer.arrays["explained"]
    values = arrays["values"]
    base_values = arrays["base_values"][None].repeat(len(values), axis=0)
    if values.shape[2] == 1:
        values, base_values = values[:, :, 0], base_values[:, 0]
    return dump_json(
        {
            "columns": answer.fields["columns"],
            "outputs": answer.fields["outputs"],
            "base_values": base_values,
            "values": values,
            "predictions": prediction,
            "background": answer.fields["background"],
            "max_evals": max_evals,
        }
    )


def _whole(params: Mapping[str, Any], name: str, least: int, most: int) -> int:
    value = params[name]
    if type(value) is not int or not least <= value <= most:
        raise InvalidRequest(f"params.{name} is {short_repr(value)}; a whole number from {least} to {most} is expected")
    return value


def explain(server: Server, request: RawRequest, endpoint: str | None = None) -> RawResponse:
    """Contributions to the predictions of the endpoint (None: the default one). They are not captured."""
    headers = {"X-Request-Id": request_id(request.headers)}
    variant: ServedVariant | None = None
    is_let_in = False
    try:
        if server.limits.is_active:
            server.limits.acquire(request.headers, request.client)
            is_let_in = True
        variant = server.dataplane.select_variant(endpoint, headers=request.headers)
        set_version_headers(headers, variant)
        asked = _asked(server, request, variant)
        if (chosen := _chosen(server, variant, asked)) is not variant:
            variant = chosen
            set_version_headers(headers, variant)
            asked = _asked(server, request, variant)
        result = RawResponse(200, _explanation(server, variant, asked), JSON, headers)
    except Exception as error:  # noqa: BLE001 - the boundary: logged with its traceback, answered without
        result = failure_response(request, error, headers)
    finally:
        if is_let_in:
            server.limits.release()
    count_response(server.metrics, variant, "explain", str(result.status), time.perf_counter() - request.arrived)
    return result


def _asked(server: Server, request: RawRequest, variant: ServedVariant) -> ExplainRequest:
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
        return decode_explain_request(content_type, request.body, predictor.schema)
    return ExplainRequest(read_feeds(request, predictor.schema, server.max_body_bytes))


def _chosen(server: Server, variant: ServedVariant, asked: ExplainRequest) -> ServedVariant:
    """The variant of the version that is asked for, or that a column keeps the caller to, or else this one.

    Raises:
        NotReady, NotFound: as `DataPlane.lease`.
    """
    if asked.version is not None:
        is_it = asked.version == variant.loaded.version
        return variant if is_it else server.dataplane.select_variant(variant.endpoint, asked.version)
    return variant if variant.key is None else server.dataplane.sticky_variant(variant, asked.feeds)


def _explanation(server: Server, variant: ServedVariant, asked: ExplainRequest) -> bytes:
    """The answer; what can be refused without the process that explains is refused without."""
    predictor = variant.loaded.predictor
    check_row_count(asked.feeds, server.spec.explain_max_rows)
    features = explained_features(predictor.artifact, asked.feeds)
    max_evals = evaluations_per_row(asked, len(features))
    outputs = predictor.run(asked.feeds)
    answer = server.explainer.explain(variant.loaded.folder, asked.feeds, max_evals, asked.seed)
    return encode_explanation(answer, predictor.prediction(outputs), max_evals)
