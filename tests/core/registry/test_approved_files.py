"""Tests of the client of approved files: the answers of MLflow's servers with and
without onnxserve.
"""

import json
from types import SimpleNamespace

import pytest
from mlflow import MlflowClient

from mlflow_deploy_plugin.core.errors import NotFound, OnnxserveError, RegistryUnavailable
from mlflow_deploy_plugin.core.registry.approved_files import (
    Approval,
    ChangedFiles,
    approval_of,
    changed_files,
)
from tests.support.services.listener import answering
from tests.support.tracking import tracking_at

APPROVED = {
    "is_required": True,
    "files": ["ab12"],
    "places": ["@champion"],
    "a_field_of_a_newer_server": 1,
}
MODEL = {
    "registered_model": {
        "name": "credit",
        "tags": [{"key": "onnxserve.gate.policy", "value": "approvals: {}"}],
    }
}


@pytest.fixture
def mlflow_at(monkeypatch):
    """A server that answers requests of onnxserve with a status and a body, and has a
    model with approvals.
    """
    served = SimpleNamespace(status=200, body=APPROVED, kind="application/json", path="")

    def answer(request, _):
        if "/onnxserve/" not in request.path:
            return 200, "application/json", json.dumps(MODEL)
        served.path = request.path
        return served.status, served.kind, json.dumps(served.body)

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with answering(answer) as url, tracking_at(url):
        yield served


def test_approval_of_one_version_is_requested(mlflow_at):
    assert approval_of("credit", "6") == Approval(
        is_required=True, files=("ab12",), places=("@champion",)
    )
    assert mlflow_at.path == "/onnxserve/approved?model=credit&version=6"


def test_changed_files_are_listed(mlflow_at):
    entry = {
        "model": "credit",
        "version": "6",
        "place": "@champion",
        "recorded": "ab12",
        "now": "cd34",
    }
    mlflow_at.body = [entry]
    assert changed_files() == [ChangedFiles.model_validate(entry)]


@pytest.mark.parametrize(("status", "kind"), [(404, "text/html"), (403, "text/html")])
def test_server_without_app_approves_nothing(status, kind, mlflow_at):
    mlflow_at.status = status
    mlflow_at.kind = kind
    mlflow_at.body = "no such page"
    assert approval_of("credit", "6") == Approval(
        is_required=True, places=("@champion", "Production")
    )
    assert changed_files() == []


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (
            404,
            {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "there is no version 6"},
            NotFound,
        ),
        (
            403,
            {"error_code": "PERMISSION_DENIED", "message": "you may not read it"},
            OnnxserveError,
        ),
        (500, {"error_code": "INTERNAL_ERROR", "message": "a bug"}, RegistryUnavailable),
        (502, "bad gateway", RegistryUnavailable),
    ],
)
def test_server_error_is_raised(status, body, expected, mlflow_at):
    mlflow_at.status = status
    mlflow_at.body = body
    with pytest.raises(expected):
        approval_of("credit", "6")


@pytest.mark.parametrize(
    ("policy", "places"),
    [("approvals: {}\ngated_stages: []", ("@champion",)), ("skip: []", ()), ("[", ())],
)
def test_database_lists_places_that_require_approvals(policy, places, tmp_path, new_database):
    with tracking_at(new_database(tmp_path)):
        MlflowClient().create_registered_model("credit", tags={"onnxserve.gate.policy": policy})
        assert approval_of("credit", "6") == Approval(is_required=bool(places), places=places)
