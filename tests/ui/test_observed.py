"""Events that machines push to MLflow's server for an observed endpoint."""

import base64
import json
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest
import requests
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlflow_deploy_plugin.core.spec.document import new_endpoint
from mlflow_deploy_plugin.core.store import inbox
from mlflow_deploy_plugin.core.store.database import open_store
from mlflow_deploy_plugin.core.store.keys import ApiKeys
from mlflow_deploy_plugin.ui import observed
from tests.support.refusals import mentions
from tests.support.services.basic_auth import basic_auth_server
from tests.support.services.mlflow_server import MlflowServer

REQUEST = "org.kubeflow.serving.inference.request"
RESPONSE = "org.kubeflow.serving.inference.response"
TIME = "2026-11-20T12:00:00.25Z"
ASKED = b'{"instances": [[1, 2]]}'
ANSWERED = b'{"predictions": [0.5]}'
BATCH = "application/cloudevents-batch+json"
STRUCTURED = "application/cloudevents+json"


@pytest.fixture(scope="module")
def pushed(mlflow_app):
    """Return a function that posts events with a key, and the texts of keys by name."""
    for name, target in (("churn", "onnxserve:/observed"), ("served", "onnxserve")):
        mlflow_app.store.add_endpoint(target, new_endpoint(name, "models:/m/1"))
    keys = ApiKeys(mlflow_app.store)
    granted = {
        "kserve": ("observe", ["churn", "gone", "served"]),
        "shop": ("infer", ["churn"]),
        "ops": ("admin", []),
        "other": ("observe", ["prices"]),
        "revoked": ("observe", ["churn"]),
    }
    texts = {name: keys.create(name, [scope], on)[1] for name, (scope, on) in granted.items()}
    keys.revoke("revoked")

    def push(body=ASKED, key="kserve", endpoint="churn", **headers):
        if key:
            headers["Authorization"] = f"Bearer {texts[key]}"
        return mlflow_app.client.post(f"/observed/{endpoint}", data=body, headers=headers)

    push.texts = texts
    return push


@pytest.fixture
def exchanges(mlflow_app):
    """Return a function that empties the inbox and returns its exchanges."""

    def read():
        complete = inbox.exchanges(mlflow_app.store, "churn", 1000)
        inbox.remove(mlflow_app.store, "churn", [exchange.id for exchange in complete])
        inbox.drop_unanswered(mlflow_app.store, "churn", datetime.now(UTC) + timedelta(1))
        return complete

    read()
    return read


def headers(kind=REQUEST, **attributes):
    """Return the headers of KServe's logger (pkg/logger/worker.go)."""
    sent = {"specversion": "1.0", "id": "a", "type": kind, "time": TIME, **attributes}
    sent |= {"source": "http://localhost:9081/", "metadata": "{}", "component": "predictor"}
    return {f"Ce-{name}": value for name, value in sent.items()} | {
        "Content-Type": "application/json"
    }


def event(kind=REQUEST, **attributes):
    return {"specversion": "1.0", "id": "a", "source": "/", "type": kind} | attributes


def batch(*events):
    return {"body": json.dumps(events), "Content-Type": BATCH}


def test_observed_binary_pair_is_stored(pushed, exchanges):
    later = "2026-11-20T13:00:00.5+01:00"
    for _ in range(2):
        assert pushed(ANSWERED, **headers(RESPONSE, time=later)).status_code == 202
        assert pushed(ASKED, **headers()).status_code == 202
    pushed(b"other", **headers())
    (exchange,) = exchanges()
    assert (exchange.id, exchange.time) == ("a", datetime.fromisoformat(TIME))
    assert (exchange.request, exchange.response) == (ASKED, ANSWERED)
    assert exchange.request_type == exchange.response_type == "application/json"
    assert exchange.conflicts == 1


