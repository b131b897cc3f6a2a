"""The names that other rooms import from rooms whose modules are loaded on first use."""

import subprocess
import sys
from importlib import import_module

import pytest


@pytest.mark.parametrize(
    "room",
    [
        "controller",
        "deployments",
        "gate",
        "monitoring",
        "processes",
        "pyfunc",
        "server",
        "statedir",
        "store",
        "tabular",
    ],
)
def test_every_name_of_a_face_that_loads_late_is_there(room: str) -> None:
    face = import_module(f"mlflow_deploy_plugin.{room}")
    assert face.__all__
    assert [name for name in face.__all__ if not hasattr(face, name)] == []


def test_a_name_loads_its_own_module_only() -> None:
    code = (
        "import sys; from mlflow_deploy_plugin.server import SideMessage;"
        "print([name for name in sys.modules if name.endswith(('.supervisor', '.dataplane', '.repository'))])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "[]\n"
