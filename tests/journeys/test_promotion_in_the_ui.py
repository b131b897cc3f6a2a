"""Tests that "Transition to → Production" in MLflow's UI deploys the version.

All tests of this module share an MLflow server (`--app-name onnxserve`), an endpoint
under load and a browser. Each test also checks that no request failed.
"""

from dataclasses import dataclass

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.deployments import get_deploy_client
from playwright.sync_api import Page, expect

from tests.support.browser import NEEDS_CHROMIUM, chromium
from tests.support.models import adder
from tests.support.services.mlflow_server import MlflowServer
from tests.support.stores import own_store
from tests.support.tracking import DEFAULT_EXPERIMENT, pass_gate, tracking_at
from tests.support.traffic import Traffic
from tests.support.waiting import wait_until

MODEL = "adder"
ENDPOINT = "promoted"
POLICY_TAG = "onnxserve.gate.policy"
pytestmark = NEEDS_CHROMIUM


@dataclass(frozen=True)
class Platform:
    """MLflow with the onnxserve app, an endpoint that follows Production of a model
    with three versions, load, and a browser.
    """

    mlflow: MlflowServer
    traffic: Traffic
    page: Page

    def events(self, action):
        with own_store() as store:
            return [event for event in store.events() if event.action == action]


@pytest.fixture(scope="module")
def platform(tmp_path_factory, new_database):
    folder = tmp_path_factory.mktemp("platform")
    new_database(folder)
    server = MlflowServer(folder, app="onnxserve")
    with pytest.MonkeyPatch.context() as patch, tracking_at(server.url):
        patch.setenv("ONNXSERVE_HOME", str(folder / "home"))
        client = get_deploy_client("onnxserve")
        try:
            server.start()
            register_three_versions()
            deployed = client.create_deployment(
                ENDPOINT, f"models:/{MODEL}/Production", config={"server.workers": 2}
            )
            traffic = Traffic(deployed["url"], seconds=0.1)
            traffic.start()
            with chromium() as browser:
                page = browser.new_page()
                page.set_default_timeout(60_000)
                use_the_stages(page, server.url)
                yield Platform(server, traffic, page)
            traffic.stop()
        finally:
            client.delete_endpoint(ENDPOINT)
            server.kill()


@pytest.fixture(autouse=True)
def nothing_fails(platform):
    """Check after every test that each request was answered."""
    yield
    assert {status for _, status in platform.traffic.answers} == {200}


def register_three_versions():
    """Register versions 1 to 3; version n adds n, and version 1 is in Production."""
    for amount in (1.0, 2.0, 3.0):
        with mlflow.start_run(experiment_id=DEFAULT_EXPERIMENT):
            mlflow.onnx.log_model(
                adder(amount),
                name="model",
                registered_model_name=MODEL,
                pip_requirements=["onnxruntime"],
            )
    MlflowClient().transition_model_version_stage(MODEL, "1", "Production")


def use_the_stages(page, url):
    """Switch off MLflow's "New model registry UI", which supports aliases but not
    stages.
    """
    page.goto(f"{url}/#/models/{MODEL}/versions/1")
    page.get_by_role("switch").first.click()
    page.get_by_role("button", name="Disable").click()


def move_to_production(platform, version):
    """Press the buttons that a person presses."""
    platform.page.goto(f"{platform.mlflow.url}/#/models/{MODEL}/versions/{version}")
    platform.page.reload()
    platform.page.get_by_text("None", exact=True).first.click()
    platform.page.get_by_text("Transition to").filter(has_text="Production").last.click()
    platform.page.get_by_role("button", name="OK").click()


IS_IN_THE_CONTENT = """link => {
    const box = link.getBoundingClientRect();
    const content = link.closest("main").getBoundingClientRect();
    const isInside = content.left <= box.left && box.right <= content.right;
    return isInside && getComputedStyle(link).position === "static";
}"""


@pytest.mark.parametrize(
    "path", [f"#/models/{MODEL}", f"#/models/{MODEL}/versions/1"], ids=["model", "version"]
)
def test_mlflow_model_page_links_to_endpoints(platform, path):
    page = platform.page
    link = platform.page.get_by_role("link", name="Endpoints in onnxserve")
    page.goto(f"{platform.mlflow.url}/#/experiments")
    expect(page.get_by_role("heading", name="Experiments")).to_be_visible()
    expect(link).to_have_count(0)
    page.evaluate("path => { location.hash = path }", path)
    for width in (390, 1400):
        page.set_viewport_size({"width": width, "height": 900})
        assert link.evaluate(IS_IN_THE_CONTENT)
    link.click()
    expect(page.get_by_role("heading", name=f"Endpoints that serve {MODEL}")).to_be_visible()
    expect(page.locator(f"#endpoint-{ENDPOINT}")).to_be_visible()


def test_promotion_in_mlflow_ui_is_served(platform):
    move_to_production(platform, "2")
    wait_until(lambda: platform.traffic.last_version == "2", what="version 2 answers")
    moved = [event for event in platform.events("transition") if event.version == "2"][-1]
    assert moved.before == "None"
    assert moved.after == "Production"
    assert moved.actor == "anonymous@127.0.0.1"
    assert moved.detail["stood_there"] == "1"


def test_gate_refusal_is_shown_in_mlflow_ui(platform):
    client = MlflowClient()
    client.set_registered_model_tag(MODEL, POLICY_TAG, "gated_stages: [Production]")
    pass_gate(MODEL, "3", "failed", "evaluation: accuracy 0.71 against 0.80")
    try:
        move_to_production(platform, "3")
        alert = platform.page.get_by_role("alert")
        expect(alert.get_by_text("evaluation: accuracy 0.71 against 0.80")).to_be_visible()
        assert MlflowClient().get_model_version(MODEL, "3").current_stage == "None"
        assert [event.version for event in platform.events("refused")] == ["3"]
    finally:
        client.delete_registered_model_tag(MODEL, POLICY_TAG)
