"""Callers with and without keys, at every route."""

import json
import re
import secrets
import socket
from dataclasses import replace

import pytest
import requests
from flask import Blueprint

from mlflow_deploy_plugin.core.spec.parts import ServerSpec
from mlflow_deploy_plugin.core.statedir.models import KeyEntry, Scope
from mlflow_deploy_plugin.serve.http.app import ServerApp
from mlflow_deploy_plugin.serve.http.plan import PlanTable
from mlflow_deploy_plugin.serve.http.routes import ROUTES, expand_path
from mlflow_deploy_plugin.serve.inference.pipeline import failure
from mlflow_deploy_plugin.serve.messages import RawRequest
from mlflow_deploy_plugin.serve.spool.frames import segments
from tests.support.handling import ROW, V2_ROW, ask, handle
from tests.support.keys import write_keys
from tests.support.models import write_model
from tests.support.refusals import mentions
from tests.support.servers import gunicorn, one_endpoint, variant, want

SCOPES: tuple[Scope, ...] = ("infer", "read", "admin")
PUBLIC = {"/ping", "/health", "/v2/health/live", "/v2/health/ready"}
SETTINGS = {"api_keys": True, "model_control_mode": "explicit"}


def write_scopes(state_dir):
    """Write a key for each scope, whose text is the scope, and a key for the endpoint
    f.
    """
    entries: dict[str, KeyEntry] = {
        scope: KeyEntry(name=scope, scopes=(scope,)) for scope in SCOPES
    }
    entries["thrice"] = KeyEntry(name="thrice", scopes=("infer", "read"), limits=("3/hour",))
    entries["only-f"] = KeyEntry(name="only-f", scopes=("infer", "read"), endpoints=("f",))
    write_keys(state_dir, entries)


@pytest.fixture
def server(serve_here, bias_folders):
    variants = {"e": {"v": variant(bias_folders["1"])}, "f": {"w": variant(bias_folders["2"], "2")}}
    server = serve_here(variants, SETTINGS)
    write_scopes(server.repository.state_dir)
    return server


def need_of(path, method):
    if path in PUBLIC or path.startswith("/pages/"):
        return ""
    if path.endswith(("/load", "/unload")):
        return "admin"
    if path.startswith("/v1/models/NAME[") and method == "GET":
        return "describe"
    if path.startswith("/v2/models/NAME[") and path.endswith(("]", "/ready", "/config")):
        return "describe"
    if method == "GET" or path == "/v2/repository/index":
        return "read"
    return "infer"


@pytest.mark.parametrize(
    ("path", "method", "declared"), [(route.path, route.method, route.need) for route in ROUTES]
)
def test_every_route_needs_its_scope(server, path, method, declared):
    assert (declared or "") == need_of(path, method)
    plain = path.partition("[")[0] + path.partition("]")[2]  # without the optional parts
    address = plain.replace("/NAME", "/e")
    needed = need_of(path, method)
    allowing = {"describe": {"infer", "read"}}.get(needed, {needed})
    assert (ask(server, address, method).status == 401) is bool(needed)
    body = b"{" if needed == "admin" else ROW  # The server does not execute these requests.
    for scope in SCOPES if needed else ():
        refused = (
            ask(
                server, address, method, body, host="localhost", authorization=f"Bearer {scope}"
            ).status
            == 403
        )
        assert refused is (scope not in allowing), scope


@pytest.mark.parametrize("key", ["", "wrong", "only-e", "nothing"])
def test_a_refusal_is_the_same_for_names_that_are_served_and_names_that_are_not(server, key):
    """A caller without permission cannot find names by guessing,
    in any path or body.
    """
    only_e = KeyEntry(name="only-e", scopes=SCOPES, endpoints=("e",))
    write_keys(
        server.repository.state_dir,
        {"only-e": only_e, "nothing": KeyEntry(name="nothing", scopes=())},
    )
    caller = {"authorization": f"Bearer {key}"} if key else {}

    def answer(route, template, endpoint, choice):
        path = template.format(endpoint=endpoint, version=choice, label=choice)
        body = {"model": endpoint}
        response = ask(
            server, path, route.method, json.dumps(body).encode(), host="localhost", **caller
        )
        return response.status, response.body.replace(b"'%b'" % endpoint.encode(), b"NAME")

    for route in [route for route in ROUTES if route.need]:
        for template in expand_path(route.path, "{{{}}}"):
            refusal = answer(route, template, "nix", "nix")
            may_ask = key == "only-e" and "{" not in template
            assert refusal[0] == (403 if caller and key != "wrong" else 401) or may_ask, template
            if route.is_admitted_by_view or not may_ask:
                answers = [answer(route, template, "f", choice) for choice in ("2", "w", "nix")]
                assert answers == [refusal] * 3, template


