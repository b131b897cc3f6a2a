"""The functions of MLflow, urllib3 and requests in a user's process, and in a process
of onnxserve.
"""

import os
import subprocess
import sys

import pytest

SNAPSHOT = """
import sys
import types

import mlflow, requests, urllib3
import mlflow.artifacts, mlflow.deployments, mlflow.sklearn
from mlflow.store.artifact import azure_data_lake_artifact_repo, http_artifact_repo, \
mlflow_artifacts_repo

LIBRARIES = ("mlflow", "urllib3", "requests")


def functions():
    known = {}
    for module_name, module in list(sys.modules.items()):
        if module_name.partition(".")[0] not in LIBRARIES:
            continue
        for name, value in list(vars(module).items()):
            if isinstance(value, types.FunctionType):
                known[f"{module_name}.{name}"] = value
            elif isinstance(value, type) and value.__module__ == module_name:
                for attribute, method in vars(value).items():
                    if isinstance(method, types.FunctionType):
                        known[f"{module_name}.{name}.{attribute}"] = method
    return known


def replaced(before):
    after = functions()
    return sorted(name for name, function in before.items() if after.get(name) is not function)


before = functions()
"""

USER = f"""{SNAPSHOT}
import pandas as pd
from sklearn.linear_model import LinearRegression

import onnxserve
from mlflow_deploy_plugin.core.registry.connection import registry_client

frame = pd.DataFrame({{"a": [1.0, 2.0, 3.0]}})
model = LinearRegression().fit(frame, [1.0, 2.0, 3.0])
onnxserve.log_model(model, name="model", input_example=frame, registered_model_name="m")
onnxserve.load_model("models:/m/1")
mlflow.sklearn.log_model(model, name="plain", input_example=frame, registered_model_name="plain")
onnxserve.wrap_model("models:/plain/1")
registry_client().get_registered_model("m")
client = mlflow.deployments.get_deploy_client("onnxserve")
client.list_deployments()
print(replaced(before))
"""

OWN = f"""{SNAPSHOT}
from mlflow_deploy_plugin.core.registry.connection import own_process, registry_client

own_process()
registry_client()
with __import__("contextlib").suppress(Exception):
    mlflow.MlflowClient("http://127.0.0.1:9").get_run("x")
print(replaced(before))
"""

REPLACED = [
    "mlflow.store.artifact.artifact_repo.ArtifactRepository._iter_artifacts_recursive",
    "mlflow.store.artifact.azure_data_lake_artifact_repo.AzureDataLakeArtifactRepository.__init__",
    "mlflow.store.artifact.http_artifact_repo.get_default_host_creds",
    "mlflow.store.artifact.mlflow_artifacts_repo.get_default_host_creds",
    "mlflow.utils.rest_utils._get_http_response_with_retries",
    "urllib3.connection.HTTPConnection.getresponse",
    "urllib3.util.retry.Retry.increment",
]


@pytest.mark.long
@pytest.mark.parametrize(("code", "replaced"), [(USER, []), (OWN, REPLACED)], ids=["user", "own"])
def test_libraries_are_patched_only_in_own_processes(code, replaced, tmp_path):
    environment = os.environ | {
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        "ONNXSERVE_HOME": str(tmp_path / "home"),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    command = [sys.executable, "-c", code]
    ended = subprocess.run(
        command,
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-4000:]
    assert ended.stdout.splitlines()[-1] == str(replaced)
