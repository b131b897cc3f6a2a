"""Tests of models, MLflow's artifacts and the inference log in a bucket with a real S3
API.
"""

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.deployments import get_deploy_client

from mlflow_deploy_plugin.serve.inference_log.log_reader import open_log
from mlflow_deploy_plugin.serve.inference_log.windows import parse_window
from tests.support.models import adder, write_model
from tests.support.services.s3 import NEEDS_S3, own_bucket

COLUMN = {"name": "x", "type": "float", "required": True}

pytestmark = NEEDS_S3


@pytest.fixture(scope="module")
def bucket():
    with own_bucket() as made:
        yield made


def test_a_model_in_a_bucket_is_served_and_its_requests_are_logged_there(
    bucket, serve, tmp_path, monkeypatch
):
    for file in write_model(tmp_path / "model", signature=[COLUMN]).iterdir():
        bucket.upload_file(str(file), f"model/{file.name}")
    monkeypatch.setenv("ONNXSERVE_LOG_URI", f"s3://{bucket.name}/log")

    served = serve(f"s3://{bucket.name}/model", "--name", "adder").wait_ready()
    for x in (1.0, 2.0):
        answer = served.predict(x, X_Event_Time="2026-06-01T12:30:00Z")
        assert answer.status_code == 200
        assert answer.json() == {"predictions": [{"y": x}]}
    assert served.end() == 0, served.log.read_text()

    log = open_log(f"s3://{bucket.name}/log")
    assert log.endpoints() == ["adder"]
    rows = log.read("adder", parse_window("2026-06-01/1d"))
    assert rows is not None
    assert sorted(rows.table.column("x").to_pylist()) == [1.0, 2.0]
    assert list(tmp_path.rglob("*.parquet")) == []


def test_a_stage_whose_files_mlflow_keeps_in_a_bucket_is_deployed(bucket, tracking):
    experiment = mlflow.create_experiment(
        "in-a-bucket", artifact_location=f"s3://{bucket.name}/artifacts"
    )
    with mlflow.start_run(experiment_id=experiment):
        mlflow.onnx.log_model(
            adder(1.0),
            name="model",
            registered_model_name="from-s3",
            pip_requirements=["onnxruntime"],
        )
    MlflowClient().transition_model_version_stage("from-s3", "1", "Production")
    client = get_deploy_client("onnxserve")

    deployed = client.create_deployment("s3", "models:/from-s3/Production")
    try:
        assert deployed["model"] == "from-s3"
        assert deployed["version"] == "1"
        assert client.predict("s3", {"inputs": [[1.0]]})["predictions"] == {"y": [[2.0]]}
    finally:
        client.delete_deployment("s3")
