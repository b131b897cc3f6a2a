"""Tests of the adapter of MLflow's basic auth. See test_access_accounts.py for a server
with accounts.
"""

from unittest.mock import Mock

import pytest
from flask import Flask
from mlflow.entities import Workspace
from mlflow.server import auth, handlers
from mlflow.server.auth.permissions import DENY, EDIT, READ
from werkzeug.datastructures import Authorization

from mlflow_deploy_plugin.ui import access
from mlflow_deploy_plugin.ui.access import set_login
from mlflow_deploy_plugin.ui.logins.basic_auth import BasicAuth
from mlflow_deploy_plugin.ui.logins.login import ModelPermission

app = Flask(__name__)
set_login(app, BasicAuth())


@pytest.mark.parametrize(
    ("is_admin", "seen"), [(True, ["default", "team-a", "team-b"]), (False, ["default", "team-b"])]
)
def test_accounts_see_their_workspaces(monkeypatch, is_admin, seen):
    with app.test_request_context():
        assert access.seen_workspaces() == []
    monkeypatch.setenv("MLFLOW_ENABLE_WORKSPACES", "true")
    monkeypatch.setenv("MLFLOW_WORKSPACE", "default")
    workspaces = Mock()
    workspaces.list_workspaces.return_value = [
        Workspace(name) for name in ("team-b", "team-a", "default")
    ]
    monkeypatch.setattr(handlers, "_get_workspace_store", lambda: workspaces)
    monkeypatch.setattr(auth, "sender_is_admin", lambda: is_admin)
    monkeypatch.setattr(
        auth, "authenticate_request", lambda: Authorization("basic", {"username": "bob"})
    )
    store = Mock()
    store.list_accessible_workspace_names.return_value = {"team-b"}
    monkeypatch.setattr(auth, "store", store)
    with app.test_request_context():
        assert access.seen_workspaces() == seen


def test_models_are_listed_with_one_query(monkeypatch):
    monkeypatch.setattr(auth, "sender_is_admin", lambda: False)
    monkeypatch.setattr(auth, "store", Mock(**{"list_grants.return_value": []}))
    monkeypatch.setattr(
        auth, "_get_model_registry_store", Mock(side_effect=AssertionError("three more queries"))
    )
    with app.test_request_context():
        assert access.may_list("X")  # MLflow's default permission allows it.
        assert access.may_list("Y")
    auth.store.list_grants.assert_called_once()


@pytest.mark.parametrize(
    ("of_model", "of_versions", "can"),
    [
        (EDIT, EDIT, ModelPermission(can_read=True, can_update=True)),
        (EDIT, READ, ModelPermission(can_read=True)),
        (READ, EDIT, ModelPermission(can_read=True)),
        (EDIT, DENY, ModelPermission()),
        (DENY, EDIT, ModelPermission()),
        (None, None, ModelPermission()),
    ],
)
def test_deny_of_model_or_versions_wins(monkeypatch, of_model, of_versions, can):
    """MLflow returns None if it does not find the workspace of the model."""
    found = of_model and [of_model, of_versions]
    monkeypatch.setattr(auth, "resolve_requirements", lambda *_: found)
    monkeypatch.setattr(handlers, "_get_model_registry_store", Mock())
    with app.test_request_context():
        assert BasicAuth().permission("X") == can


def test_job_has_its_caller_password():
    with app.test_request_context(auth=("bob", "secret")):
        assert BasicAuth().credentials() == {
            "MLFLOW_TRACKING_USERNAME": "bob",
            "MLFLOW_TRACKING_PASSWORD": "secret",
        }
