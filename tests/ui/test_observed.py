"""Events that machines push to MLflow's server for an observed endpoint."""

import asyncio
import hashlib
import json
import math
import threading
from base64 import b64encode
from contextlib import closing
from datetime import UTC, datetime, timedelta

import httpx
import pytest
import requests
from fastapi import FastAPI
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine
from sqlalchemy import event as sqlalchemy_event

from mlflow_deploy_plugin.core.spec.document import new_endpoint
from mlflow_deploy_plugin.core.store import inbox
from mlflow_deploy_plugin.core.store.database import open_store
from mlflow_deploy_plugin.core.store.keys import ApiKeys
from mlflow_deploy_plugin.ui.observed import MOST_BODY_BYTES, install
from tests.support.refusals import mentions
from tests.support.services.basic_auth import basic_auth_server
from tests.support.services.mlflow_server import MlflowServer

PATH = "/observed/churn"
REQUEST = "org.kubeflow.serving.inference.request"
RESPONSE = "org.kubeflow.serving.inference.response"
TIME = "2026-11-20T12:00:00.25Z"
ASKED = b'{"instances": [[1, 2]]}'
ANSWERED = b'{"predictions": [0.5]}'
BATCH = {"Content-Type": "application/cloudevents-batch+json"}
STRUCTURED = {"Content-Type": "application/cloudevents+json; charset=utf-8"}
PUSHED = {"observe.source": "push:", "observe.format": "kserve"}
LARGE = b" " * (MOST_BODY_BYTES + 1)


@pytest.fixture(scope="module")
def keys(mlflow_app):
    """Return the texts of keys by name. The endpoint `served` is not observed."""
    for name, target, config in (
        ("churn", "onnxserve:/observed", PUSHED),
        ("served", "onnxserve", {}),
    ):
        mlflow_app.store.add_endpoint(target, new_endpoint(name, "models:/m/1", config))
    stored = ApiKeys(mlflow_app.store)
    texts = {"unknown": "onnxserve_x"}
    _, texts["kserve"] = stored.create("kserve", ["observe"])
    _, texts["shop"] = stored.create("shop", ["infer", "read", "admin"])
    _, texts["other"] = stored.create("other", ["observe"], ["served", "gone"])
    return texts


@pytest.fixture(scope="module")
def client(mlflow_app):
    """Return a client of an app with the route."""
    served = FastAPI()
    install(served, mlflow_app.app.extensions["onnxserve"])
    return TestClient(served)


@pytest.fixture(scope="module")
def push(client, keys):
    """Return a function that posts a body with a key."""

    def post(headers, body=ASKED, key="kserve", path=PATH):
        authorized = {"Authorization": f"Bearer {keys[key]}"}
        sent = {name: value.encode() for name, value in (authorized | headers).items()}
        return client.post(path, content=body, headers=sent)

    return post


@pytest.fixture
def exchanges(mlflow_app):
    """Return a function that empties the inbox and returns its exchanges."""

    def read():
        complete = inbox.exchanges(mlflow_app.store, "churn")
        inbox.remove(mlflow_app.store, "churn", [exchange.id for exchange in complete])
        inbox.take_unanswered(mlflow_app.store, "churn", datetime.now(UTC) + timedelta(1))
        return complete

    read()
    return read


def binary(kind=REQUEST, **attributes):
    """Return the headers of KServe's logger (pkg/logger/worker.go)."""
    sent = event(kind, time=TIME, metadata="{}", component="predictor") | attributes
    names = {f"Ce-{name}": value for name, value in sent.items()}
    return {"Content-Type": "application/json"} | names


def event(kind=REQUEST, **attributes):
    return {"specversion": "1.0", "id": "a", "source": "/", "type": kind} | attributes


def test_observed_binary_pair_is_stored_once(push, exchanges):
    later = binary(RESPONSE, time="2026-11-20T13:00:00.5+01:00")
    for _ in range(2):
        assert push(later, ANSWERED).status_code == push(binary()).status_code == 202
    push(binary(), b"other")
    (exchange,) = exchanges()
    assert (exchange.id, exchange.time) == ("a", datetime.fromisoformat(TIME))
    assert (exchange.request, exchange.response) == (ASKED, ANSWERED)
    assert exchange.conflicts == 1


