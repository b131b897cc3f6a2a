"""Tests of the client of requests for promotions: the answers of MLflow's servers with
and without onnxserve.
"""

import json
from types import SimpleNamespace

import pytest

from mlflow_deploy_plugin.core.errors import (
    InvalidConfig,
    InvalidRequest,
    NotFound,
    OnnxserveError,
    RegistryRefused,
    RegistryUnavailable,
    ScopeMissing,
    Unauthenticated,
)
from mlflow_deploy_plugin.promote.gate.approval_client import (
    ListedRequest,
    listed_requests,
    send_decision,
)
from tests.support.refusals import mentions
from tests.support.services.listener import answering
from tests.support.tracking import tracking_at

REQUEST = {"model": "flights", "version": "3", "to": "@champion", "requested_by": "eva"}
REQUEST |= {"at": "2026-11-25T12:00:00Z"}


@pytest.fixture
def mlflow_at(monkeypatch):
    """A server that answers each request with the same status and body, and keeps the
    last request.
    """
    served = SimpleNamespace(
        status=200, body="[]", kind="application/json", path="", sent=None, login=""
    )

    def answer(request, body):
        served.path = request.path
        served.login = request.headers.get("Authorization", "")
        served.sent = json.loads(body) if body else None
        return served.status, served.kind, served.body

    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "eva")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "secret")
    with answering(answer) as url, tracking_at(f"{url}/ml"):
        yield served


def test_requests_are_read_with_mlflow_credentials(mlflow_at, monkeypatch):
    monkeypatch.setenv("MLFLOW_WORKSPACE", "team-a")
    mlflow_at.body = json.dumps([REQUEST | {"a_field_of_a_newer_server": 1}])
    (listed,) = listed_requests("flights")
    assert listed == ListedRequest.model_validate(REQUEST)
    assert mlflow_at.path == "/ml/onnxserve/requests?model=flights&workspace=team-a"
    assert mlflow_at.login.startswith("Basic ")


def test_decision_is_sent_as_json(mlflow_at):
    mlflow_at.body = json.dumps(REQUEST)
    assert (
        send_decision("approve", "flights", "3", "@champion", "fine", "ab12").requested_by == "eva"
    )
    assert mlflow_at.path == "/ml/onnxserve/requests"
    assert mlflow_at.sent == {
        "action": "approve",
        "model": "flights",
        "version": "3",
        "to": "@champion",
        "why": "fine",
        "report": "ab12",
    }


@pytest.mark.parametrize(
    ("status", "code", "error"),
    [
        (400, "INVALID_PARAMETER_VALUE", InvalidRequest),
        (401, "UNAUTHENTICATED", Unauthenticated),
        (403, "PERMISSION_DENIED", ScopeMissing),
        (404, "RESOURCE_DOES_NOT_EXIST", NotFound),
        (500, "INTERNAL_ERROR", OnnxserveError),
        (503, "TEMPORARILY_UNAVAILABLE", OnnxserveError),
    ],
)
def test_server_error_is_raised_with_its_message(mlflow_at, status, code, error):
    mlflow_at.status = status
    mlflow_at.body = json.dumps({"error_code": code, "message": "so it is"})
    with pytest.raises(error) as raised:
        send_decision("approve", "flights", "3", "@champion")
    assert raised.value.message == "so it is"
    assert raised.value.http_status == status


@pytest.mark.parametrize(
    ("status", "kind", "body", "error", "names"),
    [
        (404, "text/html", "<!doctype html>", InvalidConfig, ["--app-name onnxserve"]),
        (
            404,
            "application/json",
            '{"detail": "Not Found"}',
            InvalidConfig,
            ["--app-name onnxserve"],
        ),
        (405, "text/html", "", InvalidConfig, ["--app-name onnxserve"]),
        (200, "text/html", "<!doctype html>", InvalidConfig, ["--app-name onnxserve"]),
        (
            401,
            "text/html",
            "You are not authenticated",
            RegistryRefused,
            ["MLFLOW_TRACKING_PASSWORD"],
        ),
        (403, "text/plain", "Permission denied", RegistryRefused, ["permission"]),
        (502, "text/html", "<h1>Bad gateway</h1>", RegistryUnavailable, ["502"]),
    ],
)
def test_unexpected_answer_is_an_error_with_remedy(mlflow_at, status, kind, body, error, names):
    mlflow_at.status = status
    mlflow_at.kind = kind
    mlflow_at.body = body
    with pytest.raises(error) as raised:
        listed_requests()
    assert mentions(raised.value.message, *names)
    assert "secret" not in raised.value.message
