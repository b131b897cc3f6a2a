"""The Flask application: how it reads a request."""

import io
import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from flask import request

from mlflow_deploy_plugin.server.assembly import Server
from mlflow_deploy_plugin.server.http.app import ServerApp
from mlflow_deploy_plugin.server.inference.messages import RawRequest
from tests.support.servers import one_endpoint

PATIENCE_SECONDS = 1.0


class SlowBody(io.BytesIO):
    def read(self, size: int | None = -1) -> bytes:
        time.sleep(1.5 * PATIENCE_SECONDS)
        return super().read(size)


def test_what_a_body_takes_to_arrive_is_not_the_request_s_own_time(
    serve_here: Callable[..., Server], bias_folders: dict[str, Path]
) -> None:
    server = serve_here(one_endpoint(bias_folders["1"]))
    inputs = [{"name": name, "shape": [1], "datatype": "FP64", "data": [1.0]} for name in ("a", "b", "c")]
    body = json.dumps({"inputs": inputs, "parameters": {"timeout": int(PATIENCE_SECONDS * 1e6)}}).encode()
    response = (
        ServerApp(server)
        .test_client()
        .post(
            "/v2/models/e/infer",
            input_stream=SlowBody(body),
            content_length=len(body),
            content_type="application/json",
            environ_overrides={"RAW_URI": "/v2/models/e/infer"},
        )
    )
    assert response.status_code == 200, response.text


@pytest.mark.parametrize(
    ("spec", "url"),
    [({}, "http://flights:1/where"), ({"certfile": "/c.pem", "keyfile": "/k.pem"}, "https://flights:1/where")],
)
def test_a_view_of_others_knows_by_which_address_it_was_asked(
    serve_here: Callable[..., Server], bias_folders: dict[str, Path], spec: dict[str, str], url: str
) -> None:
    app = ServerApp(serve_here(one_endpoint(bias_folders["1"]), spec))
    app.add_url_rule("/where", view_func=lambda: request.url)
    answer = app.handle(RawRequest("GET", "/where", {"host": "flights:1"}, b""))
    assert answer.body.decode() == url
