"""MLflow's server with the console and MLflow's basic auth, its accounts, roles and models."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import mlflow
import pytest
import requests
from mlflow import MlflowClient

from mlflow_deploy_plugin.store import Store, open_store
from tests.support.classifiers import write_classifier
from tests.support.services.mlflow_server import MlflowServer

_CONFIG = """[mlflow]
default_permission = NO_PERMISSIONS
database_uri = sqlite:///{folder}/users.db
admin_username = admin
admin_password = password-of-admin
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
"""
_numbers = itertools.count(1)


@dataclass
class People:
    """A server with accounts, and the store of its audit trail."""

    server: MlflowServer
    store: Store
    folder: Path

    @contextmanager
    def logged_in(self, user: str) -> Iterator[MlflowClient]:
        """Use the credentials of the user in MLflow's client and in commands."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MLFLOW_TRACKING_USERNAME", user)
            patch.setenv("MLFLOW_TRACKING_PASSWORD", password(user))
            yield MlflowClient()

    def administer(self, path: str, **body: object) -> dict[str, dict[str, object]]:
        url = f"{self.server.url}/api/{path}"
        answer = requests.post(url, json=body, auth=("admin", password("admin")), timeout=60)
        answer.raise_for_status()
        content: dict[str, dict[str, object]] = answer.json()
        return content

    def add_role(self, role: str, *users: str) -> None:
        """Create a role that may read all registered models, and assign it to the users."""
        created = self.administer("3.0/mlflow/roles/create", workspace="default", name=role)["role"]["id"]
        allowed = {"resource_type": "registered_model", "resource_pattern": "*", "permission": "READ"}
        self.administer("3.0/mlflow/roles/permissions/add", role_id=created, **allowed)
        for user in users:
            self.administer("3.0/mlflow/roles/assign", username=user, role_id=created)

    def register(self, user: str, policy: str, parity: str = "proven") -> str:
        """Register a model with this gate policy and a version as the user, and return its name."""
        name = f"toy-{next(_numbers)}"
        with self.logged_in(user) as client:
            experiment = client.create_experiment(name)
            client.create_registered_model(name, tags={"onnxserve.gate.policy": policy})
            run = client.create_run(experiment)
            client.log_artifacts(run.info.run_id, str(write_classifier(self.folder / name, parity=parity)), "model")
            client.create_model_version(name, f"{run.info.artifact_uri}/model", run.info.run_id)
        return name


def password(user: str) -> str:
    return f"password-of-{user}"


@contextmanager
def people(folder: Path, new_database: Callable[[Path], str], *users: str) -> Iterator[People]:
    """Run a server with these accounts, and make it the MLflow of this process."""
    new_database(folder)
    (folder / "auth.ini").write_text(_CONFIG.format(folder=folder))
    server = MlflowServer(folder, app="onnxserve-basic-auth")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ONNXSERVE_HOME", str(folder / "home"))
        patch.setenv("MLFLOW_AUTH_CONFIG_PATH", str(folder / "auth.ini"))
        patch.setenv("MLFLOW_FLASK_SERVER_SECRET_KEY", "a key of sixteen bytes or more")
        patch.setenv("MLFLOW_AUTH_ADMIN_PASSWORD", password("admin"))
        patch.setenv("MLFLOW_BASIC_AUTH_FAIL_CLOSED", "true")
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        server.start()
        store = open_store(f"sqlite:///{folder / 'home' / 'onnxserve.db'}")
        try:
            patch.setenv("MLFLOW_TRACKING_URI", server.url)
            mlflow.set_tracking_uri(server.url)
            found = People(server, store, folder)
            for user in users:
                found.administer("2.0/mlflow/users/create", username=user, password=password(user))
            yield found
        finally:
            mlflow.set_tracking_uri(None)  # type: ignore[arg-type]
            store.close()
            server.kill()
