"""Tests of the commands and of a running server after MLflow's server has removed the
stages of versions.
"""

import json

import pytest
from mlflow.exceptions import MlflowException

from tests.support.commands import onnxserve
from tests.support.refusals import mentions, refused
from tests.support.services.proxy import proxy_to
from tests.support.waiting import wait_until

NO_API = '{"error_code": "ENDPOINT_NOT_FOUND", "message": "no such API"}'


def without_stages(body):
    """Return an answer of MLflow without the fields of stages."""

    def strip(document):
        return {
            key: value
            for key, value in document.items()
            if key not in ("current_stage", "latest_versions")
        }

    if body.startswith(b"{"):
        return json.dumps(json.loads(body, object_hook=strip)).encode()
    return body


@pytest.fixture
def proxy(mlflow_server, monkeypatch):
    """Yield a proxy to MLflow, which `remove_stages` changes to an MLflow without
    stages.
    """
    with proxy_to(mlflow_server.host, mlflow_server.port) as proxy:
        yield proxy


def remove_stages(proxy):
    proxy.rewrite = without_stages
    proxy.turn(NO_API, "transition-stage", 404)


@pytest.mark.long
def test_server_keeps_serving_and_follows_an_alias(home, register, proxy, monkeypatch):
    model = register("+1", "+2")
    model.promote(1)
    monkeypatch.setenv("ONNXSERVE_POLL_SECONDS", "0.2")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.url)
    stage = f"models:/{model.name}/Production"
    alias = f"models:/{model.name}@champion"
    home.create_deployment("kept", stage)

    def error_without_stages():
        deployment = wait_until(
            lambda: (now := home.get_deployment("kept"))["error"] and now, 30, "the error"
        )
        assert deployment["state"] == "running"
        assert deployment["version"] == "1"
        return str(deployment["error"])

    remove_stages(proxy)
    assert mentions(
        error_without_stages(), stage, "versions: 1, 2", "no stages", f"models:/{model.name}@ALIAS"
    )
    assert onnxserve("stop kept").exit_code == onnxserve("start kept").exit_code == 0
    assert mentions(error_without_stages(), stage)
    with refused(MlflowException, model.name, "Production", "no stages"):
        home.create_deployment("new", stage)

    model.client.set_registered_model_alias(model.name, "champion", "1")
    assert home.update_deployment("kept", alias)["error"] == ""
    model.client.set_registered_model_alias(model.name, "champion", "2")
    wait_until(lambda: home.get_deployment("kept")["version"] == "2", 60, "the alias is followed")
    home.delete_deployment("kept")
