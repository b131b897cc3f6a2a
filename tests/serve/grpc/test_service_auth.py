"""Callers over gRPC, with and without keys."""

import threading

import grpc
import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from mlflow_deploy_plugin.core.statedir.models import KeyEntry, Scope
from tests.serve.grpc.conftest import calling, message, tensor
from tests.support.keys import write_keys
from tests.support.servers import variant

IMAGE = np.array([[[1.5, 2.0], [3.0, 4.0]]], np.float32)
SCOPES: tuple[Scope, ...] = ("infer", "read", "admin")


def headers(key):
    return {"authorization": f"Bearer {key}"}


def code(refused):
    return str(refused.value.status())


def test_each_method_needs_its_scope_and_health_needs_none(tmp_path, model_folders):
    entries: dict[str, KeyEntry] = {
        scope: KeyEntry(name=scope, scopes=(scope,)) for scope in SCOPES
    }
    write_keys(
        tmp_path, {**entries, "once": KeyEntry(name="once", scopes=("infer",), limits=("1/hour",))}
    )
    endpoints = {"tensor": {"v": variant(model_folders["tensor"], "7")}}
    image = [tensor("image", IMAGE)]
    settings = {"api_keys": True, "model_control_mode": "explicit"}
    with calling(tmp_path, endpoints, **settings) as served, served.client() as client:
        assert (client.is_server_live(), client.is_server_ready()) == (True, True)
        assert (
            client.infer("tensor", image, headers=headers("infer")).get_response().model_version
            == "7"
        )
        for key in ("read", "infer"):  # Both scopes permit reading the metadata.
            assert client.get_model_metadata("tensor", headers=headers(key)).name == "tensor"
            assert client.get_model_config("tensor", headers=headers(key)).config.name == "tensor"
            assert client.is_model_ready("tensor", headers=headers(key))
        for key, expected in (
            ("", "UNAUTHENTICATED"),
            ("wrong", "UNAUTHENTICATED"),
            ("read", "PERMISSION_DENIED"),
        ):
            with pytest.raises(InferenceServerException) as refused:
                client.infer("tensor", image, headers=headers(key) if key else None)
            assert code(refused) == f"StatusCode.{expected}"
        client.infer("tensor", image, headers=headers("once"))
        with pytest.raises(InferenceServerException, match=r"'once'.*1/hour") as refused:
            client.infer("tensor", image, headers=headers("once"))
        assert code(refused) == "StatusCode.RESOURCE_EXHAUSTED"
        with pytest.raises(InferenceServerException) as refused:
            client.get_inference_statistics("tensor", headers=headers("infer"))
        assert code(refused) == "StatusCode.PERMISSION_DENIED"
        with pytest.raises(InferenceServerException) as refused:
            client.unload_model("tensor", headers=headers("read"))
        assert code(refused) == "StatusCode.PERMISSION_DENIED"
        with served.stub() as stub:
            with pytest.raises(grpc.RpcError, match="Authorization: Bearer KEY"):
                next(stub.ModelStreamInfer(iter([message("tensor")]), timeout=10))
            twice = [("authorization", "Bearer wrong"), ("authorization", "Bearer read")]
            with pytest.raises(grpc.RpcError, match="UNAUTHENTICATED"):
                stub.RepositoryIndex(grpc_index(), timeout=10, metadata=twice)
            with pytest.raises(grpc.RpcError):
                stub.RepositoryIndex(grpc_index(), timeout=10)


@pytest.fixture(scope="module")
def keyed(tmp_path_factory, model_folders):
    """A server whose callers need a key; `infer` is a valid key."""
    folder = tmp_path_factory.mktemp("keyed")
    write_keys(folder, {"infer": KeyEntry(name="infer", scopes=("infer",))})
    with calling(
        folder, {"tensor": {"v": variant(model_folders["tensor"], "7")}}, api_keys=True
    ) as served:
        yield served


@pytest.mark.parametrize(
    "path",
    [
        "/inference.GRPCInferenceService/ModelInfer",
        "/inference.GRPCInferenceService/ModelStreamInfer",
        "/grpc.health.v1.Health/Check",
        "/grpc.health.v1.Health/Watch",
    ],
)
def test_strangers_who_send_nothing_keep_no_caller_out(keyed, path):
    request = message("tensor", contents={"fp32_contents": IMAGE.ravel().tolist()})
    key = [("authorization", "Bearer infer")]
    is_over = threading.Event()

    def nothing():
        is_over.wait()
        yield from ()

    with grpc.insecure_channel(keyed.address) as strangers:
        held = [strangers.stream_stream(path)(nothing()) for _ in range(150)]
        with keyed.stub() as stub:
            assert stub.ModelInfer(request, timeout=20, metadata=key).model_version == "7"
            streamed = next(stub.ModelStreamInfer(iter([request]), timeout=20, metadata=key))
            assert streamed.error_message == ""
        is_over.set()
        for call in held:
            call.cancel()


@pytest.mark.parametrize(
    "path", ["/inference.GRPCInferenceService/ServerLive", "/grpc.health.v1.Health/Check"]
)
def test_all_health_checks_that_come_at_once_are_answered(keyed, path):
    with grpc.insecure_channel(keyed.address) as channel:
        check = channel.unary_unary(path)
        assert [call.code() for call in [check.future(b"", timeout=20) for _ in range(60)]] == [
            grpc.StatusCode.OK
        ] * 60


def grpc_index():
    from tritonclient.grpc import service_pb2

    return service_pb2.RepositoryIndexRequest()
