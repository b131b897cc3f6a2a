"""Tests that "Transition to → Production" in MLflow's UI deploys the version.

All tests of this module share an MLflow server (`--app-name onnxserve`), an endpoint
under load and a browser. Each test also checks that no request failed and that no
answer mixed two versions.
"""

import threading
import time
from dataclasses import dataclass

import mlflow
import pytest
import requests
from mlflow import MlflowClient
from mlflow.deployments import get_deploy_client
from playwright.sync_api import Page, expect

from mlflow_deploy_plugin.core.settings import load_settings
from mlflow_deploy_plugin.core.store.audit import AuditEvent
from mlflow_deploy_plugin.core.store.database import open_store
from tests.support.browser import NEEDS_CHROMIUM, chromium
from tests.support.models import adder
from tests.support.services.mlflow_server import MlflowServer
from tests.support.tracking import DEFAULT_EXPERIMENT, pass_gate, tracking_at
from tests.support.waiting import wait_until

MODEL = "adder"
ENDPOINT = "promoted"
POLICY_TAG = "onnxserve.gate.policy"
pytestmark = NEEDS_CHROMIUM


@dataclass(frozen=True)
class Answer:
    at: float
    status: int
    version: str
    value: float


class Traffic(threading.Thread):
    """A client that sends requests until it is stopped."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self._url = f"{url}/invocations"
        self._ended = threading.Event()
        self.answers: list[Answer] = []

    def run(self) -> None:
        session = requests.Session()
        while not self._ended.is_set():
            response = session.post(self._url, json={"inputs": [[10.0]]}, timeout=10)
            value = response.json()["predictions"]["y"][0][0] if response.ok else float("nan")
            version = response.headers.get("X-Model-Version", "")
            self.answers.append(Answer(time.monotonic(), response.status_code, version, value))
            self._ended.wait(0.02)

    def stop(self) -> None:
        self._ended.set()
        self.join()

    @property
    def version(self) -> str:
        """Return the version of the latest answer."""
        return wait_until(lambda: self.answers, 30, "the first answer")[-1].version

    def wait_for(self, version: str) -> None:
        """Wait until only `version` has answered thirty requests in a row."""
        answered = {version}
        wait_until(
            lambda: (
                len(self.answers) > 30
                and {answer.version for answer in self.answers[-30:]} == answered
            ),
            30,
            f"version {version} answers",
        )

    def last_of(self, *versions: str) -> float:
        """Return the time of the last answer of these versions."""
        return max(answer.at for answer in self.answers if answer.version in versions)


@dataclass(frozen=True)
class Platform:
    """MLflow with the onnxserve app, an endpoint that follows Production of a model
    with three versions, load, and a browser.
    """

    mlflow: MlflowServer
    traffic: Traffic
    page: Page

    def events(self, action: str) -> list[AuditEvent]:
        store = open_store(load_settings().store_url)
        try:
            return [event for event in store.events() if event.action == action]
        finally:
            store.close()

    def stage(self, version: str) -> str:
        return str(MlflowClient().get_model_version(MODEL, version).current_stage)


@pytest.fixture(scope="module")
def platform(tmp_path_factory, new_database):
    folder = tmp_path_factory.mktemp("platform")
    new_database(folder)
    server = MlflowServer(folder, app="onnxserve")
    with pytest.MonkeyPatch.context() as patch, tracking_at(server.url):
        patch.setenv("ONNXSERVE_HOME", str(folder / "home"))
        client = get_deploy_client("onnxserve")
        traffic = None
        try:
            server.start()
            register_three_versions()
            deployed = client.create_deployment(
                ENDPOINT, f"models:/{MODEL}/Production", config={"server.workers": 2}
            )
            traffic = Traffic(deployed["url"])
            traffic.start()
            quiet = (
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
            )
            with chromium(*quiet) as browser:
                page = browser.new_page()
                page.set_default_timeout(60_000)
                use_the_stages(page, server.url)
                yield Platform(server, traffic, page)
        finally:
            if traffic is not None:
                traffic.stop()
            client.delete_endpoint(ENDPOINT)
            server.kill()


@pytest.fixture(autouse=True)
def nothing_fails(platform):
    """Check after every test that each request was answered,
    and by a single version.
    """
    seen = len(platform.traffic.answers)
    yield
    answers = platform.traffic.answers[seen:]
    assert {answer.status for answer in answers} == {200}
    assert {answer.value - 10 for answer in answers} == {
        float(answer.version) for answer in answers
    }
    assert all(answer.value == 10 + float(answer.version) for answer in answers)


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


def move_in_the_ui(platform, version, stage, now="None"):
    """Press the buttons that a person presses,
    and return the time of the last click.
    """
    platform.page.goto(f"{platform.mlflow.url}/#/models/{MODEL}/versions/{version}")
    platform.page.reload()
    platform.page.get_by_text(now, exact=True).first.click()
    platform.page.get_by_text("Transition to").filter(has_text=stage).last.click()
    platform.page.get_by_role("button", name="OK").click()
    return time.monotonic()


def open_console(platform):
    platform.page.goto(f"{platform.mlflow.url}/onnxserve")
    return platform.page


def press(page, name, **how):
    """Press a button of the console and wait for the success message of the page."""
    page.get_by_role("button", name=name, **how).first.click()
    expect(page.get_by_text("Done: ")).to_be_visible(timeout=90_000)


def unfold(page, name):
    """Open the form behind this button of the console."""
    page.locator("summary", has_text=name).click()


IS_IN_THE_CONTENT = """link => {
    const box = link.getBoundingClientRect();
    const content = link.closest("main").getBoundingClientRect();
    const isInside = content.left <= box.left && box.right <= content.right;
    return isInside && getComputedStyle(link).position === "static";
}"""


@pytest.mark.parametrize(
    "path", [f"#/models/{MODEL}", f"#/models/{MODEL}/versions/1"], ids=["model", "version"]
)
def test_mlflow_s_pages_of_a_model_lead_to_the_endpoints_that_serve_it(platform, path):
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


def test_a_promotion_in_the_ui_is_served_within_five_seconds_and_no_request_fails(platform):
    clicked = move_in_the_ui(platform, "2", "Production")
    platform.traffic.wait_for("2")
    assert platform.traffic.last_of("1") - clicked < 5
    moved = [event for event in platform.events("transition") if event.version == "2"][-1]
    assert moved.before == "None"
    assert moved.after == "Production"
    assert moved.actor == "anonymous@127.0.0.1"
    assert moved.detail["stood_there"] == "1"
    page = open_console(platform)
    unfold(page, f"Change or roll back {ENDPOINT}")
    expect(page.get_by_role("button", name="Roll back")).to_be_enabled()


def test_mlflow_ui_shows_the_refusal_of_the_gate_and_leaves_the_stage_unchanged(platform):
    before = platform.traffic.version
    client = MlflowClient()
    client.set_registered_model_tag(MODEL, POLICY_TAG, "gated_stages: [Production]")
    pass_gate(MODEL, "3", "failed", "evaluation: accuracy 0.71 against 0.80")
    try:
        move_in_the_ui(platform, "3", "Production")
        message = (
            "version 3 of adder may not become Production: evaluation: accuracy 0.71 against 0.80"
        )
        expect(platform.page.get_by_role("alert").get_by_text(message)).to_be_visible()
        assert platform.stage("3") == "None"
        assert [event.version for event in platform.events("refused")] == ["3"]
        platform.traffic.wait_for(before)
    finally:
        client.delete_registered_model_tag(MODEL, POLICY_TAG)


@pytest.mark.long  # tests/ui/test_actions.py tests the effect of the button.
def test_the_console_changes_the_traffic_live(platform):
    client = get_deploy_client("onnxserve")
    client.create_deployment("challenger", f"models:/{MODEL}/3", endpoint=ENDPOINT)
    before = platform.traffic.version
    page = open_console(platform)
    expect(page.get_by_text("healthy")).to_be_visible()
    unfold(page, ENDPOINT)
    page.get_by_label(f"Weight of {ENDPOINT} in {ENDPOINT}").fill("0")
    page.get_by_label(f"Weight of challenger in {ENDPOINT}").fill("100")
    page.get_by_label("Why").locator("visible=true").fill("the challenger is to prove itself")
    press(page, "Change the traffic")
    platform.traffic.wait_for("3")
    unfold(page, ENDPOINT)
    page.get_by_label(f"Weight of {ENDPOINT} in {ENDPOINT}").fill("100")
    page.get_by_label(f"Weight of challenger in {ENDPOINT}").fill("0")
    press(page, "Change the traffic")
    platform.traffic.wait_for(before)
    event = platform.events("traffic")[-2]
    assert event.endpoint == ENDPOINT
    assert event.actor == "anonymous@127.0.0.1"
    assert event.why == "the challenger is to prove itself"


@pytest.mark.long
def test_console_promotes_a_passing_version_explains_a_refusal_and_rolls_back(platform):
    client = MlflowClient()
    before = platform.traffic.version
    client.set_registered_model_tag(
        MODEL, POLICY_TAG, "parity: proven\nskip: [signature, evaluation, robustness, budget]"
    )
    page = open_console(platform)
    unfold(page, f"Promote or judge version 3 of {MODEL}")
    page.get_by_role("button", name=f"Promote version 3 of {MODEL}").click()
    expect(page.get_by_text("Not done: promote version 3")).to_be_visible(timeout=90_000)
    assert "parity" in page.get_by_role("alert").inner_text()
    assert platform.stage("3") == "None"
    client.set_registered_model_tag(
        MODEL, POLICY_TAG, "parity: any\nskip: [signature, evaluation, robustness, budget]"
    )
    unfold(page, f"Promote or judge version 3 of {MODEL}")
    press(page, f"Promote version 3 of {MODEL}")
    platform.traffic.wait_for("3")
    promoted = platform.events("promote")[-1]
    assert promoted.version == "3"
    assert promoted.actor == "anonymous@127.0.0.1"
    assert before in promoted.before
    expect(page.get_by_role("link", name="report").first).to_be_visible()
    unfold(page, f"Change or roll back {ENDPOINT}")
    press(page, "Roll back")
    platform.traffic.wait_for(before)
    assert platform.stage(before) == "Production"
    assert platform.stage("3") == "Archived"
    back = platform.events("rollback")[-1]
    assert back.endpoint == ENDPOINT
    assert back.before == "version 3"
    assert back.after == f"version {before}"
