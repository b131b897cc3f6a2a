"""The same models in MLflow's scoring server and in our scorer, without sockets and
side processes.
"""

import json

import pytest

from mlflow_deploy_plugin.core.errors import OnnxserveError


@pytest.fixture(scope="session")
def scorers(pyfunc_folders):
    """Return a `Scorer` per model."""
    from mlflow_deploy_plugin.serve.pyfunc.scorer import Scorer

    return {name: Scorer.load(folder) for name, folder in pyfunc_folders.items()}


@pytest.fixture(scope="session")
def ask_ours(scorers):
    def ask(model, content_type, body):
        try:
            return 200, scorers[model].invoke(content_type, body).body
        except OnnxserveError as refusal:
            return refusal.http_status, json.dumps({"message": refusal.message}).encode()

    return ask


@pytest.fixture(scope="session")
def ask_mlflow(pyfunc_folders):
    """Return the application that `mlflow models serve` starts."""
    import warnings

    from mlflow import pyfunc
    from mlflow.pyfunc import scoring_server

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # starlette warns about its client.
        from starlette.testclient import TestClient

    with pytest.MonkeyPatch.context() as patch:
        # init() changes it; the block restores it.
        patch.setenv("_MLFLOW_IS_IN_SERVING_ENVIRONMENT", "false")
        clients = {
            name: TestClient(
                scoring_server.init(pyfunc.load_model(str(folder))), raise_server_exceptions=False
            )
            for name, folder in pyfunc_folders.items()
        }

    def ask(model, content_type, body):
        response = clients[model].post(
            "/invocations", headers={"Content-Type": content_type}, content=body
        )
        return response.status_code, response.content

    return ask
