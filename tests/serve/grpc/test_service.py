"""The Open Inference Protocol V2 over gRPC with Triton's own client and gunicorn."""

import json
import queue
import threading

import grpc
import numpy as np
import pytest
from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

from mlflow_deploy_plugin.core import errors
from mlflow_deploy_plugin.serve.grpc.service import (
    OpenCalls,
    address_of,
    code_of,
    metadata_of,
    with_deadline,
)
from tests.serve.grpc.conftest import message, tensor
from tests.support.waiting import free_port

IMAGE = np.array([[[1.5, 2.0], [3.0, 4.0]]], np.float32)


@pytest.fixture
def client(called):
    with called.client() as client:
        yield client


def ask_tensor(client, **more):
    return client.infer("tensor", [tensor("image", IMAGE)], **more)


def test_server_and_models_have_metadata(client):
    assert (client.is_server_live(), client.is_server_ready()) == (True, True)
    targets = ("mixed", ""), ("mixed", "7"), ("mixed", "8"), ("none", "")
    assert [client.is_model_ready(*target) for target in targets] == [True, True, False, False]
    assert client.get_server_metadata().name == "onnxserve"
    metadata = client.get_model_metadata("mixed", "7", as_json=True)
    assert metadata["name"] == "mixed"
    assert metadata["versions"] == ["7"]
    assert metadata["platform"] == "onnxruntime_onnx"
    assert metadata["inputs"][0] == {
        "name": "carrier",
        "datatype": "BYTES",
        "shape": ["-1", "1"],
    }


def test_typed_contents_are_answered_in_kind(called):
    with called.stub() as stub:
        answer = stub.ModelInfer(message("tensor", contents={"fp32_contents": IMAGE.ravel()}))
    assert not answer.raw_output_contents
    assert [(output.name, list(output.contents.fp32_contents)) for output in answer.outputs] == [
        ("doubled", [3.0, 4.0, 6.0, 8.0]),
        ("total", [10.5]),
    ]


def test_answer_names_its_model_and_request(called):
    request = message("tensor", raw_input_contents=[IMAGE.tobytes()], id="from the body")
    with called.stub() as stub:
        answer, call = stub.ModelInfer.with_call(request, metadata=[("x-request-id", "mine")])
        with pytest.raises(grpc.RpcError, match="X-Event-Time") as refused:
            stub.ModelInfer(request, metadata=[("x-event-time", "yesterday")])
    assert (answer.id, answer.model_name, answer.model_version) == ("from the body", "tensor", "7")
    trailers = dict(call.trailing_metadata())
    assert len(trailers.pop("x-prediction-id")) == 32
    told = {"x-request-id": "mine", "x-model-name": "m", "x-model-version": "7"}
    assert trailers.items() >= told.items()
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert dict(refused.value.trailing_metadata())["x-model-version"] == "7"


def test_concurrent_calls_get_their_own_answers(called):
    with called.stub() as stub:
        calls = [
            stub.ModelInfer.future(
                message("tensor", raw_input_contents=[(IMAGE + number).tobytes()], id=str(number))
            )
            for number in range(40)
        ]
        for number, call in enumerate(calls):
            answer = call.result(30)
            assert answer.id == str(number)
            assert answer.raw_output_contents[0] == ((IMAGE + number) * 2).tobytes()


def test_stream_is_answered_in_order_despite_an_error(client):
    """Triton marks each final response: github.com/triton-inference-server/server,
    docs/user_guide/decoupled_models.md.
    """
    answers = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    for number in range(6):
        name, array = ("nothing", IMAGE[0]) if number == 3 else ("image", IMAGE + number)
        client.async_stream_infer(
            "tensor",
            [tensor(name, array)],
            request_id=str(number),
            enable_empty_final_response=True,
        )
    results = [answers.get(timeout=30) for _ in range(6)]
    client.stop_stream()
    result, error = results.pop(3)
    assert result is None
    assert "'nothing'" in str(error)
    for number, (result, error) in zip((0, 1, 2, 4, 5), results, strict=True):
        assert error is None
        response = result.get_response()
        assert response.id == str(number)
        assert response.parameters["x-model-version"].string_param == "7"
        assert response.parameters["triton_final_response"].bool_param
        np.testing.assert_array_equal(result.as_numpy("doubled"), (IMAGE + number) * 2)


