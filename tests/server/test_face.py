"""The names that other rooms import from the server."""

import subprocess
import sys

import mlflow_deploy_plugin.server as server


def test_every_name_is_found_in_its_module() -> None:
    assert sorted(name for names in server._MODULES.values() for name in names) == sorted(server.__all__)
    assert all(getattr(server, name) is not None for name in server.__all__)


def test_a_name_loads_its_own_module_only() -> None:
    code = (
        "import sys; from mlflow_deploy_plugin.server import SideMessage;"
        "print([name for name in sys.modules if name.endswith(('.supervisor', '.dataplane', '.repository'))])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "[]\n"
