"""A log store can parse the log of a server's processes."""

import subprocess
import sys

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


def test_line_breaks_are_escaped():
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


def test_repeated_warning_is_logged_once():
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
