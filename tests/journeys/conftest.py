"""MLflow for the end-to-end tests."""

import pytest

from tests.support.tracking import tracking_at


@pytest.fixture
def tracking(mlflow_server, monkeypatch, tmp_path):
    """Set the MLflow server as a user does, with a separate home for the test."""
    monkeypatch.setenv("ONNXSERVE_HOME", str(tmp_path / "home"))
    with tracking_at(mlflow_server.url):
        yield mlflow_server
