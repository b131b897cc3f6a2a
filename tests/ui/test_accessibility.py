"""Tests that the pages of MLflow's server violate no rule of axe-core in any state."""

import io
import re
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import mlflow
import orjson
import pytest
from playwright.sync_api import expect

from mlflow_deploy_plugin.core.settings import load_settings
from mlflow_deploy_plugin.core.spec.document import new_endpoint
from mlflow_deploy_plugin.core.spec.parts import VariantSpec
from mlflow_deploy_plugin.core.statedir.models import LoadedVariant, WorkerState
from mlflow_deploy_plugin.core.store.alerts import Alert, Alerts
from mlflow_deploy_plugin.core.store.monitor_tables import Monitors
from mlflow_deploy_plugin.core.store.tables import EndpointRow
from mlflow_deploy_plugin.promote.gate.approvals import Person, request_promotion
from mlflow_deploy_plugin.promote.gate.verdict import (
    CheckResult,
    GateVerdict,
    ReportTable,
    verdict_as_html,
)
from mlflow_deploy_plugin.ship.deployments.backends.targets import Observation
from mlflow_deploy_plugin.ship.deployments.endpoints import ObservedEndpoint
from mlflow_deploy_plugin.ship.deployments.lifecycle import Deployments
from mlflow_deploy_plugin.ship.deployments.server_metrics import parse_server_metrics
from mlflow_deploy_plugin.ui import pictures
from mlflow_deploy_plugin.watch.reports.log import build_report
from tests.support.approvals import record_gate
from tests.support.browser import NEEDS_CHROMIUM, accessibility_findings, chromium
from tests.support.cases import long_case
from tests.support.console import PAGE, POLICY
from tests.support.metrics_page import PAGE as METRICS
from tests.support.results import past_of, result_of

pytestmark = NEEDS_CHROMIUM
ENDPOINT = "of-" + "a-long-name" * 5
VERDICTS = ("no drift", "drift", "cannot tell", "violated")
STATES: tuple[Literal["starting", "failed", "stopped"], ...] = ("starting", "failed", "stopped")


@pytest.fixture(scope="module")
def url(mlflow_app, console):
    """Yield the address of a console that shows all of its states."""
    with pytest.MonkeyPatch.context() as patch:
        model = populate(mlflow_app)
        counted = METRICS.replace(
            '"f",variant="main",model="X"', f'"{ENDPOINT}",variant="v0",model="{model}"'
        )
        metrics = {"server": parse_server_metrics(counted)}
        loaded = {ENDPOINT: {"v0": LoadedVariant(version="6")}}
        worker = WorkerState(pid=1, generation=1, endpoints=loaded)
        observations: dict[str, Observation] = {
            ENDPOINT: Observation("running", url="http://f:80", workers=(worker,)),
            **{state: Observation(state, reason=f"it is {state}") for state in STATES},
        }
        observed = {
            name: ObservedEndpoint(mlflow_app.store.endpoint(name), observation)
            for name, observation in observations.items()
        }
        patch.setattr(
            Deployments,
            "list_endpoints",
            lambda _, on: [observed[name] for name in on if name in observed],
        )
        patch.setattr(Deployments, "get_endpoint", lambda _, name: observed[name])
        patch.setitem(pictures._LATE_SECONDS, "hour", 3600.0)  # The figures may become old.
        patch.setattr(Deployments, "server_metrics", lambda *asked, **more: metrics)
        yield console


def populate(mlflow_app):
    store = mlflow_app.store
    model = mlflow_app.model(f"{POLICY}\napprovals: {{groups: [risk]}}", versions=4)
    model.passed("1")
    mlflow_app.stands(model, "2", "failed", "evaluation: accuracy 0.71 against 0.80")
    mlflow_app.stands(model, "3", "forced", "by hand")
    policy, subject = model.promotion()
    record_gate(store, subject)
    request_promotion(store, policy, subject, Person("eva", frozenset(), may_edit=True))
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
    figures = {
        "criteria": {"error_rate>1%": {"figures": "2 % of 100 requests to version 7 failed"}},
        "trace": [[at, 0, {"error_rate>1%": at / 100}] for at in range(0, 91, 10)],
        "candidate": {"requests": 100},
    }
    planned = {"steps": [1, 10, 100], "version": "2", "before_version": "1", "min_requests": 100}
    rollout = store.add_rollout(ENDPOINT, planned, "stepping")
    store.update_rollout(replace(rollout, figures=figures), None)
    folder = load_settings().state_dir(ENDPOINT) / "history"
    folder.mkdir(parents=True)
    lines = [history_line(model, 10 * left) for left in reversed(range(1, 61))]
    (folder / "hour.jsonl").write_bytes(b"\n".join(lines))
    mlflow.MlflowClient().create_experiment(f"onnxserve/{ENDPOINT}")
    detail = {
        "lines": ["drift", "- a_long_name_of_a_column" * 9],
        "next": f"next: onnxserve monitor list {ENDPOINT}",
    }
    firing = Alert("alert", ENDPOINT, "drift", "firing", store.now(), store.now(), detail=detail)
    Alerts(store).add_once(firing)
    monitors = Monitors(store)
    judged = {"state": "judged", "reason": "no reason at all", "run_id": "a-run"}
    outcomes: list[dict[str, Any]] = [{**judged, "verdict": verdict} for verdict in VERDICTS]
    outcomes += [{"state": "pending"}, {"state": "failed", "reason": "a timeout"}]
    for hour, outcome in enumerate(outcomes):
        start = datetime(2026, 11, 20, hour, tzinfo=UTC)
        window = monitors.add(ENDPOINT, "drift", start, start + timedelta(hours=1))
        monitors.update(replace(window, **outcome))
    return model


