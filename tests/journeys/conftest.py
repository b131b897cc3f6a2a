"""MLflow for the end-to-end tests."""

import pytest

from tests.support.tracking import tracking_at


@pytest.fixture
def tracking(mlflow_server, new_home, tmp_path):
    """Set the MLflow server as a user does, with a separate home for the test."""
    with tracking_at(mlflow_server.url):
        yield mlflow_server
