"""What a server's processes write to their log, as a log store reads it."""

import json
from pathlib import Path
from typing import Any

import pytest

from support.models import IDENTITY, write_model
from support.waiting import wait_until


@pytest.fixture
def model(tmp_path: Path) -> str:
    return str(write_model(tmp_path / "model", IDENTITY))


def test_every_line_is_json_in_the_elastic_common_schema(
    serve: Any, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONNXSERVE_LOG_FORMAT", "ecs")
    monkeypatch.setenv("ONNXSERVE_LOG_REQUESTS", "true")
    served = serve("-m", model, "-w", "1").wait_ready()
    answer = served.predict(1, X_Request_Id="mine")
    assert answer.status_code == 200
    wait_until(lambda: '"mine"' in served.log.read_text(), what="the request's line")
    served.end()
    log = [json.loads(line) for line in served.log.read_text().splitlines() if not line.startswith("onnxserve: ")]
    assert all({"@timestamp", "log.level", "message", "ecs.version"} <= record.keys() for record in log)
    assert {record["service"]["node"]["role"] for record in log} >= {"worker", "serve"}
    (mine,) = [record for record in log if record.get("http", {}).get("request", {}).get("id") == "mine"]
    assert mine["http"]["response"]["status_code"] == 200
    assert mine["onnxserve"]["prediction_id"] == answer.headers["X-Prediction-Id"]
    assert mine["event"]["duration"] > 0


def test_a_line_a_request_is_readable_too(serve: Any, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONNXSERVE_LOG_REQUESTS", "true")
    served = serve("-m", model, "-w", "1").wait_ready()
    served.predict(1, X_Request_Id="mine")
    wait_until(lambda: "X-Request-Id mine" in served.log.read_text(), what="the request's line")
    assert "POST /invocations 200 in " in served.log.read_text()
