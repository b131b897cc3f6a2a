"""A model in the MLflow server of the test session, and homes of the commands."""

import mlflow
import mlflow.onnx
import pytest

from mlflow_deploy_plugin.core.settings import load_settings
from mlflow_deploy_plugin.core.store.database import open_store
from tests.support.deployments import empty_home, save_models
from tests.support.models import adder
from tests.support.tracking import DEFAULT_EXPERIMENT, tracking_at


@pytest.fixture(scope="session")
def registered(mlflow_server):
    """Return the name of a registered model, whose version 1 adds 1."""
    with tracking_at(mlflow_server.url), mlflow.start_run(experiment_id=DEFAULT_EXPERIMENT):
        mlflow.onnx.log_model(
            adder(1),
            name="adder",
            registered_model_name="adder",
            pip_requirements=["onnxruntime"],
        )
    return "adder"


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    return save_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A client on a home of this module's own, which the commands use too."""
    with empty_home(tmp_path_factory.mktemp("home")) as client:
        yield client


@pytest.fixture
def store(tmp_path, monkeypatch):
    """Return the store of an empty ONNXSERVE_HOME, which is the folder of the test."""
    monkeypatch.setenv("ONNXSERVE_HOME", str(tmp_path))
    return open_store(load_settings().store_url)
