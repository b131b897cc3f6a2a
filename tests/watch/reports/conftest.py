"""An MLflow that the tests in this folder share."""

import pytest
from mlflow import MlflowClient

from tests.support.tracking import tracking_at


@pytest.fixture(scope="module")
def tracking(tmp_path_factory, new_database):
    """Yield an MLflow for this module with one registered version; tests use different
    endpoint names.
    """
    folder = tmp_path_factory.mktemp("tracking")
    with pytest.MonkeyPatch.context() as patch, tracking_at(new_database(folder)):
        patch.chdir(folder)  # A database store puts artifacts below the working directory.
        client = MlflowClient()
        client.create_registered_model("flight-delay")
        client.create_model_version(
            "flight-delay", source=str(folder), description="Trained on a Monday."
        )
        yield client
