"""The Open Inference Protocol V2 over gRPC with Triton's own client and gunicorn."""

import queue
from itertools import product
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import InferRequestedOutput
from tritonclient.utils import InferenceServerException

from mlflow_deploy_plugin.serve.grpc.service import with_deadline
from tests.serve.grpc.conftest import DTYPES, message, tensor

IMAGE = np.array([[[1.5, 2.0], [3.0, 4.0]]], np.float32)
DATATYPES = [
    "BOOL",
    *(f"{kind}{bits}" for kind, bits in product(("INT", "UINT"), (8, 16, 32, 64))),
    "FP16",
    "FP32",
    "FP64",
]


@pytest.fixture
def client(called):
    with called.client() as client:
        yield client


def ask_tensor(client, **more):
    return client.infer("tensor", [tensor("image", IMAGE)], **more)


def test_server_and_models_tell_of_themselves(client):
    assert (client.is_server_live(), client.is_server_ready()) == (True, True)
    ready = [
        client.is_model_ready(*target)
        for target in (("mixed",), ("mixed", "7"), ("mixed", "8"), ("none",))
    ]
    assert ready == [True, True, False, False]
    assert client.get_server_metadata().name == "onnxserve"
    metadata = client.get_model_metadata("mixed", "7")
    assert metadata.name == "mixed"
    assert list(metadata.versions) == ["7"]
    assert metadata.platform == "onnxruntime_onnx"
    assert [(entry.name, entry.datatype, list(entry.shape)) for entry in metadata.inputs][:2] == [
        ("carrier", "BYTES", [-1, 1]),
        ("distance", "FP64", [-1, 1]),
    ]


def test_columns_go_in_and_named_outputs_come_back(client):
    columns = {
        "carrier": np.array([["AA"], ["ÜÜ"]], dtype=object),
        "distance": np.zeros((2, 1)),
        "hour": np.zeros((2, 1), np.int32),
        "late": np.zeros((2, 1), np.bool_),
    }
    inputs = [tensor(name, array) for name, array in columns.items()]
    wanted = [InferRequestedOutput("probabilities"), InferRequestedOutput("label")]
    result = client.infer(
        "mixed", inputs, "7", outputs=wanted, request_id="mine", parameters={"note": "any"}
    )
    response = result.get_response()
    assert response.model_name == "mixed"
    assert response.model_version == "7"
    assert response.id == "mine"
    assert [output.name for output in response.outputs] == ["probabilities", "label"]
    assert list(result.as_numpy("label")) == [b"yes", b"no"]
    np.testing.assert_allclose(result.as_numpy("probabilities")[:, 1], [0.7310586, 0.5], atol=1e-6)


def test_a_call_is_on_the_page_of_requests(called):
    with called.stub() as stub:
        _, call = stub.ModelInfer.with_call(
            message("tensor", contents={"fp32_contents": [1, 2, 3, 4]})
        )
    prediction_id = dict(call.trailing_metadata())["x-prediction-id"]
    rows = called.http.get("/endpoints/tensor/requests").json()["requests"]
    (row,) = (row for row in rows if row["prediction_id"] == prediction_id)
    assert row["protocol"] == "grpc"
    assert row["status"] == 200
    assert row["version"] == "7"
    assert row["rows"] == 1


@pytest.mark.parametrize("datatype", DATATYPES)
def test_every_datatype_goes_both_ways_in_bytes(client, datatype):
    dtype = np.dtype(DTYPES[datatype])
    limits = (np.finfo if dtype.kind == "f" else np.iinfo)(dtype) if dtype.kind != "b" else None
    array = np.array(
        [[False, True]] if limits is None else [[limits.min, limits.max], [0, 1]], dtype
    )
    result = client.infer(datatype, [tensor("x", array)])
    assert result.as_numpy("y").dtype == dtype
    np.testing.assert_array_equal(result.as_numpy("y"), array)


def test_strings_of_any_length_go_both_ways(client):
    array = np.array([["", "Zürich"], ["\0", "x" * 100_000]], dtype=object)
    answered = client.infer("BYTES", [tensor("x", array)]).as_numpy("y")
    assert [value.decode() for value in answered.flat] == list(array.flat)


def test_typed_contents_are_answered_in_kind(called):
    with called.stub() as stub:
        answer = stub.ModelInfer(message("tensor", contents={"fp32_contents": IMAGE.ravel()}))
        assert not answer.raw_output_contents
        assert [
            (output.name, list(output.contents.fp32_contents)) for output in answer.outputs
        ] == [("doubled", [3.0, 4.0, 6.0, 8.0]), ("total", [10.5])]
        texts = message(
            "BYTES",
            name="x",
            shape=(1, 2),
            datatype="BYTES",
            contents={"bytes_contents": [b"a", "ü".encode()]},
        )
        assert list(stub.ModelInfer(texts).outputs[0].contents.bytes_contents) == [
            b"a",
            "ü".encode(),
        ]


