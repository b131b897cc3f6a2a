"""Tiny registered models for the journeys."""

from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient

from support.mlflow_server import MlflowServer
from support.models import adder
from support.tracking import DEFAULT_EXPERIMENT, tracking_at


@pytest.fixture
def tracking(mlflow_server: MlflowServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[MlflowServer]:
    """MLflow's server as a user has named it, and a home of the test's own."""
    monkeypatch.setenv("ONNXSERVE_HOME", str(tmp_path / "home"))
    with tracking_at(mlflow_server.url):
        yield mlflow_server


@pytest.fixture
def two_versions(tracking: MlflowServer, tmp_path: Path) -> str:
    """The name of a registered model: version 1 (adds 1) is in Production, version 2 (adds 2) in no stage."""
    name = f"adder-{tmp_path.name}"
    for amount in (1.0, 2.0):
        with mlflow.start_run(experiment_id=DEFAULT_EXPERIMENT):
            mlflow.onnx.log_model(
                adder(amount), name="model", registered_model_name=name, pip_requirements=["onnxruntime"]
            )
    MlflowClient().transition_model_version_stage(name, "1", "Production")
    return name
