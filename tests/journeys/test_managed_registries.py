"""Servers that follow an alias of Unity Catalog, or of MLflow in SageMaker."""

import os

import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient
from sklearn.linear_model import LinearRegression

import mlflow_deploy_plugin
from tests.support.commands import done
from tests.support.servers import single_model
from tests.support.services.s3 import s3_server
from tests.support.services.sagemaker import APP, FOLDER, NEEDS_PLUGIN, SERVER, sagemaker
from tests.support.services.unity_catalog import unity_catalog
from tests.support.tracking import tracking_at
from tests.support.waiting import wait_until

pytestmark = pytest.mark.long

MODEL = "main.default.flights"


def follow(serve, move):
    served = serve(f"models:/{MODEL}@champion").wait_ready()
    first = served.predict(1.0, 2.0, 3.0)
    assert first.headers["X-Model-Name"] == MODEL
    assert first.json()["predictions"][0] == pytest.approx([7.0])
    move()
    wait_until(
        lambda: served.predict(1.0, 2.0, 3.0).json()["predictions"][0] == pytest.approx([8.0]), 30
    )


def test_registered_version_is_promoted_in_unity_catalog(
    serve, tmp_path, monkeypatch, new_database
):
    rows = pd.DataFrame(np.eye(4, 3), columns=["a", "b", "c"])
    promote = f"promote models:/{MODEL}/%s --to @champion"
    with (
        s3_server() as bucket,
        unity_catalog(bucket, monkeypatch) as catalog,
        tracking_at(new_database(tmp_path)),
    ):
        for bias in (1.0, 2.0):
            mlflow_deploy_plugin.log_model(
                LinearRegression().fit(rows, rows.sum(axis=1).to_frame() + bias),
                input_example=rows,
                registered_model_name=MODEL,
                tags={"onnxserve.cause": "drift"},
            )
        assert catalog.models[MODEL]["versions"]["2"]["onnxserve__cause"] == "drift"
        done(promote % 1)
        catalog.busy = 1
        follow(serve, lambda: done(promote % 2))


@NEEDS_PLUGIN
@pytest.mark.parametrize("arn", [SERVER, APP], ids=["server", "app"])
def test_server_follows_alias_in_sagemaker(serve, tmp_path, mlflow_server, monkeypatch, arn):
    client = MlflowClient(mlflow_server.url, mlflow_server.url)
    client.create_registered_model(MODEL)
    with s3_server() as bucket, sagemaker(mlflow_server.url, arn, monkeypatch):
        for number in (1, 2):
            for path in single_model(tmp_path / str(number), float(number)).iterdir():
                bucket.objects[f"bucket/{number}/{path.name}"] = path.read_bytes()
            client.create_model_version(MODEL, f"s3://bucket/{number}")
        client.set_registered_model_alias(MODEL, "champion", "1")
        monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", bucket.url)
        monkeypatch.setenv("PYTHONPATH", f"{FOLDER}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
        follow(serve, lambda: client.set_registered_model_alias(MODEL, "champion", "2"))
    client.delete_registered_model(MODEL)
