import json
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import yaml
from sklearn.pipeline import Pipeline

import mlflow_deploy_plugin as onnxserve
from mlflow_deploy_plugin.runtime import read_artifact


def test_parity_stands_in_the_folder(folder: Path) -> None:
    report = json.loads((folder / "parity.json").read_text())

    assert report["state"] == "proven"
    assert report["rows"] == sum(report["sources"].values()) >= 1000
    assert {1, 2, 300} <= set(report["batch_sizes"])
    assert [(output["name"], output["beyond_tolerance"]) for output in report["outputs"]] == [
        ("label", 0),
        ("probabilities", 0),
    ]
    assert read_artifact(folder).parity["rows"] == report["rows"]


def test_flavors_and_requirements(folder: Path) -> None:
    document = yaml.safe_load((folder / "MLmodel").read_text())
    requirements = (folder / "requirements.txt").read_text().split()

    assert set(document["flavors"]) == {"onnxserve", "onnx", "python_function"}
    assert document["flavors"]["onnxserve"]["classes"] == ["down", "up"]
    assert document["metadata"] == {"team": "sky"}
    assert f"mlflow-onnxserve[cpu]=={onnxserve.__version__}" in requirements
    assert "requests" in requirements
    assert not any(line.startswith("scikit-learn") for line in requirements)


def test_reference_holds_inputs_predictions_and_times(folder: Path, model: Pipeline, table: pd.DataFrame) -> None:
    artifact = read_artifact(folder)
    assert artifact.reference is not None
    reference = pq.read_table(folder / artifact.reference)

    assert reference.column_names == ["a", "b", "c", "prediction", "output.probabilities", "_event_time"]
    assert reference["prediction"].to_pylist() == model.predict(table).tolist()
    assert str(reference.schema.field("_event_time").type) == "timestamp[us, tz=UTC]"
    assert reference["_event_time"][1].as_py().isoformat() == "2013-01-01T01:00:00+00:00"
