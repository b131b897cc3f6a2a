"""Files with a trained model, and files without a model."""

import pickle
import sys

import mlflow
import pandas as pd
import pytest
import sklearn
from sklearn.pipeline import Pipeline

import mlflow_deploy_plugin as onnxserve
from mlflow_deploy_plugin.core.errors import (
    ConversionError,
    InvalidArtifact,
    InvalidConfig,
    NotFound,
    NotInstalled,
)
from mlflow_deploy_plugin.wrap.flavor.registered import load_file, load_folder


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        (
            "text.txt",
            b"hello",
            InvalidConfig,
            "text.txt is not a model: the file name must end with .joblib",
        ),
        (
            "text.pkl",
            b"hello",
            InvalidArtifact,
            "text.pkl cannot be loaded as a joblib or pickle file",
        ),
        (
            "map.pkl",
            b"\x80\x04}\x94.",
            InvalidArtifact,
            r"map.pkl does not contain a model, but an object of type dict",
        ),
        ("gone.pkl", None, NotFound, "the file .*gone.pkl does not exist"),
        ("text.onnx", b"hello", ConversionError, "not a valid ONNX model: Error parsing message"),
    ],
)
def test_an_invalid_model_file_is_refused_in_one_line(
    name, content, error, message, table, tmp_path
):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(error, match=message) as caught:
        onnxserve.wrap_model(str(tmp_path / name), "x", data=table, allow_pickle=True)
    assert "\n" not in str(caught.value)


def test_a_pickle_of_another_version_is_loaded_with_a_warning(model, tmp_path):
    old = pickle.dumps(model).replace(sklearn.__version__.encode(), b"1.0.2")
    (tmp_path / "old.pkl").write_bytes(old)
    loaded = load_file(tmp_path / "old.pkl", allow_pickle=True)
    assert type(loaded.model) is Pipeline
    assert loaded.warnings == (
        f"it was saved by scikit-learn 1.0.2 ({sklearn.__version__} is installed)",
    )


@pytest.mark.long
def test_the_flavor_of_the_folder_loads_its_model(model, tmp_path):
    options = {"pip_requirements": ["scikit-learn"], "pyfunc_predict_fn": "predict_proba"}
    mlflow.sklearn.save_model(model, tmp_path / "saved", **options)
    loaded = load_folder(tmp_path / "saved", "it")
    assert type(loaded.model) is Pipeline
    assert loaded.predict_fn == "predict_proba"
    assert loaded.warnings == ()


class Rule:
    def predict(self, rows: pd.DataFrame) -> pd.Series:  # type: ignore[type-arg]
        return rows.sum(axis=1)


def test_a_model_of_no_framework_is_not_asked_for_rows(tmp_path):
    options = {"pip_requirements": ["scikit-learn"], "serialization_format": "cloudpickle"}
    mlflow.sklearn.save_model(Rule(), tmp_path / "saved", **options)

    with pytest.raises(ConversionError, match=r"Rule .*framework is not supported.*pyfunc"):
        load_folder(tmp_path / "saved", "it")


def test_a_model_of_a_flavor_without_a_converter_is_not_loaded(tmp_path):
    mlmodel = mlflow.models.Model(
        flavors={
            "python_function": {"loader_module": "mlflow.spark", "data": "sparkml"},
            "spark": {"model_data": "sparkml", "pyspark_version": "4.0.1"},
        }
    )
    mlmodel.save(str(tmp_path / "MLmodel"))

    unknown = (
        r"a model of mlflow.spark cannot be converted .*supported are catboost.*; "
        r"it can be served as pyfunc without"
    )
    with pytest.raises(ConversionError, match=unknown):
        load_folder(tmp_path, "it")


def test_a_framework_that_is_not_installed_is_named_with_the_command_that_installs_it(
    tmp_path, monkeypatch
):
    for name in ("xgboost", "xgboost.sklearn"):
        monkeypatch.setitem(sys.modules, name, None)
    (tmp_path / "model.pkl").write_bytes(b"cxgboost.sklearn\nXGBRegressor\n.")
    mlmodel = mlflow.models.Model(
        flavors={
            "python_function": {"loader_module": "mlflow.xgboost", "data": "model.ubj"},
            "xgboost": {"data": "model.ubj", "model_class": "xgboost.sklearn.XGBRegressor"},
        }
    )
    mlmodel.save(str(tmp_path / "MLmodel"))

    for load in (
        lambda: load_file(tmp_path / "model.pkl", allow_pickle=True),
        lambda: load_folder(tmp_path, "it"),
    ):
        with pytest.raises(NotInstalled, match=r"xgboost.*'mlflow-onnxserve\[sklearn\]' xgboost$"):
            load()
