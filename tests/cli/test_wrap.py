"""Tests of the output of `onnxserve wrap`. See tests/wrap/flavor/test_registered.py for
the conversion.
"""

import mlflow
import pandas as pd
import pytest
from mlflow import MlflowClient

from tests.support.commands import done, onnxserve, told
from tests.support.pmml import needs_java, write_pmml
from tests.support.refusals import mentions
from tests.support.tracking import tracking_at


@pytest.fixture(scope="module", autouse=True)
def registry(tmp_path_factory, new_database):
    """A registry with models:/lost/1, and a folder with rows.csv and model.pkl."""
    folder = tmp_path_factory.mktemp("wrap")
    table = pd.DataFrame({"a": [1.0, 2.0, 4.0], "b": [0.5, 0.1, 0.9]})
    table.to_csv(folder / "rows.csv", index=False)
    (folder / "model.pkl").write_bytes(b"hello")
    with pytest.MonkeyPatch.context() as patch, tracking_at(new_database(folder)):
        patch.chdir(folder)
        client = MlflowClient()
        client.create_registered_model("lost")
        client.create_model_version("lost", "s3://nowhere/model")
        yield table


@pytest.fixture(scope="module")
def old(registry):
    """The linear model models:/old/1."""
    from sklearn.linear_model import LinearRegression

    model = LinearRegression().fit(registry, [1.0, 2.0, 3.0])
    experiment = mlflow.create_experiment("old", "artifacts")
    mlflow.set_experiment(experiment_id=experiment)
    options = {"input_example": registry, "pip_requirements": ["scikit-learn"]}
    mlflow.sklearn.log_model(model, name="model", registered_model_name="old", **options)


@pytest.mark.long
def test_new_version_has_a_parity_proof(old):
    done = onnxserve("wrap models:/old/1 --data rows.csv")
    assert done.exit_code == 0, done.output
    first, *lines = done.stdout.splitlines()
    assert mentions(first, "old version 2", "models:/old/1", "LinearRegression of sklearn", "rows")
    assert lines[0].split() == ["input", "X", "float32", "[-1,", "2]", "2", "columns"]
    assert lines[1].split()[:5] == ["output", "prediction", "float32", "[-1]", "agrees"]
    assert mentions(lines[-1], "next", "onnxserve promote models:/old/2 --to @champion")
    assert done.stderr.splitlines()[:2] == [
        "reading models:/old/1",
        "converting and proving a LinearRegression",
    ]


@pytest.mark.long
def test_dry_run_creates_no_version(old):
    document = told("wrap models:/old/1 --dry-run")
    assert document["source"] == "models:/old/1"
    assert document["name"] == "old"
    assert document["version"] is None
    assert document["inputs"] == [{"name": "X", "dtype": "float32", "shape": [-1, 2]}]
    assert document["parity"]["state"] == "proven"


@pytest.mark.long
@needs_java
def test_pmml_file_has_its_fields(tmp_path):
    file = write_pmml(tmp_path)
    shown = done(f"wrap {file} --register delay")
    first, *lines = shown.splitlines()
    assert mentions(first, "delay version 1", "pyfunc", str(file))
    assert [line.split()[:3] for line in lines[:3]] == [
        ["input", "carrier", "str"],
        ["input", "distance", "float64"],
        ["output", "delay", "float64"],
    ]


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ("model.pkl --register x", ["model.pkl", "--allow-pickle"]),
        ("model.pkl --allow-pickle", ["model.pkl", "--register NAME"]),
        ("rows.csv --register x", ["rows.csv", ".joblib, .pkl, .pickle, .keras"]),
        ("models:/lost/9", ["model lost", "version 9", "versions: 1"]),
        ("models:/lost/1 --data no.csv", ["file no.csv", "No such file"]),
        (
            "models:/lost/1 --data model.pkl",
            ["model.pkl", ".csv, .json, .jsonl or .parquet"],
        ),
        ("lost", ["the folder", "lost"]),
    ],
)
def test_impossible_wrap_is_refused(arguments, names):
    done = onnxserve(f"wrap {arguments}")
    assert done.exit_code == 1
    assert done.stdout == ""
    assert mentions(done.stderr.splitlines()[-1], "Error", *names)
