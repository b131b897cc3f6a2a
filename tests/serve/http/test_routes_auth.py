"""Callers with and without keys, at every route."""

import json
import re
import secrets
from dataclasses import replace

import pytest
from flask import Blueprint

from mlflow_deploy_plugin.core.spec.parts import ServerSpec
from mlflow_deploy_plugin.core.statedir.models import KeyEntry, Scope
from mlflow_deploy_plugin.serve.http.app import ServerApp
from mlflow_deploy_plugin.serve.http.plan import PlanTable
from mlflow_deploy_plugin.serve.http.routes import ROUTES, expand_path
from mlflow_deploy_plugin.serve.inference.pipeline import failure
from mlflow_deploy_plugin.serve.messages import RawRequest
from mlflow_deploy_plugin.serve.observability.tracing import Observer
from mlflow_deploy_plugin.serve.spool.frames import segments
from tests.serve.http.listener import play, worker_app
from tests.support.handling import ROW, V2_ROW, ask, handle, post
from tests.support.keys import write_keys
from tests.support.models import write_model
from tests.support.refusals import mentions
from tests.support.servers import one_endpoint, opened, variant, want

SCOPES: tuple[Scope, ...] = ("infer", "read", "admin")
PUBLIC = {"/key", "/ping", "/health", "/v2/health/live", "/v2/health/ready"}
SETTINGS = {"api_keys": True, "model_control_mode": "explicit"}


def write_scopes(state_dir):
    """Write a key for each scope, whose text is the scope, keys for one endpoint, and a
    key without scopes.
    """
    entries: dict[str, KeyEntry] = {
        scope: KeyEntry(name=scope, scopes=(scope,)) for scope in SCOPES
    }
    entries["only-e"] = KeyEntry(name="only-e", scopes=("read",), endpoints=("e",))
    entries["all-of-e"] = KeyEntry(name="all-of-e", scopes=SCOPES, endpoints=("e",))
    entries["nothing"] = KeyEntry(name="nothing", scopes=())
    entries["only-f"] = KeyEntry(name="only-f", scopes=("infer", "read"), endpoints=("f",))
    write_keys(state_dir, entries)


@pytest.fixture(scope="module")
def endpoints(bias_folders):
    return {"e": {"v": variant(bias_folders["1"])}, "f": {"w": variant(bias_folders["2"], "2")}}


@pytest.fixture(scope="module")
def server(tmp_path_factory, endpoints):
    """A server for tests that change neither its keys nor its models."""
    spec = ServerSpec.model_validate(SETTINGS)
    with opened(tmp_path_factory.mktemp("keys"), endpoints, spec) as server:
        write_scopes(server.repository.state_dir)
        yield server


@pytest.fixture
def own_server(serve_here, endpoints):
    """A server without keys."""
    return serve_here(endpoints, SETTINGS)


def need_of(path, method):
    if path in PUBLIC or path.startswith("/pages/"):
        return ""
    if path.endswith(("/load", "/unload")):
        return "admin"
    if "/jobs" in path:
        return "infer"
    if path.startswith("/v1/models/{endpoint}[") and method == "GET":
        return "describe"
    if path.startswith("/v2/models/{endpoint}[") and path.endswith(("]", "/ready", "/config")):
        return "describe"
    if method == "GET" or path == "/v2/repository/index":
        return "read"
    return "infer"


@pytest.mark.parametrize(
    ("path", "method", "declared"), [(route.path, route.method, route.need) for route in ROUTES]
)
def test_route_requires_its_scope(server, path, method, declared):
    assert (declared or "") == need_of(path, method)
    plain = path.partition("[")[0] + path.partition("]")[2]  # without the optional parts
    address = plain.replace("{endpoint}", "e")
    needed = need_of(path, method)
    allowing = {"describe": {"infer", "read"}}.get(needed, {needed})
    assert (ask(server, address, method).status == 401) is bool(needed or path == "/key")
    body = b"{" if needed == "admin" else ROW  # The server does not execute these requests.
    for scope in SCOPES if needed else ():
        refused = (
            ask(
                server, address, method, body, host="localhost", authorization=f"Bearer {scope}"
            ).status
            == 403
        )
        assert refused is (scope not in allowing), scope


