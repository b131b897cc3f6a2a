"""gRPC messages that are invalid, too large or truncated, for every method.
tests/serve/grpc tests contents.
"""

import grpc
import pytest

from mlflow_deploy_plugin.serve.grpc import inference_pb2 as messages
from mlflow_deploy_plugin.serve.grpc.service import HEALTH, INFERENCE
from mlflow_deploy_plugin.serve.grpc.service import METHODS as MANAGEMENT
from tests.serve.corpus.routes import IMAGE, MAX_BODY_BYTES
from tests.support.waiting import free_port

_TENSOR = messages.ModelInferRequest.InferInputTensor(
    name="image", datatype="FP32", shape=IMAGE.shape
)
GOOD = messages.ModelInferRequest(
    model_name="tensor", inputs=[_TENSOR], raw_input_contents=[IMAGE.tobytes()]
).SerializeToString()
METHODS = [f"/{INFERENCE}/{name}" for name in ("ModelInfer", *MANAGEMENT)] + [f"/{HEALTH}/Check"]
NOISE = {
    "bytes that are no message": b"\xff\xff\xff\xff",
    "half a message": GOOD[:-5],
    "a length beyond the message": b"\x0a\xff\xff\xff\xff\x0f",
    "a group that never ends": b"\x0b" * 1000,
    "a text that is no UTF-8": b"\x0a\x01\xff",
    "JSON": b'{"model_name": "tensor"}',
    "more than a body may have": bytes(MAX_BODY_BYTES + 100_000),
}
_CODES = {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION"}


@pytest.fixture(scope="module")
def called(start):
    """Yield a channel to the server, and the server."""
    port = free_port()
    with start(grpc_port=port) as tried, grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        before = tried.pids
        yield channel, tried
        assert tried.pids == before
        assert "Traceback" not in tried.log


def refusal(channel, method, body):
    """Return the code and the details of the response. Some methods ignore the bytes of
    an empty message.
    """
    try:
        channel.unary_unary(method)(body, timeout=20)
    except grpc.RpcError as error:
        return error.code().name, error.details()
    return "OK", ""


@pytest.mark.parametrize("noise", NOISE)
def test_bad_message_is_refused_by_every_method(called, noise):
    channel, _ = called
    for method in METHODS:
        code, details = refusal(channel, method, NOISE[noise])
        assert code in _CODES, (method, details)
        assert "Traceback" not in details
        assert ".py" not in details
        answer = messages.ModelInferResponse.FromString(
            channel.unary_unary(METHODS[0])(GOOD, timeout=20)
        )
        assert answer.raw_output_contents[0] == (IMAGE * 2).tobytes()


@pytest.mark.parametrize(
    "path",
    ["/x/y", "/inference.GRPCInferenceService/None", "/inference.GRPCInferenceService/../ping"],
)
def test_unknown_method_is_unimplemented(called, path):
    assert refusal(called[0], path, GOOD)[0] == "UNIMPLEMENTED"
