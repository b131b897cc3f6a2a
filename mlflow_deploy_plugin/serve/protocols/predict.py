"""onnxserve's protocol: `/predict` for one record, `/predict/batch` for several
records.
"""

from collections.abc import Callable, Mapping
from typing import Any

from mlflow_deploy_plugin.core.errors import BodyTooLarge, InvalidRequest
from mlflow_deploy_plugin.serve.protocols import mlflow
from mlflow_deploy_plugin.serve.protocols.content import (
    CSV,
    JSON,
    dump_json,
    load_json,
    load_json_object,
    media_type,
)
from mlflow_deploy_plugin.serve.protocols.examples import Document, Example, rows_example
from mlflow_deploy_plugin.serve.protocols.invocation_tables import BODY_FORMS
from mlflow_deploy_plugin.serve.protocols.invocations import CSV_BODY
from mlflow_deploy_plugin.serve.protocols.protocol import (
    Decode,
    DecodedRequest,
    EncodedResponse,
    InferResponse,
    Protocol,
    RequestBody,
    ResponseBody,
)
from mlflow_deploy_plugin.serve.protocols.schemas import (
    ARRAY_OR_OBJECT,
    STRING,
    JsonSchema,
    array_schema,
    dtype_schema,
    invocations_schema,
    object_schema,
    record_schema,
    row_schema,
    rows_schema,
)
from mlflow_deploy_plugin.serve.runtime.artifact import Artifact
from mlflow_deploy_plugin.serve.runtime.feeds import Array, Feeds
from mlflow_deploy_plugin.serve.runtime.schemas.schema import Schema
from mlflow_deploy_plugin.serve.variants import LoadedVersion, ServedVariant

_MOST_PROBABILITIES = 4_000_000
"""The maximum number of named probabilities per response. Each takes 105 bytes of
memory, or 18 in a JSON matrix.
"""
_VERSION: dict[str, JsonSchema] = {"model": STRING, "model_version": STRING}


def _bounded(
    decode: Callable[[str | None, bytes, Schema], Feeds],
    encode: Callable[[ServedVariant, InferResponse], EncodedResponse],
) -> Decode:
    """Return the decoder of a request whose response may name the probability of each
    class.
    """

    def decode_request(
        headers: Mapping[str, str],
        body: bytes,
        variant: ServedVariant,
        limit: int,
    ) -> DecodedRequest:
        artifact = variant.loaded.predictor.artifact
        schema = variant.schema
        feeds = decode(headers.get("content-type"), body, schema)
        # Count the rows before computing them; a row takes at least one byte of the
        # body.
        classes = len(artifact.classes)
        if len(body) * classes > _MOST_PROBABILITIES and has_probabilities(artifact):
            rows = schema.count_rows(feeds)
            most_rows = _MOST_PROBABILITIES // classes
            if rows > most_rows:
                raise BodyTooLarge(
                    f"the request has {rows} rows, and the response would name the probabilities "
                    f"of {classes} classes per row: send at most {most_rows} rows, or use the "
                    "protocol V2",
                )
        return DecodedRequest(feeds, encode)

    return decode_request


def has_probabilities(artifact: Artifact) -> bool:
    """Return True if a response may name the probability of each class."""
    roles = [output.role for output in artifact.outputs]
    return bool(artifact.classes) and "probabilities" in roles


def decode_record(content_type: str | None, body: bytes, schema: Schema) -> Feeds:
    """Return the feeds in a record: `{column: value, …}`, or `{"features": […]}` in the
    signature's order.

    The record of a graph without rows contains all tensors. Raises UnsupportedMediaType
    if the body is not JSON, InvalidRequest if it is not an object, and SchemaMismatch
    if it does not fit the signature.
    """
    document = load_json_object(content_type, body)
    if "features" in document and "features" not in schema.names:
        features = document["features"]
        if schema.has_rows:
            features = [features]
        return schema.from_array(features)
    if schema.columns:
        form = next(iter(document), "")
        # Vertex AI's guides send this to /predict.
        if form in BODY_FORMS and form not in schema.names:
            raise InvalidRequest(
                f"/predict accepts one record; send {form} to /predict/batch or /invocations",
            )
        return schema.from_records([document])
    if not schema.has_rows:
        return schema.from_columns(document)
    return schema.from_columns({name: [value] for name, value in document.items()})


def decode_records(content_type: str | None, body: bytes, schema: Schema) -> Feeds:
    """Return the feeds in a list of records, or in a body of `/invocations`.

    Raises UnsupportedMediaType if the body is not JSON or CSV, InvalidRequest if it is
    neither a list nor such a body, and SchemaMismatch if it does not fit the signature.
    """
    if media_type(content_type, (JSON, CSV)) == CSV:
        return mlflow.read_csv(body, schema)
    document = load_json(body)
    if isinstance(document, dict):
        return mlflow.decode_document(document, schema)
    if not isinstance(document, list):
        raise InvalidRequest(
            'the body must be an array of records, or {"instances": […]} around such an array',
        )
    if document and isinstance(document[0], dict):
        return schema.from_records(document)
    return schema.from_array(document)


