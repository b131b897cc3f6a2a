"""Tests of the training of a student on a teacher's predictions, and of their
comparison.
"""

import re
from datetime import UTC, datetime
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient

from mlflow_deploy_plugin.core.errors import InvalidConfig, NotFound
from mlflow_deploy_plugin.wrap.evaluation.model import load_version
from projects.distill.train import Training, load_rows, train
from tests.support.classifiers import labelled, write_classifier, write_regressor, write_rows
from tests.support.inference_log import LogWriter
from tests.support.networks import write_labelled, write_network
from tests.support.refusals import mentions
from tests.support.tracking import tracking_at


@pytest.fixture
def client(tmp_path, new_database, monkeypatch):
    """A registry of teachers: `labels` and `values` of two columns with a reference,
    and `net` of tensors.
    """
    monkeypatch.setenv("ONNXSERVE_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    with tracking_at(new_database(tmp_path)):
        client = MlflowClient()
        mlflow.set_experiment(experiment_id=client.create_experiment("distill", tmp_path.as_uri()))
        reference = {name: values for name, values in labelled(600).items() if name in ("a", "b")}
        folders = {
            "labels": write_classifier(tmp_path / "teachers" / "labels", reference=reference),
            "values": write_regressor(tmp_path / "teachers" / "values", reference=reference),
            "net": write_network(tmp_path / "teachers" / "net", rows=0),
            "few": write_network(tmp_path / "teachers" / "few", rows=50),
        }
        for name, folder in folders.items():
            client.create_registered_model(name)
            client.create_model_version(name, folder.as_uri())
        yield client


def learned(client, **options):
    """Return MLflow's ModelInfo of the student and the logged table."""
    info = train(Training(**options))
    path = mlflow.artifacts.download_artifacts(
        run_id=info.run_id, artifact_path="comparison.txt", dst_path="."
    )
    return info, Path(path).read_text()


@pytest.mark.long
@pytest.mark.parametrize(("teacher", "student"), [("labels", "boosting"), ("values", "mlp")])
def test_a_student_of_a_table_agrees_with_its_teacher_and_takes_the_same_rows(
    client, teacher, student
):
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


@pytest.mark.long
def test_true_labels_are_for_the_comparison_only(client, tmp_path):
    write_rows(tmp_path / "rows.parquet", {**labelled(500), "wrong": np.zeros(500, np.int64)})
    info, table = learned(
        client,
        teacher="models:/labels/1",
        data="rows.parquet",
        target="wrong",
        registered_model="s",
    )
    assert table.splitlines()[0].endswith("100 labels")
    metrics = client.get_run(info.run_id).data.metrics
    assert metrics["student_agreement"] > 0.9
    assert metrics["student_accuracy"] == pytest.approx(metrics["teacher_accuracy"], abs=0.1)
    assert metrics["student_accuracy"] < 0.7  # The student has not learned the labels.


def test_labels_of_another_kind_are_refused_before_a_student_is_registered(client, tmp_path):
    write_rows(
        tmp_path / "rows.parquet", {**labelled(500), "said": np.array(["yes", "no"] * 250, object)}
    )
    with pytest.raises(InvalidConfig, match="one is text"):
        train(Training(teacher="models:/labels/1", data="rows.parquet", target="said"))
    assert client.search_registered_models("name = 'labels-student'") == []


@pytest.mark.long
def test_a_student_of_tensors_is_a_network(client, tmp_path):
    pytest.importorskip("torch")
    write_labelled(tmp_path / "rows.parquet", rows=600)
    info, table = learned(
        client, teacher="models:/net/1", data="rows.parquet", target="label", size=64
    )
    metrics = client.get_run(info.run_id).data.metrics
    assert metrics["student_bytes"] < metrics["teacher_bytes"]
    assert metrics["student_agreement"] > 0.6
    assert "accuracy 1.0000" in table.splitlines()[1]


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
def test_a_mistake_is_one_line(client, options, message):
    with pytest.raises(InvalidConfig) as refused:
        train(Training(**options))
    assert refused.value.message.startswith(message)


def test_student_learns_from_the_captured_rows_of_an_endpoint(client, tmp_path):
    rows = labelled(300)
    times = [datetime(2026, 11, 20, 12, tzinfo=UTC)] * 300
    columns = {"a": rows["a"], "b": rows["b"], "prediction": rows["label"], "_event_time": times}
    LogWriter(tmp_path / "home" / "inference_log").write(columns, endpoint="toy")
    training = Training(teacher="models:/labels/1", endpoint="toy", target="_label_number")
    inputs, truth, origin = load_rows(training, load_version(tmp_path / "teachers" / "labels"))
    assert inputs["a"] == pytest.approx(rows["a"])
    assert inputs.keys() == {"a", "b"}
    assert mentions(origin, "captured", "endpoint toy")
    assert truth is not None
    assert np.isnan(truth.astype(float)).all()  # No labels have arrived.


def test_an_endpoint_without_rows_has_no_student(client):
    with pytest.raises(NotFound, match="no rows"):
        train(Training(teacher="models:/labels/1", endpoint="nix"))
