"""Tests of the output of `onnxserve diff`. See tests/promote/evidence for the
comparison.
"""

import json
from collections.abc import Callable

import pytest
from click.testing import CliRunner, Result
from mlflow import MlflowClient

from mlflow_deploy_plugin.cli.commands import main
from tests.support.classifiers import registered_toy
from tests.support.commands import said
from tests.support.refusals import mentions
from tests.support.tracking import tracking_at

Command = Callable[..., Result]


@pytest.fixture(scope="module")
def toy(tmp_path_factory, new_database):
    """The command, on a registry whose `toy` 1 and 2 are proven, and 3 is not."""
    folder = tmp_path_factory.mktemp("diff")
    with tracking_at(new_database(folder)):
        registered_toy(MlflowClient(), folder)
        MlflowClient().create_registered_model("other")
        MlflowClient().create_model_version("other", (folder / "0").as_uri())
        example = {"dataframe_split": {"columns": ["a", "b"], "data": [[1.0, 0.0]]}}
        (folder / "2" / "serving_input_example.json").write_text(json.dumps(example))
        yield lambda *arguments: CliRunner().invoke(main, ["diff", *arguments])


def test_only_changed_facts_are_rows_unless_all_are_asked_for(toy):
    done = toy("models:/toy/1", "models:/toy/3")
    assert done.exit_code == 0, done.output
    lines = [line.split() for line in done.stdout.splitlines()]
    assert lines[0][:2] == ["version", "3"]
    assert lines[1] == ["SECTION", "NAME", "models:/toy/1", "models:/toy/3", "TREND"]
    assert lines[2:6] == [
        ["parity", "state", "proven", "warned"],
        ["OUTPUT", "CHANGED", "ROWS", "LARGEST", "DIFFERENCE"],
        ["label", "0", "of", "1", "–"],
        ["probabilities", "0", "of", "1", "0"],
    ]
    assert mentions(done.stdout, "onnxserve gate models:/toy/3")
    assert ["parity", "rows", "1000", "1000"] in [
        line.split() for line in toy("models:/toy/1", "models:/toy/3", "--all").stdout.splitlines()
    ]


def test_json_has_the_values_as_numbers(toy):
    document = json.loads(toy("models:/toy/1", "models:/toy/3", "--all", "-o", "json").stdout)
    operator = {
        "section": "graph",
        "name": "operator MatMul",
        "before": 1,
        "after": 1,
        "is_changed": False,
        "trend": "",
    }
    assert operator in document["rows"]
    assert document["sentence"].startswith("version 3 is neither better nor worse")
    assert document["disagreement"] == 0.0
    assert document["predictions"][1] == {
        "output": "probabilities",
        "rows": 1,
        "changed_rows": 0,
        "largest": 0.0,
    }
    document = json.loads(toy("models:/toy/1", "models:/toy/2", "-o", "json").stdout)
    assert document["rows"] == []
    assert mentions(document["predictions"]["reason"], "input_example")


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (("models:/toy/1", "models:/other/1"), ("toy", "other")),
        (("models:/toy/1", "models:/toy/9"), ("toy", "9")),
        (("models:/toy/1", "runs:/abc/model"), ("abc",)),
    ],
)
def test_a_wrong_version_is_one_line(toy, arguments, names):
    assert mentions(said(toy(*arguments)), *names)
