"""A store for the tests of the gate and of rollouts."""

from contextlib import closing

import pytest

from mlflow_deploy_plugin.core.store.database import open_store


@pytest.fixture
def store(tmp_path):
    with closing(open_store(f"sqlite:///{tmp_path}/store.db")) as opened:
        yield opened
