"""Tests of the output of `onnxserve robustness`. See tests/wrap/evaluation for the
curves.
"""

import json

import pytest
from click.testing import CliRunner

from mlflow_deploy_plugin.cli.commands import main
from tests.support.classifiers import labelled, write_classifier, write_rows
from tests.support.refusals import mentions
from tests.support.tracking import tracking_at


@pytest.fixture
def command(tmp_path, new_database):
    write_classifier(tmp_path / "model")
    write_rows(tmp_path / "rows.parquet", labelled(300))

    def run(*arguments):
        data = ["--data", str(tmp_path / "rows.parquet"), "--target", "label"]
        return CliRunner().invoke(main, ["robustness", str(tmp_path / "model"), *data, *arguments])

    with tracking_at(new_database(tmp_path)):
        yield run


def test_report_has_a_line_per_strength_and_a_reason_for_unmeasurable_disturbances(
    command, tmp_path
):
    done = command(
        "--strengths", "noise=0.1,2", "--strengths", "typos", "--folder", str(tmp_path / "out")
    )
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0].split() == [
        "disturbance",
        "strength",
        "accuracy",
        "loss",
        "no",
        "number",
        "worst",
        "at",
    ]
    assert [line.split()[:2] for line in lines[2:4]] == [["noise", "0.1"], ["noise", "2"]]
    assert lines[4:] == [
        "typos cannot be measured: the model has no text inputs",
        "300 rows, seed 0",
        f"2 files in {tmp_path / 'out'}",
    ]
    assert done.stderr == "measuring noise\n"
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"noise.png", "robustness.json"}


def test_the_report_is_json_for_programs(command):
    done = command("--strengths", "scale=10", "--metric", "roc_auc", "-o", "json")
    report = json.loads(done.stdout)
    assert report["metric"] == "roc_auc"
    assert [(point["disturbance"], point["variant"]) for point in report["points"]] == [
        ("scale", "b")
    ]


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["--target", "gone"], ["'gone'", "a, b, label, value"]),
        (["--data", "gone.csv"], ["dataset gone.csv"]),
        (["--log"], ["run r-1"]),
    ],
)
def test_a_mistake_is_one_line_and_exit_status_1(command, arguments, names):
    done = command("--strengths", "noise=0.1", *arguments)
    assert done.exit_code == 1
    assert mentions(done.stderr, *names)
    assert done.stderr.splitlines()[-1].startswith("Error: ")
    assert "measuring" not in done.stderr
