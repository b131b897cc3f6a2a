"""The REST protocols of TensorFlow Serving, Vertex AI and Azure ML.

- TensorFlow Serving (https://www.tensorflow.org/tfx/serving/api_rest): `instances` (row
  format) are answered with `predictions`, and `inputs` (column format) with `outputs`.
  A single input or output has no name. Every model has one signature,
  `serving_default`. Text may be `{"b64": …}`.
- Vertex AI: `{"instances": [...], "parameters": {...}}` → `{"predictions": [...]}`
  (https://cloud.google.com/vertex-ai/docs/predictions/custom-container-requirements#request_requirements).
- Azure ML: `{"input_data": …}` → the bare predictions
  (https://learn.microsoft.com/azure/machine-learning/how-to-deploy-mlflow-models-online-endpoints).

The bodies of Vertex AI and Azure ML become MLflow's documents.
"""

from collections.abc import Mapping
from typing import Any

from mlflow_deploy_plugin.core.errors import InvalidRequest
from mlflow_deploy_plugin.core.mlmodel import COLUMN_TYPES
from mlflow_deploy_plugin.serve.inference.server import Server
from mlflow_deploy_plugin.serve.protocols.content import (
    JSON,
    base64_text,
    dump_json,
    json_object,
    json_type,
    load_json_object,
    rows_of,
)
from mlflow_deploy_plugin.serve.protocols.examples import (
    Example,
    invocations_example,
    rows_example,
)
from mlflow_deploy_plugin.serve.protocols.mlflow import decode_document
from mlflow_deploy_plugin.serve.protocols.protocol import (
    DecodedRequest,
    Description,
    EncodedResponse,
    InferResponse,
    Protocol,
    RequestBody,
    ResponseBody,
)
from mlflow_deploy_plugin.serve.protocols.schemas import (
    ANY_OBJECT,
    ARRAY_OR_OBJECT,
    STRING,
    JsonSchema,
    array_schema,
    named_or_rows,
    named_schema,
    object_schema,
    predictions_schema,
    rows_schema,
    split_schema,
    unnamed_schemas,
)
from mlflow_deploy_plugin.serve.runtime.artifact import INTEGERS
from mlflow_deploy_plugin.serve.runtime.schemas.schema import Schema
from mlflow_deploy_plugin.serve.variants import ServedVariant

SIGNATURE = "serving_default"

_DEEPEST = 32
_DTYPES = {
    "float16": "DT_HALF",
    "float32": "DT_FLOAT",
    "float64": "DT_DOUBLE",
    "bool": "DT_BOOL",
    "str": "DT_STRING",
    **{dtype: f"DT_{dtype.upper()}" for dtype in INTEGERS},
}


def decode_tfserving(
    headers: Mapping[str, str], body: bytes, variant: ServedVariant, limit: int
) -> DecodedRequest:
    """Decode a `:predict` request. Its content type is ignored: TensorFlow's own
    examples send curl's default.

    Raises InvalidRequest if the body is not JSON, does not have exactly one of
    `instances` and `inputs`, or names another signature, and SchemaMismatch if the
    values do not fit.
    """
    schema = variant.schema
    document = json_object(body)
    if b'"b64"' in body:
        document = decode_base64(document)
    signature = document.get("signature_name", SIGNATURE)
    if signature not in ("", SIGNATURE):
        raise InvalidRequest(
            f"signature_name is {str(signature)[:100]!r}; the model has only {SIGNATURE!r}",
        )
    has_instances = "instances" in document
    if has_instances == ("inputs" in document):
        raise InvalidRequest(
            "the JSON object must have either instances (row format) or inputs (column format)",
        )
    if has_instances:
        rows = document["instances"]
        if not isinstance(rows, list):
            raise InvalidRequest(f"instances is a JSON {json_type(rows)}; an array is expected")
        if rows and isinstance(rows[0], dict):
            return DecodedRequest(schema.from_records(rows), encode_rows)
        return DecodedRequest(schema.from_array(rows), encode_rows)
    inputs = document["inputs"]
    if isinstance(inputs, dict):
        return DecodedRequest(schema.from_columns(inputs), encode_columns)
    if not isinstance(inputs, list):
        raise InvalidRequest(
            f"inputs is a JSON {json_type(inputs)}; an object or an array is expected",
        )
    return DecodedRequest(schema.from_array(inputs), encode_columns)


def encode_rows(variant: ServedVariant, response: InferResponse) -> EncodedResponse:
    """Return `{"predictions": …}`, by row. A single output is not named."""
    return dump_predictions(named_arrays(variant, response))


