"""Tiny models, and a client whose deployments and processes are removed
after the test.
"""

import pytest

from tests.support.deployments import empty_home, save_models, working_in


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    return save_models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def client(tmp_path):
    with empty_home(tmp_path) as opened:
        yield opened


@pytest.fixture(scope="module")
def served(tmp_path_factory, models):
    """Yield a client with the deployment `sum` of the model `once`, for tests that do
    not change it.
    """
    with empty_home(tmp_path_factory.mktemp("served")) as opened:
        opened.create_deployment("sum", models.once)
        yield opened


@pytest.fixture
def processes(tmp_path):
    """Return the processes of this test's deployments."""
    return lambda: working_in(tmp_path)