def test_observed_json_events_are_stored(push, exchanges):
    structured = json.dumps(event(data=json.loads(ASKED), time=TIME))
    assert push(STRUCTURED, structured).status_code == 202
    # Seldon's two events have a common `requestid`.
    kind = RESPONSE.replace("org.kubeflow", "io.seldon")
    answer = event(kind, id="x", requestid="a", data_base64=b64encode(ANSWERED).decode())
    events = [answer, event(id="b"), event(RESPONSE, id="b")]
    assert push(BATCH, json.dumps(events)).status_code == 202
    first, second = exchanges()
    assert (first.id, json.loads(first.request), first.response) == (
        "a",
        json.loads(ASKED),
        ANSWERED,
    )
    assert datetime.now(UTC) - second.time < timedelta(minutes=5)


def test_observed_key_is_accepted_as_password(client, keys, exchanges):
    """Go's HTTP client sends the user and the password of a URL as Basic."""
    auth = ("any", keys["kserve"])
    answer = client.post(PATH, content=ASKED, headers=binary(), auth=auth)
    assert answer.status_code == 202


@pytest.mark.parametrize(
    ("key", "path", "status", "code"),
    [
        ("unknown", PATH, 401, "UNAUTHENTICATED"),
        ("unknown", "/observed/gone", 401, "UNAUTHENTICATED"),
        ("shop", PATH, 403, "PERMISSION_DENIED"),
        ("other", PATH, 403, "PERMISSION_DENIED"),
        ("other", "/observed/gone", 404, "RESOURCE_DOES_NOT_EXIST"),
        ("other", "/observed/served", 404, "RESOURCE_DOES_NOT_EXIST"),
    ],
)
def test_observed_event_without_permission_is_refused(push, keys, key, path, status, code):
    answer = push(binary(), key=key, path=path)
    assert (answer.status_code, answer.json()["error_code"]) == (status, code)
    assert keys[key] not in answer.text


def test_other_site_cannot_push_observed_events(client):
    """A form of another site has no key, and a script may not add one."""
    headers = {"Origin": "https://evil.example", **binary()}
    assert client.post(PATH, content=ASKED, headers=headers).status_code == 401
    preflight = client.options(PATH, headers=headers)
    assert "Access-Control-Allow-Origin" not in preflight.headers


@pytest.mark.parametrize(
    ("headers", "body", "status", "named"),
    [
        ({}, ASKED, 400, "0.specversion"),
        (binary(specversion="0.3"), ASKED, 400, "0.specversion"),
        (binary(type="io.seldon.serving.feedback"), ASKED, 400, "0.type"),
        (binary(id="%0A"), ASKED, 400, "0.id"),
        (binary(id="a" * 201), ASKED, 400, "0.id"),
        (binary(time="2026-11-20T12:00:00"), ASKED, 400, "0.time"),
        (binary(time="0001-01-01T00:00:00+14:00"), ASKED, 400, "0.time"),
        (binary(time="9999-12-31T23:59:59-14:00"), ASKED, 400, "0.time"),
        (STRUCTURED, "no", 400, "JSON"),
        (BATCH, "{}", 400, "events"),
        (BATCH, "[" * 600 + "]" * 600, 400, "500"),
        (BATCH, json.dumps([event(), event(id=7)]), 400, "1.id"),
        (BATCH, json.dumps([event(), event(data_base64="a")]), 400, "1.data_base64"),
        (BATCH, json.dumps([event(), event(data_base64="YQ==!")]), 400, "1.data_base64"),
        (BATCH, json.dumps([event(), event(data={"a": [1, math.nan]})]), 400, "1.data"),
        (STRUCTURED, json.dumps(event(data=-math.inf)), 400, "0.data"),
        (STRUCTURED, json.dumps(event(x="NaN")).replace("}", ', "data": 1e999}'), 400, "0.data"),
        (BATCH, json.dumps([event(), event(x=math.inf)]), 400, "1.x"),
        (BATCH, json.dumps([event()] * 1001), 400, "1000"),
        (binary(), LARGE, 413, f"{MOST_BODY_BYTES}"),
        # uvicorn with h11 passes on both this header and a chunked body.
        (binary() | {"Content-Length": "5"}, LARGE, 413, f"{MOST_BODY_BYTES}"),
    ],
    ids=range(21),
)
def test_invalid_observed_events_are_refused(
    push, exchanges, mlflow_app, headers, body, status, named
):
    answer = push(headers, body)
    assert answer.status_code == status
    assert mentions(answer.json()["message"], named)
    now = datetime.now(UTC) + timedelta(1)
    assert inbox.take_unanswered(mlflow_app.store, "churn", now) == []


def test_body_without_a_key_is_not_read(client):
    async def receive():
        raise AssertionError("the body is read")

    sent = []

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": PATH, "headers": []}
    asyncio.run(client.app(scope, receive, send))

    assert sent[0]["status"] == 401


