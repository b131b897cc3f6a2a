"""gunicorn with a gRPC port, and requests from Triton's client."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
import pytest
from tritonclient.grpc import InferenceServerClient, InferInput, service_pb2, service_pb2_grpc
from tritonclient.utils import np_to_triton_dtype

from mlflow_deploy_plugin.core.spec.parts import ServerSpec
from tests.support.models import graph_tensor, tensor_column, write_model
from tests.support.servers import gunicorn, variant
from tests.support.waiting import free_port

DTYPES: dict[str, npt.DTypeLike] = {
    "BOOL": np.bool_,
    **{
        f"{kind.upper()}{bits}": f"{kind}{bits}"
        for kind, bits in product(("int", "uint"), (8, 16, 32, 64))
    },
    "FP16": np.float16,
    "FP32": np.float32,
    "FP64": np.float64,
}
"""V2's numeric datatypes by the dtypes of their arrays."""

_ONNX = {"BOOL": "bool", "FP16": "float16", "FP32": "float", "FP64": "double", "BYTES": "string"}


def echo_model(folder, datatype):
    """Write a model whose output y equals its input x, [N, 2] of this datatype."""
    kind = _ONNX.get(datatype, datatype.lower())
    dtype = "str" if datatype == "BYTES" else np.dtype(DTYPES[datatype]).name
    text = f"echo ({kind}[N,2] x) => ({kind}[N,2] y) {{ y = Identity(x) }}"
    section = {
        "inputs": [graph_tensor("x", dtype, -1, 2)],
        "outputs": [graph_tensor("y", dtype, -1, 2, role="values")],
        "prediction": ["y"],
    }
    signature = [tensor_column(dtype, -1, 2, name="x")]
    return write_model(folder, text, signature, section)


@dataclass(frozen=True)
class Called:
    """A running server with a gRPC port and an HTTP port."""

    http: Any
    address: str

    def client(self) -> InferenceServerClient:
        return InferenceServerClient(self.address)

    @contextmanager
    def stub(self) -> Iterator[Any]:
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


@pytest.fixture(scope="session")
def called(tmp_path_factory, model_folders):
    """Run a server with the models of the other tests and one for each datatype."""
    root = tmp_path_factory.mktemp("grpc")
    folders = {kind: model_folders[kind] for kind in ("mixed", "single", "tensor")}
    folders |= {datatype: echo_model(root / datatype, datatype) for datatype in (*DTYPES, "BYTES")}
    endpoints = {name: {"v": variant(folder, "7")} for name, folder in folders.items()}
    with calling(root, endpoints) as served:
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
