"""The Open Inference Protocol V2 over REST, with Triton's binary tensor data.

https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md
and
https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md

The inputs of a request are the inputs of the graph, or the columns of a column-based
signature as [N] or [N, 1]. All outputs are computed, because the inference log contains
all outputs.
"""

from collections.abc import Callable, Collection, Container, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np

from mlflow_deploy_plugin.core.errors import InvalidRequest, OnnxserveError, SchemaMismatch
from mlflow_deploy_plugin.core.extensions import find_entry
from mlflow_deploy_plugin.core.messages import join_names
from mlflow_deploy_plugin.core.mlmodel import PYTHON_FUNCTION
from mlflow_deploy_plugin.core.version import __version__
from mlflow_deploy_plugin.serve.protocols import v2_tensors
from mlflow_deploy_plugin.serve.protocols.content import (
    JSON,
    base64_text,
    dump_json,
    json_object,
    json_type,
    media_type,
)
from mlflow_deploy_plugin.serve.protocols.examples import Document, Example
from mlflow_deploy_plugin.serve.protocols.large_json import load_infer_request
from mlflow_deploy_plugin.serve.protocols.protocol import (
    DecodedRequest,
    EncodedResponse,
    InferResponse,
    Protocol,
    RequestBody,
    ResponseBody,
)
from mlflow_deploy_plugin.serve.protocols.schemas import (
    ANY_OBJECT,
    BYTES,
    SIZE,
    STRING,
    JsonSchema,
    array_schema,
    object_schema,
)
from mlflow_deploy_plugin.serve.protocols.v2_tensors import (
    DATATYPES,
    TensorHeader,
    array_datatype,
    datatype_of,
    from_binary,
)
from mlflow_deploy_plugin.serve.runtime.artifact import Artifact, Input, Output
from mlflow_deploy_plugin.serve.runtime.feeds import Array, Feeds, no_batch_dimension_reason
from mlflow_deploy_plugin.serve.runtime.model import OpaqueBody
from mlflow_deploy_plugin.serve.runtime.schemas.keyed_schema import KeyedSchema
from mlflow_deploy_plugin.serve.runtime.schemas.schema import Schema
from mlflow_deploy_plugin.serve.runtime.schemas.sent_schema import SentSchema
from mlflow_deploy_plugin.serve.runtime.values import fits_shape, shape_text, short_repr
from mlflow_deploy_plugin.serve.variants import LoadedVersion, ServedVariant

TAG = "Open Inference Protocol V2"
OCTETS = "application/octet-stream"
HEADER_LENGTH = "Inference-Header-Content-Length"
HEADER_LENGTH_KEY = HEADER_LENGTH.lower()  # The names of received headers are in lower case.

EXTENSIONS = ("binary_tensor_data", "model_configuration", "model_repository", "statistics")
"""The extensions of
https://github.com/triton-inference-server/server/tree/main/docs/protocol that are
supported.
"""

_CURL = "application/x-www-form-urlencoded"
"""The default content type of `curl -d`, as in the protocol's examples."""

_UNSUPPORTED = ("shared_memory_region", "classification")
_MOST_UNNAMED = 10_000
"""The maximum number of tensors of a request that may have any names."""
_MOST_LENGTH_DIGITS = 12
"""The maximum number of digits of the header with the JSON's length."""


class RequestedOutput(NamedTuple):
    """An output of the response, in JSON or as bytes after the JSON. An empty name
    means all outputs. `content_type` is the requested form in another server's terms.
    """

    name: str
    is_binary: bool = False
    content_type: str = ""


class V2Request(NamedTuple):
    """A decoded infer request of REST or gRPC. `id` is empty if the request has no
    id. For a pyfunc whose inputs are not named arrays, `body` is set instead of
    `feeds`.
    """

    id: str
    feeds: Feeds
    outputs: tuple[RequestedOutput, ...]
    parameters: Mapping[str, object]
    body: OpaqueBody | None = None


Tensors = Mapping[str, tuple[TensorHeader, Array]]


class V2Output(NamedTuple):
    """An output of an answer. With `is_binary`, its elements follow the JSON."""

    name: str
    array: Array
    parameters: Mapping[str, str] = {}
    is_binary: bool = False


class V2Answer(NamedTuple):
    """The answer to an infer request. If `version` is empty or `parameters` are None,
    the answer has none.
    """

    id: str
    version: str
    outputs: Sequence[V2Output]
    parameters: Mapping[str, str] | None = None
    headers: Mapping[str, str] = {}


