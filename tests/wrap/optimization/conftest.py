"""A registered model `net` whose version 1 is a small network with a reference, logged
by a run.
"""

import pytest
from mlflow import MlflowClient

from mlflow_deploy_plugin.wrap.optimization import measure
from tests.support.networks import write_network
from tests.support.tracking import DEFAULT_EXPERIMENT


@pytest.fixture
def registry(tmp_path, new_mlflow, monkeypatch, new_home):
    monkeypatch.setattr(measure, "ROUND_SECONDS", 0.0005)  # These tests do not depend on speed.
    client = MlflowClient()
    client.search_experiments()
    run = client.create_run(DEFAULT_EXPERIMENT)
    client.create_registered_model("net")
    client.create_model_version(
        "net", write_network(tmp_path / "models" / "net").as_uri(), run_id=run.info.run_id
    )
    client.set_model_version_tag("net", "1", "onnxserve.training", "full: anew")
    return client
