"""Tests that the pages of MLflow's server violate no rule of axe-core in any state."""

import io
import threading
import time
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Literal
from urllib.parse import urlsplit

import mlflow
import orjson
import pytest
from matplotlib.image import imread
from werkzeug.serving import make_server

from mlflow_deploy_plugin.core.settings import load_settings
from mlflow_deploy_plugin.core.spec.document import apply_config, new_endpoint
from mlflow_deploy_plugin.core.spec.parts import VariantSpec
from mlflow_deploy_plugin.core.statedir.models import LoadedVariant, WorkerState
from mlflow_deploy_plugin.core.store.alerts import Alert, Alerts
from mlflow_deploy_plugin.core.store.monitor_tables import Monitors
from mlflow_deploy_plugin.core.store.tables import EndpointRow
from mlflow_deploy_plugin.promote.gate.verdict import (
    CheckResult,
    GateVerdict,
    ReportTable,
    verdict_as_html,
)
from mlflow_deploy_plugin.ship.deployments.backends.targets import Observation
from mlflow_deploy_plugin.ship.deployments.endpoints import ObservedEndpoint
from mlflow_deploy_plugin.ship.deployments.lifecycle import Deployments
from mlflow_deploy_plugin.watch.reports.log import build_report
from mlflow_deploy_plugin.watch.result import Finding
from tests.support.browser import NEEDS_CHROMIUM, accessibility_findings, chromium
from tests.support.console import PAGE
from tests.support.metrics_page import PAGE as METRICS
from tests.support.metrics_page import serving
from tests.support.results import past_of, result_of

pytestmark = NEEDS_CHROMIUM
ENDPOINT = "of-" + "a-long-name" * 5
VERDICTS = ("no drift", "drift", "cannot tell", "violated")
STATES: tuple[Literal["starting", "failed", "stopped"], ...] = ("starting", "failed", "stopped")


@pytest.fixture(scope="module")
def url(mlflow_app):
    """Yield the address of a console that shows all of its states."""
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        populate(mlflow_app)
        stored = mlflow_app.store.endpoint(ENDPOINT)
        model = stored.spec.variants["v0"].model.split("/")[1]
        counted = METRICS.replace(
            '"f",variant="main",model="X"', f'"{ENDPOINT}",variant="v0",model="{model}"'
        )
        address = stack.enter_context(serving({"/metrics": counted}))
        spec = apply_config(stored.spec, {"server.port": urlsplit(address).port})
        worker = WorkerState(
            pid=1, generation=1, endpoints={ENDPOINT: {"v0": LoadedVariant(version="6")}}
        )
        busy = ObservedEndpoint(
            replace(stored, spec=spec), Observation("running", url=address, workers=(worker,))
        )
        other_endpoints = [
            ObservedEndpoint(
                mlflow_app.store.endpoint(state), Observation(state, reason=f"it is {state}")
            )
            for state in STATES
        ]
        observed = {entry.endpoint.name: entry for entry in (busy, *other_endpoints)}
        patch.setattr(
            Deployments,
            "list_endpoints",
            lambda _, on: [observed[name] for name in on if name in observed],
        )
        patch.setattr(Deployments, "get_endpoint", lambda _, name: observed[name])
        server = make_server("127.0.0.1", 0, mlflow_app.app, threaded=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}{PAGE}"
        server.shutdown()
        thread.join()


def populate(mlflow_app):
    store = mlflow_app.store
    model = mlflow_app.model(versions=4)
    mlflow_app.stands(model, "1", "passed", "every check passed")
    mlflow_app.stands(model, "2", "failed", "evaluation: accuracy 0.71 against 0.80")
    mlflow_app.stands(model, "3", "forced", "by hand")
    mlflow_app.registry.set_registered_model_alias(model, "champion", "1")
    spec = new_endpoint(
        ENDPOINT, f"models:/{model}/Production", {"monitors.drift.every": "1h"}, variant="v0"
    )
    other_variants = {
        f"v{number}": VariantSpec(model=f"models:/{model}/{number % 4 + 1}", weight=0)
        for number in range(1, 11)
    }
    shadow = VariantSpec(model=f"models:/{model}/2", shadow=True, weight=0)
    store.add_endpoint(
        "onnxserve",
        spec.model_copy(update={"variants": {**spec.variants, **other_variants, "copy": shadow}}),
    )
    for state in STATES:
        store.add_endpoint("onnxserve", new_endpoint(state, "models:/مرحبا 🙂/Production"))
    store.add_endpoint("onnxserve", new_endpoint("unreadable", "models:/m/1"))
    with store.transaction() as session:
        session.get(EndpointRow, "unreadable").spec += "sampling: often\n"
    store.record(
        "promote", model=model, version="2", why="a long reason " * 35, before="1", after="2"
    )
    criteria = {
        "error_rate>1%": {"figures": "2 % of 100 requests to version 7 failed"},
        "p99>2x": {"figures": "4 ms"},
    }
    trace = [[at, 0, {"error_rate>1%": at / 100, "p99>2x": at / 200}] for at in range(0, 91, 10)]
    planned = {
        "steps": [1, 10, 100],
        "version": "2",
        "before_version": "1",
        "min_requests": 100,
        "to_uri": "models:/m/2",
    }
    rollout = store.add_rollout(ENDPOINT, planned, "stepping")
    figures = {"criteria": criteria, "trace": trace, "candidate": {"requests": 100}}
    store.update_rollout(replace(rollout, figures=figures), None)
    folder = load_settings().state_dir(ENDPOINT) / "history"
    folder.mkdir(parents=True)
    (folder / "hour.jsonl").write_bytes(
        b"\n".join(history_line(model, 10 * left) for left in reversed(range(1, 361)))
    )
    mlflow.MlflowClient().create_experiment(f"onnxserve/{ENDPOINT}")
    detail = {
        "lines": ["drift", "- a_long_name_of_a_column" * 9],
        "next": f"next: onnxserve monitor list {ENDPOINT}",
    }
    firing = Alert("alert", ENDPOINT, "drift", "firing", store.now(), store.now(), detail=detail)
    Alerts(store).add_once(firing)
    monitors = Monitors(store)
    for hour, outcome in enumerate((*VERDICTS, "pending", "failed")):
        start = datetime(2026, 11, 20, hour, tzinfo=UTC)
        window = monitors.add(ENDPOINT, "drift", start, start + timedelta(hours=1))
        if outcome in VERDICTS:
            window = replace(
                window, state="judged", verdict=outcome, reason="no reason at all", run_id="a-run"
            )
        monitors.update(
            replace(window, state="failed", reason="a timeout") if outcome == "failed" else window
        )