def test_every_answer_says_who_gave_it(called):
    with called.stub() as stub:
        request = message("tensor", raw_input_contents=[IMAGE.tobytes()], id="from the body")
        _, call = stub.ModelInfer.with_call(request, metadata=[("x-request-id", "mine")])
        trailers = dict(call.trailing_metadata())
        assert trailers["x-request-id"] == "mine"
        assert trailers["x-model-name"] == "m"
        assert trailers["x-model-version"] == "7"
        assert len(trailers["x-prediction-id"]) == 32
        with pytest.raises(grpc.RpcError) as refused:
            stub.ModelInfer(request, metadata=[("x-event-time", "yesterday")])
        assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert "X-Event-Time" in refused.value.details()
        assert dict(refused.value.trailing_metadata())["x-model-version"] == "7"


def test_grpc_calls_are_counted_in_the_same_metrics_as_http(called, client):
    ask_tensor(client)
    page = called.http.get("/metrics").text
    assert (
        'endpoint="tensor",model="m",protocol="grpc",status="200",variant="v",version="7"' in page
    )


def test_many_calls_at_once_get_their_own_answers(client):
    answers: queue.Queue[Any] = queue.Queue()
    for number in range(40):
        client.async_infer(
            "tensor",
            [tensor("image", IMAGE + number)],
            callback=lambda result, error: answers.put((result, error)),
            request_id=str(number),
        )
    for _ in range(40):
        result, error = answers.get(timeout=30)
        assert error is None
        number = int(result.get_response().id)
        np.testing.assert_array_equal(result.as_numpy("doubled"), (IMAGE + number) * 2)


def test_a_client_that_reads_until_the_final_response_of_a_stream_comes_to_an_end(client):
    """Triton marks each response: github.com/triton-inference-server/server,
    docs/user_guide/decoupled_models.md.
    """
    answers: queue.Queue[Any] = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    inputs = [tensor("image", IMAGE)]
    client.async_stream_infer("tensor", inputs, enable_empty_final_response=True)
    result, error = answers.get(timeout=30)
    client.stop_stream()
    assert error is None
    assert result.get_response().parameters["triton_final_response"].bool_param


def test_a_stream_is_answered_in_order_and_outlives_an_error(client):
    answers: queue.Queue[Any] = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    for number in range(6):
        input_tensor = (
            tensor("image", IMAGE + number) if number != 3 else tensor("nothing", IMAGE[0])
        )
        client.async_stream_infer("tensor", [input_tensor], request_id=str(number))
    results = [answers.get(timeout=30) for _ in range(6)]
    client.stop_stream()
    assert [error is not None for _, error in results] == [number == 3 for number in range(6)]
    assert "'nothing'" in str(results[3][1])
    for number in (0, 1, 2, 4, 5):
        response = results[number][0].get_response()
        assert response.id == str(number)
        assert response.parameters["x-model-version"].string_param == "7"
        np.testing.assert_array_equal(results[number][0].as_numpy("doubled"), (IMAGE + number) * 2)


