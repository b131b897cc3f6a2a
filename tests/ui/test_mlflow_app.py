"""Tests of the apps of `mlflow server --app-name onnxserve`, alone and on top of the
app of another distribution.
"""

import os
import subprocess
import sys
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import pytest
import requests
from fastapi import FastAPI
from flask import Flask
from mlflow.server.fastapi_app import create_fastapi_app

from mlflow_deploy_plugin.core.errors import InvalidConfig, OnnxserveError
from mlflow_deploy_plugin.core.registry import connection
from mlflow_deploy_plugin.ui import mlflow_app as apps
from mlflow_deploy_plugin.ui.guard.views import check_views
from mlflow_deploy_plugin.ui.logins import login as logins
from mlflow_deploy_plugin.ui.logins.login import Login
from tests.support.refusals import mentions, refused
from tests.support.services.mlflow_server import MlflowServer

COMPANY = "company"
PLUGIN = """
from flask import g, request
from mlflow.server import app
from mlflow_deploy_plugin.ui.logins.login import Login

def create_app():
    @app.before_request
    def check():
        g.account = request.headers.get("Account")
        return None if g.account or request.path == "/health" else ("no account", 401)

    return app

class CompanyLogin(Login):
    def user(self):
        return g.account
"""
ENTRY_POINTS = """
[mlflow.app]
company = company_app:create_app
[onnxserve.logins]
company = company_app:CompanyLogin
"""

SHADOWING = """
import mlflow.server.fastapi_app

@mlflow.server.fastapi_app.server_info_router.post("/api/2.0/mlflow/registered-models/alias")
def answer():
    return {}
"""


@pytest.fixture
def distribution(tmp_path, monkeypatch, new_home):
    """Return the folder of a distribution whose app of MLflow's server is a Flask app
    with a login.
    """
    folder = tmp_path / "site"
    (folder / "company-1.0.dist-info").mkdir(parents=True)
    (folder / "company-1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: company\nVersion: 1.0\n"
    )
    (folder / "company-1.0.dist-info" / "entry_points.txt").write_text(ENTRY_POINTS)
    (folder / "company_app.py").write_text(PLUGIN)
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    )
    monkeypatch.setenv("ONNXSERVE_MLFLOW_APP", COMPANY)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return folder


class CompanyLogin(Login):
    def user(self):
        return "dora"


@pytest.fixture
def company(monkeypatch):
    """Return a function that registers an app of the group `mlflow.app`, together with
    its login adapter.
    """

    def register(app):
        monkeypatch.setattr(sys.modules[__name__], "company_app", app, raising=False)
        app_entry = EntryPoint(COMPANY, f"{__name__}:company_app", "mlflow.app")
        adapter = EntryPoint(COMPANY, f"{__name__}:CompanyLogin", logins.GROUP)
        monkeypatch.setattr(
            apps, "entry_points", lambda group: [*entry_points(group=group), app_entry]
        )
        monkeypatch.setattr(logins, "entry_points", lambda group: [adapter])
        monkeypatch.setenv("ONNXSERVE_MLFLOW_APP", COMPANY)

    return register


def test_uvicorn_gets_fastapi_and_others_flask(mlflow_app, monkeypatch):
    monkeypatch.setenv("_MLFLOW_SGI_NAME", "gunicorn")
    assert apps.create_app() is mlflow_app.app
    # The server reads files from hosts that authors of models choose.
    assert connection._process.is_own
    monkeypatch.setenv("_MLFLOW_SGI_NAME", "uvicorn")
    assert isinstance(apps.create_app(), FastAPI)


@pytest.mark.parametrize("is_factory", [True, False])
def test_other_app_is_served(mlflow_app, company, is_factory):
    served = FastAPI()
    company((lambda: served) if is_factory else served)
    assert apps.create_app() is served


def test_flask_app_gets_no_fastapi_routes(mlflow_app, company, monkeypatch):
    monkeypatch.setenv("_MLFLOW_SGI_NAME", "uvicorn")
    company(lambda: mlflow_app.app)
    served: Any = apps.create_app()
    assert [route.path for route in served.routes] == [""]


