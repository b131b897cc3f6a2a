"""The layer in front of MLflow's app: what a stranger may cost before the login."""

import asyncio
import importlib
from base64 import b64encode
from itertools import repeat

import mlflow.server
import pytest
from mlflow.server import auth, handlers

from mlflow_deploy_plugin.ui.app import extend
from mlflow_deploy_plugin.ui.logins import front
from mlflow_deploy_plugin.ui.logins.basic_auth import BasicAuth


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
GZIP = (b"content-encoding", b"gzip")


@pytest.fixture(scope="module")
def routes(served):
    """Return the path and the methods of each route of the two apps."""
    app, fastapi = served
    rules = [(rule.rule, rule.methods) for rule in app.url_map.iter_rules()]
    native = fastapi.openapi()["paths"].items()
    assert len(rules) > 300
    assert len(native) > 50
    return [(path, method.upper()) for path, methods in [*rules, *native] for method in methods]


async def ask(app, path, method="POST", headers=(), pieces=None):
    """Send a request, by default with a body that never ends. Return the status, and
    the bytes of the body that were read.
    """
    statuses = []
    read = [0]
    bodies = pieces or repeat(PIECE)

    async def receive():
        body = next(bodies, b"")
        if not body:
            await asyncio.Event().wait()
        read.append(len(body))
        return {"type": "http.request", "body": body, "more_body": True}

    async def send(message):
        statuses.append(message.get("status"))

    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "query_string": b"",
        "http_version": "1.1",
        "client": ("203.0.113.9", 1),
        "headers": [(b"host", b"localhost"), *headers],
    }
    await app(scope, receive, send)
    return statuses[0], sum(read)


@pytest.mark.long
@pytest.mark.parametrize("headers", [[], [WRONG], [GZIP]], ids=["no key", "wrong key", "gzip"])
def test_no_route_reads_a_body_before_the_key(served, routes, headers):
    async def ask_all():
        for path, method in routes:
            status, read = await ask(served[1], path, method, headers)
            assert status < 500, path
            assert read <= front.OPEN_BYTES + len(PIECE), path
            if method != "OPTIONS" and not auth.is_unprotected_route(path):
                assert (status in (401, 429), read) == (True, 0), path

    asyncio.run(ask_all())
