"""Tests of `onnxserve promote --to-registry` and `--to-model`, between two MLflow servers with two stores."""

import hashlib
import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion

from mlflow_deploy_plugin.cli import main
from mlflow_deploy_plugin.store import AuditEvent, open_store
from tests.support.classifiers import COLUMNS, labelled, write_classifier
from tests.support.commands import said
from tests.support.refusals import mentions
from tests.support.services.mlflow_server import MlflowServer
from tests.support.services.proxy import proxy_to
from tests.support.tracking import tracking_at

pytestmark = pytest.mark.long

POLICY = "skip: [evaluation, robustness, budget]\n"
_numbers = itertools.count(1)


@dataclass
class Registry:
    """An MLflow server with onnxserve's app and its store."""

    server: MlflowServer

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(self.server.url)

    @property
    def store_uri(self) -> str:
        return f"sqlite:///{self.server.folder / 'home' / 'onnxserve.db'}"

    def events(self, model: str, *actions: str) -> list[AuditEvent]:
        with closing(open_store(self.store_uri)) as store:
            return [*store.events(model=model, actions=actions)]

    def versions(self, model: str) -> list[ModelVersion]:
        found = self.client.search_model_versions(f"name = '{model}'")
        return [self.client.get_model_version(model, entry.version) for entry in reversed(found)]

    def runs(self, model: str) -> list[str]:
        experiment = self.client.get_experiment_by_name(f"onnxserve/{model}")
        found = self.client.search_runs([experiment.experiment_id]) if experiment else []
        return [run.info.run_id for run in found if "onnxserve.copied_from" in run.data.tags]

    def files(self, model: str, version: str, folder: Path) -> dict[str, str]:
        with tracking_at(self.server.url):
            import mlflow

            path = Path(mlflow.artifacts.download_artifacts(f"models:/{model}/{version}", dst_path=str(folder)))
        found = (file for file in path.rglob("*") if file.is_file() and file.name != "registered_model_meta")
        return {str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest() for file in found}


@contextmanager
def running(folder: Path, new_database: Callable[[Path], str]) -> Iterator[Registry]:
    new_database(folder)
    server = MlflowServer(folder, app="onnxserve", variables={"ONNXSERVE_HOME": str(folder / "home")})
    try:
        server.start()
        yield Registry(server)
    finally:
        server.kill()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, new_database: Callable[[Path], str]) -> Iterator[Registry]:
    with running(tmp_path_factory.mktemp("source"), new_database) as registry:
        yield registry


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory, new_database: Callable[[Path], str]) -> Iterator[Registry]:
    with running(tmp_path_factory.mktemp("target"), new_database) as registry:
        yield registry


@pytest.fixture
def here(source: Registry, target: Registry, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process uses the source, and the store of the target for the target."""
    monkeypatch.setenv("ONNXSERVE_HOME", str(source.server.folder / "home"))
    monkeypatch.setenv("TARGET_ONNXSERVE_STORE_URI", target.store_uri)
    with tracking_at(source.server.url):
        yield


@pytest.fixture
def model(source: Registry, target: Registry, here: None) -> str:
    """A model with a judged version in the source, and with a policy in both registries."""
    name, client = f"toy-{next(_numbers)}", source.client
    for registry in (source, target):
        registry.client.create_registered_model(name, tags={"onnxserve.gate.policy": POLICY})
    run = client.create_run(client.create_experiment(name), run_name="training", tags={"team": "blue"})
    run_id = run.info.run_id
    client.log_param(run_id, "depth", 3)
    client.log_metric(run_id, "auc", 0.9)
    reference = {column: labelled(50)[column] for column in COLUMNS}
    folder = write_classifier(source.server.folder / name, reference=reference)
    (folder / "input_example.json").write_text('{"columns": ["a", "b"], "data": [[1.0, 2.0]]}')
    client.log_artifacts(run_id, str(folder), "model")
    tags = {"onnxserve.parent": f"models:/{name}/0", "onnxserve.training.data": "abc", "owner": "eva"}
    client.create_model_version(name, f"{run.info.artifact_uri}/model", run_id, tags, description="the first")
    assert run_command(f"gate {name} 1").exit_code == 0
    return name


def run_command(line: str) -> Result:
    return CliRunner().invoke(main, line.split())


def promote(model: str, target: Registry, *options: str) -> Result:
    return run_command(" ".join([f"promote {model} 1 --to @champion --to-registry {target.server.url}", *options]))


def test_a_version_is_copied_with_its_evidence_and_promoted_by_the_gate_of_the_target(
    source: Registry, target: Registry, model: str, tmp_path: Path
) -> None:
    result = promote(model, target, "-o json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["version"] == "1" and document["is_moved"]
    (version,) = target.versions(model)
    print(version, result.stderr, document)
    assert target.files(model, "1", tmp_path / "t") == source.files(model, "1", tmp_path / "s")
    assert version.aliases == ["champion"]
    print(target.client.get_run(version.run_id))
    print(target.events(model))
    print(source.events(model))
    assert 0