@dataclass(frozen=True, eq=False)
class V2Names:
    """The names in the requests and answers of V2 over REST and gRPC: ours (`OWN`), or
    those of another server, which plug in by the group `onnxserve.v2_names`.

    Attributes:
        bind: returns the feeds, or the body, for the tensors of a request and its
            parameters. Raises SchemaMismatch if a tensor does not fit.
        requested: returns the requested outputs of a request's document. Raises
            InvalidRequest or SchemaMismatch if `outputs` is invalid.
        answer: returns the answer of a version. Raises SchemaMismatch if the version
            lacks a requested output.
        version: returns the version in paths and answers; empty if it has none.
        server_metadata: returns the document of `GET /v2`.
        model_metadata: returns the document of `GET /v2/models/NAME`, for the name, the
            loaded versions and the version's artifact.
        protocols: protocols that answer in place of others, by the name of the other
            protocol. `load_names` adds V2.
        takes_any: True if the tensors of a request may have any names.
    """

    bind: Callable[[Tensors, Mapping[str, object], Artifact, Schema], Feeds | OpaqueBody]
    requested: Callable[[Mapping[str, object], Artifact], tuple[RequestedOutput, ...]]
    answer: Callable[[V2Request, ServedVariant, InferResponse], V2Answer]
    version: Callable[[LoadedVersion], str]
    server_metadata: Callable[[], dict[str, object]]
    model_metadata: Callable[[str, Sequence[str], Artifact], dict[str, object]]
    protocols: Mapping[str, Protocol]
    takes_any: bool = True


def decode(
    headers: Mapping[str, str],
    body: bytes,
    artifact: Artifact,
    schema: Schema,
    names: V2Names,
) -> V2Request:
    """Decode the body of an infer request. Header names are in lower case.

    The Content-Type may be missing, as in `tritonclient`'s requests; otherwise it must
    be JSON, bytes or curl's default, or UnsupportedMediaType is raised. Raises
    InvalidRequest if the body is not an infer request, and SchemaMismatch if a tensor
    is unknown, missing or repeated, or does not fit its shape, its datatype or the
    model.
    """
    if content_type := headers.get("content-type"):
        media_type(content_type, (JSON, OCTETS, _CURL))
    text = body
    binary = memoryview(b"")
    if (json_length := headers.get(HEADER_LENGTH_KEY)) is not None:
        is_number = json_length.isascii() and json_length.isdigit()
        if not is_number or len(json_length) > _MOST_LENGTH_DIGITS:
            raise InvalidRequest(
                f"{HEADER_LENGTH} is {json_length[:40]!r}; the number of bytes of the JSON is "
                "expected",
            )
        length = int(json_length)
        if length > len(body):
            raise InvalidRequest(f"{HEADER_LENGTH} is {length}, but the body has {len(body)} bytes")
        text = bytes(body[:length])
        binary = memoryview(body)[length:]
    if (large := load_infer_request(text)) is not None:
        # The second attempt reports the error with the elements as they were sent.
        with suppress(OnnxserveError):
            return _decode_document(large, binary, artifact, schema, names)
    return _decode_document(json_object(text), binary, artifact, schema, names)


def _decode_document(
    document: Mapping[str, object],
    binary: memoryview,
    artifact: Artifact,
    schema: Schema,
    names: V2Names,
) -> V2Request:
    """Return the request of a JSON document. The bytes of tensors without `data` are
    read from `binary`, the bytes after the JSON, in order.

    Raises InvalidRequest if the document is malformed or too many bytes follow it, and
    SchemaMismatch if a tensor is unknown, repeated or invalid.
    """
    entries = document.get("inputs")
    if not isinstance(entries, list):
        raise InvalidRequest(
            f"inputs is a JSON {json_type(entries)}; an array of tensors is expected",
        )
    arrays: dict[str, tuple[TensorHeader, Array]] = {}
    start = 0
    with np.errstate(over="raise"):
        for position, entry in enumerate(entries):
            head = v2_tensors.read_tensor_header(position, entry)
            byte_count = parameters_of(head, entry).get("binary_data_size")
            check_name(head, arrays, schema, len(entries) == 1, names.takes_any)
            is_binary = byte_count is not None
            if is_binary == ("data" in entry):
                raise head.mismatch(" needs either data or the parameter binary_data_size")
            if is_binary:
                left_bytes = len(binary) - start
                if type(byte_count) is not int or not 0 <= byte_count <= left_bytes:
                    raise head.mismatch(
                        f": binary_data_size is {short_repr(byte_count)}, but {left_bytes} bytes "
                        "are left",
                    )
                end = start + byte_count
                array = from_binary(head, binary[start:end], holds_bytes(head, schema))
                start = end
            else:
                array = v2_tensors.from_json(head, entry["data"])
            arrays[head.name] = head, array
    if start != len(binary):
        raise InvalidRequest(f"{len(binary)} bytes follow the JSON, but the tensors have {start}")
    return bind_request(document, arrays, artifact, schema, names)


