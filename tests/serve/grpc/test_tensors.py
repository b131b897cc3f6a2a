"""Messages become arrays and arrays become messages; malformed messages are refused."""

import contextlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from tritonclient.grpc import InferInput, service_pb2

from mlflow_deploy_plugin.core.errors import InvalidRequest
from mlflow_deploy_plugin.serve.grpc import inference_pb2 as messages
from mlflow_deploy_plugin.serve.grpc.tensors import MAX_FIELDS, decode, encode, read_message
from mlflow_deploy_plugin.serve.protocols import v2
from mlflow_deploy_plugin.serve.runtime.artifact import Column, Input, Output, Tensor
from mlflow_deploy_plugin.serve.runtime.schemas.pyfunc_schema import FrameSchema
from mlflow_deploy_plugin.serve.runtime.schemas.schema import Schema
from tests.support.schemas import bare_artifact

FIELDS = {
    "BOOL": "bool_contents",
    **{f"INT{bits}": "int_contents" for bits in (8, 16, 32)},
    "INT64": "int64_contents",
    **{f"UINT{bits}": "uint_contents" for bits in (8, 16, 32)},
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
DTYPES = {
    name: np.dtype(name.lower().replace("fp", "float"))
    for name in (*FIELDS, "FP16")
    if name != "BYTES"
} | {"BYTES": np.dtype(object)}
SHAPES = arrays.array_shapes(min_dims=2, max_dims=3, max_side=4)
TEXT = st.text(alphabet=st.characters(codec="utf-8"), max_size=12)


def elements(datatype):
    dtype = DTYPES[datatype]
    if dtype.kind == "O":
        return arrays.arrays(np.dtype(object), SHAPES, elements=TEXT)
    return arrays.arrays(dtype, SHAPES, elements=arrays.from_dtype(dtype))


def model_of(array):
    """Return a model with an input x and an output y of the array's type and a free
    batch dimension.
    """
    dtype = "str" if array.dtype.kind == "O" else array.dtype.name
    shape = (-1, *array.shape[1:])
    tensor = Tensor("x", dtype, shape)
    entry = Input("x", dtype, shape)
    artifact = bare_artifact(
        tensors=(tensor,), inputs=(entry,), outputs=(Output("y", dtype, shape),)
    )
    return artifact, Schema((), (tensor,), (entry,))


def request_of(array, datatype, is_raw):
    """Parse bytes that a client of the standard has encoded, with our messages."""
    entry = service_pb2.ModelInferRequest.InferInputTensor(
        name="x", datatype=datatype, shape=array.shape
    )
    request = service_pb2.ModelInferRequest(model_name="e", inputs=[entry], id="mine")
    if is_raw:
        input_tensor = InferInput("x", list(array.shape), datatype)
        input_tensor.set_data_from_numpy(array)
        request.raw_input_contents.append(input_tensor._get_content())
    else:
        values = (
            [str(value).encode() for value in array.flat]
            if datatype == "BYTES"
            else array.ravel().tolist()
        )
        getattr(request.inputs[0].contents, FIELDS[datatype]).extend(values)
    return messages.ModelInferRequest.FromString(request.SerializeToString())


@settings(max_examples=50)
@given(st.data(), st.sampled_from(sorted(DTYPES)), st.booleans())
def test_tensors_round_trip(data, datatype, is_raw):
    is_raw = is_raw or datatype == "FP16"
    array = data.draw(elements(datatype))
    artifact, schema = model_of(array)
    question = decode(request_of(array, datatype, is_raw), artifact, schema)
    assert question.feeds["x"].dtype == array.dtype
    np.testing.assert_array_equal(question.feeds["x"], array)
    outputs = [v2.V2Output("y", question.feeds["x"])]
    response = encode("e", v2.V2Answer(question.id, "1", outputs), is_raw)
    answer = service_pb2.ModelInferResponse.FromString(response.SerializeToString())
    assert answer.id == "mine"
    assert answer.model_version == "1"
    assert answer.outputs[0].datatype == datatype
    again = messages.ModelInferRequest(
        inputs=[{"name": "x", "datatype": datatype, "shape": answer.outputs[0].shape}],
        raw_input_contents=answer.raw_output_contents,
    )
    if not is_raw:
        again.inputs[0].contents.ParseFromString(answer.outputs[0].contents.SerializeToString())
    np.testing.assert_array_equal(decode(again, artifact, schema).feeds["x"], array)


@settings(max_examples=100)
@given(
    st.binary(max_size=200),
    st.sampled_from(sorted(DTYPES)),
    st.lists(st.integers(-2, 2**62), max_size=4),
)
def test_random_message_is_decoded_or_refused(noise, datatype, shape):
    artifact, schema = model_of(np.zeros((1, 2), DTYPES[datatype]))
    request = messages.ModelInferRequest(
        inputs=[{"name": "x", "datatype": datatype, "shape": shape}], raw_input_contents=[noise]
    )
    with contextlib.suppress(InvalidRequest):
        decode(request, artifact, schema)


@pytest.mark.parametrize(
    ("datatype", "value", "words"),
    [
        ("INT8", 128, "does not fit INT8"),
        ("INT16", -(2**15) - 1, "does not fit INT16"),
        ("UINT8", 256, "UINT8"),
    ],
)
def test_value_beyond_its_datatype_is_named(datatype, value, words):
    array = np.array([[1, value]])
    artifact, schema = model_of(array.astype(DTYPES[datatype]))
    with pytest.raises(InvalidRequest, match=f"element 1 .*{value}.*{words}"):
        decode(request_of(array, datatype, is_raw=False), artifact, schema)


ONE = np.array([[1.0, 2.0]], np.float32)
SHARED = {"shared_memory_region": {"string_param": "r"}}


def part(**contents):
    """Return an input of one row, with these contents."""
    return {"name": "x", "datatype": "FP32", "shape": [1, 2], "contents": contents}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"inputs": [part()]}, "no contents"),
        ({"inputs": [part(fp64_contents=[1.0] * 2)]}, "fp32_contents"),
        ({"inputs": [part(fp32_contents=[1.0] * 3)]}, "3 elements"),
        ({"inputs": [part(fp32_contents=[1.0] * 2) | {"datatype": "FP16"}]}, "raw_input_contents"),
        ({"inputs": [part()], "raw_input_contents": [b"", b""]}, "2 raw_input_contents for 1"),
        (
            {"inputs": [part(fp32_contents=[1.0])], "raw_input_contents": [bytes(8)]},
            "both contents and raw_input_contents",
        ),
        ({"outputs": [{"name": "half"}]}, "'half'"),
        ({"outputs": [{"name": "y"}] * 2}, "repeated"),
        ({"outputs": [{"name": "y", "parameters": SHARED}]}, "shared_memory_region"),
    ],
)
def test_contradictory_request_is_refused(fields, words):
    request = {"inputs": [part(fp32_contents=[1.0, 2.0])], **fields}
    with pytest.raises(InvalidRequest, match=words):
        decode(messages.ModelInferRequest(**request), *model_of(ONE))


