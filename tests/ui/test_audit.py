"""The audit trail beside MLflow's answers: a change is reported to the agents here, a broken store stops nothing."""

from pathlib import Path
from typing import Any

import pytest

from mlflow_deploy_plugin.settings import load_settings
from mlflow_deploy_plugin.spec import new_endpoint
from mlflow_deploy_plugin.statedir import LOOK
from mlflow_deploy_plugin.ui import audit
from tests.support.console import move
from tests.support.waiting import wait_until


def test_the_servers_here_that_follow_the_model_are_told_at_once(
    mlflow_app: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = mlflow_app.model(policy=None)
    mlflow_app.store.add_endpoint("onnxserve", new_endpoint(f"of-{model}", f"models:/{model}/Production"))
    monkeypatch.setenv("ONNXSERVE_HOME", str(tmp_path))
    folder = load_settings().deployments_path / f"of-{model}"
    folder.mkdir(parents=True)

    assert move(mlflow_app, model, "1", "Production").status_code == 200

    wait_until((folder / LOOK).exists, what="the agent is told to look")


def test_a_broken_audit_store_is_logged_and_mlflow_goes_on(
    mlflow_app: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = mlflow_app.model(policy=None)
    kept: audit.AuditTrail = mlflow_app.app.extensions["onnxserve"]
    monkeypatch.setattr(kept, "_store", None)
    monkeypatch.setattr(kept, "_url", "sqlite:////proc/nobody/can/write/here.db")
    assert move(mlflow_app, model, "1", "Production").status_code == 200
    assert mlflow_app.stage(model, "1") == "Production"
    assert "not in the audit trail: transition by anonymous@127.0.0.1" in caplog.text