def own_answer(request: V2Request, variant: ServedVariant, response: InferResponse) -> V2Answer:
    """Return our answer. Raises SchemaMismatch if a requested output is missing."""
    outputs = [
        V2Output(name, response.outputs[name], {}, is_binary)
        for name, is_binary, _ in resolve_outputs(request.outputs, response.outputs)
    ]
    return V2Answer(request.id or response.id, variant.loaded.version, outputs)


def encode(endpoint: str, answer: V2Answer) -> EncodedResponse:
    """Return the JSON of an answer, and the binary outputs after it."""
    entries = []
    blobs = []
    for name, array, parameters, is_binary in answer.outputs:
        entry: dict[str, object] = {
            "name": name,
            "shape": array.shape,
            "datatype": array_datatype(array),
        }
        if parameters:
            entry["parameters"] = parameters
        if is_binary:
            blobs.append(v2_tensors.to_binary(array))
            entry["parameters"] = {**parameters, "binary_data_size": len(blobs[-1])}
        else:
            entry["data"] = array.ravel()
        entries.append(entry)
    document: dict[str, object] = {"model_name": endpoint}
    if answer.version:
        document["model_version"] = answer.version
    document["id"] = answer.id
    if answer.parameters is not None:
        document["parameters"] = answer.parameters
    document["outputs"] = entries
    text = dump_json(document)
    if not blobs:
        return EncodedResponse(text, JSON, answer.headers)
    headers = {**answer.headers, HEADER_LENGTH: str(len(text))}
    return EncodedResponse(b"".join([text, *blobs]), OCTETS, headers)


def server_metadata() -> dict[str, object]:
    return {"name": "onnxserve", "version": __version__, "extensions": EXTENSIONS}


def model_metadata(
    endpoint: str,
    versions: Sequence[str],
    artifact: Artifact,
) -> dict[str, Any]:
    """Return the document of `GET /v2/models/NAME`: the loaded versions, and the inputs
    and outputs of the graph.

    A free dimension is -1. `parameters` contain the reason if the graph lacks a batch
    dimension, or the inputs are unknown.
    """
    document: dict[str, Any] = {
        "name": endpoint,
        "versions": versions,
        "platform": platform(artifact),
        "inputs": _tensors_metadata(artifact.inputs),
        "outputs": _tensors_metadata(artifact.outputs),
    }
    if reason := no_batch_dimension_reason(artifact):
        document["parameters"] = {"batch_dimension": f"none: {reason}"}
    if artifact.undescribed:
        document["parameters"] = {"inputs": f"unknown: {artifact.undescribed}"}
    return document


def _tensors_metadata(entries: Sequence[Input] | Sequence[Output]) -> list[dict[str, object]]:
    return [
        {"name": entry.name, "datatype": datatype_of(entry.dtype), "shape": entry.shape}
        for entry in entries
        if datatype_of(entry.dtype)
    ]


def platform(artifact: Artifact) -> str:
    """Return Triton's name for the model's runtime; Triton has no name for MLflow's
    pyfunc.
    """
    if artifact.flavor == PYTHON_FUNCTION:
        return PYTHON_FUNCTION
    return "onnxruntime_onnx"


def holds_bytes(head: TensorHeader, schema: Schema) -> bool:
    """Return True if the elements of a binary tensor are the values of a column of
    bytes.
    """
    is_binary = head.name in schema.binary_columns or (
        bool(schema.binary_columns) and len(schema.columns) == 1
    )
    return is_binary and head.content_type != "base64"


def read_id(value: object) -> str:
    """Return a request's id, or "". Raises InvalidRequest if the id is not a string of
    printable characters.
    """
    value = "" if value is None else value
    if not isinstance(value, str) or not value.isprintable():
        raise InvalidRequest(
            f"id is {short_repr(value)}; a string of printable characters is expected",
        )
    return value