@pytest.mark.parametrize(("key", "status"), [("", 401), ("wrong", 401), ("nothing", 204)])
def test_any_valid_key_is_known(server, key, status):
    assert ask(server, "/key", "GET", authorization=f"Bearer {key}").status == status


def test_open_server_knows_every_caller(serve_here):
    assert ask(serve_here({}), "/key", "GET").status == 204


@pytest.mark.parametrize("key", ["", "wrong", "all-of-e", "nothing"])
def test_refusal_does_not_reveal_served_names(server, key):
    """A caller without permission cannot find names by guessing,
    in any path or body.
    """
    caller = {"authorization": f"Bearer {key}"} if key else {}

    def answer(route, template, endpoint, choice):
        path = template.format(endpoint=endpoint, version=choice, label=choice, job=choice)
        body = {"model": endpoint}
        response = ask(
            server, path, route.method, json.dumps(body).encode(), host="localhost", **caller
        )
        return response.status, response.body.replace(b"'%b'" % endpoint.encode(), b"NAME")

    for route in [route for route in ROUTES if route.need]:
        for template in expand_path(route.path):
            refusal = answer(route, template, "nix", "nix")
            may_ask = key == "all-of-e" and "{" not in template
            assert refusal[0] == (403 if caller and key != "wrong" else 401) or may_ask, template
            if route.is_admitted_by_view or not may_ask:
                answers = [answer(route, template, "f", choice) for choice in ("2", "w", "nix")]
                assert answers == [refusal] * 3, template


@pytest.mark.parametrize(
    ("key", "path", "method", "status"),
    [
        ("only-f", "/endpoints/f/invocations", "POST", 200),
        ("only-f", "/endpoints/e/invocations", "POST", 403),
        ("only-f", "/invocations", "POST", 403),  # e is the default endpoint.
        ("only-f", "/v2/models/f", "GET", 200),
        ("only-f", "/v2/models/e", "GET", 403),
        ("only-f", "/endpoints/f", "GET", 200),
        ("only-f", "/metrics", "GET", 403),
        ("only-e", "/openapi.json", "GET", 403),  # It would reveal the inputs of f.
        ("only-e", "/endpoints/e/openapi.json", "GET", 200),
    ],
)
def test_key_is_limited_to_its_endpoint(server, key, path, method, status):
    assert ask(server, path, method, authorization=f"Bearer {key}").status == status


@pytest.mark.parametrize("path", ["/endpoints/f", "/endpoints/f/docs"])
def test_page_does_not_reveal_other_endpoints(server, path):
    def offered(key):
        page = ask(server, path, "GET", authorization=f"Bearer {key}").body.decode()
        return re.findall(r"<option value=\"(\w+)\"", page)

    assert offered("read") == ["e", "f"]
    assert offered("only-f") == []


def test_health_check_hides_reason_from_strangers(own_server, tmp_path):
    server = own_server
    write_scopes(server.repository.state_dir)
    want(server.repository.state_dir, 2, {"g": {"v": variant(tmp_path, "1")}})
    server.repository.poll()
    response = ask(server, "/ping", "GET", authorization="Bearer infer")
    assert (response.status, b"no MLmodel file" in response.body) == (503, True)
    response = ask(server, "/ping", "GET")
    assert response.status == 503
    assert b"the server cannot predict now; send a key to get the reason" in response.body


def test_missing_key_is_asked_for(server):
    answer = ask(server)
    assert answer.headers["WWW-Authenticate"].split(", ") == [
        'Basic realm="onnxserve"',
        'Bearer realm="onnxserve"',
    ]
    assert b"send Authorization: Bearer KEY" in answer.body


@pytest.mark.parametrize(("method", "need"), [("GET", "read"), ("POST", "admin")])
def test_blueprint_views_require_scope(server, method, need):
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


