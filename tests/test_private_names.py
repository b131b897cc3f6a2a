"""The private names of MLflow that onnxserve uses, in the versions of MLflow."""

import ast
import re
import subprocess
import sys
from configparser import ConfigParser
from functools import cache
from pathlib import Path

import pytest

import mlflow_deploy_plugin
from mlflow_deploy_plugin.core import mlflow_private
from mlflow_deploy_plugin.ui.guard.readers import READERS
from tests.support.guides import ROOT

NAMES = {place.replace(":", ".") for place in mlflow_private.NAMES}

METHODS = {
    "mlflow.data.dataset.Dataset._to_mlflow_entity",
    "mlflow.entities.model_registry.registered_model.RegisteredModel._is_prompt",
    "mlflow.store.artifact.artifact_repo.ArtifactRepository._iter_artifacts_recursive",
    "mlflow.store.artifact.runs_artifact_repo.RunsArtifactRepository._get_logged_model_artifact_repo",
}
"""Private methods of MLflow's classes that the package calls or overrides."""

REPLACED = {
    "mlflow.server.auth.authenticate_request",
    "mlflow.store.artifact.azure_data_lake_artifact_repo.AzureDataLakeArtifactRepository.__init__",
    "mlflow.store.artifact.http_artifact_repo.get_default_host_creds",
    "mlflow.store.model_registry.sqlalchemy_store.SqlAlchemyStore.transition_model_version_stage",
}
"""Public functions that the package replaces in its own processes.

The package also replaces `get_default_host_creds` in `mlflow_artifacts_repo`, which
only MLflow 3.17 imports there.
"""

VIEWS = {f"mlflow.server.handlers.{view}" for view in READERS}
"""MLflow's functions for the requests that the guard checks. Flask names its views
after them.
"""


PRIVATE = re.compile(r"mlflow\.(.*\.)?_(?!_)|mlflow_deploy_plugin\.core\.mlflow_private\.")


def used_names(text):
    """Return the names that a module imports from `mlflow_private` or replaces there,
    and the private names that it imports from MLflow.
    """
    tree = ast.parse(text)
    imported = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                imported[alias.asname or alias.name] = f"{node.module}.{alias.name}"
        elif isinstance(node, ast.Import):
            imported |= {alias.asname: alias.name for alias in node.names if alias.asname}
    names = set(imported.values())
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            names.add(f"{imported.get(node.value.id)}.{node.attr}")
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "mlflow_private.replace":
            names.add(f"{mlflow_private.__name__}.{ast.literal_eval(node.args[0])}")
    return {name for name in names if PRIVATE.match(name)}


def test_private_names_are_imported_in_one_module():
    package = Path(mlflow_deploy_plugin.__file__).parent
    names = set()
    for path in package.rglob("*.py"):
        text = path.read_text()
        if re.search(r"^ *(from|import) mlflow\b|\bmlflow_private\b", text, re.MULTILINE):
            names |= used_names(text)
    home = mlflow_private.__name__
    used = {f"{home}.{name.rpartition('.')[2]}" for name in NAMES}
    assert names == used | {f"{home}.replace"}


@cache
def definitions(module):
    """Return the names that a module defines or imports, and `Class.method` of each
    class.
    """
    names = set()
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        if isinstance(node, ast.ClassDef):
            names |= {
                f"{node.name}.{item.name}"
                for item in node.body
                if isinstance(item, ast.FunctionDef)
            }
    return frozenset(names)


def is_defined(site, name):
    """Return True if the MLflow that is installed in a folder defines the name."""
    parts = name.split(".")
    for count in range(len(parts) - 1, 0, -1):
        module = site.joinpath(*parts[:count])
        for file in (module.with_suffix(".py"), module / "__init__.py"):
            if file.is_file():
                return ".".join(parts[count:]) in definitions(file)
    return False


def admitted_versions():
    """Return the versions of MLflow that setup.cfg admits, such as `mlflow >= 3.17, <
    4`.
    """
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lines = setup["options.extras_require"]["ui"].splitlines()
    (requirement,) = (line for line in lines if line.startswith("mlflow "))
    return requirement


@pytest.mark.install  # MLflow is downloaded.
@pytest.mark.parametrize("resolution", ["lowest", "highest"])
def test_oldest_and_newest_mlflow_have_the_names(resolution, tmp_path):
    command = [
        str(Path(sys.prefix, "bin", "uv")),
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--target",
        str(tmp_path),
    ]
    command += ["--resolution", resolution, admitted_versions()]
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=600)
    assert [
        name
        for name in sorted(NAMES | METHODS | REPLACED | VIEWS)
        if not is_defined(tmp_path, name)
    ] == []
    messages = (tmp_path / "mlflow" / "protos" / "model_registry_pb2.py").read_text()
    assert [message for message, _ in READERS.values() if message not in messages] == []


def test_installed_mlflow_has_the_names():
    import mlflow

    site = Path(mlflow.__file__).parent.parent
    assert [
        name for name in sorted(NAMES | METHODS | REPLACED | VIEWS) if not is_defined(site, name)
    ] == []