def parameters_of(
    owner: TensorHeader | str,
    entry: Mapping[str, object],
) -> Mapping[str, object]:
    """Return the `parameters` of a request, an input or an output; empty if they are
    null or missing.

    Raises InvalidRequest if they are not an object, or if a parameter that would change
    the response is not supported.
    """
    parameters = entry.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise InvalidRequest(
            f"{owner}: parameters is a JSON {json_type(parameters)}; an object is expected",
        )
    for name in _UNSUPPORTED:
        if name in parameters:
            raise InvalidRequest(f"{owner}: the parameter {name} is not supported")
    return parameters


def check_name(
    head: TensorHeader,
    before: Collection[str],
    schema: Schema,
    is_only: bool,
    takes_any: bool,
) -> None:
    """Raise SchemaMismatch for an unknown or repeated name, before the values are
    decoded: 100,000 unknown tensors took 3 s. The only tensor may have any name.

    With `takes_any`, all names are known, but at most `_MOST_UNNAMED` tensors may have
    been read before.
    """
    name = head.name
    if takes_any and len(before) >= _MOST_UNNAMED:
        raise head.mismatch(f" is one of too many; at most {_MOST_UNNAMED} are allowed")
    if name in before or not (is_only or takes_any or knows_name(name, schema)):
        raise refused_name(head, before, schema)


def knows_name(name: str, schema: Schema) -> bool:
    """Return True if a request may have a tensor of this name."""
    return (
        name in schema.dtypes
        or name in schema.tensor_schema.dtypes
        or name in schema.keys
        or name in schema.unread
    )


def refused_name(head: TensorHeader, before: Container[str], schema: Schema) -> SchemaMismatch:
    """Return the error for a tensor whose name is unknown or repeated. `before` has the
    names of earlier tensors.
    """
    if head.name in before:
        return head.mismatch(" is repeated")
    names = dict.fromkeys(schema.tensor_schema.names)
    if schema.columns:
        names |= dict.fromkeys(schema.names)
    return head.mismatch(f" is unknown; the model's inputs are {join_names(names, head.name)}")


def bind_request(
    document: Mapping[str, object],
    arrays: Tensors,
    artifact: Artifact,
    schema: Schema,
    names: V2Names,
) -> V2Request:
    """Return the request of these tensors, and of the other fields of a document.
    Raises InvalidRequest or SchemaMismatch if one of them is not valid.
    """
    id_ = read_id(document.get("id"))
    parameters = parameters_of("the request", document)
    outputs = names.requested(document, artifact)
    bound = names.bind(arrays, parameters, artifact, schema)
    if isinstance(bound, OpaqueBody):
        return V2Request(id_, {}, outputs, parameters, bound)
    return V2Request(id_, bound, outputs, parameters)


def bind_tensors(arrays: Tensors, schema: Schema) -> Feeds:
    """Return the feeds of the graph from tensors that are its inputs or the signature's
    columns.

    If the model has a single column or input, a single tensor may have any name, as in
    MLServer, whose codecs call it `input-1`. Texts from MLServer's Base64Codec are
    decoded. Raises SchemaMismatch if a tensor is unknown or missing, or does not fit.
    """
    if isinstance(schema, SentSchema):
        return schema.from_columns({name: array for name, (_, array) in arrays.items()})
    if isinstance(schema, KeyedSchema):
        tensors, keys = schema.split(arrays)
        return schema.attach(
            bind_tensors(tensors, schema.model),
            {name: array for name, (_, array) in keys.items()},
        )
    arrays = {name: tensor for name, tensor in arrays.items() if name not in schema.unread}
    if len(arrays) == len(schema.columns) == 1 and arrays.keys().isdisjoint(
        schema.tensor_schema.dtypes,
    ):
        (tensor,) = arrays.values()
        arrays = dict.fromkeys(schema.dtypes, tensor)
    are_columns = _are_columns(arrays.keys(), schema)
    target = schema if are_columns else schema.tensor_schema
    if len(arrays) == len(target.tensors) == 1 and arrays.keys().isdisjoint(target.dtypes):
        (tensor,) = arrays.values()
        head, array = tensor
        (only,) = schema.tensor_schema.tensors
        if not fits_shape(only.shape, array.shape):
            # If the tensor could be a column, its name is probably wrong.
            if schema.columns and array.shape[1:] in ((), (1,)):
                raise refused_name(head, (), schema)
            raise head.mismatch(
                f" is used as {only.name!r}; the shape {shape_text(only.shape)} is expected",
            )
        arrays = dict.fromkeys(target.dtypes, tensor)
    data = {}
    for name, (head, array) in arrays.items():
        if name not in target.dtypes:
            raise refused_name(head, (), schema)
        v2_tensors.check_datatype(head, target.dtypes[name])
        if are_columns and array.ndim != 1:
            if array.shape[1:] != (1,):
                raise head.mismatch(" is used as a column; the shape [N] or [N, 1] is expected")
            array = array.reshape(-1)
        data[name] = array
        if (
            array.dtype.kind == "O"
            and head.content_type == "base64"
            and name not in target.binary_columns
        ):
            data[name] = np.array(
                # A null or empty element remains.
                [value and base64_text(value, f"{head}: an element") for value in array.flat],
                dtype=object,
            ).reshape(array.shape)
    return target.from_columns(data)


