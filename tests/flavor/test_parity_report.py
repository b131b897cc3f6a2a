import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from mlflow.models import Model
from sklearn.linear_model import LinearRegression, LogisticRegression

from mlflow_deploy_plugin.flavor.convert.sklearn import forms
from mlflow_deploy_plugin.flavor.mlmodel import write_mlmodel
from mlflow_deploy_plugin.flavor.parity import RowGroup, prove_parity
from mlflow_deploy_plugin.flavor.parity_report import parity_error
from mlflow_deploy_plugin.flavor.signature import signature_of
from mlflow_deploy_plugin.runtime import OnnxModel


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return pd.DataFrame(np.random.default_rng(0).normal(size=(50, 2)), columns=["a", "b"])


def _saved(model: Any, table: Any, folder: Any) -> tuple[Any, ...]:
    converted = forms(model, table, "predict")[0]()
    signature = signature_of(table, model.predict(table))
    write_mlmodel(folder, Model(signature=signature), converted, "predict", {})
    return OnnxModel.load(folder), converted


@pytest.fixture
def regressor(table: pd.DataFrame, tmp_path: Path) -> tuple[OnnxModel, Any]:
    return _saved(LinearRegression().fit(table, table.a * 3), table, tmp_path)


@pytest.fixture
def classifier(table: pd.DataFrame, tmp_path: Path) -> tuple[OnnxModel, Any]:
    return _saved(LogisticRegression().fit(table, table.a > 0), table, tmp_path)


def test_refusal_shows_the_worst_rows_as_a_table(regressor: tuple[OnnxModel, Any], table: pd.DataFrame) -> None:
    model, converted = regressor
    wrong = replace(converted, original=lambda batch: {"prediction": batch.a.to_numpy() * 4})

    lines = parity_error(prove_parity(model, wrong, [RowGroup("example", table, generated=False)])).message.splitlines()

    assert lines[0].startswith("the ONNX form answers otherwise than the original; prediction: ")
    assert lines[1].split() == ["source", "output", "original", "onnx", "input"]
    assert all(line.startswith("  example  prediction  ") and "a=" in line for line in lines[2:7])


def test_metrics_have_names_that_mlflow_takes(classifier: tuple[OnnxModel, Any], table: pd.DataFrame) -> None:
    metrics = prove_parity(*classifier, [RowGroup("example", table, generated=False)]).metrics()

    assert metrics["onnxserve.parity.rows"] == 50
    assert metrics["onnxserve.parity.label.agreement"] == 1
    assert "onnxserve.parity.probabilities.max_relative_error" in metrics


def test_infinite_error_is_still_json(regressor: tuple[OnnxModel, Any], table: pd.DataFrame) -> None:
    model, converted = regressor
    missing = replace(converted, original=lambda batch: {"prediction": np.full(len(batch), np.nan)})

    report = prove_parity(model, missing, [RowGroup("example", table, generated=False)])

    assert report.outputs[0].max_absolute_error == np.inf
    assert json.loads(json.dumps(report.as_dict(), allow_nan=False))["outputs"][0]["max_absolute_error"] == "inf"
