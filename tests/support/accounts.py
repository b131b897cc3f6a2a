"""People with accounts on MLflow's server with its basic auth,
their roles and models.
"""

import itertools
from contextlib import closing, contextmanager
from dataclasses import dataclass

import pytest
import requests
from mlflow import MlflowClient

from mlflow_deploy_plugin.core.store.database import open_store
from mlflow_deploy_plugin.core.store.store import Store
from tests.support.classifiers import write_classifier
from tests.support.services.basic_auth import basic_auth_server, password
from tests.support.services.mlflow_server import MlflowServer
from tests.support.tracking import tracking_at

_numbers = itertools.count(1)


@dataclass
class People:
    """A server with accounts, and the store of its audit trail."""

    server: MlflowServer
    store: Store

    @contextmanager
    def logged_in(self, user):
        """Use the credentials of the user in MLflow's client and in commands."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MLFLOW_TRACKING_USERNAME", user)
            patch.setenv("MLFLOW_TRACKING_PASSWORD", password(user))
            yield MlflowClient()

    def add_role(self, role, *users, permission="READ", of="registered_model", pattern="*"):
        """Create a role with a permission, which may read all registered models by
        default, and assign it to the users.
        """
        created = self._administer("create", workspace="default", name=role)["role"]["id"]
        allowed = {"resource_type": of, "resource_pattern": pattern, "permission": permission}
        self._administer("permissions/add", role_id=created, **allowed)
        for user in users:
            self._administer("assign", username=user, role_id=created)

    def _administer(self, path, **body):
        url = f"{self.server.url}/api/3.0/mlflow/roles/{path}"
        admin = ("admin", password("admin"))
        answer = requests.post(url, json=body, auth=admin, timeout=60)
        answer.raise_for_status()
        return answer.json()

    def register(self, user, policy, parity="proven"):
        """Register a model with this gate policy and a version as the user, and return
        its name.
        """
        name = f"toy-{next(_numbers)}"
        with self.logged_in(user) as client:
            client.create_registered_model(name, tags={"onnxserve.gate.policy": policy})
            run = client.create_run(client.create_experiment(name))
            folder = write_classifier(self.server.folder / name, parity=parity)
            client.log_artifacts(run.info.run_id, str(folder), "model")
            client.create_model_version(name, f"{run.info.artifact_uri}/model", run.info.run_id)
        return name


@contextmanager
def people(folder, new_database, *users):
    """Run a server with these accounts. It is the MLflow of this process, and both use
    the same store.
    """
    new_database(folder)
    with (
        basic_auth_server(folder, *users) as server,
        pytest.MonkeyPatch.context() as patch,
        tracking_at(server.url),
    ):
        patch.setenv("ONNXSERVE_HOME", str(folder / "home"))
        with closing(open_store(f"sqlite:///{folder / 'home' / 'onnxserve.db'}")) as store:
            yield People(server, store)