def test_observed_structured_and_batched_events_are_stored(pushed, exchanges):
    document = json.dumps(event(data=json.loads(ASKED), time=TIME))
    assert pushed(document, **{"Content-Type": f"{STRUCTURED}; charset=utf-8"}).status_code == 202
    encoded = base64.b64encode(ANSWERED).decode()
    # Seldon's two events have a common `requestid`.
    kind = RESPONSE.replace("org.kubeflow", "io.seldon")
    answer = event(kind, id="x", requestid="a", data_base64=encoded)
    # A sink of onnxserve sends a request and its response as one event.
    pair = {"inputs": [], "outputs": []}
    assert pushed(**batch(answer, event(RESPONSE, id="b", data=pair))).status_code == 202
    first, second = exchanges()
    assert json.loads(first.request) == json.loads(ASKED)
    assert (first.id, first.response) == ("a", ANSWERED)
    assert json.loads(second.request) == json.loads(second.response) == pair
    assert abs(second.time - datetime.now(UTC)) < timedelta(minutes=5)


def test_observed_key_is_accepted_as_password(pushed, mlflow_app, exchanges):
    """Go's HTTP client sends the user and the password of a URL as Basic."""
    auth = ("kserve", pushed.texts["kserve"])
    answer = mlflow_app.client.post("/observed/churn", data=ASKED, headers=headers(), auth=auth)
    assert answer.status_code == 202


@pytest.mark.parametrize(
    ("key", "endpoint", "status", "code"),
    [
        ("", "churn", 401, "UNAUTHENTICATED"),
        ("", "gone", 401, "UNAUTHENTICATED"),
        ("revoked", "churn", 401, "UNAUTHENTICATED"),
        ("shop", "churn", 403, "PERMISSION_DENIED"),
        ("ops", "churn", 403, "PERMISSION_DENIED"),
        ("other", "churn", 403, "PERMISSION_DENIED"),
        ("other", "unknown", 403, "PERMISSION_DENIED"),
        ("kserve", "gone", 404, "RESOURCE_DOES_NOT_EXIST"),
        ("kserve", "served", 404, "RESOURCE_DOES_NOT_EXIST"),
    ],
)
def test_observed_event_without_permission_is_refused(pushed, key, endpoint, status, code):
    answer = pushed(ASKED, key, endpoint, **headers())
    assert (answer.status_code, answer.json["error_code"]) == (status, code)
    assert pushed.texts.get(key, "Bearer KEY") not in answer.text or not key


def test_other_site_cannot_push_observed_events(pushed, mlflow_app):
    """A page of another site has no key, and may not send other headers."""
    sent = {"Origin": "https://evil.example", **headers()}
    assert pushed(ASKED, key="", **sent).status_code == 401
    preflight = mlflow_app.client.options("/observed/churn", headers=sent)
    assert "Access-Control-Allow-Origin" not in preflight.headers


@pytest.mark.parametrize(
    ("sent", "status", "names"),
    [
        ({"Content-Type": "application/json"}, 400, ["0.specversion"]),
        (headers(specversion="0.3"), 400, ["0.specversion"]),
        (headers(type="io.seldon.serving.feedback"), 400, ["0.type"]),
        (headers(id=""), 400, ["0.id"]),
        (headers(id="%0A"), 400, ["0.id"]),
        (headers(id="a" * 201), 400, ["0.id"]),
        (headers(time="2026-11-20T12:00:00"), 400, ["0.time"]),
        (headers(time="0001-01-01T00:00:00+14:00"), 400, ["0.time"]),
        (headers(time="9999-12-31T23:59:59-14:00"), 400, ["0.time"]),
        ({"body": "no", "Content-Type": STRUCTURED}, 400, ["JSON"]),
        ({"body": "{}", "Content-Type": BATCH}, 400, ["events"]),
        ({"body": "[" * 600 + "]" * 600, "Content-Type": BATCH}, 400, ["500"]),
        (batch(event(data=1), event(data=1, id=7)), 400, ["1.id"]),
        (batch(event(), event(data_base64="*")), 400, ["1.data_base64"]),
        (batch(*[event()] * 1001), 400, ["1000"]),
        (headers() | {"body": b" " * (observed.MOST_BODY_BYTES + 1)}, 413, ["4,194,304"]),
    ],
    ids=str,
)
def test_invalid_observed_events_are_refused(pushed, exchanges, mlflow_app, sent, status, names):
    answer = pushed(**sent)
    assert answer.status_code == status
    assert mentions(answer.json["message"], *names)
    assert len(answer.json["message"]) < 1000
    assert inbox.unanswered(mlflow_app.store, "churn", datetime.max.replace(tzinfo=UTC)) == (0, "")


