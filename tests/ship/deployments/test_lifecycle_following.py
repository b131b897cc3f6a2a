"""Tests of a deployment that follows a stage, and that keeps its registry when it is
started from another shell.
"""

from contextlib import closing
from pathlib import Path

import mlflow.onnx
import mlflow.pyfunc
import onnx
import pytest
from mlflow import MlflowClient

from mlflow_deploy_plugin.core.settings import load_settings
from mlflow_deploy_plugin.core.store.database import open_store
from mlflow_deploy_plugin.ship.deployments.lifecycle import Deployments
from tests.support.tracking import tracking_at
from tests.support.traffic import Traffic
from tests.support.waiting import wait_until


@pytest.fixture
def registry(tmp_path, new_database, models):
    """Create a registry with the model `sum`: version 1, in Production, returns a + b,
    and version 2 its double.
    """
    with tracking_at(new_database(tmp_path)):
        client = MlflowClient()
        experiment = mlflow.create_experiment("sums", artifact_location=str(tmp_path / "artifacts"))
        with mlflow.start_run(experiment_id=experiment):
            for folder in (models.once, models.twice):
                mlflow.onnx.log_model(
                    onnx.load(Path(folder) / "model.onnx"),
                    name="model",
                    registered_model_name="sum",
                    signature=mlflow.models.get_model_info(folder).signature,
                    pip_requirements=["onnxruntime"],
                )
        client.transition_model_version_stage("sum", "1", "Production")
        yield client


@pytest.mark.long
def test_conversion_to_alias_fails_no_request(client, registry, monkeypatch):
    monkeypatch.setenv("ONNXSERVE_POLL_SECONDS", "0.2")
    created = client.create_deployment("s", "models:/sum/Production")
    traffic = Traffic(created["url"], width=2)
    traffic.start()
    wait_until(lambda: traffic.answers, what="a request is answered")

    settings = load_settings()
    with closing(open_store(settings.store_url)) as store:
        Deployments(store, settings, lambda line: None).follow_alias("s", "champion")
    converted = client.get_deployment("s")
    log = Path(converted["log"]).read_text()
    # The endpoint no longer follows the stage.
    registry.transition_model_version_stage("sum", "2", "Production")
    answered = traffic.answers.total()
    wait_until(
        lambda: traffic.answers.total() > answered + 50,
        what="requests are answered after the conversion",
    )
    before = traffic.last_version
    registry.set_registered_model_alias("sum", "champion", "2")
    wait_until(lambda: traffic.last_version == "2", 60, "the alias is followed")
    traffic.stop()

    assert created["pid"] == converted["pid"]
    assert created["version"] == converted["version"]
    assert converted["alias"] == "champion"
    assert converted["error"] == ""
    assert before == "1"
    assert set(traffic.answers) == {("1", 200), ("2", 200)}  # No request failed.
    assert log.count("loaded sum 1") == 1  # The conversion loaded no version.
