"""Tests that `mlflow deployments predict -I FILE` sends the file's values, although
pandas reads it first.
"""

import json
from pathlib import Path

import click
import mlflow.onnx
import pandas as pd
import pytest
from click.testing import CliRunner
from mlflow.deployments.cli import commands
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, Schema

from tests.support.deployments import empty_home
from tests.support.models import parse_graph

pytestmark = pytest.mark.long  # test_client.py tests a frame that pandas has read.

RECORDS = [{"code": "007", "date": "2013-07-01"}, {"code": "1e3", "date": "7"}]
ROWS = [["007", "2013-07-01"], ["1e3", "7"]]
COLUMNS = {"code": ["007", "1e3"], "date": ["2013-07-01", "7"]}


@pytest.fixture(scope="module")
def echo(tmp_path_factory):
    """Yield a client with the deployment `echo`, which returns its two text columns
    unchanged.
    """
    folder = tmp_path_factory.mktemp("echo")
    graph = parse_graph("echo (string[N,2] x) => (string[N,2] y) { y = Identity(x) }")
    signature = ModelSignature(
        inputs=Schema([ColSpec("string", "code"), ColSpec("string", "date")])
    )
    mlflow.onnx.save_model(
        graph, folder / "model", signature=signature, pip_requirements=["onnxruntime"]
    )
    with empty_home(folder) as client:
        client.create_deployment("echo", str(folder / "model"))
        yield client


@pytest.mark.parametrize(
    "document",
    [
        {"dataframe_split": {"columns": ["date", "code"], "data": [row[::-1] for row in ROWS]}},
        {"dataframe_records": RECORDS},
        {"instances": ROWS},
        {"instances": RECORDS},
        {"inputs": ROWS},
        {"inputs": COLUMNS},
        RECORDS,
        ROWS,
        COLUMNS,
    ],
    ids=lambda document: str(document)[:32],
)
def test_texts_like_numbers_or_dates_stay_texts(echo, tmp_path, document):
    (tmp_path / "rows.json").write_text(json.dumps(document))
    typed = ["predict", "-t", "onnxserve", "--name", "echo", "-I", str(tmp_path / "rows.json")]

    result = CliRunner().invoke(commands, [*typed, "-O", str(tmp_path / "out.json")])

    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "out.json").read_text()) == {"predictions": {"y": ROWS}}
    assert CliRunner().invoke(commands, typed).stdout.startswith('{"predictions"')


def test_input_file_of_another_command_is_ignored(echo, tmp_path):
    """A request about some rows of a file is answered with only these rows."""
    (tmp_path / "rows.json").write_text(json.dumps(RECORDS))
    answered = []

    @click.command()
    @click.option("--input-path", type=Path)
    def own(input_path):
        frame = pd.read_json(input_path, dtype=str, convert_dates=False)  # type: ignore[call-overload]
        answered.extend(echo.predict("echo", frame[:1])["predictions"]["y"])

    assert CliRunner().invoke(own, ["--input-path", str(tmp_path / "rows.json")]).exit_code == 0
    assert answered == ROWS[:1]
