"""A SQLite registry with one model in every state, and the folders of its files."""

from dataclasses import dataclass
from pathlib import Path

import mlflow
import mlflow.onnx
import pytest
from mlflow import MlflowClient

from tests.support.models import IDENTITY, parse_graph
from tests.support.tracking import tracking_at


@dataclass(frozen=True)
class Store:
    """The registered models: `tiny` 1 (Production), 2 (Production, @live) and 3 (no
    stage), with the teams blue, blue and it's red; `empty` without versions.
    """

    uri: str
    run_id: str
    model_id: str


@pytest.fixture(scope="session")
def built_store(tmp_path_factory, new_database):
    folder = tmp_path_factory.mktemp("registry")
    uri = new_database(folder)
    with tracking_at(uri):
        experiment = mlflow.create_experiment(
            "e", artifact_location=(folder / "artifacts").as_uri()
        )
        with mlflow.start_run(experiment_id=experiment) as run:
            logged = mlflow.onnx.log_model(
                parse_graph(IDENTITY), name="model", pip_requirements=["onnxruntime"]
            )
        client = MlflowClient()
        client.create_registered_model("tiny")
        client.create_registered_model("empty")
        model_id = logged.model_uri.removeprefix("models:/")
        for _ in range(3):
            client.create_model_version(
                "tiny", logged.model_uri, run.info.run_id, model_id=model_id
            )
        for version in ("1", "2"):
            client.transition_model_version_stage("tiny", version, "Production")
        client.set_registered_model_alias("tiny", "live", "2")
        client.set_model_version_tag("tiny", "2", "onnxserve.parity", "proven")
        for version, team in (("1", "blue"), ("2", "blue"), ("3", "it's red")):
            client.set_model_version_tag("tiny", version, "team", team)
    return Store(uri, run.info.run_id, model_id)


@pytest.fixture
def store(built_store):
    with tracking_at(built_store.uri):
        yield built_store


@pytest.fixture
def artifacts(store):
    """Return the folder of the logged model's files."""
    return Path(
        MlflowClient().get_logged_model(store.model_id).artifact_location.removeprefix("file://")
    )
