"""`POST /explain`: the contribution of each column of a row to its prediction.

The response has the names and shapes of `shap.Explanation`, so that SHAP's plots accept
it.
"""

from collections.abc import Mapping
from typing import Any

from mlflow_deploy_plugin.core.errors import InvalidRequest, SchemaMismatch, pass_exit
from mlflow_deploy_plugin.serve.inference.pipeline import RequestContext
from mlflow_deploy_plugin.serve.inference.server import Server
from mlflow_deploy_plugin.serve.messages import RawRequest, Reply
from mlflow_deploy_plugin.serve.protocols import mlflow
from mlflow_deploy_plugin.serve.protocols.content import (
    JSON,
    dump_json,
    load_json_object,
    media_name,
)
from mlflow_deploy_plugin.serve.protocols.invocations import decode_rows
from mlflow_deploy_plugin.serve.runtime.explained import (
    Explanation,
    check_explainable,
    explained_features,
)
from mlflow_deploy_plugin.serve.runtime.feeds import Array, Feeds, row_count
from mlflow_deploy_plugin.serve.runtime.values import short_repr
from mlflow_deploy_plugin.serve.variants import ServedVariant

_PERMUTATIONS = 10
MOST_EVALS = 20_000
_MOST_SEED = 2**32 - 1
_FIELDS = ("columns", "outputs", "method", "link", "background")
_PARAMS = ("max_evals", "seed", "version")


def explain(server: Server, request: RawRequest, endpoint: str | None = None) -> Reply:
    """Explain the predictions of the endpoint (None: the default endpoint).
    Explanations are not captured.
    """
    with RequestContext(server, request, "explain") as context:
        try:
            context.admit(endpoint)
            variant = context.select_variant(endpoint)
            if variant.steps is not None:
                raise InvalidRequest(
                    f"endpoint {variant.endpoint!r} has steps, which /explain cannot apply: "
                    "explain an endpoint without steps"
                )
            feeds, params = _decode(server, request, variant)
            # The version in the body or the sticky column may select another variant.
            selected = variant
            version = params.get("version")
            if version is not None:
                if version != variant.loaded.version:
                    selected = server.repository.select_variant(variant.endpoint, version)
            elif variant.key is not None:
                selected = server.dataplane.sticky_variant(variant, feeds)
            if selected is not variant:
                variant = context.answer_by(selected)
                feeds, params = _decode(server, request, variant)
            # Check everything before asking the explainer's process.
            rows = row_count(feeds)
            if rows > server.spec.explain_max_rows:
                raise SchemaMismatch(
                    f"the request has {rows} rows; at most {server.spec.explain_max_rows} can be "
                    "explained (server.explain_max_rows)"
                )
            predictor = variant.loaded.predictor
            columns = len(explained_features(predictor.artifact, feeds))
            once = 2 * columns + 1  # The model evaluations of one permutation.
            max_evals = params.get("max_evals") or _PERMUTATIONS * once
            if max_evals < once:
                raise InvalidRequest(
                    f"params.max_evals is {max_evals}; {columns} columns need at least {once} "
                    "(2 × columns + 1)"
                )
            outputs = predictor.run(feeds)
            explanation = server.explainer.explain(
                variant.loaded.folder, feeds, max_evals, params.get("seed") or 0
            )
            reply = Reply(
                context.headers,
                encode_explanation(explanation, predictor.prediction(outputs), max_evals),
            )
        except BaseException as error:  # noqa: BLE001 - `failure` logs the traceback, which the response omits
            pass_exit(error)
            reply = context.fail(error)
    context.count(reply.status)
    return reply


def _decode(
    server: Server, request: RawRequest, variant: ServedVariant
) -> tuple[Feeds, Mapping[str, Any]]:
    """Decode a table, or a JSON document of `/invocations` and its `params`, for this
    variant.

    The params are `max_evals` (model evaluations per row), `seed`, and the loaded
    `version` to explain. Raises the errors of `decode_rows`, and InvalidRequest if the
    variant cannot be explained or a param is unknown or invalid.
    """
    if server.spec.explain_max_rows == 0:
        raise InvalidRequest("explanations are disabled (server.explain_max_rows is 0)")
    check_explainable(variant.loaded.predictor.artifact)
    content_type = request.headers.get("content-type")
    if media_name(content_type) != JSON:
        return decode_rows(content_type, request.body, variant.schema, server.max_body_bytes), {}
    document = load_json_object(content_type, request.body)
    feeds = mlflow.decode_document(document, variant.schema)
    params = document.get("params") or {}
    if unknown := [name for name in params if name not in _PARAMS]:
        raise InvalidRequest(
            f"params has {unknown[0][:60]!r}; an explanation may have {', '.join(_PARAMS)}"
        )
    for name, least, most in (("max_evals", 1, MOST_EVALS), ("seed", 0, _MOST_SEED)):
        value = params.get(name)
        if value is not None and (type(value) is not int or not least <= value <= most):
            expected = f"a whole number from {least} to {most} is expected"
            raise InvalidRequest(f"params.{name} is {short_repr(value)}; {expected}")
    version = params.get("version")
    if not isinstance(version, str | None):
        raise InvalidRequest(
            f"params.version is {short_repr(version)}; a text is expected, as in X-Model-Version"
        )
    return feeds, params


def encode_explanation(
    explanation: Explanation, prediction: Array | dict[str, Array], max_evals: int
) -> bytes:
    """Return the explanation as JSON: `values` [rows][columns][outputs] and
    `base_values` [rows][outputs].

    If the model returns a single number per row, `values` and `base_values` omit their
    last dimension.
    """
    values = explanation.values
    base_values = explanation.base_values[None].repeat(len(values), axis=0)
    if values.shape[2] == 1:
        values = values[:, :, 0]
        base_values = base_values[:, 0]
    return dump_json(
        {
            **{name: getattr(explanation, name) for name in _FIELDS},
            "base_values": base_values,
            "values": values,
            "predictions": prediction,
            # Exact contributions need no evaluations of permutations.
            "max_evals": max_evals if explanation.method == "permutation" else None,
        }
    )