def dump_predictions(prediction: Any) -> EncodedResponse:
    """Return `{"predictions": [...]}`. Several outputs by name become one object per
    row. Raises SchemaMismatch if an output does not have one value per row.
    """
    if isinstance(prediction, dict):
        prediction = rows_of(prediction)
    return EncodedResponse(dump_json({"predictions": prediction}))


def encode_columns(variant: ServedVariant, response: InferResponse) -> EncodedResponse:
    """Return `{"outputs": …}`, by column. A single output is not named."""
    return EncodedResponse(dump_json({"outputs": named_arrays(variant, response)}))


def named_arrays(variant: ServedVariant, response: InferResponse) -> Any:
    """Return the arrays that TensorFlow's types can represent, by name, or the only
    one.
    """
    outputs = response.outputs
    described = variant.loaded.predictor.artifact.outputs
    names = [output.name for output in described if output.dtype in _DTYPES]
    arrays = {name: outputs[name] for name in names or outputs}
    return arrays if len(arrays) > 1 else next(iter(arrays.values()))


def decode_base64(document: Mapping[str, object]) -> dict[str, Any]:
    """Return the document with each `{"b64": …}` in it replaced by its text.

    Raises InvalidRequest if a text is not base64 or UTF-8, or the document is nested
    too deeply.
    """

    def decode_value(value: object, depth: int) -> object:
        """Return a value at this depth of the document."""
        if depth > _DEEPEST:
            raise InvalidRequest(f"the JSON is nested more than {_DEEPEST} levels deep")
        if isinstance(value, list):
            return [decode_value(entry, depth + 1) for entry in value]
        if not isinstance(value, dict):
            return value
        if value.keys() != {"b64"}:
            return {name: decode_value(entry, depth + 1) for name, entry in value.items()}
        return base64_text(value["b64"], "b64")

    return {name: decode_value(entry, 1) for name, entry in document.items()}


def status(
    server: Server, endpoint: str, version: str | None, label: str | None
) -> dict[str, object]:
    """Return the state of the version that the path specifies by number or label, or of
    all loaded versions. KServe's V1 client needs `ready`.
    """
    versions = server.repository.versions(endpoint)
    if version is not None or label is not None:
        variant = server.repository.select_variant(endpoint, version, label=label)
        versions = (variant.loaded.version,)
    ok = {"error_code": "OK", "error_message": ""}
    states = [{"version": version, "state": "AVAILABLE", "status": ok} for version in versions]
    return {"name": endpoint, "ready": bool(versions), "model_version_status": states}


def metadata(
    server: Server, endpoint: str, version: str | None, label: str | None
) -> dict[str, object]:
    """Return the inputs and outputs of the version that the path specifies by number or
    label, or of the version that answers.
    """
    loaded = server.repository.select_variant(endpoint, version, label=label).described
    schema = loaded.predictor.schema
    if schema.columns:
        inputs = [
            tensor_info(column.name, COLUMN_TYPES[column.type], (-1,)) for column in schema.columns
        ]
    else:
        inputs = [
            tensor_info(tensor.name or schema.inputs[0].name, tensor.dtype, tensor.shape)
            for tensor in schema.tensors
        ]
    outputs = [
        tensor_info(output.name, output.dtype, output.shape)
        for output in loaded.predictor.artifact.outputs
        if output.dtype in _DTYPES
    ]
    signature = {
        "inputs": {info["name"]: info for info in inputs},
        "outputs": {info["name"]: info for info in outputs},
        "method_name": "tensorflow/serving/predict",
    }
    return {
        "model_spec": {"name": endpoint, "signature_name": "", "version": loaded.version},
        "metadata": {"signature_def": {"signature_def": {SIGNATURE: signature}}},
    }


def tensor_info(name: str, dtype: str, shape: tuple[int, ...]) -> dict[str, Any]:
    """Return the TensorInfo in protobuf's JSON format, in which 64-bit integers are
    strings.
    """
    dimensions = [{"size": str(size), "name": ""} for size in shape]
    return {
        "dtype": _DTYPES.get(dtype, "DT_INVALID"),
        "tensor_shape": {"dim": dimensions, "unknown_rank": False},
        "name": name,
    }


