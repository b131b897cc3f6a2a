"""Tests of an MLflow server with workspaces, in which two workspaces have equal names
of models and endpoints.
"""

from dataclasses import dataclass
from pathlib import Path

import mlflow
import pytest
import requests
from mlflow import MlflowClient
from mlflow.deployments import get_deploy_client
from mlflow.exceptions import MlflowException
from mlflow.utils.workspace_context import WorkspaceContext
from playwright.sync_api import expect

from mlflow_deploy_plugin.core.settings import load_settings
from mlflow_deploy_plugin.core.spec.document import new_endpoint
from mlflow_deploy_plugin.core.store.audit import AuditEvent
from mlflow_deploy_plugin.core.store.database import open_store
from tests.support.browser import CHROMIUM, accessibility_findings, chromium
from tests.support.deployments import SIGNATURE, weighted_sum, working_in
from tests.support.refusals import refused
from tests.support.services.mlflow_server import MlflowServer
from tests.support.tracking import tracking_at
from tests.support.waiting import free_port, wait_until

GATED = "team-a"
FREE = "team-b"


@dataclass(frozen=True)
class Workspaces:
    """Return the server. Each workspace has a model X with two versions, which is gated
    only in `GATED`.
    """

    url: str
    folder: Path

    def page(self, workspace: str, path: str = "") -> requests.Response:
        return requests.get(f"{self.url}/onnxserve{path}", {"workspace": workspace}, timeout=60)

    def move(self, workspace: str, version: str) -> None:
        with WorkspaceContext(workspace):
            MlflowClient(self.url).transition_model_version_stage("X", version, "Production", True)

    def events(self, workspace: str) -> list[AuditEvent]:
        with WorkspaceContext(workspace):
            store = open_store(load_settings().store_url)
        try:
            return [event for event in store.events(model="X") if event.action != "register"]
        finally:
            store.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("workspaces")
    server = MlflowServer(folder, app="onnxserve", options=("--enable-workspaces",))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ONNXSERVE_HOME", str(folder / "home"))
        with patch.context() as of_server:
            of_server.delenv("MLFLOW_TRACKING_URI")
            server.start()
        try:
            with tracking_at(server.url):
                yield Workspaces(server.url, folder)
        finally:
            server.kill()


@pytest.fixture(scope="module")
def workspaces(server):
    client = MlflowClient(server.url)
    for workspace in (GATED, FREE):
        client.create_workspace(workspace)
        with WorkspaceContext(workspace):
            tags = (
                {"onnxserve.gate.policy": "gated_stages: [Production]"}
                if workspace == GATED
                else {}
            )
            client.create_registered_model("X", tags=tags)
            for number in (1, 2):
                client.create_model_version("X", f"s3://bucket/{workspace}/{number}")
    return server


@pytest.mark.long
def test_the_gate_and_its_trail_are_those_of_the_workspace(workspaces):
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
def test_the_console_shows_the_endpoints_of_its_workspace_with_links_that_stay_in_it(workspaces):
    with WorkspaceContext(GATED):
        store = open_store(load_settings().store_url)
    store.add_endpoint("onnxserve", new_endpoint("of-a", "models:/X/Production"))
    store.close()

    page = workspaces.page(GATED)
    assert page.status_code == 200
    assert "/onnxserve?endpoint=of-a&amp;workspace=team-a" in page.text
    assert 'method="post" action="/onnxserve?workspace=team-a"' in page.text
    assert "/#/models/X/versions/1?workspace=team-a" in page.text
    assert "of-a" not in workspaces.page(FREE).text
    assert "of-a" not in requests.get(f"{workspaces.url}/onnxserve", timeout=60).text


@pytest.mark.long
@pytest.mark.chromium
@pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium on this machine (apt-get install chromium)"
)
def test_a_reader_switches_between_workspaces_without_a_script(workspaces):
    with chromium() as browser:
        page = browser.new_page(java_script_enabled=False)
        page.goto(f"{workspaces.url}/onnxserve?workspace={GATED}&endpoint=of-a")
        switch = page.get_by_label("Workspace")
        expect(switch).to_have_value(GATED)
        assert switch.locator("option").all_inner_texts() == ["default", GATED, FREE]
        for wanted in (FREE, "default"):
            switch.select_option(wanted)
            page.get_by_role("button", name="Switch").click()
            page.wait_for_url(f"{workspaces.url}/onnxserve?workspace={wanted}")
            expect(switch).to_have_value(wanted)
        page.go_back()
        expect(switch).to_have_value(FREE)  # The workspace of the page, not the selected workspace.
        scripted = browser.new_page()
        scripted.goto(f"{workspaces.url}/onnxserve")
        assert accessibility_findings(scripted) == []


@pytest.mark.long
def test_missing_workspace_is_not_found(workspaces):
    answer = workspaces.page("team-z")
    assert answer.status_code == 404
    assert answer.text == "Workspace 'team-z' not found"


@pytest.mark.long
def test_endpoints_of_one_name_serve_the_models_of_one_name_each_of_its_own_workspace(
    server, monkeypatch
):
    client = MlflowClient(server.url)
    deployments = get_deploy_client("onnxserve")
    factors = {"team-c": 2.0, "team-d": 3.0}
    try:
        for workspace, factor in factors.items():
            client.create_workspace(workspace)
            monkeypatch.setenv("MLFLOW_WORKSPACE", workspace)
            mlflow.set_experiment("training")
            mlflow.onnx.log_model(
                weighted_sum(factor),
                name="sum",
                registered_model_name="sum",
                signature=SIGNATURE,
                pip_requirements=["onnxruntime"],
            )
            deployments.create_deployment(
                "sum", "models:/sum/latest", config={"server.port": free_port()}
            )
        for workspace, factor in factors.items():
            monkeypatch.setenv("MLFLOW_WORKSPACE", workspace)
            answer = deployments.predict("sum", {"inputs": [[1.0, 2.0]]})
            assert answer["predictions"] == [{"y": 3 * factor}]
            deployments.delete_deployment("sum")
    finally:
        for process in working_in(server.folder):
            process.kill()
    wait_until(lambda: not working_in(server.folder), 10, "every server ends")