@pytest.mark.parametrize(
    ("path", "method"),
    [
        ("/api/2.0/mlflow/registered-models/alias", "DELETE"),
        ("/ajax-api/2.0/mlflow/registered-models/{rest:path}", "POST"),
    ],
)
def test_route_before_a_gated_view_is_refused(mlflow_app, path, method):
    served = create_fastapi_app(mlflow_app.app)
    served.add_api_route(path, lambda: None, methods=[method])
    check_views(mlflow_app.app, served)  # Behind the Flask app, the route never answers.
    served.router.routes.reverse()
    with refused(OnnxserveError, method, path.split("/")[1], "registered-models"):
        check_views(mlflow_app.app, served)


@pytest.mark.parametrize("name", ["nothing", "onnxserve"])
def test_unknown_app_is_refused(monkeypatch, name):
    monkeypatch.setenv("ONNXSERVE_MLFLOW_APP", name)
    with refused(InvalidConfig, "ONNXSERVE_MLFLOW_APP", name, "basic-auth"):
        apps.create_app()


def test_app_without_a_login_adapter_is_refused(company, monkeypatch):
    company(Flask("company"))
    monkeypatch.setattr(logins, "entry_points", lambda group: [])
    with refused(InvalidConfig, COMPANY, "onnxserve.logins", "oidc-auth"):
        apps.create_app()


@pytest.mark.long
@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({}, ("ONNXSERVE_USER_HEADER", "ONNXSERVE_TRUSTED_PROXIES")),
        ({"ONNXSERVE_MLFLOW_APP": "basic-auth"}, ("ONNXSERVE_USER_HEADER", "basic-auth")),
        ({"ONNXSERVE_AUDIT_WITNESSES": "https://a.example"}, ("ONNXSERVE_AUDIT_WITNESSES",)),
    ],
)
def test_invalid_settings_stop_the_server(environment, named, tmp_path, monkeypatch):
    for variable, value in {"ONNXSERVE_USER_HEADER": "X-User", **environment}.items():
        monkeypatch.setenv(variable, value)
    last = last_line_of_failed_server(tmp_path)
    assert mentions(last, "mlflow server", *named)


@pytest.mark.long
def test_shadowed_gated_path_stops_the_server(tmp_path, monkeypatch):
    """This Python imports sitecustomize at its start."""
    (tmp_path / "sitecustomize.py").write_text(SHADOWING)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    last = last_line_of_failed_server(tmp_path)
    assert mentions(last, "mlflow server", "/api/2.0/mlflow/registered-models/alias")


def last_line_of_failed_server(folder):
    command = [sys.executable, "-W", "ignore", "-m", "mlflow", "server", "--app-name", "onnxserve"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
    ended = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    return ended.stderr.strip().splitlines()[-1]


@pytest.mark.long
def test_broken_app_stops_the_server(distribution):
    (distribution / "company_app.py").write_text("1 / 0")
    last = last_line_of_failed_server(distribution)
    assert mentions(last, "mlflow server", "ONNXSERVE_MLFLOW_APP", COMPANY, "ZeroDivisionError")


@pytest.mark.long
@pytest.mark.parametrize(
    "options", [(), ("--gunicorn-opts", "--timeout 120")], ids=["uvicorn", "gunicorn"]
)
def test_flask_login_checks_every_request(distribution, options):
    server = MlflowServer(distribution, app="onnxserve", options=options)
    with server.running():
        # FastAPI answers this path and /v1/traces without Flask.
        artifact = "/api/2.0/mlflow-artifacts/artifacts/x"
        for path in ("/onnxserve", "/onnxserve/console.css", "/", artifact, "/v1/traces"):
            assert requests.get(f"{server.url}{path}", timeout=60).status_code == 401, path
        page = requests.get(f"{server.url}/onnxserve", headers={"Account": "dora"}, timeout=60)
        assert page.status_code == 200
        assert '<span class="muted">dora</span>' in page.text
