"""The layer in front of MLflow's app: what a stranger may cost before the login."""

import asyncio
import importlib
from base64 import b64encode
from itertools import repeat

import mlflow.server
import pytest
import requests
from mlflow.server import auth, handlers
from werkzeug.security import check_password_hash, generate_password_hash

from mlflow_deploy_plugin.ui.app import extend
from mlflow_deploy_plugin.ui.logins import basic_auth, front
from mlflow_deploy_plugin.ui.logins.basic_auth import BasicAuth
from tests.support.console import API
from tests.support.services.basic_auth import basic_auth_server, password
from tests.support.strangers import p99, strangers


@pytest.fixture(scope="module")
def served(tmp_path_factory, new_database):
    """Yield MLflow's Flask app and its ASGI app, with basic auth and the console."""
    folder = tmp_path_factory.mktemp("mlflow")
    uri = new_database(folder)
    config = auth.auth_config._replace(
        database_uri=f"sqlite:///{folder}/users.db", admin_password="password-of-admin"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ONNXSERVE_HOME", str(folder / "home"))
        patch.setenv("_MLFLOW_SERVER_FILE_STORE", uri)
        patch.setenv("_MLFLOW_SERVER_ARTIFACT_ROOT", str(folder / "artifacts"))
        patch.setenv("_MLFLOW_SERVER_SERVE_ARTIFACTS", "true")
        patch.setenv("_MLFLOW_SERVER_ARTIFACT_DESTINATION", str(folder / "artifacts"))
        patch.setenv("_MLFLOW_SGI_NAME", "uvicorn")
        patch.setenv("MLFLOW_FLASK_SERVER_SECRET_KEY", "a key of sixteen bytes or more")
        patch.setattr(handlers, "_model_registry_store", None)
        patch.setattr(handlers, "_tracking_store", None)
        patch.setattr(auth, "auth_config", config)
        patch.setattr(auth, "store", type(auth.store)())
        patch.setattr(auth, "authenticate_request", auth.authenticate_request)
        app = importlib.reload(mlflow.server).app
        served = auth.create_app(app)
        extend(app, BasicAuth(), served)
        yield app, served


PIECE = bytes(front.OPEN_BYTES // 2)
WRONG = (b"authorization", b"Basic " + b64encode(b"admin:wrong"))
STRANGER = "203.0.113.200"
GZIP = (b"content-encoding", b"gzip")


@pytest.fixture(scope="module")
def routes(served):
    """Return the path and the methods of each route of the two apps."""
    app, fastapi = served
    rules = [(rule.rule, rule.methods) for rule in app.url_map.iter_rules()]
    native = fastapi.openapi()["paths"].items()
    assert len(rules) > 300
    assert len(native) > 50
    pairs = []
    for path, methods in [*rules, *native]:
        pairs += [(path, method.upper()) for method in methods]
    return pairs


async def ask(app, path, method="POST", headers=(), pieces=None, client="203.0.113.9"):
    """Send a request, by default with a body that never ends. Return the status, and
    the bytes of the body that were read.
    """
    statuses = []
    read = [0]
    bodies = pieces or repeat(PIECE)

    async def receive():
        body = next(bodies, None)
        if body is None:
            await asyncio.Event().wait()
        read.append(len(body or b""))
        return {"type": "http.request", "body": body, "more_body": body != b""}

    async def send(message):
        statuses.append(message.get("status"))

    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "query_string": b"",
        "http_version": "1.1",
        "client": (client, 1),
        "headers": [(b"host", b"localhost"), *headers],
    }
    await app(scope, receive, send)
    return statuses[0], sum(read)


@pytest.mark.long
@pytest.mark.parametrize("headers", [[], [WRONG], [GZIP]], ids=["no key", "wrong key", "gzip"])
def test_no_route_reads_a_body_before_the_key(served, routes, headers):
    async def ask_all():
        for path, method in routes:
            status, read = await ask(served[1], path, method, headers, client=STRANGER)
            assert status < 500, path
            assert read <= front.OPEN_BYTES + len(PIECE), path
            if method != "OPTIONS" and not auth.is_unprotected_route(path):
                assert (status in (401, 429), read) == (True, 0), path

    asyncio.run(ask_all())


ARTIFACT = "/api/2.0/mlflow-artifacts/artifacts/0/x"


def basic(user, password):
    return (b"authorization", b"Basic " + b64encode(f"{user}:{password}".encode()))


ADMIN = basic("admin", "password-of-admin")


def status_of(served, path="/version", *headers, method="GET", pieces=(b"",), **more):
    return asyncio.run(ask(served[1], path, method, headers, iter(pieces), **more))[0]


def test_stalled_body_ends_before_the_key(served, monkeypatch):
    monkeypatch.setattr(front, "_OPEN_SECONDS", 0.05)
    assert status_of(served, "/health", method="POST", pieces=[b"a"]) == 408


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("PUT", "/version", 413),
        ("PUT", f"/nowhere{ARTIFACT}", 413),
        ("POST", ARTIFACT, 413),
        ("PUT", ARTIFACT, 200),
    ],
)
def test_only_artifacts_of_callers_have_any_size(served, monkeypatch, method, path, status):
    monkeypatch.setattr(front, "_CALLER_BYTES", len(PIECE))
    pieces = [PIECE] * 4 + [b""]
    assert status_of(served, path, ADMIN, method=method, pieces=pieces) == status


