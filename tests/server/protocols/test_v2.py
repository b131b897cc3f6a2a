"""The Open Inference Protocol V2 through the whole surface but the socket, and its tensors by themselves."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlflow_deploy_plugin.server.assembly import Server
from mlflow_deploy_plugin.server.http.messages import RawRequest, RawResponse
from mlflow_deploy_plugin.server.http.routes import answer

X = {"name": "X", "shape": [2, 3], "datatype": "FP32", "data": [1, 2, 3, 4, 5, 6]}


@pytest.fixture
def server(serve_here: Callable[..., Server], model_folders: dict[str, Path], tools: Any) -> Server:
    return serve_here({kind: {"v": tools.variant(folder, "7")} for kind, folder in model_folders.items()})


def ask(server: Server, document: Any, model: str = "single", binary: bytes | None = None, **more: str) -> RawResponse:
    body = json.dumps(document).encode()
    headers = {**more} if binary is None else {"inference-header-content-length": str(len(body)), **more}
    return answer(server, RawRequest("POST", f"/v2/models/{model}/infer", headers, body + (binary or b"")))


def test_tensors_are_answered_with_their_names_shapes_and_datatypes(server: Server) -> None:
    response = ask(server, {"id": "mine", "inputs": [X]})
    assert (response.status, response.content_type) == (200, "application/json")
    assert json.loads(response.body) == {
        "model_name": "single",
        "model_version": "7",
        "id": "mine",
        "outputs": [{"name": "y", "shape": [2, 1], "datatype": "FP32", "data": [6.0, 15.0]}],
    }
    assert response.headers["X-Request-Id"] == "mine"