def test_streams_beyond_the_bound_are_refused(called):
    call = message("tensor", raw_input_contents=[IMAGE.tobytes()])
    ended = threading.Event()

    def held():
        yield call
        ended.wait(60)

    with called.stub() as stub:
        streams = [stub.ModelStreamInfer(held()) for _ in range(32)]
        assert all(next(stream).infer_response.outputs for stream in streams)
        with pytest.raises(grpc.RpcError, match="RESOURCE_EXHAUSTED"):
            next(stub.ModelStreamInfer(iter([call])))
        ended.set()
        assert all(list(stream) == [] for stream in streams)


REFUSED = {
    "an endpoint that is not there": ({"endpoint": "none"}, "NOT_FOUND"),
    "a version that is not there": ({"model_version": "8"}, "NOT_FOUND"),
    "a shape beyond memory": ({"shape": (2**62, 2, 2)}, "INVALID_ARGUMENT"),
    "a hundred thousand dimensions": ({"shape": [1] * 100_000}, "INVALID_ARGUMENT"),
    "an id that cannot be printed": ({"id": "a\nb"}, "INVALID_ARGUMENT"),
}


@pytest.mark.parametrize(("fields", "code"), REFUSED.values(), ids=REFUSED)
def test_invalid_call_gets_its_status(called, fields, code):
    raw = {"raw_input_contents": [IMAGE.tobytes()]}
    with called.stub() as stub:
        with pytest.raises(grpc.RpcError) as refused:
            stub.ModelInfer(message(**{"endpoint": "tensor", **raw, **fields}))
        assert refused.value.code().name == code
        assert "Traceback" not in refused.value.details()
        good = stub.ModelInfer(message("tensor", **raw))
        assert good.raw_output_contents[0] == (IMAGE * 2).tobytes()


@pytest.mark.parametrize(
    ("method", "code"),
    [
        ("ModelInfer", "INVALID_ARGUMENT"),
        ("ModelReady", "INVALID_ARGUMENT"),
        ("Guess", "UNIMPLEMENTED"),
    ],
)
def test_bytes_without_message_form_are_refused(called, method, code):
    with (
        grpc.insecure_channel(called.address) as channel,
        pytest.raises(grpc.RpcError) as refused,
    ):
        channel.unary_unary(f"/inference.GRPCInferenceService/{method}")(b"\xff" * 50)
    assert refused.value.code().name == code


def test_call_without_message_is_refused(called):
    with (
        grpc.insecure_channel(called.address) as channel,
        pytest.raises(grpc.RpcError, match="no message") as refused,
    ):
        channel.stream_unary("/inference.GRPCInferenceService/ModelInfer")(iter([]))
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_passed_timeout_exceeds_the_deadline(client):
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
        ({"timeout": 20}, 1.0, 20),
        ({"timeout": 2_000_000}, 1.0, 1_000_000),
        ({"timeout": 0}, 1.0, 1_000_000),
        ({"timeout": "soon"}, 1.0, "soon"),
        ({"timeout": -1}, 1.0, -1),
    ],
)
def test_deadline_of_a_call_is_its_timeout(said, seconds_left, timeout):
    assert with_deadline(said, seconds_left).get("timeout") == timeout


def test_standard_health_check_is_answered(called):
    with grpc.insecure_channel(called.address) as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        assert check(b"") == check(b"\x0a\x1einference.GRPCInferenceService") == b"\x08\x01"
        with pytest.raises(grpc.RpcError) as refused:
            check(b"\x0a\x01x")
        assert refused.value.code() == grpc.StatusCode.NOT_FOUND


