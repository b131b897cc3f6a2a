"""Servers with a gRPC port, in this process or in gunicorn, and requests from Triton's
client.
"""

from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import grpc
import pytest
from tritonclient.grpc import InferenceServerClient, InferInput, service_pb2, service_pb2_grpc
from tritonclient.utils import np_to_triton_dtype

from mlflow_deploy_plugin.core.spec.parts import ServerSpec
from mlflow_deploy_plugin.serve.grpc.grpc_server import GrpcServer
from tests.support.servers import gunicorn, opened, variant
from tests.support.waiting import free_port


@dataclass(frozen=True)
class Called:
    """A running server, whose HTTP is a process or the server in this process."""

    http: Any
    address: str

    def client(self):
        return InferenceServerClient(self.address)

    @contextmanager
    def stub(self):
        """The generated stub, for fields that Triton's client
        does not send or return.
        """
        with grpc.insecure_channel(self.address) as channel:
            yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


@contextmanager
def calling(state_dir, endpoints, **fields):
    """Serve endpoint → variant → fields on HTTP and gRPC; keyword arguments are fields
    of the server's spec.
    """
    spec = ServerSpec.model_validate({"grpc_port": free_port(), **fields})
    with gunicorn(state_dir, endpoints, spec) as running:
        yield Called(running, f"127.0.0.1:{spec.grpc_port}")


@contextmanager
def listening(server, max_connections=100, **fields):
    """Serve a server of this process on gRPC; keyword arguments are fields of its
    spec.
    """
    spec = server.spec.model_copy(update={"grpc_port": free_port(), **fields})
    listener = GrpcServer(replace(server, spec=spec), max_connections)
    try:
        yield Called(server, f"{spec.host}:{spec.grpc_port}")
    finally:
        listener.drain()
        listener.wait()


@pytest.fixture(scope="session")
def called(tmp_path_factory, model_folders):
    """Run a server with the models of the other tests."""
    endpoints = {kind: {"v": variant(model_folders[kind], "7")} for kind in ("mixed", "tensor")}
    with opened(tmp_path_factory.mktemp("grpc"), endpoints) as server, listening(server) as served:
        yield served


def tensor(name, array):
    """Return an input of Triton's client, as bytes."""
    input_tensor = InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
    input_tensor.set_data_from_numpy(array)
    return input_tensor


def message(endpoint, *, name="image", shape=(1, 2, 2), datatype="FP32", **more):
    """Return an infer request with one tensor; `more` has fields of the request,
    `contents` fields of the tensor.
    """
    contents = more.pop("contents", None)
    entry = service_pb2.ModelInferRequest.InferInputTensor(
        name=name, datatype=datatype, shape=shape, contents=contents
    )
    return service_pb2.ModelInferRequest(model_name=endpoint, inputs=[entry], **more)
