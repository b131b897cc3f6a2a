"""Small ONNX models in the MLflow server of the test session."""

import itertools
from dataclasses import dataclass
from typing import Any

import mlflow
import mlflow.onnx
import pytest
from mlflow import MlflowClient

from mlflow_deploy_plugin.core.settings import load_settings
from mlflow_deploy_plugin.core.store.database import open_store
from tests.support.deployments import empty_home, save_models
from tests.support.models import adder, parse_graph
from tests.support.tracking import DEFAULT_EXPERIMENT, tracking_at

_numbers = itertools.count(1)


def counter():
    """Counts to the number it is given, one step after the other: a request that takes
    as long as one likes.
    """
    return parse_graph(
        """counter (int64[N] x) => (int64[N] y)
        <int64[1] axes = {0}, int64[1] first = {0}, int64[1] zero = {0}, bool go = {1}> {
          one = Gather(x, first)
          trips = Squeeze(one, axes)
          total = Loop(trips, go, zero) <body = step (int64 i, bool c, int64[1] s) => \
(bool d, int64[1] t)
            <int64[1] unit = {1}> { d = Identity(c)
              t = Add(s, unit) }>
          nothing = Sub(x, x)
          y = Add(nothing, total)
        }"""
    )


@pytest.fixture(scope="session")
def logged(mlflow_server):
    """Return URIs of logged models: adders by their summand, a slow model, and models
    without or with broken ONNX.
    """
    requirements: dict[str, Any] = {"pip_requirements": ["onnxruntime"]}
    with tracking_at(mlflow_server.url), mlflow.start_run(experiment_id=DEFAULT_EXPERIMENT):
        uris = {
            f"+{n}": mlflow.onnx.log_model(adder(n), name=f"add{n}", **requirements).model_uri
            for n in (1, 2, 3)
        }
        uris["slow"] = mlflow.onnx.log_model(counter(), name="slow", **requirements).model_uri
        uris["pyfunc"] = mlflow.pyfunc.log_model(
            name="pyfunc", loader_module="json", pip_requirements=["mlflow"]
        ).model_uri
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

    def promote(self, version: int, stage: str = "Production") -> None:
        self.client.transition_model_version_stage(self.name, str(version), stage)


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
