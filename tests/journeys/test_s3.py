"""Test of MLflow's artifacts in a bucket with a real S3 API."""

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.deployments import get_deploy_client

from tests.support.models import adder
from tests.support.services.s3 import NEEDS_S3, own_bucket

pytestmark = NEEDS_S3


@pytest.fixture(scope="module")
def bucket():
    with own_bucket() as made:
        yield made


def test_stage_with_files_in_bucket_is_deployed(bucket, tracking):
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
