"""Decode and encode TensorFlow Serving's REST protocol
(https://www.tensorflow.org/tfx/serving/api_rest).

`instances` (row format) are answered with `predictions`, and `inputs` (column format)
with `outputs`. A single input or output has no name. Every model has one signature,
`serving_default`. Text may be `{"b64": …}`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from mlflow_deploy_plugin.core.errors import InvalidRequest
from mlflow_deploy_plugin.core.mlmodel import COLUMN_TYPES
from mlflow_deploy_plugin.serve.protocols.content import (
    JSON,
    base64_text,
    dump_json,
    json_object,
    json_type,
    rows_of,
)
from mlflow_deploy_plugin.serve.protocols.examples import rows_example
from mlflow_deploy_plugin.serve.protocols.protocol import (
    DecodedRequest,
    EncodedResponse,
    InferResponse,
    Protocol,
    RequestBody,
)
from mlflow_deploy_plugin.serve.protocols.schemas import (
    ARRAY_OR_OBJECT,
    JsonSchema,
    array_schema,
    named_schema,
    object_schema,
    rows_schema,
    unnamed_schemas,
)
from mlflow_deploy_plugin.serve.runtime.artifact import INTEGERS, Artifact
from mlflow_deploy_plugin.serve.runtime.feeds import Feeds
from mlflow_deploy_plugin.serve.runtime.schemas.schema import Schema
from mlflow_deploy_plugin.serve.runtime.values import short_repr
from mlflow_deploy_plugin.serve.variants import ServedVariant

TAG = "TensorFlow Serving"
SIGNATURE = "serving_default"

_Described = tuple[str, str, tuple[int, ...]]
"""The name, the numpy dtype and the shape of a tensor."""
_DEEPEST = 32
_DTYPES = {
    "float16": "DT_HALF",
    "float32": "DT_FLOAT",
    "float64": "DT_DOUBLE",
    "bool": "DT_BOOL",
    "str": "DT_STRING",
    **{dtype: f"DT_{dtype.upper()}" for dtype in INTEGERS},
}


def decode(body: bytes, schema: Schema) -> tuple[Feeds, bool]:
    """Return the feeds in the body of a `:predict`, and True if the body has
    `instances`: the response is then by row.

    Raises InvalidRequest if the body is not JSON, does not have exactly one of
    `instances` and `inputs`, or names another signature, and SchemaMismatch if the
    values do not fit.
    """
    document = json_object(body)
    if b'"b64"' in body:
        document = decode_base64(document)
    signature = document.get("signature_name", SIGNATURE)
    if signature not in ("", SIGNATURE):
        raise InvalidRequest(
            f"signature_name is {short_repr(signature)}; the model has only {SIGNATURE!r}",
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
            return schema.from_records(rows), True
        return schema.from_array(rows), True
    inputs = document["inputs"]
    if isinstance(inputs, dict):
        return schema.from_columns(inputs), False
    if not isinstance(inputs, list):
        raise InvalidRequest(
            f"inputs is a JSON {json_type(inputs)}; an object or an array is expected",
        )
    return schema.from_array(inputs), False


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


def status(endpoint: str, versions: Sequence[str]) -> bytes:
    """Return the body of `GET /v1/models/NAME` for loaded versions. KServe's V1 client
    needs `ready`.
    """
    ok = {"error_code": "OK", "error_message": ""}
    states = [{"version": version, "state": "AVAILABLE", "status": ok} for version in versions]
    return dump_json({"name": endpoint, "ready": bool(versions), "model_version_status": states})


def metadata(endpoint: str, version: str, artifact: Artifact, schema: Schema) -> bytes:
    """Return the body of `GET /v1/models/NAME/metadata`: the inputs and outputs of
    `:predict`.
    """
    inputs: list[_Described]
    if schema.columns:
        inputs = [(column.name, COLUMN_TYPES[column.type], (-1,)) for column in schema.columns]
    else:
        inputs = [
            (tensor.name or schema.inputs[0].name, tensor.dtype, tensor.shape)
            for tensor in schema.tensors
        ]
    outputs = [
        (output.name, output.dtype, output.shape)
        for output in artifact.outputs
        if output.dtype in _DTYPES
    ]
    signature = {
        "inputs": _tensor_infos(inputs),
        "outputs": _tensor_infos(outputs),
        "method_name": "tensorflow/serving/predict",
    }
    return dump_json(
        {
            "model_spec": {"name": endpoint, "signature_name": "", "version": version},
            "metadata": {"signature_def": {"signature_def": {SIGNATURE: signature}}},
        },
    )


def _tensor_infos(tensors: list[_Described]) -> dict[str, object]:
    """Return each tensor's TensorInfo in protobuf's JSON format, in which 64-bit
    integers are strings.
    """
    infos: dict[str, object] = {}
    for name, dtype, shape in tensors:
        dimensions = [{"size": str(size), "name": ""} for size in shape]
        infos[name] = {
            "dtype": _DTYPES.get(dtype, "DT_INVALID"),
            "tensor_shape": {"dim": dimensions, "unknown_rank": False},
            "name": name,
        }
    return infos


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


def _decode_tfserving(
    headers: Mapping[str, str],
    body: bytes,
    variant: ServedVariant,
    limit: int,
) -> DecodedRequest:
    """Decode a `:predict` request. Its content type is ignored: TensorFlow's own
    examples send curl's default.
    """
    feeds, is_by_row = decode(body, variant.schema)

    def respond(variant: ServedVariant, response: InferResponse) -> EncodedResponse:
        """Return `{"predictions": …}` for rows or `{"outputs": …}` for columns. A
        single output is not named.
        """
        outputs = response.outputs
        names = [
            output.name
            for output in variant.loaded.predictor.artifact.outputs
            if output.dtype in _DTYPES
        ]
        arrays = {name: outputs[name] for name in names or outputs}
        answer: object = arrays
        if len(arrays) == 1:
            (answer,) = arrays.values()
        elif is_by_row:
            answer = rows_of(arrays)
        return EncodedResponse(dump_json({"predictions" if is_by_row else "outputs": answer}))

    return DecodedRequest(feeds, respond)


_ANSWER = object_schema(
    {},
    {"predictions": array_schema(), "outputs": ARRAY_OR_OBJECT},
    minProperties=1,
    title="tfserving answer",
)
TFSERVING = Protocol(
    "tfserving",
    _decode_tfserving,
    paths=("/v1/models/NAME[/versions/V|/labels/L]:predict",),
    summary="Predictions, by row (instances) or by column (inputs)",
    request={JSON: RequestBody("tfserving", tfserving_schema, rows_example)},
    response={JSON: _ANSWER},
    tag=TAG,
)
