"""A real MLflow server and tiny registered models for the journeys."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import mlflow
import onnx
import pytest
from mlflow import MlflowClient
from onnx import TensorProto, helper

from support.waiting import answers, free_port, wait_until


def adder(amount: float) -> onnx.ModelProto:
    """y = x + amount, so that an answer tells which version gave it."""
    return helper.make_model(
        helper.make_graph(
            [helper.make_node("Add", ["x", "amount"], ["y"])],
            "adder",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 1])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 1])],
            [helper.make_tensor("amount", TensorProto.FLOAT, [1], [amount])],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=9,
    )


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of an MLflow server with its UI, its own SQLite and its own artifacts."""
    folder = tmp_path_factory.mktemp("mlflow")
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder / "art")]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            command, stdout=log, stderr=log, env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"}
        )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: answers(f"{url}/health"), 90, "MLflow's server answers")
        yield url
    finally:
        server.terminate()
        server.wait(timeout=30)


@pytest.fixture
def two_versions(mlflow_server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """The name of a registered model: version 1 (adds 1) is in Production, version 2 (adds 2) in no stage."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
    monkeypatch.setenv("ONNXSERVE_HOME", str(tmp_path / "home"))
    mlflow.set_tracking_uri(mlflow_server)
    name = f"adder-{tmp_path.name}"
    for amount in (1.0, 2.0):
        with mlflow.start_run():
            mlflow.onnx.log_model(adder(amount), name="model", registered_model_name=name)
    MlflowClient().transition_model_version_stage(name, "1", "Production")
    return name
