"""A store for the tests of the gate and of rollouts."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from mlflow_deploy_plugin.core.store.database import open_store
from mlflow_deploy_plugin.core.store.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with closing(open_store(f"sqlite:///{tmp_path}/store.db")) as opened:
        yield opened