def encode_record(variant: ServedVariant, response: InferResponse) -> EncodedResponse:
    """Return `{"prediction", "probabilities"?, "model", "model_version"}` of the first
    row, or of all outputs.
    """
    loaded = variant.loaded
    artifact = loaded.predictor.artifact
    prediction: Any = _select_predictions(artifact, response.outputs)
    probabilities = None
    if loaded.predictor.schema.has_rows:
        probabilities = _name_probabilities(artifact, response.outputs)
        if isinstance(prediction, dict):
            prediction = {name: array[0] for name, array in prediction.items()}
        else:
            prediction = prediction[0]
    answer: dict[str, Any] = {"prediction": prediction}
    if probabilities is not None:
        answer["probabilities"] = probabilities[0]
    return _with_version(answer, loaded)


def encode_records(variant: ServedVariant, response: InferResponse) -> EncodedResponse:
    """Return `{"predictions", "probabilities"?, "count", "model", "model_version"}`;
    `count` is the number of rows.
    """
    loaded = variant.loaded
    outputs = response.outputs
    artifact = loaded.predictor.artifact
    answer: dict[str, Any] = {"predictions": _select_predictions(artifact, outputs)}
    if (probabilities := _name_probabilities(artifact, outputs)) is not None:
        answer["probabilities"] = probabilities
    has_rows = loaded.predictor.schema.has_rows
    answer["count"] = len(outputs[artifact.prediction[0]]) if has_rows else 1
    return _with_version(answer, loaded)


def _with_version(answer: dict[str, Any], loaded: LoadedVersion) -> EncodedResponse:
    answer |= {"model": loaded.model, "model_version": loaded.version}
    return EncodedResponse(dump_json(answer))


def _select_predictions(
    artifact: Artifact,
    outputs: dict[str, Array],
) -> Array | dict[str, Array]:
    """Return the model's labels, if any, even if its `predict` returns probabilities,
    which have a separate field.
    """
    roles = {output.name: output.role for output in artifact.outputs}
    names = artifact.prediction
    if [roles.get(name) for name in names] == ["probabilities"]:
        names = tuple(name for name, role in roles.items() if role == "label") or names
    if len(names) == 1:
        return outputs[names[0]]
    return {name: outputs[name] for name in names}


def _name_probabilities(
    artifact: Artifact,
    outputs: dict[str, Array],
) -> list[dict[Any, float]] | None:
    """Return class → probability per row, or None if the model does not name the class
    of each column.
    """
    for output in artifact.outputs:
        array = outputs.get(output.name)
        if (
            output.role == "probabilities"
            and array is not None
            and array.shape[1:] == (len(artifact.classes),)
        ):
            return [dict(zip(artifact.classes, row, strict=True)) for row in array.tolist()]
    return None


def predict_schema(schema: Schema) -> JsonSchema:
    """Return the schema of `/predict`: one record, or `features` in the signature's
    order.
    """
    features = object_schema({"features": row_schema(schema)}, title="features")
    record = {**record_schema(schema), "title": "one record"}
    if schema.columns:
        record["required"] = [column.name for column in schema.columns if column.required]
    return {"anyOf": [record, features]}


def batch_schema(schema: Schema) -> JsonSchema:
    """Return the schema of `/predict/batch`: a bare list of rows, or a body of
    `/invocations`.
    """
    return {
        "anyOf": [
            rows_schema(schema),
            {**invocations_schema(schema), "title": "invocations"},
        ]
    }


def predict_answer(artifact: Artifact) -> JsonSchema:
    return object_schema({"prediction": {}, **_VERSION}, _probabilities_schema(artifact))


def batch_answer(artifact: Artifact) -> JsonSchema:
    more = {name: array_schema(row) for name, row in _probabilities_schema(artifact).items()}
    return object_schema(
        {"predictions": ARRAY_OR_OBJECT, "count": {"type": "integer"}, **_VERSION},
        more,
    )


def _probabilities_schema(artifact: Artifact) -> dict[str, JsonSchema]:
    """Return the property with a probability per class; empty if the model does not
    name the class of each column.
    """
    if not has_probabilities(artifact):
        return {}
    return {"probabilities": {"type": "object", "additionalProperties": dtype_schema("float64")}}


def predict_example(schema: Schema, example: Example) -> Document:
    """Return a body of `/predict`: the first row."""
    if not example.values:
        return {}
    if not schema.has_rows:
        return example.values
    if schema.columns or len(example.values) > 1:
        return example.record()
    return {"features": next(iter(example.values.values()))[0]}


PREDICT = Protocol(
    "predict",
    _bounded(decode_record, encode_record),
    paths=("/predict", "/endpoints/{endpoint}/predict"),
    summary="The prediction for one record",
    request={JSON: RequestBody("predict", predict_schema, predict_example)},
    response={JSON: ResponseBody("predict_answer", predict_answer)},
)
PREDICT_BATCH = Protocol(
    "predict_batch",
    _bounded(decode_records, encode_records),
    paths=("/predict/batch", "/endpoints/{endpoint}/predict/batch"),
    summary="Predictions for several records, with the probabilities of the classes",
    request={JSON: RequestBody("batch", batch_schema, rows_example), CSV: CSV_BODY},
    response={JSON: ResponseBody("batch_answer", batch_answer)},
)
