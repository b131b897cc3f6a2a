"""Tests of the output of `onnxserve profile`. See tests/wrap/optimization for the
profile.
"""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from mlflow_deploy_plugin.cli.commands import main
from tests.support.networks import network, write_network


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return write_network(tmp_path / "net", rows=50, graph=network((16, 8, 3)))


def test_report_lists_operators_and_file(folder):
    done = CliRunner().invoke(main, ["profile", str(folder)])
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"{folder}, 1 rows, ")
    assert lines[1].split() == ["operator", "share", "µs"]
    assert any(line.startswith("Softmax ") for line in lines[2:])


def test_json_has_the_same_figures(folder):
    done = CliRunner().invoke(main, ["profile", str(folder), "--rows", "8", "-o", "json"])
    document = json.loads(done.stdout)
    assert document["rows"] == 8
    assert Path(document["file"]).is_file()
    assert sum(operator["share"] for operator in document["operators"]) == pytest.approx(1)
