"""Tiny models, and a client whose deployments are gone, with every process of theirs, when its test ends."""

from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from mlflow.deployments import BaseDeploymentClient

from tests.support.deployments import Models, empty_home, save_models, working_in


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return save_models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def client(tmp_path: Path) -> Iterator[BaseDeploymentClient]:
    with empty_home(tmp_path) as opened:
        yield opened


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, models: Models) -> Iterator[BaseDeploymentClient]:
    """A client with the deployment `sum` of the model `once`, for tests that change nothing."""
    with empty_home(tmp_path_factory.mktemp("served")) as opened:
        opened.create_deployment("sum", models.once)
        yield opened


@pytest.fixture
def processes(tmp_path: Path) -> Callable[[], list[psutil.Process]]:
    """Gives the processes of this test's deployments."""
    return lambda: working_in(tmp_path)
