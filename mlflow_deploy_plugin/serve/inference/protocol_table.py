"""The table of prediction protocols: how a request becomes the feeds of a model, and outputs become a response.

A `Protocol` binds a module of `serve/protocols/` to the variant that serves the request. A pyfunc itself reads and
writes MLflow's forms, because objects, dates and params cannot become arrays. Three JSON protocols are defined here:

- onnxserve's protocol: `/predict` for one record, `/predict/batch` for several records.
- Vertex AI: `{"instances": [...], "parameters": {...}}` → `{"predictions": [...]}`
  (https://cloud.google.com/vertex-ai/docs/predictions/custom-container-requirements#request_requirements).
- Azure ML: `{"input_data": …}` → the bare predictions
  (https://learn.microsoft.com/azure/machine-learning/how-to-deploy-mlflow-models-online-endpoints).

The routes of OpenAI's clients (https://platform.openai.com/docs/api-reference) work like `/invocations`.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any, NamedTuple

from werkzeug.datastructures import Accept
from werkzeug.http import parse_accept_header

from mlflow_deploy_plugin.core.errors import BodyTooLarge, InvalidRequest
from mlflow_deploy_plugin.core.mlmodel import PYTHON_FUNCTION
from mlflow_deploy_plugin.serve.inference.dataplane import InferResponse
from mlflow_deploy_plugin.serve.protocols import arrow, content, jsonlines, mlflow, tfserving, v2
from mlflow_deploy_plugin.serve.protocols.content import (
    CSV,
    JSON,
    check_depth,
    dump_json,
    load_json,
    load_json_object,
    media_type,
)
from mlflow_deploy_plugin.serve.runtime.artifact import Artifact
from mlflow_deploy_plugin.serve.runtime.feeds import Array, Feeds
from mlflow_deploy_plugin.serve.runtime.model import OpaqueBody
from mlflow_deploy_plugin.serve.runtime.schemas.schema import Schema
from mlflow_deploy_plugin.serve.variants import ServedVariant

_EMPTY: Mapping[str, Any] = MappingProxyType({})

TABLE_FORMATS = (*arrow.MEDIA_TYPES, *jsonlines.MEDIA_TYPES)
"""Media types that `/invocations` accepts and returns in addition to MLflow's JSON and CSV."""
_MOST_PROBABILITIES = 4_000_000
"""The maximum number of named probabilities per response. Each takes 105 bytes of memory, or 18 in a JSON matrix."""
OPENAI_ROUTES = {
    "agent/v1/responses": "/responses",
    "agent/v1/chat": "/chat/completions",
    "llm/v1/chat": "/chat/completions",
    "llm/v1/embeddings": "/embeddings",
}
"""MLflow's tasks with OpenAI's request and response bodies, and the route that OpenAI's clients use."""
_MAX_ACCEPT_CHARACTERS = 2000
"""The maximum length of an Accept header. A longer header, which no real client sends, is treated as empty."""
_MEDIA_TYPES = (JSON, CSV, *TABLE_FORMATS)


class EncodedResponse(NamedTuple):
    body: bytes
    content_type: str = JSON
    headers: Mapping[str, str] = _EMPTY


class DecodedRequest(NamedTuple):
    """The contents of a request's body, and the function that encodes its response.

    `id` may be empty. For a pyfunc, `body` is set instead of `feeds`. `parameters` may have `timeout` in microseconds.
    """

    feeds: Feeds
    encode: Callable[[ServedVariant, InferResponse], EncodedResponse]
    id: str = ""
    body: OpaqueBody | None = None
    parameters: Mapping[str, Any] = _EMPTY


@dataclass(frozen=True)
class Protocol:
    """A prediction protocol; `name` is its label in metrics.

    The arguments of `decode` are the headers (names in lower case), the body, the variant, and the maximum size of a
    decompressed table in bytes.
    """

    name: str
    decode: Callable[[Mapping[str, str], bytes, ServedVariant, int], DecodedRequest]


def decode_rows(content_type: str | None, body: bytes, schema: Schema, limit: int) -> Feeds:
    """Return the rows of a body in any format of `/invocations`; a decompressed table may have `limit` bytes.

    Raises UnsupportedMediaType, InvalidRequest or SchemaMismatch, as the format's module does.
    """
    media = media_type(content_type, _MEDIA_TYPES)
    if media in arrow.MEDIA_TYPES:
        return arrow.decode(body, schema, limit)
    if media in jsonlines.MEDIA_TYPES:
        return jsonlines.decode(body, schema)
    return mlflow.decode(content_type, body, schema)


def parse_accept(header: str) -> Accept:
    return parse_accept_header(header if len(header) <= _MAX_ACCEPT_CHARACTERS else "", Accept)


