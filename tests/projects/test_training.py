"""Tests that each project trains a small model, logs the results and registers a
version that predicts.
"""

import json
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient

from mlflow_deploy_plugin.core.errors import InvalidConfig
from tests.support.cases import long_case
from tests.support.refusals import refused

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
}


@pytest.fixture
def tracking(tmp_path, new_mlflow):
    """An empty MLflow, and a current folder with a table of texts."""
    mlflow.set_experiment(
        experiment_id=MlflowClient().create_experiment("projects", tmp_path.as_uri())
    )
    return tmp_path


@pytest.mark.parametrize(
    "project",
    [
        "house_price",
        long_case("churn"),
        long_case("text_topics"),
        long_case("image_resnet18"),
    ],
)
def test_training_registers_a_proven_version(project, tracking):
    if project == "image_resnet18":
        pytest.importorskip("torch")
    pd.DataFrame({"body": TEXTS}).to_csv("texts.csv", index=False)
    from projects.training import DATA_TAG, PICTURE

    module = import_module(f"projects.{project}.train")
    options = module.Training(**SMALL[project])
    info = module.train(options)

    client = MlflowClient()
    run = client.get_run(info.run_id)
    version = client.get_model_version(options.registered_model, "1")
    assert version.tags["onnxserve.parity"] == "proven"
    assert run.data.tags[DATA_TAG] in version.description
    assert run.data.params["seed"] == "7"
    assert PICTURE in {entry.path for entry in client.list_artifacts(info.run_id)}
    answer = mlflow.pyfunc.load_model(info.model_uri).predict(asked_by_readme(project))
    assert len(answer) == 1


def asked_by_readme(project):
    """Return the rows of the curl command in the README, as a table or an array."""
    command = (ROOT / "projects" / project / "README.md").read_text()
    if body := re.search(r"-d '(\{.*\})'", command):
        record = json.loads(body[1])
        numbers = {name: float(value) for name, value in record.items() if type(value) is int}
        return pd.DataFrame([record | numbers])
    (file,) = re.findall(r"-d @(\S+)", command)
    return np.array(json.loads((ROOT / file).read_text())["inputs"], dtype=np.float32)


@pytest.mark.parametrize(
    ("project", "options", "names"),
    [
        ("text_topics", {"topics": 1}, ("topics 1", "from 2")),
        ("text_topics", {"data": "few.csv", "column": "body"}, ("few.csv", "3 texts")),
        ("text_topics", {"data": "few.csv"}, ("data few.csv", "column=COLUMN")),
        ("churn", {"trees": 0}, ("trees 0", "from 1")),
    ],
)
def test_invalid_training_options_are_refused(project, options, names, tracking):
    pd.DataFrame({"body": ["one", "two", "three"]}).to_csv("few.csv", index=False)
    module = import_module(f"projects.{project}.train")
    with refused(InvalidConfig, *names):
        module.train(module.Training(**options))


@pytest.mark.parametrize(("accuracy", "warns"), [(0.139, True), (0.95, False)])
def test_chance_level_accuracy_is_warned_about(accuracy, warns, capsys):
    from projects.training import warn_of_chance

    warn_of_chance(accuracy, np.arange(360) % 10)

    warning = capsys.readouterr().err
    assert bool(warning) is warns
    assert not warns or {"0.139", "0.100", "epochs"} <= set(re.findall(r"[\w.]+", warning))
