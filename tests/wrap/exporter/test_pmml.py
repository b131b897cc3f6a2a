"""A PMML export is made from the fitted model, and gives the same answers as the served
version.
"""

from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.cluster import KMeans
from sklearn.compose import make_column_transformer
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

import mlflow_deploy_plugin as onnxserve
from mlflow_deploy_plugin.core.errors import (
    CodeRefused,
    ConversionError,
    InvalidConfig,
    NotInstalled,
    ParityError,
)
from mlflow_deploy_plugin.wrap.exporter.pmml import served_outputs
from mlflow_deploy_plugin.wrap.flavor.save import save_model
from tests.support.pmml import needs_java
from tests.support.random_rows import normal_rows
from tests.support.refusals import refused
from tests.support.tracking import NewDatabase, tracking_at

_OPTIONS = {"pip_requirements": ["scikit-learn"], "serialization_format": "cloudpickle"}


def save_sklearn(model: object, folder: Path, rows: object) -> str:
    mlflow.sklearn.save_model(model, str(folder), input_example=rows, **_OPTIONS)
    return str(folder)


def evaluate(path: Path, rows: pd.DataFrame) -> pd.DataFrame:
    from jpmml_evaluator import make_evaluator

    return make_evaluator(path).evaluateAll(rows)


@pytest.fixture(scope="module")
def flights() -> pd.DataFrame:
    random = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "carrier": random.choice(["UA", "AA", "DL"], 60),
            "distance": random.normal(1000, 300, 60),
            "hour": random.integers(0, 24, 60),
            "holiday": random.random(60) > 0.5,
        },
    )


@pytest.fixture(scope="module")
def fitted(flights: pd.DataFrame) -> Pipeline:
    columns = make_column_transformer(
        (OneHotEncoder(handle_unknown="ignore"), ["carrier"]),
        (StandardScaler(), ["distance", "hour"]),
        remainder="passthrough",
    )
    late = np.where(flights["hour"] > 12, "late", "on time")
    return make_pipeline(columns, LogisticRegression()).fit(flights, late)


@pytest.mark.long
@needs_java
def test_the_file_has_the_columns_and_the_answers_of_the_version(
    fitted: Pipeline,
    flights: pd.DataFrame,
    tmp_path: Path,
) -> None:
    uri = save_sklearn(fitted, tmp_path / "flights", flights[:20])
    exported = onnxserve.export(uri, "pmml", tmp_path / "flights.pmml")

    assert exported.rows == 520
    assert exported.max_error < 1e-5
    answers = evaluate(exported.path, flights)
    assert list(answers["y"]) == list(fitted.predict(flights))
    assert np.allclose(answers["probability(late)"], fitted.predict_proba(flights)[:, 0])
    assert b"Timestamp" not in exported.path.read_bytes()


@pytest.mark.long
@needs_java
def test_a_wrapped_version_is_exported_from_the_model_from_which_it_was_wrapped(
    fitted: Pipeline,
    flights: pd.DataFrame,
    tmp_path: Path,
    new_database: NewDatabase,
) -> None:
    with tracking_at(new_database(tmp_path)):
        mlflow.set_experiment(
            experiment_id=mlflow.create_experiment("flights", str(tmp_path / "artifacts")),
        )
        options = {**_OPTIONS, "input_example": flights[:20], "registered_model_name": "flights"}
        mlflow.sklearn.log_model(fitted, name="model", **options)
        onnxserve.wrap_model("models:/flights/1", data=flights)
        path = tmp_path / "flights.pmml"
        original = "models:/flights/1"
        with refused(
            CodeRefused,
            f"--original {original}",
        ):  # The tag of a version alone must not run code.
            onnxserve.export("models:/flights/2", "pmml", path)
        exported = onnxserve.export("models:/flights/2", "pmml", path, original=original)

    assert exported.name == "flights"
    assert exported.version == "2"


@pytest.mark.long
@needs_java
@pytest.mark.parametrize("library", ["xgboost", "lightgbm"])
@pytest.mark.parametrize("is_booster", [False, True])
def test_boosters_are_exported_with_missing_values(
    library: str,
    is_booster: bool,
    tmp_path: Path,
) -> None:
    module = pytest.importorskip(library)
    rows = pd.DataFrame(
        normal_rows(60, 3).astype(np.float32),
        columns=["a", "b c", "d"],
    )
    rows.iloc[::5, 0] = np.nan
    labels = (rows["d"] > 0).astype(int)
    name = {"xgboost": "XGBClassifier", "lightgbm": "LGBMClassifier"}[library]
    model = getattr(module, name)(n_estimators=3).fit(rows, labels)
    if is_booster:
        model = model.get_booster() if library == "xgboost" else model.booster_
    folder = tmp_path / "model"
    saved = {"input_example": rows, "pip_requirements": [library]}
    getattr(mlflow, library).save_model(model, str(folder), **saved)

    exported = onnxserve.export(str(folder), "pmml", tmp_path / "model.pmml")
    assert exported.max_error < 1e-5
    assert "probability(1)" in evaluate(exported.path, rows)


