import json
import platform
import subprocess
from importlib.metadata import Distribution, version

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

import onnxserve
from mlflow_deploy_plugin.serve.runtime.artifact import read_artifact
from mlflow_deploy_plugin.wrap.convert.batch import Batch
from mlflow_deploy_plugin.wrap.flavor.saved_model import (
    environment_lock,
    own_requirement,
    provenance_section,
)


@pytest.fixture(scope="module", autouse=True)
def installation_is_read_once():
    """These tests change the repository."""


def test_parity_report_is_in_the_folder(folder):
    report = json.loads((folder / "parity.json").read_text())

    assert report["state"] == "proven"
    assert report["rows"] == sum(report["sources"].values()) >= 1000
    assert {1, 2, 300} <= set(report["batch_sizes"])
    assert [(output["name"], output["beyond_tolerance"]) for output in report["outputs"]] == [
        ("label", 0),
        ("probabilities", 0),
    ]
    assert read_artifact(folder).parity["rows"] == report["rows"]


def test_flavors_and_requirements(folder):
    document = yaml.safe_load((folder / "MLmodel").read_text())
    requirements = (folder / "requirements.txt").read_text().split()

    assert set(document["flavors"]) == {"onnxserve", "onnx", "python_function"}
    assert document["flavors"]["onnxserve"]["classes"] == ["down", "up"]
    assert document["metadata"] == {"team": "sky"}
    assert f"mlflow-onnxserve[cpu]=={onnxserve.__version__}" in requirements
    assert "requests" in requirements
    assert not any(line.startswith("scikit-learn") for line in requirements)


def test_conda_environment_has_exact_versions(folder):
    environment = yaml.safe_load((folder / "conda.yaml").read_text())
    python, pip, last = environment["dependencies"]

    assert environment["channels"] == ["conda-forge"]
    assert python == f"python={platform.python_version()}"
    assert pip.startswith("pip<=")  # An older pip can install the same packages.
    assert last["pip"] == (folder / "requirements.txt").read_text().splitlines()
    # a requirement of the user
    assert [line for line in last["pip"] if "==" not in line] == ["requests"]


def test_requirement_names_the_commit(tmp_path):
    origin = {
        "url": "https://git.example/onnxserve",
        "vcs_info": {"vcs": "git", "commit_id": "523f1835"},
    }
    (tmp_path / "direct_url.json").write_text(json.dumps(origin))

    requirement = own_requirement("[cpu]", Distribution.at(tmp_path))

    assert requirement == "mlflow-onnxserve[cpu] @ git+https://git.example/onnxserve@523f1835"


def test_reference_has_inputs_predictions_and_times(folder, model, table):
    artifact = read_artifact(folder)
    assert artifact.reference is not None
    reference = pq.read_table(folder / artifact.reference)

    assert reference.column_names == [
        "a",
        "b",
        "c",
        "prediction",
        "output.probabilities",
        "_event_time",
    ]
    assert reference["prediction"].to_pylist() == model.predict(table).tolist()
    assert str(reference.schema.field("_event_time").type) == "timestamp[us, tz=UTC]"
    times = [time.isoformat() for time in reference["_event_time"].to_pylist()]
    assert times[1] == "2013-01-01T01:00:00+00:00"
    section = yaml.safe_load((folder / "MLmodel").read_text())["flavors"]["onnxserve"]["reference"]
    assert section == {
        "data": "reference.parquet",
        "rows": len(times),
        "begin": times[0],
        "end": times[-1],
    }


def test_lock_lists_installed_packages_by_name(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    before = environment_lock().splitlines()

    (tmp_path / "late-1.0.dist-info").mkdir()
    (tmp_path / "late-1.0.dist-info" / "METADATA").write_text("Name: late\nVersion: 1.0\n\n")

    names = [line.partition("==")[0].lower().replace("_", "-") for line in before]
    assert all("==" in line for line in before)
    assert f"scikit-learn=={version('scikit-learn')}" in before
    assert names == sorted(names)
    assert {*environment_lock().splitlines()} - {*before} == {"late==1.0"}


def test_commit_and_changes_are_recorded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@t"]
    (tmp_path / "train.py").write_text("1")
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *arguments], check=True)

    clean = provenance_section(None, "")
    (tmp_path / "train.py").write_text("2")
    dirty = provenance_section(None, "")

    assert len(str(clean["git_commit"])) == 40
    assert (clean["git_dirty"], dirty["git_dirty"]) == (False, True)


def test_provenance_without_git_has_no_commit(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    section = provenance_section(Batch(pd.DataFrame({"a": [1]})), "x==1\n")

    assert "git_commit" not in section
    assert section["dataset_name"] == "reference"


def test_short_lists_of_categories_are_saved(tmp_path):
    table = pd.DataFrame(
        {"city": ["rome", "oslo"] * 200, "id": [f"id{number}" for number in range(400)]}
    )
    encoder = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
    model = make_pipeline(encoder, LogisticRegression()).fit(table, np.arange(400) % 2)

    onnxserve.save_model(model, tmp_path / "model", input_example=table)

    assert read_artifact(tmp_path / "model").categories == {"city": ("oslo", "rome")}
