"""The server keeps the registry of whoever created it."""

from pathlib import Path

import mlflow
import pytest

from mlflow_deploy_plugin.deployments.backends.supervisor import server_environment
from mlflow_deploy_plugin.settings import Settings


def test_the_registry_of_the_first_start_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = Settings(home=Path("home"), log_uri="log")
    state_dir = tmp_path / "state"
    before = mlflow.get_tracking_uri()
    try:
        mlflow.set_tracking_uri("sqlite:///here.db")
        first = server_environment(state_dir, settings)
        mlflow.set_tracking_uri("http://elsewhere:5000")
        second = server_environment(state_dir, settings)
    finally:
        mlflow.set_tracking_uri(before)

    assert first["MLFLOW_TRACKING_URI"] == second["MLFLOW_TRACKING_URI"] == f"sqlite:///{tmp_path}/here.db"
    assert first["ONNXSERVE_HOME"] == str(tmp_path / "home")
    assert first["ONNXSERVE_LOG_URI"] == str(tmp_path / "log")
    assert first["PATH"]
