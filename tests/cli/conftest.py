"""Small ONNX models in the MLflow server of the test session."""

import itertools
from dataclasses import dataclass

import mlflow
import mlflow.onnx
import pytest
from mlflow import MlflowClient

from mlflow_deploy_plugin.core.settings import load_settings
from mlflow_deploy_plugin.core.store.database import open_store
from tests.support.deployments import empty_home, save_models
from tests.support.models import adder
from tests.support.tracking import DEFAULT_EXPERIMENT, tracking_at

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def logged(mlflow_server):
    """Return URIs of logged models: adders by their summand, and a broken model."""
    requirements = {"pip_requirements": ["onnxruntime"]}
    with tracking_at(mlflow_server.url), mlflow.start_run(experiment_id=DEFAULT_EXPERIMENT):
        uris = {
            f"+{n}": mlflow.onnx.log_model(adder(n), name=f"add{n}", **requirements).model_uri
            for n in (1, 2)
        }
        uris["broken"] = mlflow.onnx.log_model(adder(9), name="broken", **requirements).model_uri
    model_id = uris["broken"].removeprefix("models:/")
    (file,) = mlflow_server.folder.glob(f"artifacts/**/{model_id}/artifacts/model.onnx")
    file.write_bytes(b"not a graph")
    return uris


@dataclass
class Registered:
    """A registered model of this test's own."""

    client: MlflowClient
    name: str

    def promote(self, version):
        self.client.transition_model_version_stage(self.name, str(version), "Production")


@pytest.fixture
def register(mlflow_server, logged, monkeypatch):
    """Registers logged models as versions 1, 2, … of a model of this test's own."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server.url)

    def make(*kinds):
        client = MlflowClient(mlflow_server.url)
        name = f"model-{next(_numbers)}"
        client.create_registered_model(name)
        for kind in kinds:
            client.create_model_version(
                name, logged[kind], model_id=logged[kind].removeprefix("models:/")
            )
        return Registered(client, name)

    return make


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
