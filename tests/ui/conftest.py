"""MLflow's Flask app with a separate SQLite database, extended like by `mlflow server
--app-name onnxserve`.
"""

import importlib
import threading
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from mlflow.entities.model_registry import ModelVersionTag, RegisteredModelTag
from werkzeug.serving import make_server

from mlflow_deploy_plugin.core.mlmodel import hash_folder
from mlflow_deploy_plugin.core.registry.policy import parse_policy
from mlflow_deploy_plugin.core.registry.tags import GATE_POLICY_TAG as POLICY_TAG
from mlflow_deploy_plugin.core.registry.transitions import parse_stage_or_alias
from mlflow_deploy_plugin.core.spec.document import apply_config, new_endpoint
from mlflow_deploy_plugin.core.store.store import Store
from mlflow_deploy_plugin.ui.app import extend
from mlflow_deploy_plugin.ui.guard import moves
from mlflow_deploy_plugin.ui.jobs import Jobs
from mlflow_deploy_plugin.ui.logins.login import Login
from tests.support.browser import chromium
from tests.support.console import API, FIXTURE, PAGE, POLICY, events, move, point

_numbers = count()


class Model(str):
    """The name of a registered model, with requests of a caller for it."""

    mlflow: "Mlflow"

    def ask(self, version, place="Production", **more):
        """Return the answer to a request to move a version to a stage or an alias."""
        if place.startswith("@"):
            return point(self.mlflow, self, place[1:], version)
        return move(self.mlflow, self, version, place, **more)

    def enter(self, version, place="Production", **more):
        """Return the status of a request to move a version to a stage or an alias."""
        return self.ask(version, place, **more).status_code

    def refusal(self, version, place="Production", status=403, **more):
        """Return the message with which a request to move a version is refused."""
        answer = self.ask(version, place, **more)
        assert answer.status_code == status
        return answer.json["message"]

    def promotion(self, version="1", place="Production"):
        """Return the policy and the subject of a promotion."""
        with self.mlflow.app.test_request_context():
            return moves.promotion_now(self, version, parse_stage_or_alias(place))

    def send(self, path, **body):
        """Return the status of a request to MLflow's registry."""
        return self.mlflow.send(path, name=self, **body)

    def set_policy(self, policy):
        tag = {"key": "onnxserve.gate.policy", "value": policy}
        return self.send("registered-models/set-tag", **tag)

    def passed(self, *versions, gate="passed"):
        for version in versions:
            self.mlflow.stands(self, version, gate, "all 5 checks passed")

    def tag(self, version, key, value):
        """Set a tag of a version without a request."""
        self.mlflow.registry.set_model_version_tag(self, version, ModelVersionTag(key, value))

    def tags(self, version):
        return self.mlflow.registry.get_model_version(self, version).tags

    def files(self, version):
        return self.mlflow.files(self, version)

    def stage(self, version):
        return self.mlflow.registry.get_model_version(self, version).current_stage

    @property
    def events(self):
        return events(self.mlflow, self)


@dataclass
class Mlflow:
    """The app, its registry, and the store of the audit trail."""

    app: Flask
    registry: Any
    store: Store
    artifacts: Path

    @property
    def client(self):
        return self.app.test_client()

    def send(self, path, **body):
        is_delete = path.endswith(("/delete", "/delete-tag"))
        method = self.client.delete if is_delete else self.client.post
        return method(f"{API}/{path}", json=body).status_code

    def model(self, policy=POLICY, versions=2):
        """Register a new model with this number of versions."""
        name = Model(f"model-{next(_numbers)}")
        name.mlflow = self
        tags = [] if policy is None else [RegisteredModelTag("onnxserve.gate.policy", policy)]
        self.registry.create_registered_model(name, tags)
        for _ in range(versions):
            folder = self.artifacts / f"{name}-{next(_numbers)}"
            folder.mkdir(parents=True)
            (folder / "MLmodel").write_text(f"model_id: {folder.name}")
            version = self.registry.create_model_version(name, str(folder))
            event = {"model": name, "version": str(version.version), "actor": FIXTURE}
            detail = {"created": version.creation_timestamp, "authors": []}
            self.store.record("register", detail=detail, **event)
        return name

    def files(self, model, version):
        return Path(self.registry.get_model_version_download_uri(model, version))

    def stands(self, model, version, gate, reason, files=None):
        """Record a verdict on a version, and set its tags. `files` is a folder with the
        files of the version.
        """
        digest = hash_folder(files or self.files(model, version))
        model_tags = self.registry.get_registered_model(model).tags
        policy_digest = parse_policy(model_tags.get(POLICY_TAG, "{}"), "the test").digest
        created = self.registry.get_model_version(model, version).creation_timestamp
        detail = {"files": digest, "policy_digest": policy_digest, "tagged": True}
        detail["created"] = created
        event = {"model": model, "version": version, "after": gate, "why": reason}
        with self.app.app_context():
            store = self.app.extensions["onnxserve"].store()
        store.record("gate", actor=FIXTURE, detail=detail, **event)
        for key, value in {"": gate, ".reason": reason, ".digest": digest}.items():
            tag = ModelVersionTag(f"onnxserve.gate{key}", value)
            self.registry.set_model_version_tag(model, version, tag)


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
        # The app must be new, because each module has its own store.
        app = importlib.reload(mlflow.server).app
        extend(app, Login(), app)
        with app.app_context():
            store = app.extensions["onnxserve"].store()
        yield Mlflow(app, handlers._get_model_registry_store(), store, folder / "models")
        store.close()


@pytest.fixture(scope="module")
def console(mlflow_app):
    """Yield the address of the console on a running server."""
    server = make_server("127.0.0.1", 0, mlflow_app.app, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}{PAGE}"
    server.shutdown()
    thread.join()


@pytest.fixture(scope="module")
def browser():
    """Yield a running Chromium."""
    with chromium() as running:
        yield running


@pytest.fixture
def started(monkeypatch):
    """Return a list that receives the jobs of the console. The jobs are not started."""
    jobs = []

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
