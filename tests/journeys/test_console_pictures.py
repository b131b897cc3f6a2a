"""Tests of the console's charts in a real browser, on MLflow's server, for a real
endpoint with traffic and a rollout.

The tests run in order, because the last test ends MLflow.
"""

import os
import re
import threading
from dataclasses import dataclass

import mlflow
import pytest
from mlflow.deployments import get_deploy_client
from playwright.sync_api import Page, expect

from mlflow_deploy_plugin.promote.rollouts.commands import RolloutRequest, start_rollout
from mlflow_deploy_plugin.promote.rollouts.controller import RolloutActions, RolloutController
from mlflow_deploy_plugin.ship.deployments.lifecycle import open_deployments
from tests.support.browser import NEEDS_CHROMIUM, chromium
from tests.support.models import FAILING, adder, parse_graph
from tests.support.services.mlflow_server import MlflowServer
from tests.support.tracking import DEFAULT_EXPERIMENT, tracking_at
from tests.support.traffic import Traffic

MODEL = "shown"
ENDPOINT = "shown"
CONTRAST = """selectors => {
  const light = color => {
    const [r, g, b] = color.match(/[\\d.]+/g).map(Number).map(v => v / 255)
      .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = light(getComputedStyle(document.querySelector(".card")).backgroundColor);
  return Object.fromEntries(selectors.map(([selector, property]) => {
    const found = light(getComputedStyle(document.querySelector(selector))[property]);
    return [selector, (Math.max(found, ground) + 0.05) / (Math.min(found, ground) + 0.05)];
  }));
}"""
"""The contrast of elements against their card, as WCAG 2 defines it."""
pytestmark = [pytest.mark.long, *NEEDS_CHROMIUM]


@dataclass(frozen=True)
class Console:
    """A browser that shows the console, and the endpoint in the console."""

    mlflow: MlflowServer
    url: str
    page: Page

    def open(self, path: str = f"?endpoint={ENDPOINT}", width: int = 1100) -> Page:
        self.page.set_viewport_size({"width": width, "height": 900})
        self.page.goto(f"{self.mlflow.url}/onnxserve{path}")
        return self.page

    def picture(self, name: str) -> None:
        """Save a screenshot for a person."""
        if folder := os.environ.get("KEEP_PICTURES"):
            self.page.screenshot(path=f"{folder}/{name}.png", full_page=True)


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
            for graph in (adder(1.0), parse_graph(FAILING)):
                with mlflow.start_run(experiment_id=DEFAULT_EXPERIMENT):
                    mlflow.onnx.log_model(
                        graph,
                        name="model",
                        registered_model_name=MODEL,
                        pip_requirements=["onnxruntime"],
                    )
            url = client.create_deployment(
                ENDPOINT, f"models:/{MODEL}/1", config={"monitors.drift.every": "1d"}
            )["url"]
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


def test_traffic_is_a_line_within_seconds_that_grows_without_a_reload(console, request):
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


def test_the_arrow_keys_and_the_pointer_read_a_value_off(console, traffic):
    figure = console.open().locator(f"#{ENDPOINT}-requests")
    expect(figure.locator("path[data-name='version 1']")).to_be_attached()
    figure.focus()
    figure.press("End")
    expect(figure.get_by_role("status")).to_contain_text(re.compile(r"version 1 [\d.]+ /s"))
    figure.press("Escape")
    expect(figure.get_by_role("status")).to_have_count(0)
    box = figure.locator(".plot svg").bounding_box()
    assert box is not None
    console.page.mouse.move(box["x"] + box["width"] - 1, box["y"] + 5)
    expect(figure.get_by_role("status")).to_contain_text("version 1")