@pytest.mark.long
@needs_java
def test_a_clustering_is_exported_with_its_clusters(tmp_path: Path) -> None:
    rows = pd.DataFrame(
        normal_rows(40, 2)
        + np.repeat(
            [[0, 9], [9, 0]],
            20,
            axis=0,
        ),
    )
    rows = rows.set_axis(["a", "b"], axis=1)
    model = KMeans(2, random_state=0).fit(rows)
    exported = onnxserve.export(
        save_sklearn(model, tmp_path / "model", rows),
        "pmml",
        tmp_path / "model.pmml",
    )
    assert (
        evaluate(exported.path, rows)["cluster"].astype(int).tolist()
        == model.predict(rows).tolist()
    )


@pytest.mark.long
@needs_java
def test_a_model_of_an_array_is_exported_with_numbered_fields(tmp_path: Path) -> None:
    rows = normal_rows(40, 3)
    model = LinearRegression().fit(
        rows,
        rows @ [[1, 2], [3, 4], [5, 6]],
    )
    exported = onnxserve.export(
        save_sklearn(model, tmp_path / "model", rows),
        "pmml",
        tmp_path / "model.pmml",
    )

    answers = evaluate(
        exported.path,
        pd.DataFrame(rows, columns=["x1", "x2", "x3"]),
    )
    assert np.allclose(answers[["y1", "y2"]], model.predict(rows), atol=1e-5)


@pytest.mark.long
@needs_java
def test_a_model_without_a_pmml_form_is_refused_with_the_reason(tmp_path: Path) -> None:
    rows = normal_rows(40, 3)
    uri = save_sklearn(
        RandomForestClassifier(3).fit(rows, rows[:, :2] > 0),
        tmp_path / "model",
        rows,
    )
    with refused(
        ConversionError,
        "sklearn2pmml",
        "RandomForestClassifier",
        "multi label",
    ) as refusal:
        onnxserve.export(uri, "pmml", tmp_path / "m.pmml")
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "m.pmml").exists()


@pytest.mark.long
@needs_java
def test_another_original_is_refused_by_its_answers(
    fitted: Pipeline,
    flights: pd.DataFrame,
    tmp_path: Path,
    new_database: NewDatabase,
) -> None:
    with tracking_at(new_database(tmp_path)):
        mlflow.set_experiment(
            experiment_id=mlflow.create_experiment("flights", str(tmp_path / "artifacts")),
        )
        other = clone(fitted).fit(
            flights,
            np.where(flights["hour"] > 6, "late", "on time"),
        )
        info = mlflow.sklearn.log_model(
            other,
            name="model",
            input_example=flights[:20],
            **_OPTIONS,
        )
        save_model(fitted, tmp_path / "flights", input_example=flights)
        with refused(ParityError, "label"):
            onnxserve.export(
                str(tmp_path / "flights"),
                "pmml",
                tmp_path / "flights.pmml",
                original=info.model_uri,
            )
    assert not (tmp_path / "flights.pmml").exists()


@needs_java
def test_a_version_without_an_original_names_the_remedy(forest: Path, tmp_path: Path) -> None:
    with refused(InvalidConfig, str(forest), "mlflow.sklearn.log_model"):
        onnxserve.export(str(forest), "pmml", tmp_path / "forest.pmml")


def test_without_java_the_package_is_named(
    forest: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with refused(NotInstalled, "Java", "default-jre-headless"):
        onnxserve.export(str(forest), "pmml", tmp_path / "forest.pmml")


def test_pmml_fields_become_the_outputs_of_the_served_model() -> None:
    fields = {
        "y": np.array([1, 0]),
        "probability(0)": np.array([0.2, 0.7]),
        "probability(1)": np.array([0.8, 0.3]),
    }
    roles = {"label": "label", "probabilities": "probabilities", "scores": "values"}
    expected = {
        name: np.zeros(shape, np.float32)
        for name, shape in zip(roles, [(2,), (2, 2), (2, 3)], strict=True)
    }
    outputs = served_outputs(fields, roles, expected)

    # PMML has no field with three values per row.
    assert list(outputs) == [
        "label",
        "probabilities",
    ]
    assert outputs["label"].tolist() == [1, 0]
    assert np.allclose(
        outputs["probabilities"],
        [
            [0.2, 0.8],
            [0.7, 0.3],
        ],
    )
    booster = served_outputs(
        fields,
        {"prediction": "values"},
        {"prediction": np.zeros(2, np.float32)},
    )
    assert np.allclose(booster["prediction"], [0.8, 0.3])
