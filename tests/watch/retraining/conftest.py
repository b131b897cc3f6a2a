"""An endpoint with a weak model, and a project that trains better models."""

import pytest

from tests.support.retraining import retraining_world


@pytest.fixture
def world(tmp_path, new_mlflow, new_home):
    with retraining_world(tmp_path) as new_world:
        yield new_world
