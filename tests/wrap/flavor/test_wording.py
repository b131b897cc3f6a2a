"""The wording of errors for models that cannot be wrapped."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import Ridge

import mlflow_deploy_plugin as onnxserve
from tests.support.messages import message_of
from tests.support.models import parse_graph

ROWS = np.arange(40, dtype=np.float32).reshape(20, 2)
TABLE = pd.DataFrame(ROWS, columns=["a", "b"])
TARGET = ROWS.sum(1)
LINE = Ridge().fit(TABLE, TARGET)
GRAPH = parse_graph("g (float[N,2] x) => (float[N,2] y) { y = Identity(x) }")


def _save(model, example=None, **options):
    onnxserve.save_model(model, "model", input_example=example, **options)


MESSAGES: dict[str, tuple[Callable[[], object], str]] = {
    "no model": (
        lambda: _save({}),
        (
            "builtins.dict cannot be converted to ONNX: its framework is not supported; supported "
            "are catboost, keras, lightgbm, onnx, sentence_transformers, sklearn, statsmodels, "
            "tensorflow, torch, transformers, xgboost. Log it with "
            "mlflow.pyfunc.log_model(python_model=…) in a mlflow.pyfunc.PythonModel and deploy it "
            "with the same command; it is then served as pyfunc."
        ),
    ),
    "no example": (
        lambda: _save(Ridge().fit(ROWS, TARGET)),
        "input_example: a scikit-learn model needs an example for its columns and their types",
    ),
    "a model that is not fitted": (
        lambda: _save(Ridge(), ROWS),
        "the Ridge is not fitted: call fit before logging it",
    ),
    "an example of another kind": (
        lambda: _save(LINE, object()),
        (
            "input_example: a scikit-learn model needs a DataFrame or an array [rows, columns], "
            "not a object"
        ),
    ),
    "random answers": (
        lambda: _save(DummyClassifier(strategy="stratified").fit(ROWS, TARGET > 40), ROWS),
        (
            "DummyClassifier cannot be converted to ONNX: DummyClassifier with "
            "strategy='stratified': its predictions are random. "
            "Log it with mlflow.sklearn.log_model(…, "
            'serialization_format="cloudpickle") and deploy it with the same command; '
            "it is then served as "
            "pyfunc."
        ),
    ),
    "a column of another name": (
        lambda: _save(GRAPH, pd.DataFrame({"z": [1.0]})),
        "input_example: its columns ['z'] are not the graph's inputs ['x']",
    ),
    "no graph": (
        lambda: _save(Path("nowhere/model.onnx")),
        "not a valid ONNX model: [Errno 2] No such file or directory: 'nowhere/model.onnx'",
    ),
    "a reference without a column": (
        lambda: _save(LINE, TABLE, reference_data=TABLE[["a"]]),
        "reference_data: 'b' is missing, but the example has it",
    ),
    "a column of times that is none": (
        lambda: _save(LINE, TABLE, event_time=np.arange(20)),
        "event_time: 0 is a number; convert it with pandas.to_datetime(…, unit='s')",
    ),
    "a name that MLflow refuses": (
        lambda: onnxserve.wrap_model("models:/nobody/1", register="a/b"),
        "'a/b' is not a valid name for a registered model: / and : are not allowed",
    ),
}


@pytest.mark.parametrize(("cause", "message"), MESSAGES.values(), ids=MESSAGES)
def test_a_refusal_names_the_model_and_a_remedy(cause, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message_of(cause) == message
