"""Tests of the console in headless Chromium with a keyboard, a screen reader and a
small screen.
"""

import re
from datetime import UTC, datetime

import mlflow
import pytest
from playwright.sync_api import expect

from mlflow_deploy_plugin.ui.jobs import Jobs
from tests.support.browser import NEEDS_CHROMIUM
from tests.support.monitors import judged_window

pytestmark = NEEDS_CHROMIUM
SOON = 7_000  # milliseconds until the page has refreshed


@pytest.fixture(scope="module")
def tab(browser):
    """The only tab, because each tab needs a process that starts."""
    opened = browser.new_page()
    opened.set_default_timeout(20_000)
    opened.clock.install()
    return opened


@pytest.fixture
def page(tab):
    yield tab
    tab.goto("about:blank")
    tab.unroute_all()
    tab.context.clear_cookies()
    tab.set_viewport_size({"width": 1280, "height": 720})


LOGIN = {"Location": "http://login.example/"}


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda route: route.fulfill(status=302, headers=LOGIN), "the session has ended"),
        (lambda route: route.abort(), "^Not up to date since .*MLflow does not answer"),
    ],
    ids=["ended session", "no MLflow"],
)
def test_charts_stay_while_they_cannot_be_drawn(page, console, endpoint, answer, said):
    page.goto(f"{console}?endpoint={endpoint}")
    page.route("**/pictures?*", answer)
    page.clock.run_for(SOON)
    expect(page.get_by_role("status").filter(has_text=re.compile(said))).to_be_visible()
    expect(page.locator("figure.chart")).to_have_count(4)


def test_unavailable_store_keeps_the_page(page, console, endpoint, monkeypatch):
    page.goto(f"{console}?endpoint={endpoint}")
    monkeypatch.setenv("ONNXSERVE_STORE_URI", "sqlite:////proc/nobody/can/write/here.db")
    page.evaluate("window.notLoadedAgain = true")
    with page.expect_response(
        lambda answer: answer.request.resource_type == "fetch" and "pictures" not in answer.url
    ):
        page.clock.run_for(SOON)
    expect(
        page.get_by_role("status").filter(has_text="the store at sqlite:////proc/nobody")
    ).to_be_visible()
    expect(page.get_by_role("heading", name=endpoint)).to_be_visible()
    assert page.evaluate("window.notLoadedAgain")


def test_tables_fit_the_window(page, console, endpoint):
    page.goto(console)
    expect(page.locator(".versions summary").first).to_be_visible()
    hidden = (
        "[...document.querySelectorAll('.scroll')].filter(table => table.scrollWidth > "
        "table.clientWidth).length"
    )
    for width in (360, 1000):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate(hidden) == 0
        assert page.locator('.versions td[data-label="Gate"]').first.bounding_box()["width"] > 200


def test_phone_labels_cover_no_value(page, console, mlflow_app, endpoint):
    model = endpoint.removeprefix("of-")
    mlflow_app.registry.set_registered_model_alias(model, "challenger-of-the-week", "1")
    page.set_viewport_size({"width": 390, "height": 800})
    page.goto(console)
    served = page.locator(
        '.variants td[data-label="Model"]', has_text=f"models:/{model}/Production"
    )
    assert served.evaluate("cell => cell.scrollWidth <= cell.clientWidth")
    aliases = page.locator(
        '.versions td[data-label="Stage and aliases"]', has_text="@challenger-of-the-week"
    )
    # The label is a float, which is in front of the value and makes the cell at least
    # as high as the label.
    is_beside = """cell => {
        const label = getComputedStyle(cell, '::before');
        const range = document.createRange();
        range.selectNodeContents(cell);
        const outer = cell.getBoundingClientRect();
        return range.getBoundingClientRect().left - outer.left >= parseFloat(label.width)
            && outer.height >= parseFloat(label.height);
    }"""
    assert aliases.evaluate(is_beside)


def test_focus_survives_new_pictures(page, console, mlflow_app, endpoint):
    mlflow.MlflowClient().create_experiment(f"onnxserve/{endpoint}")
    judged_window(
        mlflow_app.store, endpoint, "hits", datetime(2026, 11, 19, tzinfo=UTC), "drift", "a-run"
    )
    page.goto(f"{console}?endpoint={endpoint}")
    page.get_by_role("link", name="report").focus()
    page.locator("figure.chart").first.evaluate("figure => { figure.dataset.isOld = '' }")
    page.clock.run_for(SOON)
    expect(page.locator("figure[data-is-old]")).to_have_count(0)
    expect(page.get_by_role("link", name="report")).to_be_focused()


def test_only_one_reason_form_is_open(page, console, endpoint):
    page.goto(f"{console}?endpoint={endpoint}")
    reasons = page.get_by_label("Why").locator("visible=true")
    forms = page.locator("summary").filter(has_text=endpoint.removeprefix("of-"))
    expect(forms).to_have_count(3)  # One form for the endpoint, and one per version.
    expect(reasons).to_have_count(0)
    for form in forms.all():
        form.click()
        expect(reasons).to_have_count(1)
    reasons.fill("typed")
    page.evaluate("document.activeElement.blur()")
    page.clock.run_for(SOON)
    expect(reasons).to_have_value("typed")


def test_promotion_form_shows_its_effect(page, console, endpoint):
    model = endpoint.removeprefix("of-")
    page.goto(f"{console}?endpoint={endpoint}")
    page.locator("summary", has_text=f"Promote or judge version 2 of {model}").click()
    effect = page.locator(".effect").locator("visible=true")
    expect(effect).to_contain_text(f"Will serve it: {endpoint}.")
    page.get_by_label(f"Target of version 2 of {model}").select_option("Archived")
    expect(effect).to_contain_text("Archived: version none → 2. ")
    expect(effect).to_contain_text("Will serve it: no endpoint.")


def test_header_and_footer_are_aligned(page, console, endpoint):
    for path, width in (("", 390), ("/history", 1900)):
        page.set_viewport_size({"width": width, "height": 900})
        page.goto(f"{console}{path}")
        content = page.locator(".card").first.bounding_box()
        brand = page.locator(".brand").bounding_box()
        footer = page.locator("footer").evaluate(
            "footer => footer.getBoundingClientRect().left"
            " + parseFloat(getComputedStyle(footer).paddingLeft)"
        )
        assert brand["x"] == pytest.approx(content["x"], abs=1)
        assert footer == pytest.approx(content["x"], abs=1)


def test_address_with_a_password_is_refreshed(page, console, endpoint):
    page.goto(f"{console.replace('://', '://somebody:password@')}?endpoint={endpoint}")
    with page.expect_response("**/pictures?*") as drawn:
        page.clock.run_for(SOON)
    assert drawn.value.ok


def test_button_works_after_an_ended_session(page, console, endpoint, monkeypatch):
    monkeypatch.setattr(Jobs, "start", lambda _, job, secret: job)
    address = f"{console}?endpoint={endpoint}"
    promote = page.get_by_role("button", name="Promote version 1 of")
    opened = page.locator("summary", has_text="Promote or judge version 1 of")
    page.goto(address)
    page.context.clear_cookies()
    opened.click()
    promote.click()
    expect(page.get_by_role("alert")).to_have_text(re.compile("repeat the action"))
    assert page.url == address
    opened.click()
    promote.click()
    page.wait_for_url(f"{console}?job=*&endpoint={endpoint}")