@lru_cache(maxsize=256)
def _negotiate_format(media: str, accept: str | None) -> str:
    """Return the media type of a response of `/invocations`: from Accept if possible, otherwise the request's type."""
    if accept is not None and accept != "*/*":
        names = (name.partition(";")[0].lower() for name, quality in parse_accept(accept) if quality > 0)
        for name in names:  # The names are in order of preference.
            if name == JSON or name in TABLE_FORMATS:
                return name
    return media if media in TABLE_FORMATS else JSON


def _decode_invocations(headers: Mapping[str, str], body: bytes, variant: ServedVariant, limit: int) -> DecodedRequest:
    predictor = variant.loaded.predictor
    content_type = headers.get("content-type")
    media = media_type(content_type, _MEDIA_TYPES)
    if predictor.artifact.flavor == PYTHON_FUNCTION and media in (JSON, CSV):
        is_streamed = predictor.artifact.is_streamable and media == JSON and mlflow.asks_for_stream(body)
        opaque = OpaqueBody(headers["content-type"], body, is_streamed, variant.capture.keys)
        return DecodedRequest({}, lambda variant, response: EncodedResponse(response.body), body=opaque)
    feeds = decode_rows(content_type, body, variant.schema, limit)
    of_table = False
    if not predictor.artifact.has_signature:
        of_table = media in TABLE_FORMATS or mlflow.is_table(content_type, body)
    answered = _negotiate_format(media, headers.get("accept"))

    def encode(variant: ServedVariant, response: InferResponse) -> EncodedResponse:
        prediction = variant.loaded.predictor.prediction(response.outputs, of_table)
        if answered == JSON:
            return EncodedResponse(mlflow.encode(prediction))
        if answered in arrow.MEDIA_TYPES:
            return EncodedResponse(arrow.encode(answered, prediction), answered)
        return EncodedResponse(jsonlines.encode(prediction), answered)

    return DecodedRequest(feeds, encode)


