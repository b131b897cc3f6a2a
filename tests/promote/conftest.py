"""A store and a registry for the tests of the gate, of evidence and of rollouts."""

from contextlib import closing

import pytest

from mlflow_deploy_plugin.core.store.database import open_store


@pytest.fixture
def store(tmp_path):
    with closing(open_store(f"sqlite:///{tmp_path}/store.db")) as opened:
        yield opened


@pytest.fixture
def registry(registry_folder):
    """The client of a registry and a store in the current folder, which the test may
    change.
    """
    with registry_folder.restored() as client:
        yield client
