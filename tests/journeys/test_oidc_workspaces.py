"""Tests of permissions in MLflow's workspaces with mlflow-oidc-auth.

The console reads its workspace from the URL, and the plugin reads the workspace of a
request from a header.
"""

import pytest

from mlflow_deploy_plugin.core.store.database import open_store
from tests.support.console import form_token
from tests.support.login_platform import SECONDS, Platform
from tests.support.services.oidc_server import USERS, OidcServer

pytestmark = pytest.mark.long

HEADER = "X-MLFLOW-WORKSPACE"
HEADERS = [{}, {HEADER: "default"}, {HEADER: "team"}]


@pytest.fixture(scope="module")
def workspaces(tmp_path_factory, new_database):
    """A server with the workspaces default and team, which have a model X and an
    endpoint each.

    The editor may edit X in default, and the stranger may read the workspace team.
    Without a grant, a user may read models only in requests that name no workspace.
    """
    folder = tmp_path_factory.mktemp("workspaces")
    new_database(folder)
    server = OidcServer(folder)
    server.mlflow.variables |= {
        "MLFLOW_ENABLE_WORKSPACES": "true",
        "DEFAULT_MLFLOW_PERMISSION": "READ",
    }
    try:
        server.issuer.start()
        server.start()
        sessions = {user: server.log_in(user) for user in ("admin", "reader", "editor", "stranger")}
        admin = sessions["admin"]
        api = f"{server.url}/api/3.0/mlflow"
        admin.post(f"{api}/workspaces", json={"name": "team"}, timeout=SECONDS).raise_for_status()
        for workspace, endpoint, path in (
            ("default", "own", "."),
            ("team", "teams", "workspaces/team"),
        ):
            admin.headers[HEADER] = workspace
            (folder / "home" / path).mkdir(parents=True, exist_ok=True)
            store = open_store(f"sqlite:///{folder}/home/{path}/onnxserve.db")
            new_platform = Platform(server, store, sessions)
            new_platform.add_model("X", endpoint)
            store.close()
        del admin.headers[HEADER]
        server.grant(admin, "editor", "X", "EDIT")
        grant = {"username": USERS["stranger"].email, "permission": "READ"}
        admin.post(
            f"{api}/permissions/workspaces/team/users", json=grant, timeout=SECONDS
        ).raise_for_status()
        yield new_platform
    finally:
        server.stop()


@pytest.mark.parametrize("headers", HEADERS)
@pytest.mark.parametrize("user", ["reader", "editor", "stranger"])
def test_url_workspace_decides_permissions(workspaces, user, headers):
    team, default = (
        workspaces.page(user, headers, workspace=workspace) for workspace in ("team", "default")
    )
    assert ('id="endpoint-teams"' in team) == (user == "stranger")
    assert "Promote version 1 of X" not in team
    assert ('id="endpoint-own"' in default) == (user == "editor")
    assert ("Promote version 1 of X" in default) == (user == "editor")


@pytest.mark.parametrize("headers", HEADERS)
def test_endpoint_of_other_workspace_cannot_be_changed(workspaces, headers):
    token = form_token(workspaces.page("editor", workspace="default"))
    form = {"csrf_token": token, "action": "traffic", "endpoint": "teams", "weight:teams": "100"}
    url = f"{workspaces.console}?workspace=team"
    session = workspaces.sessions["editor"]
    answer = session.post(url, data=form, headers=headers, timeout=SECONDS, allow_redirects=False)
    assert answer.status_code == 404
