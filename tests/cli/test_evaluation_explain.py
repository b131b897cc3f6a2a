"""Tests of the output of `onnxserve explain`. See tests/wrap/evaluation for the
explanations.
"""

import json

import pandas as pd
import pytest
from click.testing import CliRunner

from mlflow_deploy_plugin.cli.commands import main
from tests.support.classifiers import labelled, write_classifier, write_rows
from tests.support.refusals import mentions


@pytest.fixture
def command(tmp_path):
    write_classifier(tmp_path / "model")
    write_rows(tmp_path / "rows.parquet", labelled(60))

    def run(*arguments):
        data = ["--data", str(tmp_path / "rows.parquet"), "--max-rows", "10"]
        return CliRunner().invoke(main, ["explain", str(tmp_path / "model"), *data, *arguments])

    return run


def test_columns_are_lines_by_their_importance(command, tmp_path):
    rows = tmp_path / "rows.jsonl"
    folder = tmp_path / "out"
    done = command("--target", "label", "--contributions", str(rows), "--folder", str(folder))
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0].split("  ")[:2] == ["column", "mean |SHAP|"]
    assert mentions(lines[0], "accuracy")
    assert [line.split()[0] for line in lines[1:3]] == ["a", "b"]
    assert lines[3:] == [
        "10 rows explained by permutations against 10 rows of data, seed 0",
        f"contributions in {rows}",
        f"4 files in {folder}",
    ]
    assert done.stderr.splitlines() == ["explaining 10 rows", "permuting 2 columns of 60 rows"]
    assert len(pd.read_json(rows, lines=True)) == 20


def test_the_importance_is_json_for_programs(command):
    document = json.loads(command("-o", "json").stdout)
    assert [entry["column"] for entry in document["importance"]] == ["a", "b"]
    assert document["importance"][0]["permutation"] is None


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["--contributions", "rows.txt"], ["rows.txt", ".csv, .json, .jsonl or .parquet"]),
        (["--target", "gone"], ["'gone'", "a, b, label, value"]),
        (["--max-evals", "2"], ["max_evals is 2", "5"]),
    ],
)
def test_a_mistake_is_one_line_and_exit_status_1(command, arguments, names):
    done = command(*arguments)
    assert done.exit_code == 1
    assert mentions(done.stderr, *names)
    assert done.stderr.startswith("Error: ")
    assert len(done.stderr.splitlines()) == 1


def test_folder_that_cannot_be_made_is_one_line(command):
    done = command("--folder", "/dev/null/out")
    assert done.exit_code == 1
    assert mentions(done.stderr.splitlines()[-1], "Error", "/dev/null/out", "Not a directory")