def test_observed_event_in_the_future_is_refused(pushed, exchanges):
    for hours, status in ((0.9, 202), (1.1, 400)):
        time = (datetime.now(UTC) + timedelta(hours=hours)).isoformat()
        assert pushed(**batch(event(id=str(hours), data=1, time=time))).status_code == status
    exchanges()


def test_full_observed_inbox_asks_to_wait(pushed, exchanges, monkeypatch):
    monkeypatch.setattr(inbox, "MOST_EXCHANGES", 1)
    assert pushed(**headers()).status_code == 202
    full = pushed(**headers(id="b"))
    assert (full.status_code, full.headers["Retry-After"]) == (429, "60")
    exchanges()


def test_unreadable_observed_endpoint_is_an_outage(pushed, monkeypatch):
    """A sender drops an event after 400, but repeats it after 503."""
    monkeypatch.setenv("ONNXSERVE_POLL_SECONDS", "never")
    assert pushed(**headers()).status_code == 503


ATTRIBUTES = st.dictionaries(
    st.sampled_from(["id", "type", "time", "specversion", "data", "data_base64", "requestid"]),
    st.sampled_from([REQUEST, RESPONSE, TIME, "1.0", "a", "\x00", "\ud800", 10**400, -1, None, []])
    | st.text(max_size=20),
)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.binary(min_size=1, max_size=50)
    | st.lists(ATTRIBUTES.map(lambda extra: event() | extra), max_size=3),
    st.sampled_from([BATCH, STRUCTURED, "application/json", ""]),
    st.dictionaries(
        st.sampled_from(["Ce-Id", "Ce-Time", "Ce-Type", "Ce-Data", "Content-Encoding"]),
        st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=20),
    ),
)
def test_no_observed_body_is_a_fault(pushed, body, kind, extra):
    if isinstance(body, list):
        body = json.dumps(body)
    sent = headers() | extra | {"Content-Type": kind}
    assert pushed(body, **sent).status_code in (202, 400)


@pytest.mark.long
@pytest.mark.parametrize("server_kind", ["uvicorn", "gunicorn", "basic-auth"])
def test_real_servers_store_observed_events(tmp_path, new_database, monkeypatch, server_kind):
    """Every login is behind the route. Logs contain neither keys nor bodies."""
    new_database(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("ONNXSERVE_HOME", str(tmp_path / "home"))
    options = ("--gunicorn-opts", "--timeout 120") if server_kind == "gunicorn" else ()
    running = MlflowServer(tmp_path, app="onnxserve", options=options).running()
    if server_kind == "basic-auth":
        running = basic_auth_server(tmp_path)
    with running as server, closing(open_store(f"sqlite:///{tmp_path}/home/onnxserve.db")) as store:
        store.add_endpoint("onnxserve:/observed", new_endpoint("churn", "models:/m/1"))
        _, key = ApiKeys(store).create("kserve", ["observe"], ["churn"])
        url = f"{server.url}/observed/churn"
        sent = headers() | {"Authorization": f"Bearer {key}"}
        large = b" " * (observed.MOST_BODY_BYTES + 1)

        def status(body, **more):
            return requests.post(url, body, headers=sent | more, timeout=60).status_code

        assert status(ASKED) == 202
        assert status(ANSWERED, **headers(RESPONSE)) == 202
        assert status(large) == 413
        assert status(iter([large])) == 413
        assert status(ASKED, Authorization="") == 401
        (exchange,) = inbox.exchanges(store, "churn", 10)
        assert (exchange.request, exchange.response) == (ASKED, ANSWERED)
        log = server.log.read_text()
        assert key not in log
        assert "instances" not in log