def test_client_reads_index_statistics_and_config(client):
    ask_tensor(client)
    index = client.get_model_repository_index().models
    assert {("tensor", "7", "READY"), ("mixed", "7", "READY")} <= {
        (model.name, model.version, model.state) for model in index
    }
    (statistics,) = client.get_inference_statistics("tensor", "7").model_stats
    assert (statistics.name, statistics.version) == ("tensor", "7")
    assert statistics.inference_stats.success.count >= 1
    config = client.get_model_config("tensor").config
    assert config.backend == "onnxruntime"
    assert config.input[0].name == "image"
    assert list(config.input[0].dims) == [-1, 2, 2]
    assert list(config.version_policy.specific.versions) == [7]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.InvalidRequest, "INVALID_ARGUMENT"),
        (errors.SchemaMismatch, "INVALID_ARGUMENT"),
        (errors.InferenceError, "INVALID_ARGUMENT"),
        (errors.UnsupportedMediaType, "INVALID_ARGUMENT"),
        (errors.HeadersTooLarge, "INVALID_ARGUMENT"),
        (errors.BodyTooLarge, "RESOURCE_EXHAUSTED"),
        (errors.TooManyRequests, "RESOURCE_EXHAUSTED"),
        (errors.DeadlineExceeded, "DEADLINE_EXCEEDED"),
        (errors.NotFound, "NOT_FOUND"),
        (errors.AlreadyExists, "ALREADY_EXISTS"),
        (errors.NotReady, "UNAVAILABLE"),
        (errors.DeviceUnavailable, "INTERNAL"),
    ],
)
def test_errors_have_their_codes(error, code):
    assert code_of(error("what was wrong")).name == code


def test_metadata_is_lower_case_ascii():
    metadata = metadata_of(
        {"X-Model-Name": "Flüge 100%", "Retry-After": "1", "traceparent": "00-a-b-01"}
    )
    assert metadata == [
        ("x-model-name", "Fl%C3%BCge 100%25"),
        ("retry-after", "1"),
        ("traceparent", "00-a-b-01"),
    ]


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:127.0.0.1:5001", "127.0.0.1"),
        ("ipv6:%5B::1%5D:5001", "::1"),
        ("ipv6:[fe80::2]:80", "fe80::2"),
        ("unix:", ""),
    ],
)
def test_peer_address_is_parsed(peer, address):
    assert address_of(peer) == address


class Call:
    """A call with the interface of grpcio's context."""

    def __init__(self):
        self.callbacks = []
        self.cancelled = threading.Event()

    def add_callback(self, callback):
        self.callbacks.append(callback)
        return True

    def cancel(self):
        self.cancelled.set()

    def end(self):
        for callback in self.callbacks:
            callback()


def test_a_call_is_open_until_it_ends():
    calls = OpenCalls(1, 60.0)
    call = Call()
    assert calls.receive_one(call, iter([b"message"])) == b"message"
    assert calls.open == 1
    call.end()
    assert calls.open == 0
    calls.drain()


def test_drained_server_cancels_idle_streams():
    calls = OpenCalls(1, 60.0)
    call = Call()
    waits = threading.Event()

    def bodies():
        yield b"first"
        waits.set()
        call.cancelled.wait(60)
        yield b"second"

    received = []
    reader = threading.Thread(target=lambda: received.extend(calls.receive_each(call, bodies())))
    reader.start()
    assert waits.wait(60)
    calls.drain()
    reader.join(60)
    assert received == [b"first", b"second"]
    assert calls.draining.is_set()
    assert list(calls.receive_each(Call(), iter([b"third"]))) == []


def states(client):
    return {model.name: model.state for model in client.get_model_repository_index().models}


@pytest.mark.long
def test_endpoints_are_unloaded_loaded_and_added(serve, model_folders):
    port = free_port()
    options = ["-C", f"server.grpc_port={port}", "-C", "server.model_control_mode=explicit"]
    serve(str(model_folders["single"]), "--name", "first", *options).wait_ready()
    with InferenceServerClient(f"127.0.0.1:{port}") as client:
        client.unload_model("first")
        assert (states(client), client.is_model_ready("first")) == ({"first": "UNAVAILABLE"}, False)
        client.load_model("first")
        added = {"name": "second", "variants": {"v": {"model": str(model_folders["tensor"])}}}
        client.load_model("second", config=json.dumps(added))
        assert states(client) == {"first": "READY", "second": "READY"}
        assert client.get_model_config("second").config.input[0].name == "image"
        with pytest.raises(InferenceServerException, match=r"'file:1/model\.onnx'") as refused:
            client.load_model("second", config="{}", files={"file:1/model.onnx": b"\xff"})
        assert refused.value.status() == "StatusCode.INVALID_ARGUMENT"
