"""`/invocations` in the form of the request, answered in kind, or in the form that Accept asks for.

JSON and CSV are MLflow's and go the short way; Arrow, Parquet, JSON Lines and numpy's arrays are ours.
"""

from functools import lru_cache, partial

from mlflow_deploy_plugin.runtime import PYTHON_FUNCTION, Feeds, Schema
from mlflow_deploy_plugin.server.assembly import Server
from mlflow_deploy_plugin.server.http.messages import RawRequest, RawResponse
from mlflow_deploy_plugin.server.http.pipeline import DecodedRequest, EncodedResponse, Protocol, infer
from mlflow_deploy_plugin.server.http.spoken import INVOCATIONS
from mlflow_deploy_plugin.server.inference.dataplane import InferResponse
from mlflow_deploy_plugin.server.models.variants import ServedVariant
from mlflow_deploy_plugin.server.protocols import arrow, jsonlines, mlflow, npy
from mlflow_deploy_plugin.server.protocols.content import CSV, JSON, media_name, media_type

# What a caller likes to be answered in: the weighted lists of Accept and Accept-Encoding (RFC 9110, 12.4.2).

_LONGEST = 2000


def quality_values(header: str) -> dict[str, float]:
    """Each entry of the list, in lower case and without parameters, with its weight `q` (1 where it says none).

    A weight that cannot be read is 0; a list longer than any client writes is taken for none.
    """
    weights: dict[str, float] = {}
    if len(header) > _LONGEST:
        return weights
    for entry in header.lower().split(","):
        name, *parameters = entry.split(";")
        weights[name.strip()] = min((_quality(parameter) for parameter in parameters), default=1.0)
    return weights


def _quality(parameter: str) -> float:
    name, _, value = parameter.partition("=")
    if name.strip() != "q":
        return 1.0
    try:
        quality = float(value)
    except ValueError:
        return 0.0
    return quality if 0 <= quality <= 1 else 0.0


_TABLES = (*arrow.MEDIA_TYPES, *jsonlines.MEDIA_TYPES, *npy.MEDIA_TYPES)
_TAKEN = (JSON, CSV, *_TABLES)
_OURS = frozenset(_TABLES) - {arrow.PARQUET}
"""What MLflow's scoring server does not take."""


def invocations(server: Server, request: RawRequest, endpoint: str | None = None) -> RawResponse:
    """Predictions from the endpoint (None: the default one)."""
    return infer(server, request, negotiate_protocol(server, request), endpoint)


def negotiate_protocol(server: Server, request: RawRequest) -> Protocol:
    """How this body is read and answered."""
    return _protocol(request.headers.get("content-type"), request.headers.get("accept"), server.max_body_bytes)


@lru_cache(maxsize=256)
def _protocol(content_type: str | None, accept: str | None, limit: int) -> Protocol:
    given, wanted = media_name(content_type), _wanted(accept)
    if given in (JSON, CSV) and wanted in (None, JSON):
        return INVOCATIONS
    answered = wanted or (given if given in _TABLES else JSON)
    return Protocol(INVOCATIONS.name, partial(_read, answered=answered, limit=limit))


def _wanted(accept: str | None) -> str | None:
    """The form that Accept likes best of those that we write; None: no preference, so in kind."""
    if accept is None or accept == "*/*":
        return None
    weights = {
        name: weight for name, weight in quality_values(accept).items() if name in (JSON, *_TABLES) and weight > 0
    }
    return max(weights, key=lambda name: weights[name]) if weights else None


def _read(request: RawRequest, variant: ServedVariant, answered: str, limit: int) -> DecodedRequest:
    """A pyfunc reads and writes its bodies itself where they have one of MLflow's forms."""
    predictor = variant.loaded.predictor
    if predictor.artifact.flavor == PYTHON_FUNCTION and media_name(request.headers.get("content-type")) not in _OURS:
        return INVOCATIONS.decode(request, variant)
    feeds = read_feeds(request, predictor.schema, limit)
    of_table = not predictor.artifact.has_signature and _is_table(request)
    return DecodedRequest(feeds, partial(_answer, answered, of_table))


def read_feeds(request: RawRequest, schema: Schema, limit: int) -> Feeds:
    """The rows of a body in any of the forms; what is packed in it may unpack to `limit` bytes.

    Raises:
        UnsupportedMediaType, InvalidRequest, SchemaMismatch: as the modules of the forms.
    """
    content_type = request.headers.get("content-type")
    media = media_type(content_type, _TAKEN)
    if media in arrow.MEDIA_TYPES:
        return arrow.decode(media, request.body, schema, limit)
    if media in jsonlines.MEDIA_TYPES:
        return jsonlines.decode(request.body, schema)
    if media in npy.MEDIA_TYPES:
        return npy.decode(request.body, schema)
    return mlflow.decode(content_type, request.body, schema)


def _is_table(request: RawRequest) -> bool:
    content_type = request.headers.get("content-type")
    media = media_name(content_type)
    if media in (JSON, CSV):
        return mlflow.is_table(content_type, request.body)
    return media not in npy.MEDIA_TYPES


def _answer(answered: str, of_table: bool, variant: ServedVariant, response: InferResponse) -> EncodedResponse:
    prediction = variant.loaded.predictor.prediction(response.outputs, of_table)
    if answered in arrow.MEDIA_TYPES:
        return EncodedResponse(arrow.encode(answered, prediction), answered)
    if answered in jsonlines.MEDIA_TYPES:
        return EncodedResponse(jsonlines.encode(prediction), answered)
    if answered in npy.MEDIA_TYPES:
        return EncodedResponse(npy.encode(prediction), answered)
    return EncodedResponse(mlflow.encode(prediction))