def test_accepted_password_ends_with_its_hash(served):
    auth.store.create_user("eva", "password-of-eva")
    old = basic("eva", "password-of-eva")
    assert [status_of(served, "/version", old) for _ in range(2)] == [200, 200]
    auth.store.update_user("eva", password="another-password")
    assert status_of(served, "/version", old) == 401
    new = basic("eva", "another-password")
    assert status_of(served, "/version", new) == 200
    auth.store.delete_user("eva")
    assert status_of(served, "/version", new) == 401


@pytest.fixture
def hashed(monkeypatch):
    """Return a list with the hashes of passwords that run together, for each hash."""
    together = []
    running = []

    def check(*given):
        running.append(given)
        together.append(len(running))
        try:
            return check_password_hash(*given)
        finally:
            running.pop()

    monkeypatch.setattr(basic_auth, "check_password_hash", check)
    return together


@pytest.mark.parametrize("user", ["admin", "nobody"])
def test_wrong_passwords_before_the_key_are_counted(served, hashed, monkeypatch, user):
    """The name of no account costs the same time."""
    monkeypatch.setattr(front, "_MOST_FAILURES", 3)
    client = f"2001:db8::{user}"
    assert status_of(served, "/version", ADMIN, client=client) == 200
    hashed.clear()
    wrong = [status_of(served, "/version", basic(user, n), client=client) for n in range(5)]
    assert wrong == [401] * 3 + [429] * 2
    assert len(hashed) == 3
    assert status_of(served, "/version", ADMIN, client=client) == 200
    assert status_of(served, "/version", basic(user, "other"), client="198.51.100.1") == 401


def test_failures_before_the_key_refuse_no_others(served, monkeypatch):
    """Wrong keys of machines are no wrong logins, and health checks need no login."""
    monkeypatch.setattr(front, "_MOST_FAILURES", 2)
    client = "198.51.100.2"
    wrong = [status_of(served, "/observed/e", WRONG, method="POST", client=client) for _ in "abc"]
    assert wrong == [401, 401, 429]
    assert status_of(served, "/version", WRONG, client=client) == 401
    assert status_of(served, "/version", WRONG, client=client) == 401
    assert status_of(served, "/version", WRONG, client=client) == 429
    assert status_of(served, "/health", WRONG, client=client) == 200


def test_repeated_wrong_login_refuses_no_other_one(served, monkeypatch):
    monkeypatch.setattr(front, "_MOST_FAILURES", 2)
    client = "198.51.100.7"
    repeated = [status_of(served, "/version", WRONG, client=client) for _ in "abc"]
    assert repeated == [401, 401, 429]
    assert status_of(served, "/version", basic("nobody", 1), client=client) == 401
    assert status_of(served, "/version", basic("nobody", 2), client=client) == 429


