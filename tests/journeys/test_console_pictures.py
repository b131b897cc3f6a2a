"""Tests of the console's charts in a real browser, on MLflow's server, for a real
endpoint with traffic and a rollout.

The tests run in order, because the last test ends MLflow.
"""

import re
from dataclasses import dataclass

import mlflow
import pytest
from mlflow.deployments import get_deploy_client
from playwright.sync_api import Page, expect

from tests.support.browser import NEEDS_CHROMIUM, chromium
from tests.support.models import adder
from tests.support.services.mlflow_server import MlflowServer
from tests.support.tracking import DEFAULT_EXPERIMENT, tracking_at
from tests.support.traffic import Traffic

MODEL = "shown"
ENDPOINT = "shown"
pytestmark = [pytest.mark.long, *NEEDS_CHROMIUM]


@dataclass(frozen=True)
class Console:
    """A browser that shows the console, and the endpoint in the console."""

    mlflow: MlflowServer
    url: str
    page: Page

    def open(self):
        self.page.goto(f"{self.mlflow.url}/onnxserve?endpoint={ENDPOINT}")
        return self.page


@pytest.fixture(scope="module")
def console(tmp_path_factory, new_database):
    folder = tmp_path_factory.mktemp("console")
    new_database(folder)
    server = MlflowServer(folder, app="onnxserve")
    with pytest.MonkeyPatch.context() as patch, tracking_at(server.url):
        patch.setenv("ONNXSERVE_HOME", str(folder / "home"))
        client = get_deploy_client("onnxserve")
        try:
            server.start()
            with mlflow.start_run(experiment_id=DEFAULT_EXPERIMENT):
                mlflow.onnx.log_model(
                    adder(1.0),
                    name="model",
                    registered_model_name=MODEL,
                    pip_requirements=["onnxruntime"],
                )
            url = client.create_deployment(ENDPOINT, f"models:/{MODEL}/1")["url"]
            with chromium() as browser:
                page = browser.new_page()
                page.set_default_timeout(60_000)
                yield Console(server, url, page)
        finally:
            client.delete_endpoint(ENDPOINT)
            server.kill()


@pytest.fixture(scope="module")
def traffic(console):
    thread = Traffic(console.url)
    thread.start()
    yield thread
    thread.stop()


def test_traffic_chart_grows_without_reload(console, request):
    page = console.open()
    page.evaluate("window.notLoadedAgain = true")
    request.getfixturevalue("traffic")

    line = page.locator(f"#{ENDPOINT}-requests path[data-name='version 1']")
    expect(line).to_be_attached()
    first = line.get_attribute("d") or ""
    expect(line).not_to_have_attribute("d", first)
    assert page.evaluate("window.notLoadedAgain")
    expect(page.locator(f"#{ENDPOINT}-requests svg[role=img]")).to_have_attribute(
        "aria-label", re.compile(r"version 1: now \d")
    )


def test_chart_values_are_read_by_keys_and_pointer(console, traffic):
    figure = console.open().locator(f"#{ENDPOINT}-requests")
    expect(figure.locator("path[data-name='version 1']")).to_be_attached()
    figure.focus()
    figure.press("End")
    expect(figure.get_by_role("status")).to_contain_text(re.compile(r"version 1 [\d.]+ /s"))
    figure.press("Escape")
    expect(figure.get_by_role("status")).to_have_count(0)
    box = figure.locator(".plot svg").bounding_box()
    console.page.mouse.move(box["x"] + box["width"] - 1, box["y"] + 5)
    expect(figure.get_by_role("status")).to_contain_text("version 1")


def test_page_without_mlflow_shows_its_age(console):
    page = console.open()
    console.mlflow.kill()
    status = page.get_by_role("status").filter(has_text="MLflow does not answer")
    expect(status).to_have_text(re.compile("^Not up to date since .*"))
    expect(page.locator("path.line").first).to_be_attached()