def _predict_protocol(
    name: str,
    decode: Callable[[str | None, bytes, Schema], Feeds],
    encode: Callable[[ServedVariant, InferResponse], EncodedResponse],
) -> Protocol:
    def decode_request(headers: Mapping[str, str], body: bytes, variant: ServedVariant, limit: int) -> DecodedRequest:
        predictor = variant.loaded.predictor
        artifact, schema = predictor.artifact, variant.schema
        feeds, classes = decode(headers.get("content-type"), body, schema), len(artifact.classes)
        # Count the rows before computing them; a row takes at least one byte of the body.
        if (
            len(body) * classes > _MOST_PROBABILITIES
            and any(output.role == "probabilities" for output in artifact.outputs)
            and (rows := schema.count_rows(feeds)) > (most := _MOST_PROBABILITIES // classes)
        ):
            raise BodyTooLarge(
                f"the request has {rows} rows, and the response would name the probabilities of {classes} classes per "
                f"row: send at most {most} rows, or use the protocol V2"
            )
        return DecodedRequest(feeds, encode)

    return Protocol(name, decode_request)


def decode_record(content_type: str | None, body: bytes, schema: Schema) -> Feeds:
    """Return the feeds in a record: `{column: value, …}`, or `{"features": […]}` in the signature's order.

    The record of a graph without rows contains all tensors. Raises UnsupportedMediaType if the body is not JSON,
    InvalidRequest if it is not an object, and SchemaMismatch if it does not fit the signature.
    """
    document = load_json_object(content_type, body)
    if "features" in document and "features" not in schema.names:
        return schema.from_array([document["features"]] if schema.has_rows else document["features"])
    if schema.columns:
        form = next(iter(document), "")
        if form in mlflow.BODY_FORMS and form not in schema.names:  # Vertex AI's guides send this to /predict.
            raise InvalidRequest(f"/predict accepts one record; send {form} to /predict/batch or /invocations")
        return schema.from_records([document])
    if not schema.has_rows:
        return schema.from_columns(document)
    return schema.from_columns({name: [value] for name, value in document.items()})


def decode_records(content_type: str | None, body: bytes, schema: Schema) -> Feeds:
    """Return the feeds in a list of records, or in a body of `/invocations`. Raises the errors of `decode_record`."""
    if media_type(content_type, (JSON, CSV)) == CSV:
        return mlflow.read_csv(body, schema)
    document = load_json(body)
    if isinstance(document, dict):
        return mlflow.decode_document(document, schema)
    if not isinstance(document, list):
        raise InvalidRequest('the body must be an array of records, or {"instances": […]} around such an array')
    return schema.from_records(document) if document and isinstance(document[0], dict) else schema.from_array(document)


def encode_record(variant: ServedVariant, response: InferResponse) -> EncodedResponse:
    """Return `{"prediction", "probabilities"?, "model", "model_version"}` of the first row, or of all outputs."""
    loaded, outputs = variant.loaded, response.outputs
    predictor = loaded.predictor
    has_rows = predictor.schema.has_rows
    prediction: Any = _predictions(predictor.artifact, outputs)
    if has_rows:
        is_one = not isinstance(prediction, dict)
        prediction = prediction[0] if is_one else {name: array[0] for name, array in prediction.items()}
    answer: dict[str, Any] = {"prediction": prediction}
    if has_rows and (probabilities := _probabilities(predictor.artifact, outputs)) is not None:
        answer["probabilities"] = probabilities[0]
    return EncodedResponse(dump_json({**answer, "model": loaded.model, "model_version": loaded.version}))


def encode_records(variant: ServedVariant, response: InferResponse) -> EncodedResponse:
    """Return `{"predictions", "probabilities"?, "count", "model", "model_version"}`."""
    loaded, outputs = variant.loaded, response.outputs
    predictor = loaded.predictor
    answer: dict[str, Any] = {"predictions": _predictions(predictor.artifact, outputs)}
    if (probabilities := _probabilities(predictor.artifact, outputs)) is not None:
        answer["probabilities"] = probabilities
    answer["count"] = len(outputs[predictor.artifact.prediction[0]]) if predictor.schema.has_rows else 1
    return EncodedResponse(dump_json({**answer, "model": loaded.model, "model_version": loaded.version}))


def _predictions(artifact: Artifact, outputs: dict[str, Array]) -> Array | dict[str, Array]:
    """Return the model's labels, if any, even if its `predict` returns probabilities, which have a separate field."""
    roles = {output.name: output.role for output in artifact.outputs}
    names = artifact.prediction
    if [roles.get(name) for name in names] == ["probabilities"]:
        names = tuple(name for name, role in roles.items() if role == "label") or names
    return outputs[names[0]] if len(names) == 1 else {name: outputs[name] for name in names}


def _probabilities(artifact: Artifact, outputs: dict[str, Array]) -> list[dict[Any, float]] | None:
    """Return class → probability per row, or None if the model does not name the class of each column."""
    for output in artifact.outputs:
        array = outputs.get(output.name)
        if output.role == "probabilities" and array is not None and array.shape[1:] == (len(artifact.classes),):
            return [dict(zip(artifact.classes, row, strict=True)) for row in array.tolist()]
    return None


def _decode_v2(headers: Mapping[str, str], body: bytes, variant: ServedVariant, limit: int) -> DecodedRequest:
    request = v2.decode(headers, body, variant.loaded.predictor.artifact, variant.schema)

    def encode(variant: ServedVariant, response: InferResponse) -> EncodedResponse:
        answer, headers = v2.encode(request, variant.endpoint, response.id, variant.loaded.version, response.outputs)
        return EncodedResponse(answer, v2.OCTETS if headers else JSON, headers)

    return DecodedRequest(request.feeds, encode, request.id, parameters=request.parameters)


def _decode_tfserving(headers: Mapping[str, str], body: bytes, variant: ServedVariant, limit: int) -> DecodedRequest:
    """Decode a `:predict` request. Its content type is ignored: TensorFlow's own examples send curl's default."""
    feeds, is_by_row = tfserving.decode(body, variant.schema)

    def encode(variant: ServedVariant, response: InferResponse) -> EncodedResponse:
        return EncodedResponse(tfserving.encode(is_by_row, variant.loaded.predictor.artifact, response.outputs))

    return DecodedRequest(feeds, encode)


def _cloud_protocol(
    name: str,
    decode: Callable[[str | None, bytes, Schema], dict[str, Any]],
    encode: Callable[[Array | dict[str, Array]], bytes],
) -> Protocol:
    """Return the protocol of a cloud whose body is converted to MLflow's document. A pyfunc receives that document."""

    def decode_request(headers: Mapping[str, str], body: bytes, variant: ServedVariant, limit: int) -> DecodedRequest:
        predictor = variant.loaded.predictor
        document = decode(headers.get("content-type"), body, variant.schema)
        if predictor.artifact.flavor == PYTHON_FUNCTION:
            check_depth(document)
            text = json.dumps(document).encode()  # orjson decodes a lone surrogate, but cannot encode it.
            return DecodedRequest({}, encode_opaque, body=OpaqueBody(JSON, text, keys=variant.capture.keys))
        return DecodedRequest(mlflow.decode_document(document, variant.schema), encode_outputs)

    def encode_outputs(variant: ServedVariant, response: InferResponse) -> EncodedResponse:
        return EncodedResponse(encode(variant.loaded.predictor.prediction(response.outputs)))

    def encode_opaque(variant: ServedVariant, response: InferResponse) -> EncodedResponse:
        answer = load_json(response.body)
        if not isinstance(answer, dict) or "predictions" not in answer:  # A chat's answer has no `predictions`.
            return EncodedResponse(response.body)
        predictions = answer["predictions"]
        return EncodedResponse(
            encode(response.outputs or predictions if isinstance(predictions, dict) else predictions)
        )

    return Protocol(name, decode_request)


def _openai_protocol(name: str, route: str) -> Protocol:
    """Return the protocol of a route of OpenAI's clients, for models with the task of the route."""

    def decode_request(headers: Mapping[str, str], body: bytes, variant: ServedVariant, limit: int) -> DecodedRequest:
        artifact, document = variant.loaded.predictor.artifact, load_json_object(headers.get("content-type"), body)
        if (own_route := OPENAI_ROUTES.get(artifact.task, "/invocations")) != route:
            task = repr(artifact.task[:60]) if artifact.task else "missing"
            raise InvalidRequest(
                f"the model's responses do not have the form of {route} (the task in its MLmodel is {task}); "
                f"send it to {own_route}"
            )
        if document.get("stream") is True and not artifact.is_streamable:
            raise InvalidRequest("the model has no predict_stream: send the request without stream")
        input_ = document.get("input")
        if route == "/embeddings":  # MLflow embeds the strings in the first field, regardless of its name.
            if document.get("dimensions") is not None:
                raise InvalidRequest("the model's embeddings have a fixed size: send the request without dimensions")
            check_depth(document)
            body = json.dumps({"input": [input_] if isinstance(input_, str) else input_}).encode()
        elif isinstance(input_, str):  # In OpenAI's API, a text is a user message; MLflow accepts only a list.
            check_depth(document)
            body = json.dumps(document | {"input": [{"role": "user", "content": input_}]}).encode()
        return _decode_invocations(headers, body, variant, limit)._replace(encode=encode)

    def encode(variant: ServedVariant, response: InferResponse) -> EncodedResponse:
        # MLflow's transformers flavor returns a list with one response.
        return EncodedResponse(response.body[1:-1] if response.body.startswith(b"[") else response.body)

    return Protocol(name, decode_request)


def decode_vertex(content_type: str | None, body: bytes, schema: Schema) -> dict[str, Any]:
    """Return MLflow's document for a body of Vertex AI; `parameters` become `params`. MLflow's documents are unchanged.

    Text and bytes may be `{"b64": …}`. Raises UnsupportedMediaType or InvalidRequest if the body is not an object.
    """
    document = load_json_object(content_type, body)
    parameters = document.pop("parameters", None)
    if parameters is not None and not isinstance(parameters, dict):
        raise InvalidRequest(f"parameters is a JSON {content.json_type(parameters)}; an object is expected")
    params = {} if parameters is None else {"params": parameters}
    if b'"b64"' in body:
        document = tfserving.decode_base64(document, schema)
        if schema.binary_columns and isinstance(document.get("instances"), list):  # MLflow reads bytes from records.
            rows = (row if isinstance(row, dict | list) else [row] for row in document.pop("instances"))
            records = [row if isinstance(row, dict) else dict(zip(schema.names, row, strict=False)) for row in rows]
            document["dataframe_records"] = records
    return {**params, **document}


def encode_vertex(prediction: Array | dict[str, Array]) -> bytes:
    """Return `{"predictions": [...]}`. Vertex AI needs an array, so several outputs become one object per row.

    Raises SchemaMismatch if an output does not have one value per row.
    """
    return dump_json({"predictions": content.rows_of(prediction) if isinstance(prediction, dict) else prediction})


def decode_azure(content_type: str | None, body: bytes, schema: Schema) -> dict[str, Any]:
    """Return MLflow's document for `{"input_data": …}`: a table (`columns`, `index`, `data`), rows, records or columns.

    Raises UnsupportedMediaType or InvalidRequest if the body is not an object with this field.
    """
    document = load_json_object(content_type, body)
    if "input_data" not in document:
        raise InvalidRequest("the JSON object must have the field input_data")
    data: Any = document["input_data"]
    field = "dataframe_split" if isinstance(data, dict) and isinstance(data.get("data"), list) else "inputs"
    params = {"params": document["params"]} if "params" in document else {}
    return {field: data, **params}


INVOCATIONS = Protocol("invocations", _decode_invocations)
PREDICT = _predict_protocol("predict", decode_record, encode_record)
PREDICT_BATCH = _predict_protocol("predict_batch", decode_records, encode_records)
V2 = Protocol("v2", _decode_v2)
TFSERVING = Protocol("tfserving", _decode_tfserving)
VERTEX = _cloud_protocol("vertex", decode_vertex, encode_vertex)
AZURE = _cloud_protocol("azure", decode_azure, dump_json)
RESPONSES = _openai_protocol("responses", "/responses")
CHAT_COMPLETIONS = _openai_protocol("chat_completions", "/chat/completions")
EMBEDDINGS = _openai_protocol("embeddings", "/embeddings")
