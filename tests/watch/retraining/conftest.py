"""An endpoint with a weak model, and a project that trains better models."""

import pytest

from tests.support.retraining import retraining_world
from tests.support.tracking import tracking_at


@pytest.fixture
def world(tmp_path, new_database, monkeypatch):
    monkeypatch.setenv("ONNXSERVE_HOME", str(tmp_path / "home"))
    # MLflow stores the artifacts of a database's experiments in the working directory.
    monkeypatch.chdir(tmp_path)
    with tracking_at(new_database(tmp_path)), retraining_world(tmp_path) as new_world:
        yield new_world
