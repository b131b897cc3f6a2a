"""Tests of `onnxserve doctor`."""

import json

import pytest

from tests.support.commands import onnxserve
from tests.support.refusals import mentions


@pytest.fixture(autouse=True)
def environment(tmp_path, monkeypatch, new_home):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)


def test_fitting_environment_has_no_failed_check(tmp_path):
    ended = onnxserve("doctor -o json")
    checks = {check["check"]: (check["state"], check["text"]) for check in json.loads(ended.stdout)}
    assert ended.exit_code == 0
    unset = [name for name, (state, _) in checks.items() if state == "--"]
    assert unset == ["MLflow's server", "log", "other extras"]
    assert checks["home"] == ("ok", str(tmp_path / "home"))
    assert mentions(checks["ONNX Runtime"][1], "onnxruntime", "CPUExecutionProvider")
    assert mentions(checks["extras"][1], "cpu", "monitoring", "sklearn")
    assert mentions(checks["other extras"][1], "not installed", "gpu")


@pytest.mark.parametrize(
    ("variable", "value", "check", "remedy"),
    [
        ("MLFLOW_TRACKING_URI", "localhost:5000", "MLflow's server", "write http://localhost:5000"),
        ("MLFLOW_TRACKING_URI", "http://u:secret@127.0.0.1:1", "MLflow's server", "refused"),
        ("ONNXSERVE_HOME", "/dev/null/home", "home", "ONNXSERVE_HOME"),
        ("ONNXSERVE_STORE_URI", "postgresql+psycopg://u:secret@127.0.0.1:1/d", "store", "refused"),
        ("ONNXSERVE_LOG_URI", "gs://bucket", "log", "s3://BUCKET/PREFIX"),
    ],
)
def test_failed_check_names_the_remedy(variable, value, check, remedy, monkeypatch):
    monkeypatch.setenv(variable, value)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    ended = onnxserve("doctor")
    assert ended.exit_code == 1
    (line,) = [line for line in ended.stdout.splitlines() if f"  {check}  " in line]
    assert line.startswith("FAILED  ")
    assert mentions(line, remedy)
    assert "secret" not in ended.output
