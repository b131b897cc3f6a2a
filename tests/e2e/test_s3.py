"""Tests of models, MLflow's artifacts and the inference log in a bucket with a real S3 API."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient
from mlflow.deployments import get_deploy_client

from mlflow_deploy_plugin.serve.inference_log.reader import open_log
from mlflow_deploy_plugin.serve.inference_log.windows import parse_window
from mlflow_deploy_plugin.ship.batch.run import BatchPlan, run_batch
from tests.support.models import adder, write_model
from tests.support.services.mlflow_server import MlflowServer
from tests.support.services.s3 import NEEDS_S3, own_bucket
from tests.support.serving import Served

COLUMN = {"name": "x", "type": "float", "required": True}

pytestmark = NEEDS_S3


@pytest.fixture(scope="module")
def bucket() -> Iterator[Any]:
    with own_bucket() as made:
        yield made


def test_a_model_in_a_bucket_is_served_and_its_requests_are_logged_there(
    bucket: Any, serve: Callable[..., Served], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file in write_model(tmp_path / "model", signature=[COLUMN]).iterdir():
        bucket.upload_file(str(file), f"model/{file.name}")
    monkeypatch.setenv("ONNXSERVE_LOG_URI", f"s3://{bucket.name}/log")

    served = serve("-m", f"s3://{bucket.name}/model", "--name", "adder").wait_ready()
    for x in (1.0, 2.0):
        answer = served.predict(x, X_Event_Time="2026-06-01T12:30:00Z")
        assert (answer.status_code, answer.json()) == (200, {"predictions": [{"y": x}]})
    assert served.end() == 0, served.log.read_text()

    log = open_log(f"s3://{bucket.name}/log")
    assert log.endpoints() == ["adder"]
    rows = log.read("adder", parse_window("2026-06-01/1d"))
    assert rows is not None
    assert sorted(rows.table.column("x").to_pylist()) == [1.0, 2.0]
    assert list(tmp_path.rglob("*.parquet")) == []


def test_a_stage_whose_files_mlflow_keeps_in_a_bucket_is_deployed(bucket: Any, tracking: MlflowServer) -> None:
    experiment = mlflow.create_experiment("in-a-bucket", artifact_location=f"s3://{bucket.name}/artifacts")
    with mlflow.start_run(experiment_id=experiment):
        mlflow.onnx.log_model(
            adder(1.0), name="model", registered_model_name="from-s3", pip_requirements=["onnxruntime"]
        )
    MlflowClient().transition_model_version_stage("from-s3", "1", "Production")
    client = get_deploy_client("onnxserve")

    deployed = client.create_deployment("s3", "models:/from-s3/Production")
    try:
        assert (deployed["model"], deployed["version"]) == ("from-s3", "1")
        assert client.predict("s3", {"inputs": [[1.0]]})["predictions"] == {"y": [[2.0]]}
    finally:
        client.delete_deployment("s3")


def test_a_batch_goes_from_bucket_to_bucket_and_goes_on_there(bucket: Any, tmp_path: Path) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text("id,x\n" + "".join(f"{row},{row / 2}\n" for row in range(50_000)))
    for day in (1, 2):
        bucket.upload_file(str(rows), f"in/day={day}/rows.csv")
    model = write_model(tmp_path / "model", signature=[COLUMN])
    plan = BatchPlan(
        str(model), f"s3://{bucket.name}/in", f"s3://{bucket.name}/out", ("id",), output_format="parquet", workers=2
    )

    assert run_batch(plan).progress.rows == 100_000
    bucket.Object("out/day=2/rows.parquet").delete()
    again = run_batch(plan)

    assert (again.progress.rows, again.progress.finished_before) == (50_000, 1)
    entries = (entry.key for entry in bucket.objects.filter(Prefix="out/"))
    # Arrow leaves an empty object for a folder in which it deletes files.
    made = sorted(key for key in entries if not key.endswith("/"))
    assert made == ["out/_SUCCESS", "out/_batch.json", "out/day=1/rows.parquet", "out/day=2/rows.parquet"]
    bucket.download_file("out/day=2/rows.parquet", str(tmp_path / "made.parquet"))
    assert pq.read_table(tmp_path / "made.parquet").to_pydict() == {
        "id": [str(row) for row in range(50_000)],
        "y": [row / 2 for row in range(50_000)],
    }
