"""The registered model `toy` of the gate's tests,
and a tracking store for each test.
"""

import pytest
from mlflow import MlflowClient

from tests.promote.gate.conftest import folders, registry, registry_folder
from tests.support.tracking import tracking_at

__all__ = ["folders", "new_tracking", "registry", "registry_folder"]


@pytest.fixture
def new_tracking(tmp_path, new_database, monkeypatch):
    monkeypatch.chdir(tmp_path)  # MLflow puts artifacts of a database store here.
    with tracking_at(new_database(tmp_path)):
        yield MlflowClient()