@pytest.mark.parametrize(
    ("path", "method", "status"),
    [
        ("/endpoints/f/invocations", "POST", 200),
        ("/endpoints/e/invocations", "POST", 403),
        ("/invocations", "POST", 403),  # e is the default endpoint.
        ("/v2/models/f", "GET", 200),
        ("/v2/models/e", "GET", 403),
        ("/endpoints/f", "GET", 200),
        ("/metrics", "GET", 403),
    ],
)
def test_a_key_may_hold_for_one_endpoint(server, path, method, status):
    assert ask(server, path, method, authorization="Bearer only-f").status == status


def test_a_key_for_the_default_endpoint_does_not_reveal_the_inputs_of_others(server):
    write_keys(
        server.repository.state_dir,
        {"only-e": KeyEntry(name="only-e", scopes=("read",), endpoints=("e",))},
    )

    assert ask(server, "/openapi.json", "GET", authorization="Bearer only-e").status == 403
    assert (
        ask(server, "/endpoints/e/openapi.json", "GET", authorization="Bearer only-e").status == 200
    )


@pytest.mark.parametrize("path", ["/endpoints/f", "/endpoints/f/docs"])
def test_a_page_tells_a_key_for_one_endpoint_the_name_of_no_other(server, path):
    def offered(key):
        page = ask(server, path, "GET", authorization=f"Bearer {key}").body.decode()
        return re.findall(r"<option value=\"(\w+)\"", page)

    assert offered("read") == ["e", "f"]
    assert offered("only-f") == []


def test_a_health_check_tells_a_stranger_no_reason(server, tmp_path):
    want(server.repository.state_dir, 2, {"g": {"v": variant(tmp_path, "1")}})
    server.repository.poll()
    response = ask(server, "/ping", "GET", authorization="Bearer infer")
    assert (response.status, b"no MLmodel file" in response.body) == (503, True)
    response = ask(server, "/ping", "GET")
    assert response.status == 503
    assert b"the server cannot predict now; send a key to get the reason" in response.body


def test_a_caller_without_a_key_is_asked_for_one(server):
    answer = ask(server)
    assert answer.headers["WWW-Authenticate"].split(", ") == [
        'Basic realm="onnxserve"',
        'Bearer realm="onnxserve"',
    ]
    assert b"send Authorization: Bearer KEY" in answer.body


@pytest.mark.parametrize(("method", "need"), [("GET", "read"), ("POST", "admin")])
def test_views_of_other_packages_need_read_or_for_changes_admin_scope(server, method, need):
    blueprint = Blueprint("flights", __name__)
    blueprint.add_url_rule("/flights", "flights", lambda: "seen", methods=[method])
    app = ServerApp(server)
    app.register_blueprint(blueprint)
    assert app.handle(RawRequest(method, "/flights", {}, b"")).status == 401
    for scope in SCOPES:
        response = app.handle(
            RawRequest(method, "/flights", {"authorization": f"Bearer {scope}"}, b"")
        )
        assert response.status == (200 if scope == need else 403), scope


def test_the_log_names_the_key_and_never_its_text(server, caplog):
    write_keys(
        server.repository.state_dir,
        {"secret-text": KeyEntry(name="shop", scopes=("infer", "read"))},
    )
    observed = replace(server, logs_requests=True)
    with caplog.at_level("INFO"):
        for path, method in (("/invocations", "POST"), ("/metrics", "GET")):
            assert ask(observed, path, method, authorization="Bearer secret-text").status == 200
        ask(observed, authorization="Bearer wrong")
    logged = [record for record in caplog.records if hasattr(record, "url.path")]
    assert [getattr(record, "user.name", "") for record in logged] == ["shop", "shop", ""]
    assert [", key shop" in record.getMessage() for record in logged] == [True, True, False]
    assert "secret-text" not in caplog.text


KEY = "onnxserve_" + secrets.token_urlsafe(32)
"""A key in the form of `onnxserve keys create`."""


