"""Tests of the adapter of MLflow's basic auth. See test_access_accounts.py for a server
with accounts.
"""

from itertools import count
from unittest.mock import Mock

import pytest
from flask import Flask
from mlflow.entities import Workspace
from werkzeug.datastructures import Authorization

from mlflow_deploy_plugin.ui import access
from mlflow_deploy_plugin.ui.access import set_login
from mlflow_deploy_plugin.ui.logins.basic_auth import BasicAuth

app = Flask(__name__)
set_login(app, BasicAuth())


def test_a_password_is_checked_once_a_request(monkeypatch):
    from mlflow.server import auth

    checks = count(1)
    monkeypatch.setattr(auth, "authenticate_request", lambda: next(checks))
    BasicAuth().install(app, app)
    for number in (1, 2):
        with app.test_request_context():
            assert [auth.authenticate_request() for _ in range(3)] == [number] * 3


@pytest.mark.parametrize(
    ("is_admin", "seen"), [(True, ["default", "team-a", "team-b"]), (False, ["default", "team-b"])]
)
def test_an_account_is_offered_the_workspaces_that_mlflow_lists_for_it_and_the_one_at_hand(
    monkeypatch, is_admin, seen
):
    from mlflow.server import auth, handlers

    with app.test_request_context():
        assert access.seen_workspaces() == []
    monkeypatch.setenv("MLFLOW_ENABLE_WORKSPACES", "true")
    monkeypatch.setenv("MLFLOW_WORKSPACE", "default")
    workspaces = Mock(
        **{
            "list_workspaces.return_value": [
                Workspace(name) for name in ("team-b", "team-a", "default")
            ]
        }
    )
    monkeypatch.setattr(handlers, "_get_workspace_store", lambda: workspaces)
    monkeypatch.setattr(auth, "sender_is_admin", lambda: is_admin)
    monkeypatch.setattr(
        auth, "authenticate_request", lambda: Authorization("basic", {"username": "bob"})
    )
    monkeypatch.setattr(
        auth, "store", Mock(**{"list_accessible_workspace_names.return_value": {"team-b"}})
    )
    with app.test_request_context():
        assert access.seen_workspaces() == seen


def test_models_are_listed_for_an_account_without_a_look_for_each(monkeypatch):
    from mlflow.server import auth

    monkeypatch.setattr(auth, "sender_is_admin", lambda: False)
    monkeypatch.setattr(auth, "store", Mock(**{"list_grants.return_value": []}))
    monkeypatch.setattr(
        auth, "_get_model_registry_store", Mock(side_effect=AssertionError("three more queries"))
    )
    with app.test_request_context():
        assert access.may_list("X")  # MLflow's default permission allows it.
        assert access.may_list("Y")
    auth.store.list_grants.assert_called_once()
