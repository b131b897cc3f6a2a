"""Tests of the output of `onnxserve wrap`. See tests/wrap/flavor/test_registered.py for
the conversion.
"""

import json
from collections.abc import Callable

import mlflow
import pandas as pd
import pytest
from click.testing import CliRunner, Result
from sklearn.linear_model import LinearRegression

from mlflow_deploy_plugin.cli.commands import main
from tests.support.pmml import needs_java, write_pmml
from tests.support.refusals import mentions
from tests.support.tracking import tracking_at

Command = Callable[..., Result]


@pytest.fixture(scope="module")
def wrapped(tmp_path_factory, new_database):
    """Return the command with a registry that contains models:/old/1, in a folder with
    rows.csv and model.pkl.
    """
    folder = tmp_path_factory.mktemp("wrap")
    table = pd.DataFrame({"a": [1.0, 2.0, 4.0], "b": [0.5, 0.1, 0.9]})
    table.to_csv(folder / "rows.csv", index=False)
    (folder / "model.pkl").write_bytes(b"hello")
    with pytest.MonkeyPatch.context() as patch, tracking_at(new_database(folder)):
        patch.chdir(folder)
        model = LinearRegression().fit(table, [1.0, 2.0, 3.0])
        mlflow.set_experiment(
            experiment_id=mlflow.create_experiment("old", str(folder / "artifacts"))
        )
        options = {"input_example": table, "pip_requirements": ["scikit-learn"]}
        mlflow.sklearn.log_model(model, name="model", registered_model_name="old", **options)
        yield lambda *arguments: CliRunner().invoke(main, ["wrap", *arguments])


@pytest.mark.long
def test_the_new_version_is_shown_with_its_proof_and_the_next_step(wrapped):
    done = wrapped("models:/old/1", "--data", "rows.csv")
    assert done.exit_code == 0, done.output
    first, *lines = done.stdout.splitlines()
    assert first.startswith(
        "old version 2: the ONNX form of models:/old/1 (LinearRegression of sklearn "
    )
    assert first.endswith(" rows")
    assert lines[0].split() == ["input", "X", "float32", "[-1,", "2]", "2", "columns"]
    assert lines[1].split()[:5] == ["output", "prediction", "float32", "[-1]", "agrees"]
    assert lines[-1].split() == [
        "next:",
        "onnxserve",
        "promote",
        "models:/old/2",
        "--to",
        "@champion",
    ]
    assert done.stderr.splitlines()[:2] == [
        "reading models:/old/1",
        "converting and proving a LinearRegression",
    ]


@pytest.mark.long
def test_a_dry_run_as_json_has_form_and_figures_and_no_version(wrapped):
    done = wrapped("models:/old/1", "--dry-run", "-o", "json")
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document["source"] == "models:/old/1"
    assert document["name"] == "old"
    assert document["version"] is None
    assert document["inputs"] == [{"name": "X", "dtype": "float32", "shape": [-1, 2]}]
    assert document["parity"]["state"] == "proven"


@pytest.mark.long
@needs_java
def test_a_pmml_file_is_shown_with_its_fields(wrapped, tmp_path):
    file = write_pmml(tmp_path)
    done = wrapped(str(file), "--register", "delay")
    assert done.exit_code == 0, done.output
    first, *lines = done.stdout.splitlines()
    assert first.startswith(f"delay version 1: the pyfunc of {file} (")
    assert [line.split()[:3] for line in lines[:3]] == [
        ["input", "carrier", "str"],
        ["input", "distance", "float64"],
        ["output", "delay", "float64"],
    ]
    file.write_text("hello")
    refused = wrapped(str(file), "--register", "delay")
    assert refused.exit_code == 1
    assert refused.stdout == ""
    assert mentions(refused.stderr.splitlines()[-1], str(file), "prolog")


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (("model.pkl", "--register", "x"), ["model.pkl", "--allow-pickle"]),
        (("model.pkl", "--allow-pickle"), ["model.pkl", "--register NAME"]),
        (("rows.csv", "--register", "x"), ["rows.csv", ".joblib, .pkl, .pickle, .keras"]),
        (("models:/old/9",), ["model old", "version 9", "versions: 1"]),
        (("models:/old/1", "--data", "no.csv"), ["file no.csv", "No such file"]),
        (
            ("models:/old/1", "--data", "model.pkl"),
            ["model.pkl", ".csv, .json, .jsonl or .parquet"],
        ),
        (("nowhere", "--register", "x"), ["the folder", "nowhere"]),
        (("old",), ["the folder", "old"]),
    ],
)
def test_a_mistake_is_one_line(arguments, names, wrapped):
    done = wrapped(*arguments)
    assert done.exit_code == 1
    assert done.stdout == ""
    assert mentions(done.stderr.splitlines()[-1], "Error", *names)
