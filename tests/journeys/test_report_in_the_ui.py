"""Tests of a report in MLflow's own viewer, which is a sandboxed frame, in a real
browser.
"""

import re

import numpy as np
import pytest
from playwright.sync_api import expect

from mlflow_deploy_plugin.watch.drift.sketches.columns import ColumnValues
from mlflow_deploy_plugin.watch.result import ReportData
from tests.support.browser import NEEDS_CHROMIUM, chromium
from tests.support.results import past_of, result_of
from tests.support.services.mlflow_server import MlflowServer
from tests.support.tracking import tracking_at

pytestmark = [pytest.mark.long, *NEEDS_CHROMIUM]
ROWS = 500


@pytest.fixture
def page(tmp_path, new_database):
    """Yield a browser's page, next to a running MLflow server."""
    new_database(tmp_path)
    server = MlflowServer(tmp_path)
    with server.running(), tracking_at(server.url), chromium() as browser:
        page = browser.new_page()
        page.set_default_timeout(60_000)
        yield page


def test_report_is_shown_in_mlflow_viewer(page):
    # The import of Evidently takes seconds, and every worker of a test run imports
    # every test module.
    from mlflow_deploy_plugin.watch.reports.log import build_report, log_result

    rng = np.random.default_rng(0)
    before = ColumnValues("temperature", "number", rng.normal(0, 1, ROWS))
    after = ColumnValues("temperature", "number", rng.normal(3, 1, ROWS))
    past = [result_of(day, temperature=score) for day, score in enumerate([0.5, 1.2, 0.8, 2.0])]
    judgement = result_of(4, temperature=6.5, report=ReportData([(before, after)]))
    url = log_result(judgement, build_report(judgement, past_of(*past))).url
    requested = []
    page.on("request", lambda request: requested.append(request.url))

    page.goto(f"{url}/artifacts/report.html")
    frame = page.frame_locator("iframe").first

    heading = "flights, daily, 2013-07-05/2013-07-06: drift"
    expect(frame.get_by_role("heading", name=heading)).to_be_visible()
    expect(frame.get_by_role("cell", name="temperature").first).to_be_visible()
    chart = "largest score of a column, in SD: newest 6.5, threshold 3"
    picture = frame.get_by_role("img", name=chart)
    expect(picture).to_be_visible()
    assert picture.evaluate("image => image.naturalWidth") > 100
    frame.get_by_text("Evidently's charts").click()
    expect(frame.locator(".js-plotly-plot")).to_be_visible()
    local = url.partition("/#")[0]
    elsewhere = [asked for asked in requested if not asked.startswith((local, "data:", "blob:"))]
    assert [asked for asked in elsewhere if re.search("cdn|plot|report", asked)] == []
