"""A log store can parse the log of a server's processes."""

import subprocess
import sys

import pytest

from tests.support.ecs import read_line
from tests.support.models import IDENTITY, write_model
from tests.support.refusals import mentions
from tests.support.waiting import wait_until

FORGED = "a\r\n2030-01-01 00:00:00,000 [serve] ERROR forged\x1b[2J\u2028b"
_SAYS = f"""
import logging
from mlflow_deploy_plugin.core.logs import configure_logging
from mlflow_deploy_plugin.core.settings import Settings
configure_logging(Settings().log_format, "serve")
logging.getLogger("x").error("loading %s failed", {FORGED!r})
try:
    raise ValueError({FORGED!r})
except ValueError:
    logging.getLogger("x").exception("it failed")
"""


def test_line_breaks_in_quoted_text_are_escaped_in_the_log():
    output = subprocess.run(
        [sys.executable, "-c", _SAYS], capture_output=True, check=True
    ).stderr.decode()
    lines = [line for line in output.splitlines() if not line.startswith("    ")]
    assert len(lines) == 2, output
    assert lines[0].split(" [serve] ERROR ")[1:] == [
        r"loading a\r\n2030-01-01 00:00:00,000",
        r"forged\x1b[2J\u2028b failed",
    ]
    assert lines[1].endswith("[serve] ERROR it failed")
    assert "\x1b" not in output
    assert "Traceback (most recent" in output


_REPEATS = """
import logging
from mlflow_deploy_plugin.core.logs import configure_logging
from mlflow_deploy_plugin.core.settings import Settings
configure_logging(Settings().log_format, "controller")
log = logging.getLogger("mlflow_deploy_plugin.x")
for number in range(3):
    log.info("window judged")
    log.warning("the store at %s does not answer", "here")
log.warning("the store at %s does not answer", "there")
for error in (KeyError("one"), KeyError("two"), OSError("three")):
    log.error("a call has failed", exc_info=error)
"""


def test_a_warning_that_repeats_itself_is_written_once_a_minute():
    output = subprocess.run(
        [sys.executable, "-c", _REPEATS], capture_output=True, check=True
    ).stderr.decode()
    assert output.count("INFO window judged") == 3
    assert output.count("WARNING the store at here does not answer") == 1
    assert output.count("WARNING the store at there does not answer") == 1
    assert (
        "KeyError: 'one'" in output,
        "KeyError: 'two'" in output,
        "OSError: three" in output,
    ) == (True, False, True)


@pytest.fixture
def model(tmp_path):
    return str(write_model(tmp_path / "model", IDENTITY))


@pytest.mark.long
def test_every_line_is_json_in_the_elastic_common_schema(serve, model, monkeypatch):
    monkeypatch.setenv("ONNXSERVE_LOG_FORMAT", "ecs")
    monkeypatch.setenv("ONNXSERVE_LOG_REQUESTS", "true")
    served = serve(model, "-w", "1").wait_ready()
    answer = served.predict(1, X_Request_Id="mine")
    assert answer.status_code == 200
    wait_until(lambda: '"mine"' in served.log.read_text(), what="the request's line")
    served.end()
    log = [
        read_line(line)
        for line in served.log.read_text().splitlines()
        if not line.startswith("onnxserve: ")
    ]
    assert {record["service.node.role"] for record in log} >= {"worker", "serve"}
    (mine,) = [record for record in log if record.get("http.request.id") == "mine"]
    assert mine["http.response.status_code"] == 200
    assert mine["onnxserve.prediction_id"] == answer.headers["X-Prediction-Id"]
    assert mine["event.duration"] > 0


@pytest.mark.long
def test_a_line_a_request_is_readable_too(serve, model, monkeypatch):
    monkeypatch.setenv("ONNXSERVE_LOG_REQUESTS", "true")
    served = serve(model, "-w", "1").wait_ready()
    served.predict(1, X_Request_Id="mine")
    wait_until(lambda: "X-Request-Id mine" in served.log.read_text(), what="the request's line")
    assert mentions(served.log.read_text(), "POST /invocations 200")