BAD: dict[str, tuple[dict[str, Any], str, str]] = {
    "an endpoint that is not there": ({"endpoint": "none"}, "NOT_FOUND", "'none'"),
    "a version that is not there": ({"model_version": "8"}, "NOT_FOUND", "'8'"),
    "a wrong shape": ({"shape": (2, 2), "bytes": 16}, "INVALID_ARGUMENT", r"any, 2, 2"),
    "a negative size": ({"shape": (-1, 2, 2)}, "INVALID_ARGUMENT", "shape"),
    "a shape beyond memory": ({"shape": (2**62, 2, 2)}, "INVALID_ARGUMENT", "requires"),
    "a hundred thousand dimensions": ({"shape": [1] * 100_000}, "INVALID_ARGUMENT", "dimensions"),
    "no rows of a huge size": ({"shape": (0, 2**40, 2), "bytes": 0}, "INVALID_ARGUMENT", "empty"),
    "too few bytes": ({"bytes": 15}, "INVALID_ARGUMENT", "15 bytes"),
    "too many bytes": ({"bytes": 17}, "INVALID_ARGUMENT", "17 bytes"),
    "an unknown tensor": ({"name": "picture", "shape": (4,)}, "INVALID_ARGUMENT", "'picture'"),
    "an unknown datatype": ({"datatype": "FP8"}, "INVALID_ARGUMENT", "'FP8'"),
    "a datatype that does not fit": (
        {"datatype": "BYTES", "shape": (1, 1, 1)},
        "INVALID_ARGUMENT",
        "BYTES",
    ),
    "no data": ({"raw_input_contents": []}, "INVALID_ARGUMENT", "no contents"),
    "data for two": (
        {"raw_input_contents": [b"", b""]},
        "INVALID_ARGUMENT",
        "2 raw_input_contents for 1",
    ),
    "data twice": (
        {"contents": {"fp32_contents": [1.0]}},
        "INVALID_ARGUMENT",
        "both contents and raw_input_contents",
    ),
    "an unknown output": ({"outputs": [{"name": "half"}]}, "INVALID_ARGUMENT", "'half'"),
    "an output twice": (
        {"outputs": [{"name": "total"}, {"name": "total"}]},
        "INVALID_ARGUMENT",
        "repeated",
    ),
    "shared memory": (
        {
            "outputs": [
                {"name": "total", "parameters": {"shared_memory_region": {"string_param": "r"}}}
            ]
        },
        "INVALID_ARGUMENT",
        "shared_memory_region",
    ),
    "an id that cannot be printed": ({"id": "a\nb"}, "INVALID_ARGUMENT", "id"),
    "typed values in another field": (
        {"raw_input_contents": [], "contents": {"fp64_contents": [1.0] * 4}},
        "INVALID_ARGUMENT",
        "fp32_contents",
    ),
    "too few typed values": (
        {"raw_input_contents": [], "contents": {"fp32_contents": [1.0] * 3}},
        "INVALID_ARGUMENT",
        "3 elements",
    ),
    "typed values of FP16": (
        {"raw_input_contents": [], "datatype": "FP16", "contents": {"fp32_contents": [1.0] * 4}},
        "INVALID_ARGUMENT",
        "raw_input_contents",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_an_invalid_call_gets_its_error_and_the_next_call_is_answered(called, case):
    fields, code, words = BAD[case]
    fields = {
        "endpoint": "tensor",
        "raw_input_contents": [bytes(fields.get("bytes", 16))],
        **fields,
    }
    fields.pop("bytes", None)
    with called.stub() as stub:
        with pytest.raises(grpc.RpcError, match=words) as refused:
            stub.ModelInfer(message(**fields))
        assert refused.value.code().name == code
        assert "Traceback" not in refused.value.details()
        good = stub.ModelInfer(message("tensor", raw_input_contents=[IMAGE.tobytes()]))
        assert good.raw_output_contents[0] == (IMAGE * 2).tobytes()


def test_bytes_that_are_no_message_are_refused(called):
    with grpc.insecure_channel(called.address) as channel:
        for method, code in (
            ("ModelInfer", "INVALID_ARGUMENT"),
            ("ModelReady", "INVALID_ARGUMENT"),
            ("Guess", "UNIMPLEMENTED"),
        ):
            with pytest.raises(grpc.RpcError) as refused:
                channel.unary_unary(f"/inference.GRPCInferenceService/{method}")(b"\xff" * 50)
            assert refused.value.code().name == code
        with pytest.raises(grpc.RpcError, match="no message") as refused:
            channel.stream_unary("/inference.GRPCInferenceService/ModelInfer")(iter([]))
        assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_a_timeout_that_has_passed_is_answered_without_computing(client):
    with pytest.raises(InferenceServerException) as refused:
        ask_tensor(client, timeout=1)
    assert refused.value.status() == "StatusCode.DEADLINE_EXCEEDED"
    assert ask_tensor(client, client_timeout=20, timeout=10_000_000).as_numpy("total") == [10.5]


@pytest.mark.parametrize(
    ("said", "seconds_left", "timeout"),
    [
        ({}, None, None),
        ({}, 1.5, 1_500_000),
        ({}, -1.0, 1),
        ({"timeout": 20}, None, 20),
        ({"timeout": 20}, 1.0, 20),
        ({"timeout": 2_000_000}, 1.0, 1_000_000),
        ({"timeout": 0}, 1.0, 1_000_000),
        ({"timeout": "soon"}, 1.0, "soon"),
        ({"timeout": -1}, 1.0, -1),
    ],
)
def test_the_deadline_of_a_call_is_a_timeout_unless_that_is_shorter(said, seconds_left, timeout):
    assert with_deadline(said, seconds_left).get("timeout") == timeout


def test_grpc_s_own_health_check_is_answered(called):
    with grpc.insecure_channel(called.address) as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        assert (
            check(b"") == check(b"\x0a\x1e" + b"inference.GRPCInferenceService"[:30]) == b"\x08\x01"
        )
        with pytest.raises(grpc.RpcError) as refused:
            check(b"\x0a\x01x")
        assert refused.value.code() == grpc.StatusCode.NOT_FOUND


def test_the_client_reads_the_repository_index_statistics_and_config(called, client):
    ask_tensor(client)
    index = {
        (model.name, model.version, model.state)
        for model in client.get_model_repository_index().models
    }
    assert {("tensor", "7", "READY"), ("mixed", "7", "READY")} <= index
    statistics = client.get_inference_statistics("tensor", "7").model_stats[0]
    assert statistics.name == "tensor"
    assert statistics.version == "7"
    assert statistics.inference_stats.success.count >= 1
    config = client.get_model_config("tensor").config
    assert config.backend == "onnxruntime"
    assert config.input[0].name == "image"
    assert list(config.input[0].dims) == [-1, 2, 2]
    assert list(config.version_policy.specific.versions) == [7]
