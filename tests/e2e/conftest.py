"""MLflow for the journeys."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.services.mlflow_server import MlflowServer
from tests.support.tracking import tracking_at


@pytest.fixture
def tracking(mlflow_server: MlflowServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[MlflowServer]:
    """MLflow's server as a user has named it, and a home of the test's own."""
    monkeypatch.setenv("ONNXSERVE_HOME", str(tmp_path / "home"))
    with tracking_at(mlflow_server.url):
        yield mlflow_server