def test_log_names_key_without_its_text(own_server, caplog):
    keys = {"secret-text": KeyEntry(name="shop", scopes=("infer",))}
    write_keys(own_server.repository.state_dir, keys)
    observed = replace(own_server, observer=Observer(log_fraction=1.0))
    with caplog.at_level("INFO"):
        assert ask(observed, authorization="Bearer secret-text").status == 200
        assert ask(observed, authorization="Bearer wrong").status == 401
    logged = [record for record in caplog.records if hasattr(record, "url.path")]
    assert [getattr(record, "user.name", "") for record in logged] == ["shop", ""]
    assert [", key shop" in record.getMessage() for record in logged] == [True, False]
    assert "secret-text" not in caplog.text


KEY = "onnxserve_" + secrets.token_urlsafe(32)
"""A key in the form of `onnxserve keys create`."""


@pytest.mark.parametrize("uses_plan", [False, True])
def test_key_in_path_or_id_is_not_recorded(own_server, uses_plan, caplog):
    """Callers sometimes put the key into these fields."""
    server = own_server
    write_keys(server.repository.state_dir, {KEY: KeyEntry(name="shop", scopes=("infer", "read"))})
    plans = PlanTable(server)
    observed = replace(server, observer=Observer(log_fraction=1.0))

    def new_id(path="/invocations", identity="mine", body=ROW):
        request = post(path, body, authorization=f"Bearer {KEY}", x_request_id=identity)
        response = plans.answer(request) if uses_plan else handle(observed, request)
        return response.headers.get("X-Request-Id") if response else ""

    with caplog.at_level("INFO"):
        new = [new_id(identity=KEY), new_id(identity=f"id={KEY};1")]
        with_id = {**json.loads(V2_ROW), "id": KEY}
        new.append(new_id("/v2/models/e/infer", "", with_id))
        new_id(body={"dataframe_records": [{"x": KEY}]})
        split = {"columns": [KEY, KEY], "data": [[1, 2]]}
        new_id(body={"dataframe_split": split})
        for path in (
            f"/{KEY}",
            f"/endpoints/{KEY}/invocations",
            f"/v2/models/e/versions/{KEY}",
            "/a" * 240 + KEY,
        ):
            new_id(path)
        failure(RawRequest("POST", "/a" * 90 + KEY, {}, b""), RuntimeError())

    captured = b"".join(segment.read_bytes() for segment in segments(server.capture.spool))
    assert all(re.fullmatch("[0-9a-f]{32}", id_) and id_.encode() in captured for id_ in new)
    assert KEY[:30] not in caplog.text + str([vars(record) for record in caplog.records])
    assert KEY.encode() not in captured


@pytest.fixture
def app(server):
    return worker_app(server)


@pytest.mark.parametrize(
    ("key", "path", "status"),
    [
        ("infer", b"/invocations", b"200"),
        ("wrong", b"/invocations", b"401"),
        ("read", b"/invocations", b"403"),
        ("wrong", b"/endpoints/e/jobs", b"401"),
        ("read", b"/endpoints/e/jobs", b"403"),
    ],
)
def test_worker_checks_keys(app, key, path, status):
    async def talk(opened):
        kind = b"jsonl" if b"jobs" in path else b"json"
        head = b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Type: application/%b\r\n" % (path, kind)
        head += b"Authorization: Bearer %b\r\n" % key.encode()
        chunks = b"%x\r\n%b\r\n0\r\n\r\n" % (len(ROW), ROW)
        client = await opened.connect(head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks)
        assert (await opened.read(client, at_least=20))[9:12] == status

    play(app, talk)


def test_request_with_failed_plan_counts_once(serve_here, tmp_path):
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

    def ask_for(inputs):
        request = post(body=b'{"inputs": %b}' % inputs, authorization="Bearer k")
        return plans.answer(request) or handle(server, request)

    answers = [ask_for(inputs) for inputs in (b"[0]", b"[7]", b"[1]", b"[1]")]
    assert [answer.status for answer in answers] == [200, 400, 200, 429]
    assert mentions(json.loads(answers[-1].body)["message"], "'k'", "3/minute")
    assert 0 < int(answers[-1].headers["Retry-After"]) <= 60
    page = server.metrics.page()
    assert b'onnxserve_key_requests_total{key="k"} 4.0' in page
    assert b'onnxserve_refused_requests_total{endpoint="",reason="key"} 1.0' in page
