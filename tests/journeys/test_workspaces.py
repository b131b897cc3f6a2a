"""Tests of an MLflow server with workspaces, in which two workspaces have equal names
of models and endpoints.
"""

from dataclasses import dataclass

import pytest
import requests
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.utils.workspace_context import WorkspaceContext

from mlflow_deploy_plugin.core.spec.document import new_endpoint
from tests.support.refusals import refused
from tests.support.services.mlflow_server import MlflowServer
from tests.support.stores import own_store
from tests.support.tracking import tracking_at

GATED = "team-a"
FREE = "team-b"


@dataclass(frozen=True)
class Workspaces:
    """Return the server. Each workspace has a model X with two versions, which is gated
    only in `GATED`.
    """

    url: str

    def page(self, workspace, path=""):
        return requests.get(f"{self.url}/onnxserve{path}", {"workspace": workspace}, timeout=60)

    def move(self, workspace, version):
        with WorkspaceContext(workspace):
            MlflowClient(self.url).transition_model_version_stage("X", version, "Production", True)

    def events(self, workspace):
        with WorkspaceContext(workspace), own_store() as store:
            return [event for event in store.events(model="X") if event.action != "register"]


@pytest.fixture(scope="module")
def workspaces(tmp_path_factory):
    folder = tmp_path_factory.mktemp("workspaces")
    server = MlflowServer(folder, app="onnxserve", options=("--enable-workspaces",))
    policies = {GATED: {"onnxserve.gate.policy": "gated_stages: [Production]"}, FREE: {}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ONNXSERVE_HOME", str(folder / "home"))
        with patch.context() as of_server:
            of_server.delenv("MLFLOW_TRACKING_URI")
            server.start()
        try:
            with tracking_at(server.url):
                client = MlflowClient()
                for workspace, policy in policies.items():
                    client.create_workspace(workspace)
                    with WorkspaceContext(workspace):
                        client.create_registered_model("X", tags=policy)
                        for number in (1, 2):
                            client.create_model_version("X", f"s3://bucket/{workspace}/{number}")
                yield Workspaces(server.url)
        finally:
            server.kill()


@pytest.mark.long
def test_workspace_has_its_own_gate_and_trail(workspaces):
    for version in ("1", "2"):
        workspaces.move(FREE, version)
    with refused(MlflowException, "Production", "the gate", code="PERMISSION_DENIED"):
        # Version 1 was in this stage earlier, but in the other workspace.
        workspaces.move(GATED, "1")

    assert [(event.action, event.version) for event in workspaces.events(FREE)] == [
        ("transition", "1"),
        ("transition", "2"),
    ]
    # The policy is recorded first.
    assert [event.action for event in workspaces.events(GATED)] == ["tag", "refused"]
    assert "refused" not in workspaces.page(FREE, "/history.jsonl").text
    assert "refused" in workspaces.page(GATED, "/history.jsonl").text


@pytest.mark.long
def test_console_shows_endpoints_of_its_workspace(workspaces):
    with WorkspaceContext(GATED), own_store() as store:
        store.add_endpoint("onnxserve", new_endpoint("of-a", "models:/X/Production"))

    page = workspaces.page(GATED)
    assert page.status_code == 200
    assert "/onnxserve?endpoint=of-a&amp;workspace=team-a" in page.text
    assert 'method="post" action="/onnxserve?workspace=team-a"' in page.text
    assert "/#/models/X/versions/1?workspace=team-a" in page.text
    assert "of-a" not in workspaces.page(FREE).text
    assert "of-a" not in requests.get(f"{workspaces.url}/onnxserve", timeout=60).text
