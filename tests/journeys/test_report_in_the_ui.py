"""Tests of a report in MLflow's own viewer, which is a sandboxed frame, in a real
browser.
"""

import os
from dataclasses import dataclass, replace

import mlflow
import numpy as np
import pytest
from mlflow import MlflowClient
from playwright.sync_api import Page, expect

from mlflow_deploy_plugin.watch.drift.sketches.columns import ColumnValues
from mlflow_deploy_plugin.watch.result import Finding, ReportData
from tests.support.browser import NEEDS_CHROMIUM, chromium
from tests.support.results import past_of, result_of
from tests.support.services.mlflow_server import MlflowServer
from tests.support.tracking import tracking_at

pytestmark = [pytest.mark.long, *NEEDS_CHROMIUM]
ROWS = 500
RNG = np.random.default_rng(0)


@dataclass(frozen=True)
class Reader:
    """A browser that cannot reach servers other than MLflow, and the URLs that it
    requested elsewhere.
    """

    mlflow: MlflowServer
    page: Page
    elsewhere: list[str]

    def picture(self, name: str) -> None:
        """Save a screenshot for a person."""
        if folder := os.environ.get("KEEP_PICTURES"):
            self.page.screenshot(path=f"{folder}/{name}.png")


@pytest.fixture(scope="module")
def reader(tmp_path_factory, new_database):
    folder = tmp_path_factory.mktemp("mlflow")
    new_database(folder)
    server = MlflowServer(folder)
    elsewhere: list[str] = []
    try:
        server.start()
        with tracking_at(server.url), chromium() as browser:
            page = browser.new_page(viewport={"width": 1400, "height": 1100})
            page.set_default_timeout(60_000)
            local_urls = (f"{server.url}/", "data:", "blob:", "about:")
            page.on(
                "request",
                lambda asked: (
                    None if asked.url.startswith(local_urls) else elsewhere.append(asked.url)
                ),
            )
            yield Reader(server, page, elsewhere)
    finally:
        server.kill()


def features(shift):
    return (
        ColumnValues("temperature", "number", RNG.normal(size=ROWS)),
        ColumnValues("temperature", "number", RNG.normal(shift, 1, ROWS)),
    )


def log(judgement, evidence, *past):
    """Report the judgement after the results of earlier windows, and return the page of
    its run.
    """
    # The import of Evidently takes seconds, and every worker of a test run imports
    # every test module.
    from mlflow_deploy_plugin.watch.reports.log import build_report, log_result

    return log_result(
        judgement, build_report(replace(judgement, report=evidence), past_of(*past))
    ).url


def test_the_report_is_shown_whole_in_mlflows_viewer(reader):
    past = [result_of(day, temperature=score) for day, score in enumerate([0.5, 1.2, 0.8, 2.0])]
    judgement = result_of(4, temperature=6.5, notes=("2 rows came late",))
    url = log(judgement, ReportData([features(3.0)]), *past)

    reader.page.goto(f"{url}/artifacts/report.html")
    frame = reader.page.frame_locator("iframe").first

    expect(
        frame.get_by_role("heading", name="flights, daily, 2013-07-05/2013-07-06: drift")
    ).to_be_visible()
    expect(frame.get_by_role("cell", name="temperature").first).to_be_visible()
    picture = frame.get_by_role(
        "img", name="largest score of a column, in SD: newest 6.5, threshold 3"
    )
    expect(picture).to_be_visible()
    assert picture.evaluate("image => image.naturalWidth") > 100
    frame.get_by_text("Evidently's charts").click()
    expect(frame.locator(".js-plotly-plot")).to_be_visible()
    reader.picture("report")
    assert not [url for url in reader.elsewhere if "report" in url]
    assert {url for url in reader.elsewhere if "cdn" in url or "plot" in url} == set()


def test_a_report_of_criteria_is_shown_likewise(reader):
    findings = (
        Finding("accuracy", "criterion", "violated", "0.71 is below 0.8", 0.71, 0.8),
        Finding("f1", "criterion", "not judged", "one class only"),
    )
    past_finding = Finding("accuracy", "criterion", "kept", "", 0.84, 0.8)
    past = result_of(
        0, monitor="accuracy", kind="performance", state="kept", findings=(past_finding,)
    )
    judgement = result_of(
        1, monitor="accuracy", kind="performance", state="violated", findings=findings
    )
    url = log(judgement, ReportData(), past)

    reader.page.goto(f"{url}/artifacts/report.html")
    frame = reader.page.frame_locator("iframe").first

    expect(
        frame.get_by_role("heading", name="flights, accuracy, 2013-07-02/2013-07-03: violated")
    ).to_be_visible()
    expect(frame.get_by_text("0.71 is below 0.8")).to_be_visible()
    reader.picture("criteria")


def test_the_page_of_the_version_leads_to_the_report(reader):
    client = MlflowClient()
    client.create_registered_model("flight-delay")
    with mlflow.start_run() as run:
        source = f"runs:/{run.info.run_id}/model"
    client.create_model_version(
        "flight-delay", source=source, run_id=run.info.run_id, description="Trained on **Monday**."
    )
    url = log(result_of(7, temperature=6.5), ReportData())

    reader.page.goto(f"{reader.mlflow.url}/#/models/flight-delay/versions/1")

    expect(reader.page.get_by_text("Monday")).to_be_visible()
    link = reader.page.get_by_role("link", name="report", exact=True)
    expect(link).to_be_visible()
    reader.picture("version")
    assert link.get_attribute("href") == f"{url}/artifacts/report.html"
    assert "onnxserve: what follows" not in reader.page.inner_text("body")


def test_mlflow_draws_all_windows_of_a_monitor_over_time(reader):
    for day, score in enumerate([0.5, 1.2, 0.8, 6.5, 2.0]):
        log(result_of(day, endpoint="taxis", temperature=score), ReportData())
    experiment = MlflowClient().get_experiment_by_name("onnxserve/taxis").experiment_id
    (run,) = MlflowClient().search_runs([experiment], "tags.`onnxserve.series` = 'windows'")

    reader.page.goto(
        f"{reader.mlflow.url}/#/experiments/{experiment}/runs/{run.info.run_id}/model-metrics"
    )

    expect(reader.page.get_by_text("distribution_score/temperature").first).to_be_visible()
    expect(reader.page.locator(".scatterlayer .trace").first).to_be_attached()
    reader.picture("series")