def test_while_an_action_is_under_way_the_page_stays_and_says_how_it_ends(console):
    page = console.open()
    page.locator("summary", has_text=f"version 1 of {MODEL}").click()
    page.get_by_role("button", name=f"Run the gate for version 1 of {MODEL}").click()
    expect(page.get_by_text("In progress: ")).to_be_visible()
    page.evaluate("window.notLoadedAgain = true")
    page.locator("summary").first.click()
    page.get_by_label("Why").first.fill("typed meanwhile")

    expect(page.get_by_text("Done: ").or_(page.get_by_text("Not done: "))).to_be_visible()

    expect(page.get_by_label("Why").first).to_have_value("typed meanwhile")
    assert page.evaluate("window.notLoadedAgain")


def test_an_endpoint_that_comes_is_shown_in_its_place_and_the_others_keep_theirs(console):
    page = console.open("")
    client = get_deploy_client("onnxserve")
    client.create_endpoint("a-first-one")
    try:
        first = page.locator("section.card").nth(0)
        second = page.locator("section.card").nth(1)
        expect(first.get_by_role("heading", name="a-first-one")).to_be_visible()
        expect(second.get_by_role("heading", name=ENDPOINT)).to_be_visible()
        assert second.locator(f"[data-live$='endpoint={ENDPOINT}']").count() == 1
    finally:
        client.delete_endpoint("a-first-one")
    expect(page.get_by_role("heading", name="a-first-one")).to_have_count(0)


def test_a_rollout_s_evidence_grows_as_it_comes(console, traffic):
    ended = threading.Event()
    with open_deployments(lambda line: None) as deployments:
        actions = RolloutActions(deployments, "controller", lambda line: None)
        controller = RolloutController(
            deployments.store, actions, "here", deployments.place(ENDPOINT)
        )
        working = threading.Thread(target=controller.run, args=(ended,))
        working.start()
        try:
            wanted = RolloutRequest(
                f"models:/{MODEL}/2", "50,100", "60s", "error_rate>1%", min_requests=1_000_000
            )
            start_rollout(deployments, ENDPOINT, wanted)
            page = console.open()
            page.evaluate("window.notLoadedAgain = true")
            legend = page.locator(f"#{ENDPOINT}-evidence .legend b")

            expect(page.get_by_role("heading", name="Rollout from version 1 to 2")).to_be_visible()
            expect(page.locator("li[aria-current=step]")).to_have_text(re.compile("50 %"))
            expect(legend).to_have_text(re.compile(r"^[1-9].* %$"))
            first = legend.inner_text()
            expect(legend).not_to_have_text(first)
            assert page.evaluate("window.notLoadedAgain")
            expect(page.get_by_text("requests to version 2 failed")).to_be_visible()
            # The texts of the page are updated with the charts.
            expect(page.locator(".variants").get_by_text("candidate")).to_be_visible()
            expect(page.locator(".rollouts").get_by_text("stepping")).to_be_visible()
            expect(page.locator(f"#{ENDPOINT}-errors path[data-name='version 2']")).to_be_attached()
            console.picture("rollout")
        finally:
            ended.set()
            working.join()


@pytest.mark.parametrize("path", ["", f"?endpoint={ENDPOINT}"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_readable_on_a_phone_by_day_and_by_night(console, scheme, path):
    console.page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    page = console.open(path, width=360)
    expect(page.locator("path.line").first).to_be_attached()
    console.picture(f"phone-{scheme}-{'whole' if path else 'all'}")

    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    texts = {
        ".legend b": "color",
        ".legend li": "color",
        ".chart figcaption .muted": "color",
        ".card .reason": "color",
    }
    shapes = {"path.c0": "stroke", "details input[name=why]": "borderTopColor"}
    contrast = page.evaluate(CONTRAST, [*texts.items(), *shapes.items()])
    assert min(contrast[text] for text in texts) >= 4.5
    assert min(contrast[shape] for shape in shapes) >= 3
    console.page.emulate_media(color_scheme="light")


def test_when_mlflow_is_gone_the_page_says_since_when_it_is_out_of_date(console):
    page = console.open()
    console.mlflow.kill()
    status = page.get_by_role("status").filter(has_text="MLflow does not answer")
    expect(status).to_have_text(re.compile("^Not up to date since .*"))
    expect(page.locator("path.line").first).to_be_attached()
