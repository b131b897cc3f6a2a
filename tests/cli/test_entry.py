"""The commands that containers start, which must not wait for click and the settings,
and commands whose output nobody reads.
"""

import os
import subprocess
import sys
from contextlib import closing

import pytest

from mlflow_deploy_plugin.core.spec.document import new_endpoint
from mlflow_deploy_plugin.core.store.database import open_store
from mlflow_deploy_plugin.core.store.keys import ApiKeys
from tests.support.commands import onnxserve

HEAVY = ("click", "orjson", "pydantic", "requests", "yaml")


COMMANDS = f"""
import contextlib, sys
from mlflow_deploy_plugin.cli.entry import main
for arguments in (["health", "http://127.0.0.1:1"], ["list-packages"]):
    sys.argv[1:] = arguments
    with contextlib.suppress(SystemExit):
        main()
    print()
    print([name for name in {HEAVY} if name in sys.modules])
"""


def test_container_commands_import_no_heavy_modules():
    shown = subprocess.check_output([sys.executable, "-c", COMMANDS], text=True)
    assert shown.splitlines().count("[]") == 2


def test_help_hides_container_commands():
    listed = onnxserve("--help").output
    assert "serve" in listed
    assert not any(name in listed for name in ("hold-socket", "list-packages"))


def run_unread(home, *arguments):
    """Return the exit status of a command whose output pipe is already closed."""
    command = [sys.executable, "-m", "mlflow_deploy_plugin.cli", *arguments]
    reader, writer = os.pipe()
    os.close(reader)
    try:
        ended = subprocess.run(
            command,
            stdout=writer,
            stderr=writer,
            env={**os.environ, "ONNXSERVE_HOME": str(home)},
            check=False,
        )
    finally:
        os.close(writer)
    return ended.returncode


def test_change_finishes_without_reader_of_output(tmp_path):
    status = run_unread(tmp_path, "keys", "create", "shop", "--endpoint", "flights")
    assert status == 0
    with closing(open_store(f"sqlite:///{tmp_path}/onnxserve.db")) as store:
        assert [key.name for key in ApiKeys(store).created()] == ["shop"]


@pytest.mark.long
def test_history_ends_without_reader_of_output(tmp_path):
    with closing(open_store(f"sqlite:///{tmp_path}/onnxserve.db")) as store:
        store.add_endpoint("onnxserve", new_endpoint("flights", "models:/X/Production"))
    assert run_unread(tmp_path, "audit", "history", "flights") == 1
