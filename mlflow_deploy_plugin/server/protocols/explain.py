"""`/explain`: a body as `/invocations` takes it, answered with what each column has contributed.

The names and shapes of the answer are SHAP's (`shap.Explanation`): `base_values` and `values`, so that its plots take
them as they are.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlflow_deploy_plugin.errors import InvalidRequest, SchemaMismatch
from mlflow_deploy_plugin.runtime import Array, Feeds, Schema, row_count, short_repr
from mlflow_deploy_plugin.server.models.side_messages import Message
from mlflow_deploy_plugin.server.protocols import mlflow
from mlflow_deploy_plugin.server.protocols.content import dump_json, load_json_object

_PERMUTATIONS = 10
MOST_EVALS = 20_000
_MOST_SEED = 2**32 - 1
_PARAMS = ("max_evals", "seed", "version")


@dataclass(frozen=True, slots=True)
class Asked:
    """The rows, and how they are to be explained.

    Attributes:
        max_evals: what the caller says; None: as many as `evals` finds right.
        version: the loaded version that is to be explained; None: that of the variant which would predict.
    """

    feeds: Feeds
    max_evals: int | None = None
    seed: int = 0
    version: str | None = None


def decode_json(content_type: str | None, body: bytes, schema: Schema) -> Asked:
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
    return Asked(feeds, evals, seed, version)


def check_rows(feeds: Feeds, most: int) -> None:
    """Refuses more rows than a request may ask for.

    Raises:
        SchemaMismatch
    """
    rows = row_count(feeds)
    if rows > most:
        raise SchemaMismatch(
            f"the request has {rows} rows; at most {most} are explained at once (server.explain_max_rows)"
        )


def evals(asked: Asked, columns: int) -> int:
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


def encode(answer: Message, prediction: Array | dict[str, Array], max_evals: int) -> bytes:
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
