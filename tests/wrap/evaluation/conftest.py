"""The registered model `toy` of the gate's tests,
and a tracking store for each test.
"""

import pytest
from mlflow import MlflowClient

from tests.promote.conftest import registry
from tests.promote.gate.conftest import folders, registry_folder

__all__ = ["folders", "new_tracking", "registry", "registry_folder"]


@pytest.fixture
def new_tracking(new_mlflow):
    return MlflowClient()
