"""Tests of the training of a student on a teacher's predictions, and of their
comparison.
"""

import re
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient

from mlflow_deploy_plugin.core.errors import InvalidConfig
from projects.distill.train import Training, train
from tests.support.classifiers import labelled, write_classifier, write_regressor
from tests.support.networks import write_network


@pytest.fixture
def client(tmp_path, new_mlflow, new_home):
    """A registry of teachers: `labels` and `values` of two columns with a reference,
    and `few` with 50 rows.
    """
    client = MlflowClient()
    mlflow.set_experiment(experiment_id=client.create_experiment("distill", tmp_path.as_uri()))
    reference = {name: values for name, values in labelled(600).items() if name in ("a", "b")}
    folders = {
        "labels": write_classifier(tmp_path / "teachers" / "labels", reference=reference),
        "values": write_regressor(tmp_path / "teachers" / "values", reference=reference),
        "few": write_network(tmp_path / "teachers" / "few", rows=50),
    }
    for name, folder in folders.items():
        client.create_registered_model(name)
        client.create_model_version(name, folder.as_uri())
    return client


def learned(client, **options):
    """Return MLflow's ModelInfo of the student and the logged table."""
    info = train(Training(**options))
    path = mlflow.artifacts.download_artifacts(
        run_id=info.run_id, artifact_path="comparison.txt", dst_path="."
    )
    return info, Path(path).read_text()


@pytest.mark.long
@pytest.mark.parametrize(("teacher", "student"), [("labels", "boosting"), ("values", "mlp")])
def test_student_agrees_with_teacher(client, teacher, student):
    info, table = learned(client, teacher=f"models:/{teacher}/1", student=student)
    version = client.get_model_version(f"{teacher}-student", "1")
    assert version.tags["onnxserve.distilled_from"] == f"models:/{teacher}/1"
    assert version.tags["onnxserve.parity"] == "proven"
    metrics = client.get_run(info.run_id).data.metrics
    assert metrics["student_agreement"] > 0.9
    assert metrics["teacher_agreement"] == 1.0
    assert re.search(r"^student +\d+ kB +[\d,]+ µs +[\d,]+ µs +\d+\.\d+%$", table, re.MULTILINE)
    answer = mlflow.pyfunc.load_model(info.model_uri).predict(
        pd.DataFrame({"a": [3.0], "b": [-1.0]})
    )
    assert np.ravel(answer)[0] > 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"teacher": "models:/labels/1", "student": "tree"},
            "student 'tree' is neither boosting nor mlp",
        ),
        (
            {"teacher": "models:/labels/1", "size": -1},
            "size -1: a whole number above 0 is expected",
        ),
        (
            {"teacher": "models:/few/1"},
            "the reference of the teacher: 50 rows; a student needs 200 or more",
        ),
        (
            {"teacher": "models:/labels/1", "target": "y"},
            "the reference of the teacher has no column 'y'",
        ),
    ],
)
def test_invalid_options_are_refused(client, options, message):
    with pytest.raises(InvalidConfig) as refused:
        train(Training(**options))
    assert refused.value.message.startswith(message)
