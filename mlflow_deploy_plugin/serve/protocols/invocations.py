"""MLflow's protocol, `/invocations`: JSON, CSV, Arrow and JSON Lines.

A pyfunc itself reads and writes MLflow's JSON and CSV, because objects, dates and
params cannot become arrays. It does not accept Arrow.
"""

import csv
import io
from collections.abc import Mapping
from functools import lru_cache

from werkzeug.datastructures import Accept
from werkzeug.http import parse_accept_header

from mlflow_deploy_plugin.core.mlmodel import PYTHON_FUNCTION
from mlflow_deploy_plugin.serve.protocols import arrow, jsonlines, mlflow
from mlflow_deploy_plugin.serve.protocols.content import CSV, EVENTS, JSON, media_type
from mlflow_deploy_plugin.serve.protocols.examples import Example, invocations_example
from mlflow_deploy_plugin.serve.protocols.protocol import (
    Bodies,
    DecodedRequest,
    EncodedResponse,
    InferResponse,
    Protocol,
    RequestBody,
    ResponseBody,
)
from mlflow_deploy_plugin.serve.protocols.schemas import (
    BYTES,
    JsonSchema,
    invocations_schema,
    object_schema,
    predictions_schema,
)
from mlflow_deploy_plugin.serve.runtime.artifact import Artifact
from mlflow_deploy_plugin.serve.runtime.feeds import Feeds
from mlflow_deploy_plugin.serve.runtime.model import OpaqueBody
from mlflow_deploy_plugin.serve.runtime.schemas.schema import Schema
from mlflow_deploy_plugin.serve.variants import ServedVariant

TABLE_FORMATS = (*arrow.MEDIA_TYPES, *jsonlines.MEDIA_TYPES)
"""Media types that `/invocations` accepts and returns in addition to MLflow's JSON and
CSV.
"""
_MEDIA_TYPES = (JSON, CSV, *TABLE_FORMATS)
_PYFUNC_MEDIA_TYPES = (JSON, CSV, *jsonlines.MEDIA_TYPES)
_MAX_ACCEPT_CHARACTERS = 2000
"""The maximum length of an Accept header. A longer header, which no real client sends,
is treated as empty.
"""


def decode_rows(
    content_type: str | None,
    body: bytes,
    schema: Schema,
    limit: int,
) -> Feeds:
    """Return the rows of a body in any format of `/invocations`; a decompressed table
    may have `limit` bytes.

    Raises UnsupportedMediaType for another format, BodyTooLarge above `limit`,
    InvalidRequest if the body is not in its format, and SchemaMismatch if it does not
    fit the signature.
    """
    media = media_type(content_type, _MEDIA_TYPES)
    if media in arrow.MEDIA_TYPES:
        return arrow.decode(body, schema, limit)
    if media in jsonlines.MEDIA_TYPES:
        return jsonlines.decode(body, schema)
    return mlflow.decode(content_type, body, schema)


def parse_accept(header: str) -> Accept:
    if len(header) > _MAX_ACCEPT_CHARACTERS:
        header = ""
    return parse_accept_header(header, Accept)


@lru_cache(maxsize=256)
def _negotiate_format(media: str, accept: str | None) -> str:
    """Return the media type of a response of `/invocations`: from Accept if possible,
    otherwise the request's type.
    """
    if accept is not None and accept != "*/*":
        names = (
            name.partition(";")[0].lower() for name, quality in parse_accept(accept) if quality > 0
        )
        for name in names:  # The names are in order of preference.
            if name == JSON or name in TABLE_FORMATS:
                return name
    return media if media in TABLE_FORMATS else JSON


def decode_invocations(
    headers: Mapping[str, str],
    body: bytes,
    variant: ServedVariant,
    limit: int,
) -> DecodedRequest:
    """Decode a body of `/invocations`. The version itself decodes a pyfunc's JSON and
    CSV.

    Raises UnsupportedMediaType, BodyTooLarge, InvalidRequest or SchemaMismatch if a
    body that is decoded here is invalid.
    """
    predictor = variant.loaded.predictor
    content_type = headers.get("content-type")
    is_pyfunc = predictor.artifact.flavor == PYTHON_FUNCTION
    media = media_type(content_type, _PYFUNC_MEDIA_TYPES if is_pyfunc else _MEDIA_TYPES)
    if is_pyfunc and media in (JSON, CSV):
        is_streamed = (
            predictor.artifact.is_streamable and media == JSON and mlflow.asks_for_stream(body)
        )
        opaque = OpaqueBody(headers["content-type"], body, is_streamed, variant.capture.keys)
        return DecodedRequest(
            {},
            lambda variant, response: EncodedResponse(response.body),
            body=opaque,
        )
    feeds = decode_rows(content_type, body, variant.schema, limit)
    is_table = False
    if not predictor.artifact.has_signature:
        is_table = media in TABLE_FORMATS or mlflow.is_table(content_type, body)
    response_media = _negotiate_format(media, headers.get("accept"))

    def encode(variant: ServedVariant, response: InferResponse) -> EncodedResponse:
        prediction = variant.loaded.predictor.prediction(response.outputs, is_table)
        if response_media == JSON:
            return EncodedResponse(mlflow.encode(prediction))
        if response_media in arrow.MEDIA_TYPES:
            return EncodedResponse(arrow.encode(response_media, prediction), response_media)
        return EncodedResponse(jsonlines.encode(prediction), response_media)

    return DecodedRequest(feeds, encode)


def invocations_answer(artifact: Artifact) -> JsonSchema:
    """Return the schema of `{"predictions": …}`. A pyfunc may return records, or a chat
    without `predictions`.
    """
    if artifact.flavor == PYTHON_FUNCTION:
        return {}
    return object_schema({"predictions": predictions_schema(artifact)})


def csv_example(schema: Schema, example: Example) -> str:
    """Return a header and rows in CSV; empty if there is no example, or the model has
    no columns.
    """
    if not example.values or not schema.columns:
        return ""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for line in (example.values, *(record.values() for record in example.records())):
        fields = [str(value).lower() if isinstance(value, bool) else value for value in line]
        writer.writerow(fields)
    return text.getvalue()


_TABLES: Bodies = dict.fromkeys(TABLE_FORMATS, BYTES)
_CSV_TEXT: JsonSchema = {
    "type": "string",
    "description": "a header with the column names, then the rows",
}
CSV_BODY = RequestBody("csv", lambda schema: _CSV_TEXT, csv_example)
_EVENTS: JsonSchema = {
    "type": "string",
    "description": "the parts of the response, if `stream` is true",
}
INVOCATIONS = Protocol(
    "invocations",
    decode_invocations,
    paths=("/invocations", "/endpoints/{endpoint}/invocations", "/models/{endpoint}/invocations"),
    summary=(
        "Predictions in the protocol of MLflow's scoring server; a table receives the same "
        "format, or that of Accept"
    ),
    request={
        JSON: RequestBody("invocations", invocations_schema, invocations_example),
        CSV: CSV_BODY,
        **_TABLES,
    },
    response={
        JSON: ResponseBody("invocations_answer", invocations_answer),
        **_TABLES,
        EVENTS: _EVENTS,
    },
    takes_pyfuncs=True,
)