def _are_columns(names: Set[str], schema: Schema) -> bool:
    """Return True if these names are columns of the signature. If they are also the
    graph's inputs, each input must take a single column.
    """
    if not schema.columns or not names <= schema.dtypes.keys():
        return False
    are_inputs = names == {entry.name for entry in schema.inputs}
    return not are_inputs or all(len(entry.columns) <= 1 for entry in schema.inputs)


def requested_outputs(
    document: Mapping[str, object],
    artifact: Artifact,
) -> tuple[RequestedOutput, ...]:
    """Return the outputs that a request names; by default, all outputs that have a V2
    datatype, or the default outputs of the artifact.

    The outputs of a pyfunc may be unknown before its first prediction; then any name is
    accepted. Raises InvalidRequest or SchemaMismatch if `outputs` is invalid, or a name
    is unknown or repeated.
    """
    is_binary = _read_flag("the request", document, "binary_data_output", False)
    names = [output.name for output in artifact.outputs if datatype_of(output.dtype)]
    entries = document.get("outputs")
    entries = [] if entries is None else entries
    if not isinstance(entries, list):
        raise InvalidRequest(
            f"outputs is a JSON {json_type(entries)}; an array of objects is expected",
        )
    requested: dict[str, RequestedOutput] = {}
    for position, entry in enumerate(entries):
        name = entry.get("name") if isinstance(entry, dict) else None
        if not isinstance(name, str):
            raise InvalidRequest(
                f"outputs[{position}] is {short_repr(entry)}; an object with a name is expected",
            )
        if names and name not in names:
            raise unknown_output(name, names)
        if name in requested:
            raise SchemaMismatch(f"output {name!r} is repeated")
        requested[name] = RequestedOutput(
            name,
            _read_flag(f"output {name!r}", entry, "binary_data", is_binary),
        )
    if requested:
        return tuple(requested.values())
    defaults = artifact.default_outputs or names or [""]
    return tuple(RequestedOutput(name, is_binary) for name in defaults)


def unknown_output(name: str, names: Collection[str]) -> SchemaMismatch:
    return SchemaMismatch(
        f"output {name[:100]!r} is unknown; the model's outputs are {join_names(names, name)}",
    )


def resolve_outputs(
    requested: Sequence[RequestedOutput],
    outputs: Mapping[str, Array],
) -> Sequence[RequestedOutput]:
    """Return the requested outputs, with the names in the response. Raises
    SchemaMismatch if an output is missing.
    """
    if len(requested) == 1 and not requested[0].name:
        return [RequestedOutput(name, requested[0].is_binary) for name in outputs]
    for output in requested:
        if output.name not in outputs:
            raise unknown_output(output.name, outputs)
    return requested


def _read_flag(
    label: str,
    entry: Mapping[str, object],
    name: str,
    default: bool,
) -> bool:
    """Return a parameter of a request or an output, or `default` if it is missing.
    Raises InvalidRequest if it is not true or false.
    """
    value = parameters_of(label, entry).get(name, default)
    if not isinstance(value, bool):
        raise InvalidRequest(
            f"{label}: the parameter {name} is {short_repr(value)}; true or false is expected",
        )
    return value