def tfserving_schema(schema: Schema) -> JsonSchema:
    """Return the schema of TensorFlow Serving's `:predict`: rows, or columns and
    tensors by name, but no records.
    """
    by_column = {
        "anyOf": [named_schema(schema), *unnamed_schemas(schema)],
        "title": "tfserving columns",
    }
    rows = rows_schema(schema)
    # OpenAPI Generator's Java code does not compile for a required list that has a
    # name.
    if "anyOf" not in rows:
        rows.pop("title", None)
    if schema.names:
        forms = {"instances": rows, "inputs": by_column}
    else:
        forms = {"instances": {}}
    signature = {"signature_name": {"type": "string", "enum": ["", "serving_default"]}}
    return {
        "oneOf": [
            object_schema({name: form}, signature, title=f"tfserving {name}")
            for name, form in forms.items()
        ],
    }


_PATH = "/v1/models/{endpoint}[/versions/{version}|/labels/{label}]"
_OBJECT: JsonSchema = {"type": "object"}
_ANSWER = object_schema(
    {},
    {"predictions": array_schema(), "outputs": ARRAY_OR_OBJECT},
    minProperties=1,
    title="tfserving answer",
)
_METADATA = object_schema({"model_spec": _OBJECT, "metadata": _OBJECT}, title="tfserving metadata")
_STATUS = object_schema(
    {"name": STRING, "ready": {"type": "boolean"}, "model_version_status": array_schema()},
    title="tfserving status",
)
TFSERVING = Protocol(
    "tfserving",
    decode_tfserving,
    paths=(_PATH + ":predict",),
    summary="Predictions, by row (instances) or by column (inputs)",
    request={JSON: RequestBody("tfserving", tfserving_schema, rows_example)},
    response={JSON: _ANSWER},
    tag="TensorFlow Serving",
    descriptions=(
        Description(_PATH + "/metadata", metadata, "The inputs and outputs", {JSON: _METADATA}),
        Description(_PATH, status, "The loaded versions", {JSON: _STATUS}),
    ),
)


def decode_vertex(
    headers: Mapping[str, str], body: bytes, variant: ServedVariant, limit: int
) -> DecodedRequest:
    """Decode a body of Vertex AI, whose `parameters` become `params`, or a document of
    MLflow. Text may be `{"b64": …}`.
    """
    document = load_json_object(headers.get("content-type"), body)
    parameters = document.pop("parameters", None)
    if parameters is not None and not isinstance(parameters, dict):
        raise InvalidRequest(
            f"parameters is a JSON {json_type(parameters)}; an object is expected",
        )
    if b'"b64"' in body:
        document = decode_base64(document)
    if parameters is not None:
        document = {"params": parameters, **document}
    return DecodedRequest(decode_document(document, variant.schema), encode_vertex)


def encode_vertex(variant: ServedVariant, response: InferResponse) -> EncodedResponse:
    return dump_predictions(variant.loaded.predictor.prediction(response.outputs))


def decode_azure(
    headers: Mapping[str, str], body: bytes, variant: ServedVariant, limit: int
) -> DecodedRequest:
    """Decode `{"input_data": …}`: a table (`columns`, `index`, `data`), rows, records
    or columns.
    """
    document = load_json_object(headers.get("content-type"), body)
    if "input_data" not in document:
        raise InvalidRequest("the JSON object must have the field input_data")
    data = document.pop("input_data")
    is_table = isinstance(data, dict) and isinstance(data.get("data"), list)
    field = "dataframe_split" if is_table else "inputs"
    params = {"params": document["params"]} if "params" in document else {}
    return DecodedRequest(decode_document({field: data, **params}, variant.schema), encode_azure)


def encode_azure(variant: ServedVariant, response: InferResponse) -> EncodedResponse:
    return EncodedResponse(dump_json(variant.loaded.predictor.prediction(response.outputs)))


def azure_schema(schema: Schema) -> JsonSchema:
    forms = [split_schema(schema), named_or_rows(schema)]
    data = {"anyOf": forms, "title": "azure data"} if schema.names else {}
    return object_schema({"input_data": data}, {"params": ANY_OBJECT})


def azure_example(schema: Schema, example: Example) -> dict[str, Any]:
    body = invocations_example(schema, example)
    if example.values:
        return {"input_data": next(iter(body.values()))}
    return {}


VERTEX = Protocol("vertex", decode_vertex)
"""Vertex AI specifies the path in the container's environment: `views.vertex_predict`
answers it.
"""
AZURE = Protocol(
    "azure",
    decode_azure,
    paths=("/score",),
    summary="Predictions in the protocol of Azure ML",
    request={JSON: RequestBody("azure", azure_schema, azure_example)},
    response={JSON: ResponseBody("azure_answer", predictions_schema)},
)
