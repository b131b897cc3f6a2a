"""What `mlflow server --app-name onnxserve` is given to run."""

from importlib.metadata import entry_points
from typing import Any

import pytest

from mlflow_deploy_plugin.ui.app import create_app


def test_mlflow_finds_both_apps() -> None:
    assert {"onnxserve", "onnxserve-basic-auth"} <= {app.name for app in entry_points(group="mlflow.app")}


def test_uvicorn_gets_fastapi_around_flask_and_others_get_flask(
    mlflow_app: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastapi import FastAPI

    monkeypatch.setenv("_MLFLOW_SGI_NAME", "gunicorn")
    assert create_app() is mlflow_app.app
    monkeypatch.setenv("_MLFLOW_SGI_NAME", "uvicorn")
    assert isinstance(create_app(), FastAPI)