@pytest.mark.parametrize("datatype", ["FP32", "FP64", "BOOL"])
def test_unknown_fields_around_typed_values_are_ignored(datatype):
    array = np.array([[1, 0], [0, 1]], DTYPES[datatype])
    artifact, schema = model_of(array)
    contents = request_of(array, datatype, is_raw=False).inputs[0].contents.SerializeToString()
    unknown = b"\xaa\x06\x03new"
    for sent in (unknown + contents, contents + unknown):
        request = request_of(array, datatype, is_raw=False)
        request.inputs[0].contents.ParseFromString(sent)
        np.testing.assert_array_equal(decode(request, artifact, schema).feeds["x"], array)


@pytest.mark.parametrize(
    "first",
    [
        b"",
        b"\x48\xff\x7f",
        b"\x49" + bytes(8),
        b"\x4a\x03new",
        b"\x4b\x48\x01\x4c",
        b"\x4d" + bytes(4),
    ],
    ids=["nothing", "varint", "64 bits", "bytes", "group", "32 bits"],
)
def test_message_with_too_many_fields_is_refused(first):
    empty_input = b"\x2a\x00"
    assert len(read_message(messages.ModelInferRequest, first + 3 * empty_input).inputs) == 3
    with pytest.raises(InvalidRequest, match="100000 inputs"):
        read_message(messages.ModelInferRequest, first + (MAX_FIELDS + 1) * empty_input)


def test_large_tensor_is_a_view_of_the_message():
    x = np.arange(200_000).astype(np.int8).reshape(2, -1)
    body = request_of(x, "INT8", is_raw=True).SerializeToString() + b"\x0a\x01f"
    raw = []
    message = read_message(messages.ModelInferRequest, body, raw)
    assert (message.id, message.model_name, len(message.raw_input_contents)) == ("mine", "f", 0)
    artifact, schema = model_of(x)
    decoded = decode(message, artifact, schema, raw).feeds["x"]
    np.testing.assert_array_equal(decoded, x)
    assert np.shares_memory(decoded, np.frombuffer(body, np.int8))
    with pytest.raises(InvalidRequest, match="is not a ModelInferRequest"):
        read_message(messages.ModelInferRequest, body[:-10], [])


def test_text_with_invalid_utf8_is_named():
    texts = np.array([["a", "b"]], dtype=object)
    request = request_of(texts, "BYTES", is_raw=False)
    request.inputs[0].contents.bytes_contents[1] = b"\xff"
    with pytest.raises(InvalidRequest, match=r"element 1 .*UTF-8"):
        decode(request, *model_of(texts))


def test_empty_contents_with_bytes_are_ignored():
    request = request_of(ONE, "FP32", is_raw=True)
    request.inputs[0].contents.SetInParent()
    assert request.inputs[0].HasField("contents")
    np.testing.assert_array_equal(decode(request, *model_of(ONE)).feeds["x"], ONE)


def test_input_in_shared_memory_is_refused():
    """Triton's client then sends bytes only for the other inputs."""
    request = request_of(ONE, "FP32", is_raw=True)
    shared = request.inputs.add(name="shared", datatype="FP32", shape=[1, 2])
    shared.parameters["shared_memory_region"].string_param = "region"
    with pytest.raises(InvalidRequest, match=r"'shared'.*shared_memory_region"):
        decode(request, *model_of(ONE))


@pytest.mark.parametrize("is_raw", [True, False])
def test_binary_column_becomes_base64(is_raw):
    columns = (Column("x", "string", is_binary=True),)
    schema = FrameSchema(columns, (), (Input("x", "str", (-1,), ("x",)),))
    request = messages.ModelInferRequest()
    tensor = request.inputs.add(name="x", datatype="BYTES", shape=[1])
    if is_raw:
        request.raw_input_contents.append(b"\x03\0\0\0\xff\xd8\xff")
    else:
        tensor.contents.bytes_contents.append(b"\xff\xd8\xff")
    assert decode(request, bare_artifact(), schema).feeds["x"].tolist() == ["/9j/"]
