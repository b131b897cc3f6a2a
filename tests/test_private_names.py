"""The private names of MLflow that onnxserve uses: this module lists all of them, and
MLflow's versions have them.
"""

import ast
import re
import subprocess
import sys
from configparser import ConfigParser
from functools import cache
from pathlib import Path

import pytest

import mlflow_deploy_plugin
from mlflow_deploy_plugin.ui.guard.readers import READERS
from mlflow_deploy_plugin.ui.guard.views import _NEW_VERSION
from tests.support.guides import ROOT

NAMES = {
    "mlflow.models.model.Model._log_v2",
    "mlflow.models.utils._Example",
    "mlflow.models.utils._save_example",
    "mlflow.server.auth._get_registered_model_or_prompt_permission",
    "mlflow.server.auth._role_based_read_predicate",
    "mlflow.server.handlers._add_static_prefix",
    "mlflow.server.handlers._assert_string",
    "mlflow.server.handlers._disable_if_artifacts_only",
    "mlflow.server.handlers._get_artifact_repo_mlflow_artifacts",
    "mlflow.server.handlers._get_model_registry_store",
    "mlflow.server.handlers._get_normalized_request_json",
    "mlflow.server.handlers._get_proxied_run_artifact_destination_path",
    "mlflow.server.handlers._get_request_message",
    "mlflow.server.handlers._get_tracking_store",
    "mlflow.server.handlers._get_workspace_scoped_repo_path_if_enabled",
    "mlflow.server.handlers._get_workspace_store",
    "mlflow.server.handlers._is_servable_proxied_run_artifact_root",
    "mlflow.server.handlers._wrap_response",
    "mlflow.store.artifact.s3_artifact_repo._cached_get_s3_client",
    "mlflow.store.artifact.utils.models._parse_model_uri",
    "mlflow.tracking.artifact_utils._get_root_uri_and_artifact_path",
    "mlflow.tracking.fluent._get_experiment_id",
    "mlflow.tracking.request_header.registry._request_header_provider_registry",
    "mlflow.utils.credentials._get_credentials_path",
    "mlflow.utils.environment._CONDA_ENV_FILE_NAME",
    "mlflow.utils.environment._CONSTRAINTS_FILE_NAME",
    "mlflow.utils.environment._PYTHON_ENV_FILE_NAME",
    "mlflow.utils.environment._PythonEnv",
    "mlflow.utils.environment._REQUIREMENTS_FILE_NAME",
    "mlflow.utils.environment._process_conda_env",
    "mlflow.utils.environment._process_pip_requirements",
    "mlflow.utils.environment._validate_env_arguments",
    "mlflow.utils.model_utils._validate_and_copy_code_paths",
    "mlflow.utils.model_utils._validate_and_prepare_target_save_path",
    "mlflow.utils.rest_utils._get_http_response_with_retries",
}
"""Private names that the package imports, or reads from an imported module of MLflow.
"""

METHODS = {
    "mlflow.data.dataset.Dataset._to_mlflow_entity",
    "mlflow.entities.model_registry.registered_model.RegisteredModel._is_prompt",
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

VIEWS = {f"mlflow.server.handlers.{view}" for view in (*READERS, _NEW_VERSION)}
"""MLflow's functions for the requests that the guard checks. Flask names its views
after them.
"""


def used_names(text):
    """Yield the private names of MLflow that a module imports, or reads from a name
    that it imports.
    """
    tree = ast.parse(text)
    imported = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "mlflow":
            for alias in node.names:
                imported[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                if alias.name.startswith("_"):
                    yield f"{node.module}.{alias.name}"
        elif isinstance(node, ast.Import):
            imported |= {alias.asname: alias.name for alias in node.names if alias.asname}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute) or not isinstance(node.value, ast.Name):
            continue
        module = imported.get(node.value.id, "")
        if (
            module.partition(".")[0] == "mlflow"
            and node.attr.startswith("_")
            and not node.attr.startswith("__")
        ):
            yield f"{module}.{node.attr}"


def test_used_private_names_are_listed():
    package = Path(mlflow_deploy_plugin.__file__).parent
    names = set()
    for path in package.rglob("*.py"):
        text = path.read_text()
        if re.search(r"^ *(from|import) mlflow\b", text, re.MULTILINE):
            names.update(used_names(text))
    assert names == NAMES


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
