"""The apps of the entry point group `mlflow.app`: MLflow's server with the gate, the
audit trail and the console.

    mlflow server --app-name onnxserve …
        without accounts, or behind a proxy's login
    ONNXSERVE_MLFLOW_APP=oidc-auth mlflow server --app-name onnxserve …
        on top of the login of another app

MLflow's command imports this module before it starts its server, and the import checks
the settings and loads the other app. Without this check, uvicorn would restart failing
workers forever.
"""

import os
import sys
from contextlib import closing, suppress
from importlib.metadata import entry_points
from types import FunctionType
from typing import TYPE_CHECKING, Any

from flask import Flask

from mlflow_deploy_plugin.core.errors import InvalidConfig, OnnxserveError, StoreUnavailable
from mlflow_deploy_plugin.core.messages import one_line
from mlflow_deploy_plugin.core.registry.connection import own_process
from mlflow_deploy_plugin.core.settings import load_settings
from mlflow_deploy_plugin.core.store.audit_seal import seal
from mlflow_deploy_plugin.core.store.database import open_server_store
from mlflow_deploy_plugin.ui.access import static_prefix
from mlflow_deploy_plugin.ui.app import extend
from mlflow_deploy_plugin.ui.guard.views import check_views
from mlflow_deploy_plugin.ui.logins.login import Login, login_of
from mlflow_deploy_plugin.ui.logins.proxy_header import ProxyHeader
from mlflow_deploy_plugin.ui.witnesses import configured_witnesses

if TYPE_CHECKING:
    from fastapi import FastAPI


def create_app() -> object:
    """Return the app on top of the app in ONNXSERVE_MLFLOW_APP."""
    return _create(load_settings().mlflow_app)


def create_basic_auth_app() -> object:
    """Return the app on top of MLflow's own basic auth."""
    return _create("basic-auth")


def _create(name: str) -> "Flask | FastAPI":
    """Return the app on top of the app `name` with a login, or on top of MLflow's own
    app if `name` is empty.
    """
    from mlflow.server import app
    from mlflow.server.fastapi_app import create_fastapi_app
    from starlette.routing import Mount

    own_process()
    other, login = _app_and_login(name)
    served: Flask | FastAPI = app
    if isinstance(other, FunctionType):
        served = other()  # A factory without an app must fail: MLflow's app has no login.
    elif other is not None:
        served = other
    inner = served if isinstance(served, Flask) else app
    # MLflow sets this variable to the name of its WSGI or ASGI server. uvicorn cannot
    # serve a Flask app.
    if isinstance(served, Flask) and os.environ.get("_MLFLOW_SGI_NAME") == "uvicorn":
        fastapi = create_fastapi_app(served)
        served = fastapi
        # A login in Flask does not see FastAPI's own routes, so Flask must answer all
        # requests.
        if name:
            fastapi.router.routes[:] = [
                route for route in fastapi.routes if isinstance(route, Mount)
            ]
    extend(inner, login, served)
    return served


def _app_and_login(name: str) -> tuple[Any, Login]:
    """Return the app that the distribution of `name` registers, or its factory, and the
    adapter of its login.

    Without a name, return None and the adapter of the proxy, if there is one. Raises
    InvalidConfig if a setting is not valid, or if the app or its adapter cannot be
    loaded.
    """
    settings = load_settings()
    if not name:
        if settings.user_header:
            return None, ProxyHeader(settings, static_prefix())
        return None, Login()
    if settings.user_header:
        raise InvalidConfig(
            f"ONNXSERVE_USER_HEADER and the login of {name} exclude each other: unset one of them"
        )
    package = __name__.partition(".")[0]
    apps = {
        entry.name: entry
        for entry in entry_points(group="mlflow.app")
        if not entry.value.startswith(package)
    }
    if name not in apps:
        installed = ", ".join(sorted(apps)) or "none"
        raise InvalidConfig(
            f"ONNXSERVE_MLFLOW_APP: {name} is not the name of an installed app of MLflow: "
            f"{installed}"
        )
    try:
        return apps[name].load(), login_of(name)
    except InvalidConfig:
        raise
    except Exception as error:  # Other distributions may raise any exception.
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise InvalidConfig(
            f"ONNXSERVE_MLFLOW_APP: the app {name} or its login adapter cannot be loaded: {reason}"
        ) from error


def _check_settings() -> None:
    """Exit with one line if the app cannot be created. Set options of uvicorn: by
    default, it replaces the address of a local proxy with the address that the proxy
    reports, and reads heads of any size with httptools.
    """
    os.environ.setdefault("UVICORN_HTTP", "h11")
    from mlflow.server import app
    from mlflow.server.fastapi_app import app as fastapi_app

    try:
        settings = load_settings()
        configured_witnesses()
        other, _ = _app_and_login(settings.mlflow_app)
        if other is None:
            check_views(app, fastapi_app)
        with suppress(StoreUnavailable), closing(open_server_store(settings)) as store:
            if store.keys is not None:
                seal(store)
    except OnnxserveError as error:
        sys.exit(f"mlflow server: {error.message}")
    if settings.user_header:
        os.environ["FORWARDED_ALLOW_IPS"] = ""


_check_settings()
