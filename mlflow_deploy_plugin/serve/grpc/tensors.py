"""Convert the messages of an infer call to named arrays and back, with the same checks
in `serve/protocols/` as REST.

https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_grpc.md:
all tensors are bytes (`raw_input_contents`) or all are typed (`contents`), and the
response has the request's form. FP16 needs bytes.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from math import prod
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError, Message

from mlflow_deploy_plugin.core.errors import InvalidRequest
from mlflow_deploy_plugin.serve.grpc import inference_pb2 as messages
from mlflow_deploy_plugin.serve.protocols import v2, v2_tensors
from mlflow_deploy_plugin.serve.protocols.v2_tensors import TensorHeader, from_binary, from_texts
from mlflow_deploy_plugin.serve.runtime.artifact import Artifact
from mlflow_deploy_plugin.serve.runtime.feeds import Array
from mlflow_deploy_plugin.serve.runtime.schemas.schema import Schema

_FIELDS = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
"""The field with the typed values of each datatype; FP16 has no field."""

MAX_FIELDS = 100_000
_MAX_PARAMETERS = 1_000
_RAW_INPUT_KEY = messages.ModelInferRequest.RAW_INPUT_CONTENTS_FIELD_NUMBER << 3 | 2
_FIXED_SIZES = {1: 8, 5: 4}
"""The size in bytes of 64-bit and 32-bit numbers, by their wire type."""
_VARINT_BYTES = 10


def read_message(kind: type[Message], body: bytes, tensors: list[memoryview] | None = None) -> Any:
    """Parse a message. Raises InvalidRequest if it is malformed or has more than
    `MAX_FIELDS` fields.

    The fields are counted before parsing, because protobuf may create an object of 80
    bytes from two bytes. If `tensors` is a list, it receives the `raw_input_contents`
    of a large message as views of `body`, and the message is returned without them:
    protobuf would copy them twice.
    """
    view = memoryview(body if len(body) > MAX_FIELDS else b"")
    position = 0
    field_count = 0
    others = []
    others_start = 0
    # https://protobuf.dev/programming-guides/encoding; protobuf reports malformed bytes
    # below.
    with suppress(ValueError, IndexError):
        while position < len(view):
            field_count += 1
            if field_count > MAX_FIELDS:
                raise InvalidRequest(
                    f"the message has more than {MAX_FIELDS} inputs, outputs and parameters",
                )
            start = position
            key, position = _read_varint(view, position)
            match key & 7:  # the wire type
                case 0:
                    _, position = _read_varint(view, position)
                case 2:
                    length, position = _read_varint(view, position)
                    if tensors is not None and key == _RAW_INPUT_KEY:
                        tensors.append(view[position : position + length])
                        others.append(view[others_start:start])
                        others_start = position + length
                    position += length
                case wire_type:  # The start and end tags of a group have no data.
                    position += _FIXED_SIZES.get(wire_type, 0)
    if tensors and position == len(view):
        body = b"".join((*others, view[others_start:]))
    try:
        return kind.FromString(body)
    except DecodeError:
        raise InvalidRequest(
            f"the message is not a {kind.DESCRIPTOR.name} of the Open Inference Protocol",
        ) from None


def _read_varint(view: memoryview | bytes, start: int) -> tuple[int, int]:
    """Return the LEB128 number at `start`, and its end. Raises ValueError above ten
    bytes, IndexError if truncated.
    """
    value = 0
    for index in range(_VARINT_BYTES):
        byte = view[start + index]
        value |= (byte & 127) << (7 * index)
        if byte < 128:
            return value, start + index + 1
    raise ValueError


def decode(
    request: messages.ModelInferRequest,
    artifact: Artifact,
    schema: Schema,
    raw: Sequence[bytes | memoryview] = (),
    names: v2.V2Names = v2.OWN,
) -> v2.V2Request:
    """Decode an infer request; `raw` are the tensors that `read_message` has removed.
    Raises InvalidRequest if it is malformed or not supported.

    Raises SchemaMismatch if a tensor is unknown, missing or repeated, or does not fit
    its shape, datatype or model.
    """
    requested = [
        {"name": output.name, "parameters": parameter_values(output.parameters)}
        for output in request.outputs
    ]
    raw = raw or request.raw_input_contents
    count = len(request.inputs)
    # All headers are checked before any values are decoded.
    heads: dict[str, TensorHeader] = {}
    for position, entry in enumerate(request.inputs):
        shape = list(entry.shape[: v2_tensors.MAX_RANK + 1])
        fields = {"name": entry.name, "shape": shape, "datatype": entry.datatype}
        fields["parameters"] = parameter_values(entry.parameters)
        head = v2_tensors.read_tensor_header(position, fields)
        v2.parameters_of(head, fields)
        v2.check_name(head, heads, schema, count == 1, names.takes_any)
        heads[head.name] = head
    if raw and len(raw) != count:
        raise InvalidRequest(f"there are {len(raw)} raw_input_contents for {count} inputs")
    arrays: dict[str, tuple[TensorHeader, Array]] = {}
    for position, (head, entry) in enumerate(zip(heads.values(), request.inputs, strict=True)):
        is_binary = v2.holds_bytes(head, schema)
        if not raw:
            array = _from_contents(head, entry.contents, is_binary)
        elif entry.contents.ByteSize():
            raise InvalidRequest(
                f"{head} has both contents and raw_input_contents; only one is allowed",
            )
        else:
            array = from_binary(head, memoryview(raw[position]), is_binary)
        arrays[head.name] = head, array
    document = {
        "id": request.id,
        "outputs": requested,
        "parameters": parameter_values(request.parameters),
    }
    return v2.bind_request(document, arrays, artifact, schema, names)


def encode(endpoint: str, answer: v2.V2Answer, is_raw: bool) -> messages.ModelInferResponse:
    """Encode an answer, as bytes if `is_raw`."""
    response = messages.ModelInferResponse(
        model_name=endpoint, model_version=answer.version, id=answer.id
    )
    for name, text in (answer.parameters or {}).items():
        response.parameters[name].string_param = text
    is_raw = is_raw or any(output.array.dtype == np.float16 for output in answer.outputs)
    for name, array, parameters, _ in answer.outputs:
        datatype = v2_tensors.array_datatype(array)
        tensor = response.outputs.add(name=name, datatype=datatype, shape=array.shape)
        for parameter, text in parameters.items():
            tensor.parameters[parameter].string_param = text
        if is_raw:
            response.raw_output_contents.append(v2_tensors.to_binary(array))
        else:
            if array.dtype.kind == "O":
                values = [str(value).encode() for value in array.flat]
            else:
                values = array.ravel().tolist()
            getattr(tensor.contents, _FIELDS[datatype]).extend(values)
    return response


def parameter_values(parameters: Mapping[str, messages.InferParameter]) -> dict[str, object]:
    """Return the parameters as Python values; None for an empty parameter. Raises
    InvalidRequest for too many.
    """
    if len(parameters) > _MAX_PARAMETERS:
        raise InvalidRequest(
            f"an object has {len(parameters)} parameters; at most {_MAX_PARAMETERS} are allowed",
        )
    values: dict[str, object] = {}
    for name, parameter in parameters.items():
        kind = parameter.WhichOneof("parameter_choice")
        values[name] = getattr(parameter, kind) if kind else None
    return values


def _from_contents(
    head: TensorHeader,
    contents: messages.InferTensorContents,
    is_binary: bool,
) -> Array:
    """Return the array of a tensor from its typed values, which must be in the field of
    its datatype.

    8-bit and 16-bit integers are sent as 32-bit integers. With `is_binary`, the texts
    are returned as base64. Raises SchemaMismatch if the values do not fit the header.
    """
    expected_field = _FIELDS.get(head.datatype)
    if expected_field is None:
        raise head.mismatch(" cannot have typed contents; send it in raw_input_contents")
    filled = [field.name for field, _ in contents.ListFields()]
    # Protobuf does not send an empty field.
    if filled != [expected_field] and (filled or 0 not in head.shape):
        actual = ", ".join(filled) or "no contents"
        raise head.mismatch(f" has {actual}; its elements are expected in {expected_field}")
    values = getattr(contents, expected_field)
    if len(values) != prod(head.shape):
        raise head.mismatch(f" has {len(values)} elements; its shape requires {prod(head.shape)}")
    if head.datatype == "BYTES":
        return from_texts(head, values, is_binary)
    dtype = v2_tensors.dtype_of(head.datatype)
    if dtype.kind in "fb" and len(values):
        # Read protobuf's packed values (after a tag and a length) directly: 30,000
        # values take 4 instead of 1,600 µs.
        contents.DiscardUnknownFields()
        packed = memoryview(contents.SerializeToString())
        _, start = _read_varint(packed, 1)
        return from_binary(head, packed[start:])
    if dtype.itemsize >= 4 or not len(values):
        return np.fromiter(values, dtype, len(values)).reshape(head.shape)
    wide = np.fromiter(values, np.int64, len(values))
    limits = np.iinfo(dtype)
    outside = np.flatnonzero((wide < limits.min) | (wide > limits.max))
    if len(outside):
        raise head.mismatch(
            f": element {outside[0]} is {wide[outside[0]]}, which does not fit {head.datatype}",
        )
    return wide.astype(dtype).reshape(head.shape)
