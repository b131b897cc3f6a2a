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
        "evaluation",
        "gate",
        "inference_log",
        "monitoring",
        "processes",
        "protocols",
        "registry",
        "runtime",
        "spec",
        "spool",
        "statedir",
        "store",
        "tabular",
    ],
)
def test_every_name_of_a_face_that_loads_late_is_there(room: str) -> None:
    face = import_module(f"mlflow_deploy_plugin.{room}")
    assert face.__all__
    assert [name for name in face.__all__ if not hasattr(face, name)] == []


def test_every_public_name_of_the_package_is_there() -> None:
    package = import_module("mlflow_deploy_plugin")
    assert [name for name in package.__all__ if not hasattr(package, name)] == []


@pytest.mark.parametrize(
    ("name", "others"),
    [
        ("protocols import SideMessage", (".arrow", ".large_json", "orjson")),
        ("runtime import FLAVOR", ("numpy", "onnxruntime")),
        ("registry import parse_model_uri", ("mlflow.tracking", ".resolution")),
        ("inference_log import Window", ("duckdb", "pandas", "pyarrow")),
        ("inference_log import InferenceLog", ("duckdb", "pandas")),
    ],
)
def test_a_name_loads_its_own_module_only(name: str, others: tuple[str, ...]) -> None:
    code = (
        f"import sys; from mlflow_deploy_plugin.{name};print([name for name in sys.modules if name.endswith({others})])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "[]\n"
