"""Endpoints are loaded and unloaded over gRPC while a server with its agent runs."""

import json

import pytest
from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

from tests.support.waiting import free_port


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


@pytest.mark.long
def test_unload_needs_explicit_control(serve, model_folders):
    port = free_port()
    serve(
        str(model_folders["single"]), "--name", "first", "-C", f"server.grpc_port={port}"
    ).wait_ready()
    with (
        InferenceServerClient(f"127.0.0.1:{port}") as client,
        pytest.raises(InferenceServerException, match="model_control_mode") as refused,
    ):
        client.unload_model("first")
    assert refused.value.status() in ("StatusCode.PERMISSION_DENIED", "StatusCode.INVALID_ARGUMENT")
