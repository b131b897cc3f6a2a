"""The protocols of Vertex AI and Azure ML, whose bodies become MLflow's documents.

- Vertex AI: `{"instances": [...], "parameters": {...}}` → `{"predictions": [...]}`
  (https://cloud.google.com/vertex-ai/docs/predictions/custom-container-requirements#request_requirements).
- Azure ML: `{"input_data": …}` → the bare predictions
  (https://learn.microsoft.com/azure/machine-learning/how-to-deploy-mlflow-models-online-endpoints).
"""

from collections.abc import Callable, Mapping
from typing import Any

from mlflow_deploy_plugin.core.errors import InvalidRequest
from mlflow_deploy_plugin.serve.protocols import content, mlflow, tfserving
from mlflow_deploy_plugin.serve.protocols.content import (
    JSON,
    dump_json,
    load_json_object,
)
from mlflow_deploy_plugin.serve.protocols.examples import Document, Example, invocations_example
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
    ANY_OBJECT,
    JsonSchema,
    named_or_rows,
    object_schema,
    predictions_schema,
    split_schema,
)
from mlflow_deploy_plugin.serve.runtime.feeds import Array
from mlflow_deploy_plugin.serve.runtime.schemas.schema import Schema
from mlflow_deploy_plugin.serve.variants import ServedVariant


def _through_mlflow(
    decode: Callable[[str | None, bytes], dict[str, Any]],
    encode: Callable[[Array | dict[str, Array]], bytes],
) -> Decode:
    """Return the decoder of a body that is converted to MLflow's document."""

    def decode_request(
        headers: Mapping[str, str],
        body: bytes,
        variant: ServedVariant,
        limit: int,
    ) -> DecodedRequest:
        document = decode(headers.get("content-type"), body)
        return DecodedRequest(mlflow.decode_document(document, variant.schema), encode_outputs)

    def encode_outputs(variant: ServedVariant, response: InferResponse) -> EncodedResponse:
        return EncodedResponse(encode(variant.loaded.predictor.prediction(response.outputs)))

    return decode_request


def decode_vertex(content_type: str | None, body: bytes) -> dict[str, Any]:
    """Return MLflow's document for a body of Vertex AI; `parameters` become `params`.
    MLflow's documents are unchanged.

    Text may be `{"b64": …}`. Raises UnsupportedMediaType or InvalidRequest if
    the body is not an object.
    """
    document = load_json_object(content_type, body)
    parameters = document.pop("parameters", None)
    if parameters is not None and not isinstance(parameters, dict):
        raise InvalidRequest(
            f"parameters is a JSON {content.json_type(parameters)}; an object is expected",
        )
    params = {} if parameters is None else {"params": parameters}
    if b'"b64"' in body:
        document = tfserving.decode_base64(document)
    return {**params, **document}


def encode_vertex(prediction: Array | dict[str, Array]) -> bytes:
    """Return `{"predictions": [...]}`. Vertex AI needs an array, so several outputs
    become one object per row.

    Raises SchemaMismatch if an output does not have one value per row.
    """
    if isinstance(prediction, dict):
        return dump_json({"predictions": content.rows_of(prediction)})
    return dump_json({"predictions": prediction})


def decode_azure(content_type: str | None, body: bytes) -> dict[str, Any]:
    """Return MLflow's document for `{"input_data": …}`: a table (`columns`, `index`,
    `data`), rows, records or columns.

    Raises UnsupportedMediaType or InvalidRequest if the body is not an object with this
    field.
    """
    document = load_json_object(content_type, body)
    if "input_data" not in document:
        raise InvalidRequest("the JSON object must have the field input_data")
    data: Any = document["input_data"]
    if isinstance(data, dict) and isinstance(data.get("data"), list):
        field = "dataframe_split"
    else:
        field = "inputs"
    params = {"params": document["params"]} if "params" in document else {}
    return {field: data, **params}


def azure_schema(schema: Schema) -> JsonSchema:
    forms = [split_schema(schema), named_or_rows(schema)]
    data = {"anyOf": forms, "title": "azure data"} if schema.names else {}
    return object_schema({"input_data": data}, {"params": ANY_OBJECT})


def azure_example(schema: Schema, example: Example) -> Document:
    body = invocations_example(schema, example)
    if example.values:
        return {"input_data": next(iter(body.values()))}
    return {}


VERTEX = Protocol("vertex", _through_mlflow(decode_vertex, encode_vertex))
"""Vertex AI specifies the path in the container's environment: `views.vertex_predict`
answers it.
"""
AZURE = Protocol(
    "azure",
    _through_mlflow(decode_azure, dump_json),
    paths=("/score",),
    summary="Predictions in the protocol of Azure ML",
    request={JSON: RequestBody("azure", azure_schema, azure_example)},
    response={JSON: ResponseBody("azure_answer", predictions_schema)},
)
