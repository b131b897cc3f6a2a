"""The Flask application reads requests and answers them as a WSGI application."""

import io
import json
import time
from types import SimpleNamespace

import pytest
from flask import request
from werkzeug.test import run_wsgi_app

from mlflow_deploy_plugin.core.statedir.models import KeyEntry
from mlflow_deploy_plugin.serve.http.app import ServerApp
from mlflow_deploy_plugin.serve.messages import RawRequest
from tests.support.bodies import v2_tensor
from tests.support.handling import ROW, ask_wsgi, wsgi_environ
from tests.support.keys import write_keys
from tests.support.servers import one_endpoint

LIMIT = 10_000
PATIENCE_SECONDS = 1.0
JSON = {"host": "localhost", "content-type": "application/json"}


class SlowBody(io.BytesIO):
    def read(self, size=-1):
        time.sleep(1.5 * PATIENCE_SECONDS)
        return super().read(size)


def test_timeout_excludes_arrival_of_body(serve_here, bias_folders):
    server = serve_here(one_endpoint(bias_folders["1"]))
    inputs = [v2_tensor(name, "FP64", [1.0]) for name in ("a", "b", "c")]
    body = json.dumps(
        {"inputs": inputs, "parameters": {"timeout": int(PATIENCE_SECONDS * 1e6)}}
    ).encode()
    environ = wsgi_environ("POST", "/v2/models/e/infer", JSON, SlowBody(body))
    environ["CONTENT_LENGTH"] = str(len(body))
    assert run_wsgi_app(ServerApp(server), environ)[1].startswith("200")


@pytest.mark.parametrize(
    ("spec", "url"),
    [
        ({}, "http://flights:1/where"),
        ({"certfile": "/c.pem", "keyfile": "/k.pem"}, "https://flights:1/where"),
    ],
)
def test_blueprint_view_knows_its_url(serve_here, bias_folders, spec, url):
    app = ServerApp(serve_here(one_endpoint(bias_folders["1"]), spec))
    app.add_url_rule("/where", view_func=lambda: request.url)
    answer = app.handle(RawRequest("GET", "/where", {"host": "flights:1"}, b""))
    assert answer.body.decode() == url


class UnreadableBody(io.BytesIO):
    """The input of a client whose body does not arrive in time."""

    def read(self, size=-1):
        raise TimeoutError


def test_body_of_stranger_is_not_read(serve_here, bias_folders):
    server = serve_here(one_endpoint(bias_folders["1"]), {"api_keys": True})
    write_keys(server.repository.state_dir, {"k": KeyEntry(name="k", scopes=("infer",))})
    app = ServerApp(server)
    headers = {**JSON, "content-length": "100"}
    for key, status in (("", "401"), ("Bearer k", "400")):
        fields = headers | {"authorization": key}
        environ = wsgi_environ("POST", "/invocations", fields, UnreadableBody())
        assert run_wsgi_app(app, environ)[1].startswith(status)


def test_caller_is_named_by_certificate(serve_here, bias_folders):
    files = {"certfile": "/c.pem", "keyfile": "/k.pem", "ca_certs": "/ca.pem"}
    app = ServerApp(serve_here(one_endpoint(bias_folders["1"]), files))

    for certificate, status in (({"subject": ((("commonName", "shop"),),)}, 200), ({}, 401)):
        connection = SimpleNamespace(getpeercert=lambda certificate=certificate: certificate)
        environ = wsgi_environ("POST", "/invocations", JSON, io.BytesIO(ROW)) | {
            "gunicorn.socket": connection
        }
        assert run_wsgi_app(app, environ)[1].startswith(str(status))


def test_body_shorter_than_length_is_refused(serve_here, bias_folders):
    app = ServerApp(serve_here(one_endpoint(bias_folders["1"])))
    headers = {**JSON, "content-length": str(len(ROW) + 1)}
    status, _, body = ask_wsgi(app, "POST", "/invocations", headers, ROW)
    assert status == 400
    assert json.loads(body)["error_code"] == "BAD_REQUEST"
    assert str(len(ROW)) in json.loads(body)["message"]


REFUSED = {
    "no host": ("/ping", {"host": ""}, b"", 400),
    "a path in the host": ("/ping", {"host": "x/y"}, b"", 400),
    "a body of a byte too many": ("/invocations", {}, bytes(LIMIT + 1), 413),
    "chunks beyond the limit": ("/invocations", {"content-length": ""}, bytes(LIMIT + 1), 413),
    "a declared terabyte": ("/invocations", {"content-length": "9" * 12}, b"", 413),
    "a large V2 body": ("/v2/models/e/infer", {}, bytes(LIMIT + 1), 413),
    "a way up": ("/a/../ping", {}, b"", 400),
    "a line feed": ("/ping%0a", {}, b"", 400),
}


@pytest.mark.parametrize(("path", "headers", "body", "status"), REFUSED.values(), ids=REFUSED)
def test_hostile_request_is_refused(serve_here, bias_folders, path, headers, body, status):
    app = ServerApp(serve_here(one_endpoint(bias_folders["1"]), {"max_body_bytes": LIMIT}))
    fields = {**JSON, "content-length": str(len(body)), **headers}
    sent = {name: value for name, value in fields.items() if value}
    refused, _, content = ask_wsgi(app, "POST", path, sent, body)
    assert refused == status
    assert ("error_code" in json.loads(content)) == (not path.startswith("/v2"))
    assert ask_wsgi(app, "POST", "/invocations", JSON, ROW)[0] == 200