def history_line(model, ago):
    version = [ENDPOINT, "v0", model, "6"]
    line = {
        "at": time.time() - ago,
        "seconds": 10,
        "requests": [[*version, "200", 70]],
        "durations": [[*version, {"0.002": 30, "0.004": 60}]],
        "rows": {ENDPOINT: 70},
        "labels": 2,
    }
    return orjson.dumps(line)


@pytest.fixture(scope="module")
def page(url):
    with chromium() as running:
        yield running.new_page(base_url=url)


@pytest.mark.parametrize(
    "path",
    [
        "",
        f"?endpoint={ENDPOINT}",
        long_case("?endpoint=failed"),
        long_case("?endpoint=unreadable"),
        long_case("?endpoint=nobody"),
        f"{PAGE}/history",
        long_case(f"{PAGE}/history?actor=nobody&page=3"),
    ],
    ids=["overview", "endpoint", "failed", "unreadable", "nobody", "history", "no-events"],
)
def test_page_is_accessible(page, path):
    page.goto(path)
    unfold = (
        "document.querySelectorAll('details').forEach(form => { form.removeAttribute('name'); "
        "form.open = true })"
    )
    page.evaluate(unfold)
    assert accessibility_findings(page) == []


def test_comparison_of_versions_is_accessible(page):
    page.goto("")
    page.get_by_role("link", name="compare with 2").click()
    page.get_by_role("region", name="Changes").wait_for()
    assert accessibility_findings(page) == []


def test_endpoint_fits_on_a_phone(page):
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


@pytest.mark.long
def test_chart_values_are_read_by_keys_and_pointer(page):
    page.goto(f"?endpoint={ENDPOINT}")
    figure = page.locator(f"#{ENDPOINT}-requests")
    expect(figure.locator("path[data-name='version 6']")).to_be_attached()
    figure.focus()
    figure.press("End")
    expect(figure.get_by_role("status")).to_contain_text(re.compile(r"version 6 [\d.]+ /s"))
    figure.press("Escape")
    expect(figure.get_by_role("status")).to_have_count(0)
    box = figure.locator(".plot svg").bounding_box()
    page.mouse.move(box["x"] + box["width"] - 1, box["y"] + 5)
    expect(figure.get_by_role("status")).to_contain_text("version 6")


def monitor_report():
    result = result_of(1, size=9.0, distance=1.0)
    return str(build_report(result, past_of(result_of(size=1.0)))["report.html"])


def gate_report():
    table = ReportTable(("class",), (("a",),))
    checks = (
        CheckResult("parity", "passed", "the ONNX form is proven"),
        CheckResult("evaluation", "failed", "worse", {"margin": 0.01}, ("a note",), table),
        CheckResult("budget", "skipped", "the policy skips it"),
    )
    now = datetime.now(UTC)
    return verdict_as_html(GateVerdict("m", "2", "ab12", "models:/m/1", now, checks, {}, "", ""))


@pytest.mark.parametrize("report", [monitor_report, gate_report])
def test_report_is_accessible(page, report):
    page.goto("about:blank")  # The console's policy would forbid the report's styles.
    page.set_content(report())
    assert accessibility_findings(page) == []


@pytest.mark.long
@pytest.mark.parametrize(("scheme", "ground"), [("light", 255), ("dark", 18)])
def test_report_picture_matches_the_page(page, scheme, ground):
    from matplotlib.image import imread

    page.emulate_media(color_scheme=scheme)
    page.goto("about:blank")
    page.set_content(monitor_report())
    corner = imread(io.BytesIO(page.get_by_role("img").first.screenshot()))[0, 0, :3]
    assert (corner * 255).round().tolist() == [ground] * 3