def history_line(model, ago):
    counted = [
        [ENDPOINT, "v0", model, str(version), "200", 70 * version] for version in range(1, 7)
    ]
    counted += [[ENDPOINT, "v0", model, "6", "500", 3]]
    durations = [
        [ENDPOINT, "v0", model, str(version), {"0.002": 30, "0.004": 60}] for version in range(1, 7)
    ]
    line = {"at": time.time() - ago, "seconds": 10, "requests": counted, "durations": durations}
    return orjson.dumps({**line, "rows": {ENDPOINT: 70}, "labels": 2})


@pytest.fixture(scope="module")
def page(url):
    with chromium() as running:
        yield running.new_page(base_url=url)


@pytest.mark.parametrize(
    "path",
    [
        "",
        f"?endpoint={ENDPOINT}",
        "?endpoint=failed",
        "?endpoint=unreadable",
        "?endpoint=nobody",
        f"{PAGE}/history",
        f"{PAGE}/history?actor=nobody&page=3",
    ],
    ids=["overview", "endpoint", "failed", "unreadable", "nobody", "history", "no-events"],
)
def test_a_page_breaks_no_rule_of_accessibility(page, path):
    page.goto(path)
    unfold = (
        "document.querySelectorAll('details').forEach(form => { form.removeAttribute('name'); "
        "form.open = true })"
    )
    page.evaluate(unfold)
    assert accessibility_findings(page) == []


def test_the_comparison_of_two_versions_breaks_no_rule(page):
    page.goto("")
    page.get_by_role("link", name="compare with 2").click()
    page.get_by_role("region", name="Changes").wait_for()
    assert accessibility_findings(page) == []


def test_on_a_phone_an_endpoint_of_the_overview_fits_on_the_screen_and_leads_to_its_details(page):
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto("")
    page.locator(f"#{ENDPOINT}-errors").wait_for()
    heights = page.locator("section.card[aria-labelledby^=endpoint-]").evaluate_all(
        "cards => cards.map(card => card.getBoundingClientRect().height)"
    )
    assert len(heights) == 5
    assert max(heights) <= 844
    page.get_by_role("link", name=f"Details of {ENDPOINT}").click()
    page.wait_for_url(f"**?endpoint={ENDPOINT}")
    assert page.locator(".variants tbody tr").locator("visible=true").count() == 12


def test_a_report_of_a_monitor_breaks_no_rule(page):
    page.goto("about:blank")  # The console's policy would forbid the report's styles.
    page.set_content(str(build_report(result_of(size=9.0, distance=1.0))["report.html"]))
    assert accessibility_findings(page) == []


@pytest.mark.long
@pytest.mark.parametrize(("scheme", "ground"), [("light", 255), ("dark", 18)])
def test_a_report_fits_a_phone_and_its_picture_has_the_ground_of_the_page(page, scheme, ground):
    name = "a_long_name_of_a_column" * 4
    wide = Finding(name, "distribution", "drift", "so it is " * 20, 9.0, 3.0, change="so " * 30)
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": 390, "height": 844})
    # The console's policy would also apply to the report, and forbids the report's
    # styles.
    page.goto("about:blank")
    page.set_content(
        str(
            build_report(result_of(1, size=9.0, findings=(wide,)), past_of(result_of(size=1.0)))[
                "report.html"
            ]
        )
    )
    page.locator("summary").click()
    too_wide = (
        "[...document.querySelectorAll('html, .scroll')].filter(one => one.scrollWidth > "
        "one.clientWidth).length"
    )
    assert page.evaluate(too_wide) == 0
    corner = imread(io.BytesIO(page.get_by_role("img").first.screenshot()))[0, 0, :3]
    assert (corner * 255).round().tolist() == [ground] * 3


@pytest.mark.long
def test_a_report_of_the_gate_breaks_no_rule(page):
    figures = {"difference": -0.1, "difference_low": -0.2, "difference_high": 0.0, "margin": 0.01}
    checks = (
        CheckResult("parity", "passed", "the ONNX form is proven"),
        CheckResult(
            "evaluation",
            "failed",
            "worse",
            figures,
            ("a note",),
            ReportTable(("class",), (("a",),)),
        ),
        CheckResult("budget", "skipped", "the policy skips it"),
    )
    page.set_content(
        verdict_as_html(
            GateVerdict("m", "2", "ab12", "models:/m/1", datetime.now(UTC), checks, {}, "", "")
        )
    )
    assert accessibility_findings(page) == []
