"""The profile of a version."""

import json
from pathlib import Path

import pytest

from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.wrap.optimization.profiler import profile
from tests.support.networks import write_network
from tests.support.refusals import refused


@pytest.fixture(autouse=True)
def in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_operators_share_the_time(tmp_path):
    done = profile(str(write_network(tmp_path / "net", rows=50)), rows=500)
    assert sum(entry.share for entry in done.operators) == pytest.approx(1)
    assert {entry.operator for entry in done.operators} >= {"Softmax", "ArgMax"}
    assert "Gemm" in done.operators[0].operator
    events = json.loads(Path(done.file).read_text())
    assert sum(event["name"] == "model_run" for event in events) == done.runs


def test_rows_are_zeros_by_default(tmp_path):
    folder = write_network(tmp_path / "net", rows=0)
    assert profile(str(folder), rows=3).rows == 3
    with refused(InvalidConfig, "nix.parquet does not exist"):
        profile(str(folder), data="nix.parquet")
    with refused(InvalidConfig, "rows: 0 is less than 1"):
        profile(str(folder), rows=0)
