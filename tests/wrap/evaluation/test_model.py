import os
import subprocess
import sys
import threading
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.models import infer_signature
from sklearn.linear_model import LogisticRegression

from mlflow_deploy_plugin.core.errors import InferenceError, InvalidArtifact, SchemaMismatch
from mlflow_deploy_plugin.core.registry.resolution import resolve
from mlflow_deploy_plugin.wrap.evaluation.model import chunk_rows, downloaded_version, load_version
from tests.support.classifiers import COLUMNS, labelled, write_classifier
from tests.support.models import graph_tensor, tensor_column, write_model
from tests.support.refusals import refused

ROWS = labelled(12_000)


def test_classifier_has_labels_and_probabilities(tmp_path):
    # predicted in several chunks
    answers = load_version(write_classifier(tmp_path / "model")).predict(ROWS)
    assert answers.is_label
    assert (answers.prediction == ROWS["label"]).mean() > 0.9
    assert answers.probabilities is not None
    assert answers.probabilities.shape == (12_000, 2)
    assert answers.classes == (0, 1)


def test_stock_onnx_is_read(tmp_path):
    graph = """g (float[N,1] x) => (int64[N] y, float[N,2] p) <int64[1] last = {1}> {
        p = Concat <axis = 1> (x, x)
        s = Squeeze(x, last)
        y = Cast <to = 7> (s) }"""
    answers = load_version(write_model(tmp_path / "model", graph)).predict(
        {"x": np.ones((3, 1), dtype=np.float32)}
    )
    assert answers.is_label
    assert answers.probabilities is not None
    assert answers.probabilities.shape == (3, 2)


def test_texts_of_a_graph_are_labels(tmp_path):
    graph = "g (string[N,2] s) => (string[N,2] t) { t = Identity(s) }"
    section = {
        "inputs": [{"name": "s", "dtype": "str", "shape": [-1, 2]}],
        "outputs": [graph_tensor("t", "str", -1, 2, role="values")],
        "prediction": ["t"],
    }
    signature = [tensor_column("str", -1, 2, name="s")]
    model = load_version(write_model(tmp_path / "model", graph, signature, section))

    predictions = model.predict({"s": np.array([["no", "yes"]], object)})

    assert predictions.is_label
    assert predictions.prediction.tolist() == [["no", "yes"]]


def test_pyfunc_predicts_with_mlflow(tmp_path):
    table = pd.DataFrame({name: ROWS[name][:500] for name in COLUMNS})
    model = LogisticRegression().fit(table, ROWS["label"][:500])
    mlflow.sklearn.save_model(
        model,
        tmp_path / "model",
        signature=infer_signature(table, model.predict(table)),
        pip_requirements=[],
        serialization_format="cloudpickle",
    )
    loaded = load_version(tmp_path / "model")
    # Integers are accepted for a double column.
    answers = loaded.predict({**ROWS, "a": ROWS["a"].astype(int)})
    assert answers.is_label
    assert len(answers) == 12_000
    with refused(SchemaMismatch, "'b' is missing"):
        loaded.predict({"a": ROWS["a"]})
    with refused(InferenceError, "cannot compute"):
        loaded.predict({"a": ROWS["a"][:2], "b": np.array(["x", "y"], dtype=object)})


def test_foreign_rows_and_folders_are_refused(tmp_path):
    with refused(SchemaMismatch, "a, b"):
        load_version(write_classifier(tmp_path / "model")).predict({"z": np.zeros(3)})
    with refused(InvalidArtifact):
        load_version(tmp_path)


def test_hanging_model_is_given_up(tmp_path, monkeypatch):
    class Hanging(mlflow.pyfunc.PythonModel):
        def predict(self, context: Any, model_input: Any) -> list[Any]:
            if len(model_input) > 1:
                threading.Event().wait()
            return [0]

    mlflow.pyfunc.save_model(tmp_path / "model", python_model=Hanging(), pip_requirements=[])
    loaded = load_version(tmp_path / "model")
    assert loaded.predict({"a": np.zeros(1)}).prediction.tolist() == [0]
    monkeypatch.setattr("mlflow_deploy_plugin.wrap.evaluation.model.TIMEOUT_SECONDS", 0.1)
    with refused(InferenceError, "within 0.1 s"):
        loaded.predict({"a": np.zeros(2)})
    with refused(InferenceError, "the model hangs"):
        loaded.predict({"a": np.zeros(1)})


@pytest.mark.parametrize(
    ("shape", "size"),
    [((10, 3), 5_000), ((10, 3, 224, 224), 26), ((10, 3000, 3000), 1), ((0,), 5_000)],
)
def test_large_rows_have_small_chunks(shape, size):
    assert chunk_rows({"x": np.broadcast_to(np.float32(0), shape)}) == size


KILLED = """
import os, signal, sys
from mlflow_deploy_plugin.wrap.evaluation.model import downloaded_version
from mlflow_deploy_plugin.core.registry.resolution import resolve
with downloaded_version(resolve(sys.argv[1])):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_leftover_copy_is_removed(tmp_path, monkeypatch):
    model = write_classifier(tmp_path / "model")
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    where = os.environ | {"TMPDIR": str(tmp_path / "tmp")}
    subprocess.run([sys.executable, "-c", KILLED, str(model)], env=where, check=False, timeout=60)
    (left,) = (path for path in (tmp_path / "tmp").glob("onnxserve-*") if path.is_dir())
    with downloaded_version(resolve(str(model))):
        assert not left.exists()
