import re
from functools import cache
from importlib import metadata
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import onnxserve
from mlflow_deploy_plugin.core.extensions import registered_in
from mlflow_deploy_plugin.wrap.flavor import saved_model
from mlflow_deploy_plugin.wrap.flavor.wrap import WrapOptions, wrap
from tests.support.tracking import tracking_at


def is_proven(model, example, **options):
    """Return True if the ONNX form of a model answers like the model."""
    return wrap(model, example, WrapOptions(**options)).report.state == "proven"


def proven(model, example, **options):
    """Wrap a model whose ONNX form answers like the model."""
    wrapped = wrap(model, example, WrapOptions(**options))
    assert wrapped.report.state == "proven"
    return wrapped


def log(model, example, **options):
    """Log a model without the time that MLflow takes to infer its requirements."""
    return onnxserve.log_model(
        model, name="model", input_example=example, pip_requirements=[], **options
    )


def operators_of(wrapped):
    """Return the operators of a wrapped model's graph in their order."""
    return [node.op_type for node in wrapped.converted.proto.graph.node]


def cases(rows, is_long=False):
    """Return the rows of a table for `parametrize`.

    A row of a list is named by the text of its first value.
    """
    if isinstance(rows, dict):
        named = list(rows.items())
    else:
        texts = [str(row[0] if isinstance(row, tuple) else row) for row in rows]
        named = [
            (" ".join(re.sub(" at 0x[0-9a-f]+", "", text).split()), row)
            for text, row in zip(texts, rows, strict=True)
        ]
    marks = [pytest.mark.long] if is_long else []
    return [
        pytest.param(*(row if isinstance(row, tuple) else (row,)), id=name, marks=marks)
        for name, row in named
    ]


_PACKAGE = "mlflow_deploy_plugin"
_READ_ONCE = {
    f"{_PACKAGE}.wrap.convert.converters.registered_in": cache(registered_in),
    f"{_PACKAGE}.wrap.flavor.saved_model.environment_lock": cache(saved_model.environment_lock),
    f"{_PACKAGE}.wrap.flavor.saved_model._git": cache(saved_model._git),
    f"{_PACKAGE}.serve.pyfunc.process.packages_distributions": cache(
        metadata.packages_distributions
    ),
}


@pytest.fixture(scope="module", autouse=True)
def installation_is_read_once():
    """Installed packages and the commit are read once, and skl2onnx does not inspect
    our 200 converters. Each would take as long as the conversion of a small model.
    """
    with pytest.MonkeyPatch.context() as patch:
        for name, read in _READ_ONCE.items():
            patch.setattr(name, read)
        for module in ("skl2onnx._parse", "skl2onnx.common._registration"):
            patch.setattr(f"{module}.check_signature", lambda *signature, **options: None)
        yield


@pytest.fixture
def saved(tmp_path):
    """A function that saves the ONNX form of a model, and loads it."""

    def save(model, example=None, **options):
        onnxserve.save_model(model, tmp_path / "model", input_example=example, **options)
        return onnxserve.load_model(str(tmp_path / "model"))

    return save


@pytest.fixture(scope="module")
def tracking(tmp_path_factory, new_database):
    """An MLflow store for the module, which is active until its last test."""
    folder = tmp_path_factory.mktemp("mlflow")
    with tracking_at(new_database(folder)), pytest.MonkeyPatch.context() as patch:
        patch.setenv(
            "MLFLOW_EXPERIMENT_ID", mlflow.create_experiment("flavor", str(folder / "artifacts"))
        )
        yield folder


@pytest.fixture(scope="session")
def weather():
    """A table of strings, floats with gaps, integers, codes and booleans, and a label
    that depends on all columns.
    """
    random = np.random.default_rng(0)
    count = 400
    table = pd.DataFrame(
        {
            "city": random.choice(["rome", "oslo", "lima"], count),
            "temperature": np.round(random.normal(size=count) * 10, 1),
            "humidity": random.uniform(0, 100, count),
            "hour": random.integers(0, 24, count),
            "weekend": random.integers(0, 2, count).astype(bool),
            "code": random.choice([3, 5, 9], count),
        }
    )
    table.loc[random.random(count) < 0.1, "temperature"] = np.nan
    score = (
        table.temperature.fillna(0) + table.hour + table.weekend * 5 + (table.city == "rome") * 10
    )
    return table, (score + random.normal(size=count) > 14).map({True: "late", False: "on time"})


@pytest.fixture(scope="session")
def matrix():
    """Numbers with one decimal, like sensor data: many rows are near the thresholds of
    trees.
    """
    random = np.random.default_rng(1)
    rows = np.round(random.normal(size=(300, 3)) * 10, 1)
    return rows, rows[:, 0] * 2 + rows[:, 1]


@pytest.fixture(scope="module")
def table():
    """Three columns of numbers, which `model` and `logged` are trained on."""
    random = np.random.default_rng(0)
    return pd.DataFrame(random.normal(size=(300, 3)), columns=["a", "b", "c"])


@pytest.fixture(scope="module")
def model(table):
    return make_pipeline(StandardScaler(), LogisticRegression()).fit(
        table, np.where(table.a > 0, "up", "down")
    )


@pytest.fixture(scope="module")
def logged(tracking, model, table):
    """A registered version, with a dataset in its run and event times
    in its reference.
    """
    times = pd.date_range("2013-01-01", periods=len(table), freq="h")
    with mlflow.start_run():
        mlflow.log_input(mlflow.data.from_pandas(table, name="training"))
        return onnxserve.log_model(
            model,
            name="model",
            registered_model_name="updown",
            input_example=table,
            event_time=times,
            metadata={"team": "sky"},
            extra_pip_requirements=["requests"],
        )


@pytest.fixture(scope="module")
def folder(logged):
    """The downloaded files of `logged`."""
    return Path(mlflow.artifacts.download_artifacts("models:/updown/1"))
