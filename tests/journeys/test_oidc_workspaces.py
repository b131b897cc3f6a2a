"""Tests of permissions in MLflow's workspaces with mlflow-oidc-auth.

The console reads its workspace from the URL, and the plugin reads the workspace of a
request from a header.
"""

import re
from dataclasses import dataclass

import pytest
import requests

from mlflow_deploy_plugin.core.spec.document import new_endpoint
from mlflow_deploy_plugin.core.store.database import open_store
from tests.support.console import API, PAGE
from tests.support.services.oidc_environment import oidc_python
from tests.support.services.oidc_server import USERS, OidcServer

pytestmark = pytest.mark.long

HEADER = "X-MLFLOW-WORKSPACE"
SECONDS = 60
HEADERS = [{}, {HEADER: "default"}, {HEADER: "team"}]


@dataclass
class Workspaces:
    """A server with the workspaces default and team, which have a model X and an
    endpoint each.

    The editor may edit X in default, and the stranger may read the workspace team.
    Without a grant, a user may read models only in requests that name no workspace.
    """

    server: OidcServer
    sessions: dict[str, requests.Session]

    def page(self, user, workspace, headers):
        url = f"{self.server.url}{PAGE}?workspace={workspace}"
        answer = self.sessions[user].get(url, headers=headers, timeout=SECONDS)
        assert answer.status_code == 200, answer.text
        return answer.text


@pytest.fixture(scope="module")
def workspaces(tmp_path_factory, new_database):
    folder = tmp_path_factory.mktemp("workspaces")
    new_database(folder)
    server = OidcServer(folder, oidc_python(), app="onnxserve")
    variables = {"MLFLOW_ENABLE_WORKSPACES": "true", "DEFAULT_MLFLOW_PERMISSION": "READ"}
    server.mlflow.variables = {**server.mlflow.variables, **variables}
    try:
        server.issuer.start()
        server.start()
        new_workspaces = Workspaces(
            server,
            {user: server.log_in(user) for user in ("admin", "reader", "editor", "stranger")},
        )
        admin = new_workspaces.sessions["admin"]
        api = f"{server.url}/api/3.0/mlflow"
        admin.post(f"{api}/workspaces", json={"name": "team"}, timeout=SECONDS).raise_for_status()
        for workspace, endpoint in (("default", "own"), ("team", "teams")):
            new = {"name": "X"}, {"name": "X", "source": "gs://bucket/x"}
            for path, fields in zip(
                ("/registered-models/create", "/model-versions/create"), new, strict=True
            ):
                headers = {HEADER: workspace}
                url = f"{server.url}{API}{path}"
                admin.post(url, json=fields, headers=headers, timeout=SECONDS).raise_for_status()
            new_workspaces.page("admin", workspace, {})  # The page creates the workspace's store.
            home = folder / "home"
            store = open_store(
                f"sqlite:///{home / ('.' if workspace == 'default' else 'workspaces/team')}"
                "/onnxserve.db"
            )
            store.add_endpoint("onnxserve", new_endpoint(endpoint, "models:/X/Staging"))
            store.close()
        server.grant(admin, "editor", "X", "EDIT")
        grant = {"username": USERS["stranger"].email, "permission": "READ"}
        admin.post(
            f"{api}/permissions/workspaces/team/users", json=grant, timeout=SECONDS
        ).raise_for_status()
        yield new_workspaces
    finally:
        server.stop()


@pytest.mark.parametrize("headers", HEADERS)
@pytest.mark.parametrize("user", ["reader", "editor", "stranger"])
def test_url_workspace_decides_permissions(workspaces, user, headers):
    team, default = (workspaces.page(user, workspace, headers) for workspace in ("team", "default"))
    assert ('id="endpoint-teams"' in team) == (user == "stranger")
    assert "Promote version 1 of X" not in team
    assert ('id="endpoint-own"' in default) == (user == "editor")
    assert ("Promote version 1 of X" in default) == (user == "editor")


@pytest.mark.parametrize("headers", HEADERS)
def test_endpoint_of_other_workspace_cannot_be_changed(workspaces, headers):
    page = workspaces.page("editor", "default", {})
    token = re.findall(r'name="csrf_token" value="([\w.-]+)"', page)[0]
    form = {"csrf_token": token, "action": "traffic", "endpoint": "teams", "weight:teams": "100"}
    url = f"{workspaces.server.url}{PAGE}?workspace=team"
    session = workspaces.sessions["editor"]
    answer = session.post(url, data=form, headers=headers, timeout=SECONDS, allow_redirects=False)
    assert answer.status_code == 404
