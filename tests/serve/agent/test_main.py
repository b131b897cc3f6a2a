"""The agent as a process."""

import os
import socket
import subprocess
import sys

import pytest

from mlflow_deploy_plugin.core.statedir.files import METRICS, SPEC
from tests.support.refusals import mentions
from tests.support.shipping import files, write

SPEC_TEXT = "{name: e, variants: {main: {model: models:/m/1}}}"


def finish(command, environment):
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=240, check=False
    )


@pytest.mark.long
def test_failing_agent_ends_with_a_silent_registry(tmp_path):
    (tmp_path / SPEC).write_text(SPEC_TEXT)
    (tmp_path / "counters").mkdir()
    (tmp_path / "counters" / "counts_1.db").write_bytes(b"torn!")
    (tmp_path / METRICS).symlink_to(tmp_path / "counters")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        environment = os.environ | {
            "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{silent.getsockname()[1]}",
            "MLFLOW_HTTP_REQUEST_TIMEOUT": "3600",
            "ONNXSERVE_CACHE": str(tmp_path / "cache"),
            "ONNXSERVE_HOME": str(tmp_path / "home"),
        }
        command = [sys.executable, "-m", "mlflow_deploy_plugin.serve.agent", str(tmp_path)]
        ended = finish(command, environment)
    assert ended.returncode == 1
    assert "will be restarted" in ended.stderr


def test_full_disk_is_reported_in_one_line(tmp_path):
    (tmp_path / SPEC).write_text(SPEC_TEXT)
    environment = os.environ | {
        "ONNXSERVE_CACHE": str(tmp_path / "cache"),
        "ONNXSERVE_HOME": str(tmp_path / "home"),
    }
    full = ["sh", "-c", 'ulimit -f 0 && exec "$@"', "sh"]
    command = [*full, sys.executable, "-m", "mlflow_deploy_plugin.serve.agent", str(tmp_path)]
    ended = finish(command, environment)
    assert ended.returncode == 1
    assert len(ended.stderr.splitlines()) == 1, ended.stderr
    assert mentions(ended.stderr, f"{tmp_path}/home/cache", "File too large")


@pytest.mark.long
def test_agent_ships_without_pandas(tmp_path, writer, new_database):
    (tmp_path / SPEC).write_text(SPEC_TEXT)
    write(writer, "r-1", ["AA"])
    writer.close()
    environment = os.environ | {
        "MLFLOW_TRACKING_URI": new_database(tmp_path),
        "ONNXSERVE_HOME": str(tmp_path / "home"),
        "ONNXSERVE_LOG_URI": str(tmp_path / "log"),
    }
    code = (
        "import gc, os, sys; usual = gc.get_threshold();"
        "from mlflow_deploy_plugin.serve.agent.__main__ import main; main();"
        "print('mlflow' in sys.modules, [name for name in sys.modules if "
        "name.startswith('pandas.')], flush=True);"
        "print(gc.get_threshold() == usual, flush=True);"
        "os._exit(0)"  # The agent also exits without the interpreter's shutdown.
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    ended = finish(command, environment)

    assert len(files(tmp_path)) == 1, ended.stderr
    assert ended.stdout == "True []\nTrue\n"
