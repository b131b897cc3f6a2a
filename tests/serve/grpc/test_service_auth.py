"""Callers over gRPC, with and without keys."""

import threading
from contextlib import suppress

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2

from mlflow_deploy_plugin.core.spec.parts import ServerSpec
from mlflow_deploy_plugin.core.statedir.models import KeyEntry, Scope
from mlflow_deploy_plugin.serve.grpc import service
from tests.serve.grpc.conftest import listening, message
from tests.support.keys import write_keys
from tests.support.servers import opened, variant

IMAGE = np.array([[[1.5, 2.0], [3.0, 4.0]]], np.float32)
SCOPES: tuple[Scope, ...] = ("infer", "read", "admin")


@pytest.fixture(scope="module")
def keyed(tmp_path_factory, model_folders):
    """A server whose callers need a key; each key is the name of its scope."""
    folder = tmp_path_factory.mktemp("keyed")
    keys: dict[str, KeyEntry] = {scope: KeyEntry(name=scope, scopes=(scope,)) for scope in SCOPES}
    once = KeyEntry(name="once", scopes=("infer",), limits=("1/hour",))
    write_keys(folder, {**keys, "once": once})
    endpoints = {"tensor": {"v": variant(model_folders["tensor"], "7")}}
    spec = ServerSpec(api_keys=True, model_control_mode="explicit")
    with opened(folder, endpoints, spec) as server, listening(server) as served:
        yield served


def bearer(key):
    return [("authorization", f"Bearer {key}")] if key else []


INFER = message("tensor", contents={"fp32_contents": IMAGE.ravel().tolist()})
READ = service_pb2.ModelMetadataRequest(name="tensor")
CONFIG = service_pb2.ModelConfigRequest(name="tensor")
READY = service_pb2.ModelReadyRequest(name="tensor")
STATISTICS = service_pb2.ModelStatisticsRequest(name="tensor")
INDEX = service_pb2.RepositoryIndexRequest()
UNLOAD = service_pb2.RepositoryModelUnloadRequest(model_name="tensor")
CALLS = [
    ("ModelInfer", INFER, "infer", "OK"),
    ("ModelInfer", INFER, "", "UNAUTHENTICATED"),
    ("ModelInfer", INFER, "wrong", "UNAUTHENTICATED"),
    ("ModelInfer", INFER, "read", "PERMISSION_DENIED"),
    ("ModelMetadata", READ, "read", "OK"),
    ("ModelMetadata", READ, "infer", "OK"),
    ("ModelMetadata", READ, "", "UNAUTHENTICATED"),
    ("ModelConfig", CONFIG, "infer", "OK"),
    ("ModelConfig", CONFIG, "read", "OK"),
    ("ModelReady", READY, "infer", "OK"),
    ("ModelStatistics", STATISTICS, "infer", "PERMISSION_DENIED"),
    ("RepositoryIndex", INDEX, "", "UNAUTHENTICATED"),
    ("RepositoryModelUnload", UNLOAD, "read", "PERMISSION_DENIED"),
    ("ServerLive", service_pb2.ServerLiveRequest(), "", "OK"),
    ("ServerReady", service_pb2.ServerReadyRequest(), "", "OK"),
]


@pytest.mark.parametrize(("method", "request_", "key", "code"), CALLS)
def test_each_method_needs_its_scope(keyed, method, request_, key, code):
    with keyed.stub() as stub:
        call = getattr(stub, method).future(request_, timeout=20, metadata=bearer(key))
        assert call.code().name == code


def test_a_stream_needs_a_key(keyed):
    with keyed.stub() as stub, pytest.raises(grpc.RpcError, match="Authorization: Bearer KEY"):
        next(stub.ModelStreamInfer(iter([INFER]), timeout=10))


def test_the_first_of_two_keys_counts(keyed):
    with keyed.stub() as stub, pytest.raises(grpc.RpcError, match="UNAUTHENTICATED"):
        stub.RepositoryIndex(INDEX, timeout=10, metadata=bearer("wrong") + bearer("read"))


def test_a_key_has_its_own_limit(keyed):
    with keyed.stub() as stub:
        assert stub.ModelInfer(INFER, timeout=20, metadata=bearer("once")).outputs
        with pytest.raises(grpc.RpcError, match=r"'once'.*1/hour") as refused:
            stub.ModelInfer(INFER, timeout=20, metadata=bearer("once"))
    assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/inference.GRPCInferenceService/ModelInfer", "UNAUTHENTICATED"),
        ("/inference.GRPCInferenceService/ModelStreamInfer", "UNAUTHENTICATED"),
        ("/grpc.health.v1.Health/Check", "OK"),
        ("/grpc.health.v1.Health/Watch", "OK"),
    ],
)
def test_messages_before_the_key_are_not_awaited(keyed, path, code, monkeypatch):
    monkeypatch.setattr(service, "_STRANGER_SECONDS", 1.0)
    is_over = threading.Event()

    def nothing():
        is_over.wait()
        yield from ()

    with grpc.insecure_channel(keyed.address) as strangers:
        held = [strangers.stream_stream(path)(nothing()) for _ in range(150)]
        with keyed.stub() as stub:
            key = bearer("infer")
            assert stub.ModelInfer(INFER, timeout=20, metadata=key).model_version == "7"
            streamed = next(stub.ModelStreamInfer(iter([INFER]), timeout=20, metadata=key))
            assert streamed.error_message == ""
        with suppress(grpc.RpcError):
            list(held[0])
        assert held[0].code().name == code
        is_over.set()
        for call in held:
            call.cancel()


@pytest.mark.parametrize(
    "path", ["/inference.GRPCInferenceService/ServerLive", "/grpc.health.v1.Health/Check"]
)
def test_concurrent_health_checks_are_answered(keyed, path):
    with grpc.insecure_channel(keyed.address) as channel:
        check = channel.unary_unary(path)
        assert [call.code() for call in [check.future(b"", timeout=20) for _ in range(60)]] == [
            grpc.StatusCode.OK
        ] * 60
