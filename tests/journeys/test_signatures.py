"""The journey of a signature with a real MLflow server and a real endpoint: an unsigned
or changed version is not served, and its reason is visible to users.
"""

import shutil
from dataclasses import dataclass
from html import unescape
from pathlib import Path

import numpy as np
import pytest
import requests
from mlflow import MlflowClient
from mlflow.deployments import BaseDeploymentClient
from sklearn.linear_model import LinearRegression

import mlflow_deploy_plugin
from mlflow_deploy_plugin.core.signatures import BUNDLE
from tests.support.commands import done
from tests.support.deployments import empty_home
from tests.support.keypairs import KeyFiles, write_key
from tests.support.refusals import mentions
from tests.support.services.mlflow_server import MlflowServer
from tests.support.tracking import tracking_at
from tests.support.waiting import wait_until

PATIENCE = 90.0
MODEL = "signed-line"
ROWS = np.arange(20.0).reshape(10, 2)
pytestmark = pytest.mark.long


@dataclass
class Journey:
    url: str
    client: MlflowClient
    deployments: BaseDeploymentClient
    keys: KeyFiles
    artifacts: Path

    def log(self, factor, key=None):
        """Log a version, sign it with the key, and return its folder in the artifact
        store.
        """
        info = mlflow_deploy_plugin.log_model(
            LinearRegression().fit(ROWS, ROWS.sum(axis=1) * factor),
            name="model",
            input_example=ROWS,
            registered_model_name=MODEL,
            sign=None if key is None else str(key),
        )
        (folder,) = self.artifacts.glob(f"*/models/{info.model_id}/artifacts")
        return folder

    def served(self):
        url = self.deployments.get_deployment("line")["url"]
        body = {"inputs": [[1.0, 0.0]]}
        answer = requests.post(f"{url}/invocations", json=body, timeout=30)
        assert answer.status_code == 200, answer.text
        return answer.headers["X-Model-Version"]

    def page(self):
        """Return the endpoint's page in the console as text."""
        answer = requests.get(f"{self.url}/onnxserve", {"endpoint": "line"}, timeout=60)
        assert answer.status_code == 200, answer.text
        return unescape(answer.text)

    def error_of(self, version):
        """Move the alias to the version, and return its error when it is tagged."""
        self.client.set_registered_model_alias(MODEL, "live", version)

        def error():
            tags = self.client.get_model_version(MODEL, version).tags
            return str(tags.get("onnxserve.error", ""))

        wait_until(error, PATIENCE, "the version is tagged")
        return error()


@pytest.fixture
def journey(new_database, tmp_path_factory, tmp_path):
    """Start MLflow's server with the console, which reads the store of the endpoint."""
    keys = write_key(tmp_path)
    server = MlflowServer(tmp_path_factory.mktemp("mlflow"), app="onnxserve")
    new_database(server.folder)
    with tracking_at(server.url), empty_home(tmp_path) as deployments, server.running():
        artifacts = server.folder / "artifacts"
        yield Journey(server.url, MlflowClient(), deployments, keys, artifacts)


def test_only_signed_versions_are_served(journey):
    signed = journey.log(1.0, journey.keys.key)
    assert (signed / BUNDLE).exists()
    journey.client.set_registered_model_alias(MODEL, "live", "1")
    config = {"require": f"name=true,signature={journey.keys.public}"}
    journey.deployments.create_deployment("line", f"models:/{MODEL}@live", config=config)
    assert journey.served() == "1"

    journey.log(2.0)
    unsigned = journey.error_of("2")
    assert mentions(unsigned, BUNDLE, f"onnxserve sign models:/{MODEL}/2 --key KEY")
    shown = done("list")
    assert mentions(shown, "version 2 is refused", "version 1 is still served")
    assert mentions(journey.page(), unsigned, "version 1 is still served")
    assert mentions(done("logs line"), f"models:/{MODEL}@live: version 2 is refused")

    changed = journey.log(3.0, journey.keys.key)
    shutil.copy(signed / BUNDLE, changed)
    assert mentions(journey.error_of("3"), BUNDLE, "model.onnx")
    assert journey.served() == "1"

    done(f"sign models:/{MODEL}/3 --key {journey.keys.key}")
    wait_until(lambda: journey.served() == "3", PATIENCE, "the signed version is served")
