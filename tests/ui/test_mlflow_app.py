"""Tests of the apps of `mlflow server --app-name onnxserve`, alone and on top of the app of another distribution."""

import os
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI
from flask import Flask

from mlflow_deploy_plugin.errors import InvalidConfig
from mlflow_deploy_plugin.ui import mlflow_app as apps
from mlflow_deploy_plugin.ui.logins import login as logins
from mlflow_deploy_plugin.ui.logins.login import Login
from tests.support.refusals import mentions, refused

COMPANY = "company"


class CompanyLogin(Login):
    has_accounts = True

    def user(self) -> str:
        return "dora"


@pytest.fixture
def company(monkeypatch: pytest.MonkeyPatch) -> Callable[[object], None]:
    """Return a function that registers an app of the group `mlflow.app`, together with its login adapter."""

    def register(app: object) -> None:
        monkeypatch.setattr(sys.modules[__name__], "company_app", app, raising=False)
        found = EntryPoint(COMPANY, f"{__name__}:company_app", "mlflow.app")
        adapter = EntryPoint(COMPANY, f"{__name__}:CompanyLogin", logins.GROUP)
        monkeypatch.setattr(apps, "entry_points", lambda group: [*entry_points(group=group), found])
        monkeypatch.setattr(logins, "entry_points", lambda group: [adapter])
        monkeypatch.setenv("ONNXSERVE_MLFLOW_APP", COMPANY)

    return register


def test_mlflow_finds_both_apps() -> None:
    assert {"onnxserve", "onnxserve-basic-auth"} <= {app.name for app in entry_points(group="mlflow.app")}


def test_uvicorn_gets_fastapi_around_flask_and_others_get_flask(
    mlflow_app: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("_MLFLOW_SGI_NAME", "gunicorn")
    assert apps.create_app() is mlflow_app.app
    monkeypatch.setenv("_MLFLOW_SGI_NAME", "uvicorn")
    assert isinstance(apps.create_app(), FastAPI)


@pytest.mark.parametrize("is_factory", [True, False])
def test_another_app_stays_the_one_that_is_served(
    mlflow_app: Any, company: Callable[[object], None], is_factory: bool
) -> None:
    served = FastAPI()
    company((lambda: served) if is_factory else served)
    assert apps.create_app() is served


def test_around_a_flask_app_with_a_login_fastapi_has_no_routes_of_its_own(
    mlflow_app: Any, company: Callable[[object], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("_MLFLOW_SGI_NAME", "uvicorn")
    company(lambda: mlflow_app.app)
    served: Any = apps.create_app()
    assert [route.path for route in served.routes] == [""]


@pytest.mark.parametrize("name", ["nothing", "onnxserve"])
def test_an_app_that_is_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("ONNXSERVE_MLFLOW_APP", name)
    with refused(InvalidConfig, "ONNXSERVE_MLFLOW_APP", name, "basic-auth"):
        apps.create_app()


def test_an_app_without_a_login_adapter_is_refused(
    company: Callable[[object], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    company(Flask("company"))
    monkeypatch.setattr(logins, "entry_points", lambda group: [])
    with refused(InvalidConfig, COMPANY, "onnxserve.logins", "oidc-auth"):
        apps.create_app()


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({"ONNXSERVE_MLFLOW_APP": "nothing"}, ("ONNXSERVE_MLFLOW_APP", "nothing", "basic-auth")),
        ({"ONNXSERVE_USER_HEADER": "X-User"}, ("ONNXSERVE_USER_HEADER", "ONNXSERVE_TRUSTED_PROXIES")),
        ({"ONNXSERVE_USER_HEADER": "X-User", "ONNXSERVE_TRUSTED_PROXIES": "10.0.0.0/33"}, ("10.0.0.0/33",)),
        (
            {"ONNXSERVE_USER_HEADER": "X-User", "ONNXSERVE_MLFLOW_APP": "basic-auth"},
            ("ONNXSERVE_USER_HEADER", "basic-auth"),
        ),
    ],
    ids=lambda value: "" if isinstance(value, tuple) else "-".join(value),
)
def test_mlflow_server_does_not_start_with_settings_that_cannot_work(
    environment: dict[str, str], named: tuple[str, ...], tmp_path: Any
) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "mlflow", "server", "--app-name", "onnxserve"]
    command += ["--backend-store-uri", f"sqlite:///{tmp_path}/mlflow.db"]
    variables = {**os.environ, **environment}
    ended = subprocess.run(command, check=False, env=variables, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 1
    last = ended.stderr.strip().splitlines()[-1]
    assert mentions(last, "mlflow server", *named)
    assert "Traceback" not in ended.stderr


def test_an_app_whose_import_fails_is_named_with_the_reason(
    company: Callable[[object], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = SimpleNamespace(name=COMPANY, value="company", load=lambda: 1 / 0)
    company(None)
    monkeypatch.setattr(apps, "entry_points", lambda group: [broken])
    with refused(InvalidConfig, "ONNXSERVE_MLFLOW_APP", COMPANY, "ZeroDivisionError"):
        apps.create_app()