def v2_request_schema(schema: Schema) -> JsonSchema:
    """Return the schema of a V2 infer request: the graph's inputs, or the columns of
    the signature.
    """
    types = dict(schema.tensor_schema.dtypes) if schema.names else {}
    if schema.columns:
        types |= schema.dtypes
    tensor = object_schema(
        {
            "name": _name_schema(types),
            "shape": array_schema({**SIZE, "minimum": 0}),
            "datatype": {"type": "string", "enum": list(DATATYPES)},
        },
        {
            "data": array_schema(
                description="flat or nested; the number of values must match the shape",
            ),
            "parameters": ANY_OBJECT,
        },
        title="v2 input",
    )
    limits = {"minItems": 1} if types else {}
    requested = {
        "type": ["array", "null"],
        "items": object_schema({"name": STRING}, title="v2 requested output"),
    }
    return object_schema(
        {"inputs": array_schema(tensor, **limits)},
        {
            "id": {"type": ["string", "null"]},
            "outputs": {**requested, "description": "the requested outputs; by default all"},
            "parameters": ANY_OBJECT,
        },
    )


def _name_schema(names: Collection[str]) -> JsonSchema:
    """Return the schema of one of these names, or of any name if there are none."""
    if names:
        return {"type": "string", "enum": list(names)}
    return {"type": "string"}


def v2_response_schema(artifact: Artifact) -> JsonSchema:
    """Return the schema of a V2 response, whose outputs have the names of the model's
    outputs if these are known.
    """
    names = [output.name for output in artifact.outputs if datatype_of(output.dtype)]
    tensor = object_schema(
        {
            "name": _name_schema(names),
            "shape": array_schema(SIZE),
            "datatype": STRING,
        },
        {"data": array_schema(), "parameters": {"type": "object"}},
        title="v2 output",
    )
    return object_schema(
        {"model_name": STRING, "model_version": STRING, "outputs": array_schema(tensor)},
        {"id": STRING},
    )


def v2_example(schema: Schema, example: Example) -> Document:
    """Return a V2 infer request with the columns as [N], or with the graph's inputs;
    empty if there is no example.
    """
    if not example.values:
        return {}
    inputs = []
    dtypes = {**schema.tensor_schema.dtypes, **schema.dtypes}
    for name, values in example.values.items():
        if schema.columns:
            shape = [len(values)]
        else:
            shape = list(np.asarray(values, dtype=object).shape)
            if len(example.values) == 1:  # A signature with one tensor may omit its name.
                name = schema.tensor_schema.names[0]
        data = values if isinstance(values, list) else [values]
        datatype = datatype_of(dtypes[name])
        inputs.append({"name": name, "shape": shape, "datatype": datatype, "data": data})
    return {"inputs": inputs}


def decode_request(
    names: V2Names, headers: Mapping[str, str], body: bytes, variant: ServedVariant, limit: int
) -> DecodedRequest:
    """Decode an infer request, which is answered with these names; `limit` does not
    apply, because V2 has no compressed tables.
    """
    request = decode(headers, body, variant.loaded.predictor.artifact, variant.schema, names)

    def respond(variant: ServedVariant, response: InferResponse) -> EncodedResponse:
        return encode(variant.endpoint, names.answer(request, variant, response))

    return DecodedRequest(
        request.feeds, respond, request.id, request.body, parameters=request.parameters
    )


OWN = V2Names(
    lambda tensors, parameters, artifact, schema: bind_tensors(tensors, schema),
    requested_outputs,
    own_answer,
    attrgetter("version"),
    server_metadata,
    model_metadata,
    protocols={},
    takes_any=False,
)
V2 = Protocol(
    "v2",
    partial(decode_request, OWN),
    paths=("/v2/models/{endpoint}[/versions/{version}]/infer",),
    summary=(
        "Predictions in the Open Inference Protocol V2; binary tensors may follow the JSON, as in "
        "Triton's clients"
    ),
    request={JSON: RequestBody("v2", v2_request_schema, v2_example), OCTETS: BYTES},
    response={JSON: ResponseBody("v2_answer", v2_response_schema), OCTETS: BYTES},
    tag=TAG,
    takes_pyfuncs=True,
)


def load_names(name: str) -> V2Names:
    """Return the names for `server.v2_names`. Raises InvalidConfig if their entry point
    is missing, and OnnxserveError if it cannot be loaded.
    """
    own = "onnxserve"
    if name == own:
        return OWN
    names: V2Names = find_entry("onnxserve.v2_names", name, "naming", (own,), V2Names)
    decode_named = partial(decode_request, names)
    named = replace(V2, decode=decode_named, response={JSON: ANY_OBJECT, OCTETS: BYTES})
    return replace(names, protocols={**names.protocols, V2.name: named})
