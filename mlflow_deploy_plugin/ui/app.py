"""The apps of the entry point group `mlflow.app`: MLflow's own server, with the gate, the audit trail and the console.

    mlflow server --app-name onnxserve …               without accounts
    mlflow server --app-name onnxserve-basic-auth …    on top of MLflow's own basic auth

MLflow starts uvicorn by default, and wants FastAPI's app around its Flask app there; gunicorn and waitress want the
Flask app itself.
"""

import os
from typing import Any

from flask import Flask

from mlflow_deploy_plugin.settings import load_settings
from mlflow_deploy_plugin.ui import console, guard
from mlflow_deploy_plugin.ui.audit import AuditTrail

_SGI = "_MLFLOW_SGI_NAME"  # MLflow's own: which server runs the app
_EXTENSION = "onnxserve"


def create_app() -> Any:
    """Return MLflow's server with our parts, as uvicorn, gunicorn or waitress runs it."""
    from mlflow.server import app
    from mlflow.server.fastapi_app import create_fastapi_app

    extend(app)
    return create_fastapi_app(app) if os.environ.get(_SGI) == "uvicorn" else app


def create_basic_auth_app() -> Any:
    """Return the same behind MLflow's basic auth, which identifies the caller before the gate decides."""
    from mlflow.server import app
    from mlflow.server.auth import create_app as create_with_accounts

    served = create_with_accounts(app)
    extend(app)
    return served


def extend(app: Flask) -> None:
    """Add the gate, the audit trail and the console to MLflow's Flask app, once."""
    if _EXTENSION in app.extensions:
        return
    settings = load_settings()
    trail = AuditTrail(settings.store_url)
    guard.install(app, trail)
    console.install(app, settings, trail)
    app.extensions[_EXTENSION] = trail
