import json
from pathlib import Path
from typing import Any

import mlflow
import mlflow.onnx
import numpy as np
import onnxruntime
import pandas as pd
import pytest
from mlflow.models import Model
from mlflow.models.model import ModelInfo
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import TunedThresholdClassifierCV
from sklearn.pipeline import Pipeline

import mlflow_deploy_plugin as onnxserve
from mlflow_deploy_plugin.errors import ParityError
from mlflow_deploy_plugin.runtime import read_artifact


def test_parity_shows_on_run_model_and_version(logged: ModelInfo) -> None:
    client = mlflow.MlflowClient()
    run = client.get_run(logged.run_id)

    assert run.data.tags["onnxserve.parity"] == "proven"
    assert client.get_logged_model(logged.model_id).tags["onnxserve.parity"] == "proven"
    assert client.get_model_version("updown", "1").tags["onnxserve.parity"] == "proven"
    assert run.data.metrics["onnxserve.parity.rows"] >= 1000
    assert run.data.metrics["onnxserve.parity.label.agreement"] == 1
    assert run.data.metrics["onnxserve.parity.probabilities.max_absolute_error"] < 1e-4


def test_signature_and_example_come_from_the_data(folder: Path) -> None:
    model = Model.load(folder)
    example = json.loads((folder / "serving_input_example.json").read_text())

    assert [(spec.name, spec.type.name) for spec in model.signature.inputs.inputs] == [
        ("a", "double"),
        ("b", "double"),
        ("c", "double"),
    ]
    assert example["dataframe_split"]["columns"] == ["a", "b", "c"]
    assert len(example["dataframe_split"]["data"]) == 5


def test_provenance_names_commit_dataset_and_environment(folder: Path, logged: ModelInfo) -> None:
    provenance = read_artifact(folder).provenance
    dataset = mlflow.get_run(logged.run_id).inputs.dataset_inputs[0].dataset

    assert len(provenance["git_commit"]) == 40
    assert provenance["dataset_digest"] == dataset.digest
    assert provenance["dataset_name"] == "training"
    assert f"onnxruntime=={onnxruntime.__version__}" in (folder / provenance["environment"]).read_text()


def test_stock_onnx_flavor_loads_the_same_model(logged: ModelInfo, model: Pipeline, table: pd.DataFrame) -> None:
    proto = mlflow.onnx.load_model(logged.model_uri)

    session = onnxruntime.InferenceSession(proto.SerializeToString())
    labels = session.run(["label"], {"X": table.to_numpy(np.float32)})[0]
    assert labels.tolist() == model.predict(table).tolist()


def test_load_model_gives_the_ready_model(logged: ModelInfo, model: Pipeline, table: pd.DataFrame) -> None:
    loaded = onnxserve.load_model("models:/updown/1")

    answers = loaded.run(loaded.schema.from_columns({str(name): table[name].to_numpy() for name in table}))
    np.testing.assert_allclose(answers["probabilities"], model.predict_proba(table), atol=1e-6)


def test_probabilities_as_prediction(model: Pipeline, table: pd.DataFrame, tmp_path: Path) -> None:
    onnxserve.save_model(model, tmp_path / "model", input_example=table, pyfunc_predict_fn="predict_proba")

    found = mlflow.pyfunc.load_model(str(tmp_path / "model")).predict(table)
    np.testing.assert_allclose(found, model.predict_proba(table), atol=1e-6)


@pytest.fixture(scope="module")
def unfaithful(table: pd.DataFrame) -> Any:
    """Its tuned threshold is silently lost in the conversion."""
    rare = (table.a > 1.2).astype(int)
    return TunedThresholdClassifierCV(LogisticRegression(C=0.01), scoring="balanced_accuracy", cv=2).fit(table, rare)


def test_unfaithful_model_leaves_nothing_in_mlflow(tracking: Path, unfaithful: Any, table: pd.DataFrame) -> None:
    before = len(mlflow.search_logged_models(output_format="list"))

    with mlflow.start_run(), pytest.raises(ParityError):
        onnxserve.log_model(unfaithful, name="model", input_example=table, registered_model_name="lossy")

    assert len(mlflow.search_logged_models(output_format="list")) == before
    assert mlflow.MlflowClient().search_registered_models("name = 'lossy'") == []


def test_unfaithful_model_is_logged_as_warned_on_request(
    tracking: Path, unfaithful: Any, table: pd.DataFrame, caplog: pytest.LogCaptureFixture
) -> None:
    with mlflow.start_run():
        info = onnxserve.log_model(
            unfaithful, name="model", input_example=table, registered_model_name="lossy", parity="warn"
        )

    assert mlflow.MlflowClient().get_model_version("lossy", "1").tags["onnxserve.parity"] == "warned"
    assert onnxserve.load_model(info.model_uri).artifact.parity_state == "warned"


def test_without_a_run_the_model_itself_carries_the_parity(
    tracking: Path, model: Pipeline, table: pd.DataFrame
) -> None:
    info = onnxserve.log_model(model, name="model", input_example=table)

    assert mlflow.MlflowClient().get_logged_model(info.model_id).tags["onnxserve.parity"] == "proven"