@pytest.mark.parametrize("uses_plan", [False, True])
def test_a_key_in_a_path_or_an_id_is_in_no_log_line_and_in_no_captured_row(
    server, uses_plan, caplog
):
    """Callers sometimes put the key into these headers."""
    write_keys(server.repository.state_dir, {KEY: KeyEntry(name="shop", scopes=("infer", "read"))})
    with_id = json.dumps({**json.loads(V2_ROW), "id": KEY}).encode()
    plans = PlanTable(server)
    observed = replace(server, logs_requests=True)

    def new_id(path, identity="", body=ROW):
        headers = {"content-type": "application/json", "authorization": f"Bearer {KEY}"}
        if identity:
            headers["x-request-id"] = identity
        request = RawRequest("POST", path, headers, body)
        response = plans.answer(request) if uses_plan else handle(observed, request)
        if response is None:
            return ""
        return response.headers.get("X-Request-Id", "")

    with caplog.at_level("INFO"):
        new = [new_id("/invocations", KEY), new_id("/invocations", f"id={KEY};1")]
        new.append(new_id("/v2/models/e/infer", body=with_id))
        new_id("/invocations", body=json.dumps({"dataframe_records": [{"x": KEY}]}).encode())
        new_id(
            "/invocations",
            body=json.dumps(
                {"dataframe_split": {"columns": [KEY, KEY], "data": [[1, 2]]}}
            ).encode(),
        )
        for path in (
            f"/{KEY}",
            f"/endpoints/{KEY}/invocations",
            f"/v2/models/e/versions/{KEY}",
            "/a" * 240 + KEY,
        ):
            new_id(path, "mine")
        failure(RawRequest("POST", "/a" * 90 + KEY, {}, b""), RuntimeError())

    captured = b"".join(segment.read_bytes() for segment in segments(server.capture.spool))
    assert all(re.fullmatch("[0-9a-f]{32}", id_) and id_.encode() in captured for id_ in new)
    assert KEY[:30] not in caplog.text + str([vars(record) for record in caplog.records])
    assert KEY.encode() not in captured


@pytest.fixture
def url(tmp_path, bias_folders):
    spec = ServerSpec.model_validate(SETTINGS)
    write_scopes(tmp_path)
    with gunicorn(tmp_path, one_endpoint(bias_folders["1"]), spec) as running:
        yield running.url


def test_a_worker_asks_for_keys_and_waits_for_no_body_of_a_stranger(url):
    """Otherwise the bodies of strangers could use the memory limit of a worker's
    bodies.
    """
    headers = {"Content-Type": "application/json", "Authorization": "Bearer infer"}

    def status(headers, body=ROW):
        return requests.post(f"{url}/invocations", body, headers=headers, timeout=10).status_code

    assert [status(headers) for _ in range(3)] == [200, 200, 200]
    assert status({**headers, "Authorization": "Bearer wrong"}) == 401
    assert status({**headers, "Authorization": "Bearer read"}) == 403
    lines = {**headers, "Content-Type": "application/jsonl"}
    assert status(lines, iter([b"[1, 2, 3]\n"])) == 200  # streamed
    assert status({**lines, "Authorization": "Bearer wrong"}, iter([b"[1, 2, 3]\n"])) == 401
    assert requests.get(f"{url}/", auth=("me", "read"), timeout=10).status_code == 200
    assert requests.get(f"{url}/ping", timeout=10).status_code == 200
    host, _, port = url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(
            b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n["
        )
        answer = connection.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert b"\r\nConnection: close\r\n" in answer
    assert b"send Authorization: Bearer KEY" in answer


def test_a_worker_counts_requests_by_key_and_refuses_those_above_its_limit(url):
    headers = {"Content-Type": "application/json", "Authorization": "Bearer thrice"}
    answers = [
        requests.post(f"{url}/invocations", ROW, headers=headers, timeout=10) for _ in range(4)
    ]

    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert mentions(answers[-1].json()["message"], "'thrice'", "3/hour")
    # The limit ends with the hour of the worker.
    assert 0 < int(answers[-1].headers["Retry-After"]) <= 3600
    headers["Authorization"] = "Bearer infer"
    for body in (
        ROW,
        b"no JSON",
    ):  # The plan decodes the first body, and the general path the second body.
        requests.post(f"{url}/invocations", body, headers=headers, timeout=10)
    page = requests.get(f"{url}/metrics", auth=("", "read"), timeout=10).text
    counted = dict(re.findall(r'onnxserve_key_requests_total{key="([^"]*)"} (\d+)', page))
    assert counted == {"thrice": "4", "infer": "2", "read": "1"}
    assert 'onnxserve_refused_requests_total{endpoint="",reason="key"} 1' in page


def test_a_request_whose_plan_fails_counts_once_against_the_limits_of_its_key(serve_here, tmp_path):
    pick = (
        "pick (int64[N] X) => (float[N] Y) { table = Constant<value = float[2] {10.0, 20.0}> () Y "
        "= Gather(table, X) }"
    )
    folder = write_model(tmp_path / "pick", pick)
    server = serve_here(one_endpoint(folder), SETTINGS)
    limits = ("3/minute", "4/hour")
    write_keys(
        server.repository.state_dir, {"k": KeyEntry(name="k", scopes=("infer",), limits=limits)}
    )
    plans = PlanTable(server)

    def status(inputs):
        headers = {"content-type": "application/json", "authorization": "Bearer k"}
        request = RawRequest("POST", "/invocations", headers, b'{"inputs": %b}' % inputs)
        return (plans.answer(request) or handle(server, request)).status

    assert [status(b"[0]"), status(b"[7]"), status(b"[1]"), status(b"[1]")] == [200, 400, 200, 429]
    assert (
        b'onnxserve_refused_requests_total{endpoint="",reason="key"} 1.0' in server.metrics.page()
    )
