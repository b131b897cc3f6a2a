"""Tests of the output of `onnxserve profile`. See tests/wrap/optimization for the
profile.
"""

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from mlflow_deploy_plugin.cli.commands import main
from tests.support.commands import said
from tests.support.networks import network, write_network
from tests.support.refusals import mentions


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_network(
        tmp_path / "net",
        rows=50,
        graph=network((16, 8, 3)),
    )


def test_report_lists_operators_then_nodes_then_advice(folder: Path) -> None:
    done = CliRunner().invoke(main, ["profile", str(folder)])
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"{folder}, 1 rows: ")
    assert re.match(r"outside of the nodes: -?\d+ µs ", lines[1])
    heads = [place for place, line in enumerate(lines) if "  share" in line]
    assert [lines[place].split()[0] for place in heads] == ["operator", "node"]
    assert any(line.startswith("Softmax ") for line in lines[heads[0] : heads[1]])
    head = next(number for number, line in enumerate(lines) if line.startswith("advice:"))
    advice = lines[head + 1 :]  # Advice about dispatch, if the machine is idle.
    assert lines[head] == ("advice:" if advice else "advice: none")
    assert all(line.startswith("- ") for line in advice)


def test_json_has_the_same_figures(folder: Path) -> None:
    done = CliRunner().invoke(
        main,
        ["profile", str(folder), "--rows", "8", "-o", "json"],
    )
    document = json.loads(done.stdout)
    assert document["rows"] == 8
    assert sum(operator["share"] for operator in document["operators"]) == pytest.approx(1)


def test_a_version_without_a_run_has_nowhere_to_log_to(folder: Path) -> None:
    done = CliRunner().invoke(main, ["profile", str(folder), "--log"])
    assert mentions(said(done), str(folder), "no run")