def test_accepted_login_is_forgotten_with_its_password(served, monkeypatch):
    monkeypatch.setattr(front, "_MOST_FAILURES", 2)
    auth.store.create_user("ben", "password-of-ben")
    old = basic("ben", "password-of-ben")
    client = "198.51.100.3"
    assert status_of(served, "/version", old, client=client) == 200
    auth.store.update_user("ben", password="another-password")
    stale = [status_of(served, "/version", old, client=client) for _ in "abc"]
    assert stale == [401, 401, 429]


def test_requests_with_one_password_wait_for_one_hash(served, hashed):
    auth.store.create_user("bob", "password-of-bob")
    headers = [basic("bob", "password-of-bob")]

    async def ask_together():
        asked = [ask(served[1], "/version", "GET", headers, iter([b""])) for _ in range(24)]
        return {status for status, _ in await asyncio.gather(*asked)}

    assert asyncio.run(ask_together()) == {200}
    assert len(hashed) == 1


def test_one_password_is_hashed_before_the_key(served, hashed):
    async def ask_together():
        wrong = {f"192.0.2.{n}": [basic("admin", n)] for n in range(40)}
        asked = [ask(served[1], "/version", headers=wrong[n], client=n) for n in wrong]
        return [status for status, _ in await asyncio.gather(*asked)]

    statuses = asyncio.run(ask_together())
    assert max(hashed) == 1
    assert len(hashed) == statuses.count(401)
    assert statuses.count(429) == 40 - len(hashed) > 20


WRONG_PASSWORD = f"Authorization: {WRONG[1].decode()}\r\nX-Rest:"
TARGETS = [
    ("no key", "POST /onnxserve/requests"),
    ("no key", "POST /v1/traces"),
    ("wrong key", f"POST /v1/traces HTTP/1.1\r\n{WRONG_PASSWORD}"),
    ("gzip", "POST /v1/traces"),
    ("unfinished body", "POST /api/2.0/mlflow/runs/search"),
    ("unfinished body", "PUT /health"),
    ("dripping head", "POST /graphql"),
    ("silent", "POST /graphql"),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with basic_auth_server(tmp_path_factory.mktemp("mlflow")) as running:
        yield running


@pytest.fixture(scope="module")
def usage(server):
    """Return a function that returns the seconds of CPU and the bytes of the server."""
    workers = [server.process, *server.process.children(recursive=True)]

    def read():
        cpu = [worker.cpu_times() for worker in workers]
        seconds = sum(worker.user + worker.system for worker in cpu)
        return seconds, sum(worker.memory_info().rss for worker in workers)

    return read


@pytest.fixture(scope="module")
def search(server):
    """Return a function that searches as a caller."""
    session = requests.Session()
    session.auth = ("admin", password("admin"))

    def ask():
        answer = session.get(f"{server.url}{API}/experiments/search?max_results=1", timeout=60)
        assert answer.status_code == 200

    ask()
    return ask


@pytest.mark.long
@pytest.mark.parametrize(("way", "target"), TARGETS, ids=str)
def test_strangers_before_the_key_delay_no_caller(server, usage, search, way, target):
    stored = generate_password_hash("x")
    one_hash = p99(lambda: check_password_hash(stored, "y"), 5)
    seconds, memory = usage()
    with strangers(("127.0.0.1", server.port), way, target) as statuses:
        assert p99(search, 20) < 20 * one_hash
        assert usage()[1] < memory + 30e6
    answered = sum(statuses[0].values())
    assert usage()[0] - seconds < max(answered * one_hash / 20, 1.5)


@pytest.mark.long
def test_long_head_before_the_key_is_not_kept(server, usage, search):
    memory = usage()[1]
    address = ("127.0.0.1", server.port)
    with strangers(address, "dripping head", number=1, size=80_000_000) as statuses:
        p99(search, 20)
        assert usage()[1] < memory + 30e6
    assert sum(statuses[0].values()) > 0
