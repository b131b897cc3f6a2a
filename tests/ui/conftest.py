"""MLflow's Flask app with a separate SQLite database, extended like by `mlflow server
--app-name onnxserve`.
"""

import importlib
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from mlflow_deploy_plugin.core.mlmodel import combine_hashes, hash_files
from mlflow_deploy_plugin.core.spec.document import apply_config, new_endpoint
from mlflow_deploy_plugin.core.store.store import Store
from mlflow_deploy_plugin.ui import checkpoints
from mlflow_deploy_plugin.ui.app import extend
from mlflow_deploy_plugin.ui.jobs import Job, Jobs
from mlflow_deploy_plugin.ui.logins.login import Login
from tests.support.browser import chromium

_POLICY = "gated_stages: [Production]\ngated_aliases: [champion]"
_numbers = count()


@dataclass
class Mlflow:
    """The app, its registry, and the store of the audit trail."""

    app: Flask
    registry: Any
    store: Store
    artifacts: Path

    @property
    def client(self) -> FlaskClient:
        return self.app.test_client()

    def model(self, policy: str | None = _POLICY, versions: int = 2) -> str:
        """Register a new model with this number of versions."""
        from mlflow.entities.model_registry import RegisteredModelTag

        name = f"model-{next(_numbers)}"
        tags = [] if policy is None else [RegisteredModelTag("onnxserve.gate.policy", policy)]
        self.registry.create_registered_model(name, tags)
        for _ in range(versions):
            folder = self.artifacts / f"{name}-{next(_numbers)}"
            folder.mkdir(parents=True)
            (folder / "MLmodel").write_text(f"model_id: {folder.name}")
            self.registry.create_model_version(name, str(folder))
        return name

    def files(self, model: str, version: str) -> Path:
        return Path(self.registry.get_model_version_download_uri(model, version))

    def stands(self, model: str, version: str, gate: str, reason: str) -> None:
        """Set the tags of the gate on a version."""
        from mlflow.entities.model_registry import ModelVersionTag

        self.registry.set_model_version_tag(model, version, ModelVersionTag("onnxserve.gate", gate))
        self.registry.set_model_version_tag(
            model, version, ModelVersionTag("onnxserve.gate.reason", reason)
        )
        digest = combine_hashes(hash_files(self.files(model, version)))
        self.registry.set_model_version_tag(
            model, version, ModelVersionTag("onnxserve.gate.digest", digest)
        )

    def stage(self, model: str, version: str) -> str:
        return str(self.registry.get_model_version(model, version).current_stage)


@pytest.fixture(scope="module")
def mlflow_app(tmp_path_factory, new_database):
    """Yield the app of this module's tests. Afterwards, restore the MLflow state of
    this process.
    """
    import mlflow.server
    from mlflow.server import handlers
    from mlflow.tracking._model_registry import utils as registry_utils
    from mlflow.tracking._tracking_service import utils as tracking_utils

    folder = tmp_path_factory.mktemp("mlflow")
    uri = new_database(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ONNXSERVE_HOME", str(folder / "home"))
        patch.setenv("_MLFLOW_SERVER_FILE_STORE", uri)
        patch.setenv("_MLFLOW_SERVER_ARTIFACT_ROOT", str(folder / "artifacts"))
        for variable in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
            patch.setenv(variable, uri)
        patch.setattr(registry_utils, "_registry_uri", None)
        patch.setattr(tracking_utils, "_tracking_uri", None)
        patch.setattr(handlers, "_model_registry_store", None)
        patch.setattr(handlers, "_tracking_store", None)
        # A later checkpoint would write to the store of another test.
        patch.setattr(checkpoints, "_FIRST_SECONDS", 86_400)
        # The app must be new, because each module has its own store.
        app = importlib.reload(mlflow.server).app
        extend(app, Login(), app)
        with app.app_context():
            store = app.extensions["onnxserve"].store()
        yield Mlflow(app, handlers._get_model_registry_store(), store, folder / "models")
        store.close()


@pytest.fixture(scope="module")
def browser():
    """Yield a running Chromium."""
    with chromium() as running:
        yield running


@pytest.fixture
def started(monkeypatch):
    """Return a list that receives the jobs of the console. The jobs are not started."""
    jobs: list[Job] = []

    def start(_, job, secret):
        jobs.append(job)
        return job

    monkeypatch.setattr(Jobs, "start", start)
    return jobs


@pytest.fixture(scope="module")
def endpoint(mlflow_app):
    """Create an endpoint whose server does not run. Its model has two versions."""
    model = mlflow_app.model()
    mlflow_app.stands(model, "2", "failed", "evaluation: accuracy 0.71 against 0.80")
    spec = new_endpoint(f"of-{model}", f"models:/{model}/Production", variant="champion")
    mlflow_app.store.add_endpoint(
        "onnxserve", apply_config(spec, {"server.port": 65001, "monitors.hits.every": "1h"})
    )
    return spec.name