@pytest.fixture
def queries(keys):
    """The queries of the store. Those for the unknown key wait for the event."""
    ran = []
    goes_on = threading.Event()
    unknown = hashlib.sha256(keys["unknown"].encode()).hexdigest()

    def note(connection, cursor, query, parameters, *others):
        ran.append((query, parameters))
        if unknown in parameters:
            goes_on.wait(20)

    sqlalchemy_event.listen(Engine, "before_cursor_execute", note)
    yield ran, goes_on
    sqlalchemy_event.remove(Engine, "before_cursor_execute", note)


def test_one_indexed_query_runs_before_the_key(push, queries, mlflow_app):
    ran, goes_on = queries
    goes_on.set()
    assert push({}, key="unknown").status_code == 401

    _, (query, parameters) = ran  # after BEGIN
    with mlflow_app.store.reading() as session:
        plan = session.connection().exec_driver_sql(f"EXPLAIN QUERY PLAN {query}", parameters)
        assert [row.detail.split(" (")[1] for row in plan] == ["digest=?)"]


def test_requests_before_the_key_leave_threads_to_mlflow(client, keys, queries):
    """The queries for the unknown keys end after MLflow's answer."""

    async def statuses():
        app = httpx.ASGITransport(client.app)
        async with httpx.AsyncClient(transport=app, base_url="http://server") as asking:
            headers = binary() | {"Authorization": f"Bearer {keys['unknown']}"}
            sent = [asking.post(PATH, content=ASKED, headers=headers) for _ in range(60)]
            strangers = asyncio.gather(*sent)
            answers = [await asking.get("/docs")]
            queries[1].set()
            return [answer.status_code for answer in answers + await strangers]

    assert asyncio.run(statuses()) == [200, *[401] * 60]


def test_full_observed_inbox_asks_to_wait(push, exchanges, monkeypatch):
    monkeypatch.setattr(inbox, "MOST_BYTES", 2000)
    assert push(binary()).status_code == 202
    full = push(binary(id="b"))
    assert (full.status_code, full.headers["Retry-After"]) == (429, "60")


def test_invalid_setting_is_an_outage_for_observed_events(push, monkeypatch):
    """A sender drops an event after 400, but repeats it after 503. A caller without a
    key does not learn the reason.
    """
    monkeypatch.setenv("ONNXSERVE_POLL_SECONDS", "never")
    answer = push(binary(), key="unknown")
    assert answer.status_code == 503
    assert "never" not in answer.text


VALUES = (
    st.sampled_from([RESPONSE, TIME, "\x00", "\ud800", 10**400, -1, None, [], "é%"]) | st.text()
)
NAMES = st.sampled_from(["id", "type", "time", "data", "data_base64", "datacontenttype", "x"])


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from([BATCH, STRUCTURED, binary(), {}]),
    st.lists(st.dictionaries(NAMES, VALUES).map(lambda more: event() | more)) | VALUES,
    st.dictionaries(NAMES, st.text(st.characters(min_codepoint=32, max_codepoint=255))),
)
def test_no_observed_body_is_a_fault(push, headers, body, more):
    named = {f"Ce-{name}": value for name, value in more.items()}
    assert push(headers | named, json.dumps(body)).status_code in (202, 400)


@pytest.mark.long
@pytest.mark.parametrize("login", ["", "basic-auth"])
def test_real_servers_store_observed_events(tmp_path, new_database, monkeypatch, login):
    """The route is in front of every login, and keys and bodies are not logged."""
    new_database(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("ONNXSERVE_HOME", str(tmp_path / "home"))
    running = MlflowServer(tmp_path, app="onnxserve").running()
    if login:
        running = basic_auth_server(tmp_path)
    with running as server, closing(open_store(f"sqlite:///{tmp_path}/home/onnxserve.db")) as store:
        store.add_endpoint("onnxserve:/observed", new_endpoint("churn", "models:/m/1", PUSHED))
        _, key = ApiKeys(store).create("kserve", ["observe"], ["churn"])

        def push(headers, body, key=key):
            headers = {"Authorization": f"Bearer {key}"} | headers
            return requests.post(f"{server.url}{PATH}", body, headers=headers, timeout=60)

        assert push(binary(), ASKED).status_code == 202
        assert push(binary(RESPONSE), ANSWERED).status_code == 202
        assert push(binary(), LARGE).status_code == 413
        assert push(binary(), iter([LARGE])).status_code == 413  # It is sent without a length.
        assert push(binary(), ASKED, "unknown").status_code == 401
        (exchange,) = inbox.exchanges(store, "churn")
        assert (exchange.request, exchange.response) == (ASKED, ANSWERED)
        log = server.log.read_text()
        assert key not in log
        assert "instances" not in log
