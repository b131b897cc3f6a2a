"""Tests that each project trains a small model, logs the results and registers a
version that predicts.
"""

import json
import re
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient

from projects.training import DATA_TAG, PICTURE, run_command, warn_of_chance
from tests.support.refusals import mentions
from tests.support.tracking import tracking_at

ROOT = Path(__file__).parents[2]
TEXTS = [
    f"The {animal} {verb} in the {place} with the other animals"
    for animal in ("horse", "rabbit", "goose", "badger", "otter", "raven")
    for verb in ("sleeps", "runs", "swims", "feeds", "hides")
    for place in ("meadow", "forest", "river", "garden")
] + [
    f"The {part} of the {machine} needs {action} before the engine starts"
    for part in ("piston", "valve", "gear", "cable", "pump", "filter")
    for machine in ("tractor", "lorry", "crane", "ferry", "digger")
    for action in ("cleaning", "grease", "repair", "replacing")
]
SMALL: dict[str, dict[str, Any]] = {
    "house_price": {},
    "churn": {"trees": 10},
    "text_topics": {"data": "texts.csv", "column": "body", "topics": 2},
    "image_resnet18": {"width": 8, "epochs": 2},
    "search": {"trials": 3, "rows": 1500, "months": "1", "registered_model": "flight-delay-search"},
}


@pytest.fixture
def tracking(tmp_path, new_database, monkeypatch):
    """An empty MLflow, and a current folder with a table of texts."""
    monkeypatch.chdir(tmp_path)
    with tracking_at(new_database(tmp_path)):
        mlflow.set_experiment(
            experiment_id=MlflowClient().create_experiment("projects", tmp_path.as_uri())
        )
        yield tmp_path


@pytest.mark.parametrize(
    "project",
    [
        pytest.param(name, marks=[pytest.mark.long] if name in ("image_resnet18", "search") else [])
        for name in SMALL
    ],
)
def test_a_project_logs_its_picture_and_figures_and_registers_a_proven_version(
    project, tracking, capsys
):
    if project == "image_resnet18":
        pytest.importorskip("torch")
    pd.DataFrame({"body": TEXTS}).to_csv("texts.csv", index=False)
    module = import_module(f"projects.{project}.train")
    options = (
        module.Search(**SMALL[project])
        if project == "search"
        else module.Training(**SMALL[project])
    )
    info = (module.search if project == "search" else module.train)(options)

    client = MlflowClient()
    run = client.get_run(info.run_id)
    version = client.get_model_version(options.registered_model, "1")
    assert version.tags["onnxserve.parity"] == "proven"
    assert run.data.tags[DATA_TAG] in version.description
    assert run.data.params["seed"] == "7"
    assert any(not name.startswith("onnxserve.") for name in run.data.metrics)
    artifacts = {entry.path: entry.file_size for entry in client.list_artifacts(info.run_id)}
    assert artifacts[PICTURE] > 5_000
    if project in ("house_price", "churn"):
        assert run.data.tags[DATA_TAG].split(", ") == ["synthetic data", "seed 7"]
        assert run.inputs.dataset_inputs[0].dataset.name.split(", ") == ["synthetic data", "seed 7"]
        assert "seed 7" in capsys.readouterr().out
    example = asked_by_readme(project)
    model = mlflow.pyfunc.load_model(f"models:/{options.registered_model}/1")
    if project == "image_resnet18":
        assert model.predict(example).shape == (1, 10)
    else:
        answer = model.predict(pd.DataFrame([example]))
        assert len(answer) == 1
    if project == "search":
        assert version.tags["onnxserve.gate"] == "passed"
        nested = client.search_runs(
            [run.info.experiment_id], f"tags.mlflow.parentRunId = '{info.run_id}'"
        )
        assert len(nested) == 3
        assert (
            min(trial.data.metrics["log_loss"] for trial in nested)
            == run.data.metrics["choice_log_loss"]
        )


def asked_by_readme(project):
    """Return the rows of the curl command in the README, as a table or an array."""
    command = (ROOT / "projects" / project / "README.md").read_text()
    if body := re.search(r"-d '(\{.*\})'", command):
        record = json.loads(body[1])
        return {
            name: float(value) if type(value) is int and project != "search" else value
            for name, value in record.items()
        }
    (file,) = re.findall(r"-d @(\S+)", command)
    return np.array(json.loads((ROOT / file).read_text())["inputs"], dtype=np.float32)


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("trees", "0", "a whole number from 1 is expected"),
        ("seed", "-1", "a whole number from 0 to 4294967295 is expected"),
    ],
)
def test_a_refusal_is_one_line(option, value, said, monkeypatch, capsys):
    from projects.churn.train import Training, train

    monkeypatch.setattr(sys, "argv", ["churn", f"--{option}", value])
    with pytest.raises(SystemExit) as ended:
        run_command(train, Training, "Trains.")
    assert ended.value.code == 1
    assert mentions(capsys.readouterr().err, f"{option} {value}", said)


@pytest.mark.parametrize(
    ("project", "options", "said"),
    [
        ("image_resnet18", {"side": 4}, "side 4: a whole number from 8 is expected"),
        ("text_topics", {"topics": 1}, "topics 1: a whole number from 2 is expected"),
        (
            "text_topics",
            {"data": "few.csv", "column": "body"},
            "few.csv .*: 3 texts; 10 topics need at least 200",
        ),
        ("text_topics", {"data": "few.csv"}, r"data few\.csv: specify the column, column=COLUMN"),
        ("search", {"trials": 0}, "trials 0: a number above 0 is expected"),
        (
            "search",
            {"minutes": 1e-9, "months": "1", "rows": 500},
            "minutes 1e-09: the time was over before the first",
        ),
    ],
)
def test_invalid_training_options_are_refused_at_once(project, options, said, tracking):
    from mlflow_deploy_plugin.core.errors import InvalidConfig

    if project == "image_resnet18":
        pytest.importorskip("torch")
    pd.DataFrame({"body": ["one", "two", "three"]}).to_csv("few.csv", index=False)
    module = import_module(f"projects.{project}.train")
    kind, train = (
        (module.Search, module.search) if project == "search" else (module.Training, module.train)
    )
    with pytest.raises(InvalidConfig, match=said):
        train(kind(**options))


def test_docstrings_are_read_without_importing_the_library():
    from projects.text_topics.train import docstrings

    texts = docstrings("flask")
    assert len(texts) > 50
    assert min(len(text.split()) for text in texts) >= 40
    assert docstrings("no_such_library") == []


@pytest.mark.parametrize(("accuracy", "warns"), [(0.139, True), (0.95, False)])
def test_a_classifier_at_the_level_of_chance_is_warned_of(accuracy, warns, capsys):
    warn_of_chance(accuracy, np.arange(360) % 10)

    warning = capsys.readouterr().err
    assert bool(warning) is warns
    assert not warns or {"0.139", "0.100", "epochs"} <= set(re.findall(r"[\w.]+", warning))
