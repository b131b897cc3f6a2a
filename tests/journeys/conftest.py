"""MLflow for the end-to-end tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.services.mlflow_server import MlflowServer
from tests.support.tracking import tracking_at


@pytest.fixture
def tracking(
    mlflow_server: MlflowServer,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Iterator[MlflowServer]:
    """Set the MLflow server as a user does, with a separate home for the test."""
    monkeypatch.setenv("ONNXSERVE_HOME", str(tmp_path / "home"))
    with tracking_at(mlflow_server.url):
        yield mlflow_server
