"""The commands that containers start, which must not wait
for click and the settings.
"""

import subprocess
import sys

import pytest
from click.testing import CliRunner

from mlflow_deploy_plugin.cli.commands import main

HEAVY = ("click", "orjson", "pydantic", "requests", "yaml")


@pytest.mark.parametrize("arguments", [["health", "http://127.0.0.1:1"], ["list-packages"]])
def test_a_command_of_containers_starts_without_heavy_modules(arguments: list[str]) -> None:
    code = (
        f"import atexit, sys; sys.argv[1:] = {arguments}; from mlflow_deploy_plugin.cli.entry "
        f"import main; atexit.register(lambda: print([name for name in {HEAVY} if name in "
        "sys.modules])); main()"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.stdout.endswith("[]\n")


def test_the_help_does_not_list_the_commands_of_containers() -> None:
    listed = CliRunner().invoke(main, ["--help"]).output
    assert "serve" in listed
    assert not any(name in listed for name in ("hold-socket", "list-packages"))
