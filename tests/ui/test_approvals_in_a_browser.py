"""Tests of approvals with two accounts in Chromium: MLflow's server with its basic
auth, where roles are the groups.
"""

import re

import pytest
from mlflow.exceptions import MlflowException
from playwright.sync_api import expect

from mlflow_deploy_plugin.core.errors import ScopeMissing
from mlflow_deploy_plugin.core.spec.document import new_endpoint
from mlflow_deploy_plugin.promote.gate.approval_client import listed_requests, send_decision
from tests.support.accounts import people
from tests.support.browser import NEEDS_CHROMIUM, accessibility_findings
from tests.support.refusals import mentions, refused
from tests.support.services.basic_auth import password

pytest.importorskip(
    "flask_wtf", reason="MLflow's basic auth needs Flask-WTF (pip install mlflow[auth])"
)
pytestmark = [*NEEDS_CHROMIUM, pytest.mark.long]

POLICY = """
gated_aliases: [champion]
skip: [evaluation, robustness, budget]
approvals: {groups: [risk], evaluation: optional, valid_for: %s}
"""
TO = "@champion"
JOB_MS = 120_000


@pytest.fixture(scope="module")
def server(tmp_path_factory, new_database):
    with people(tmp_path_factory.mktemp("approvals"), new_database, "alice", "carol") as accounts:
        accounts.add_role("risk", "alice", "carol")
        yield accounts


@pytest.fixture
def open_as(server, browser):
    """A function that opens a URL in a browser in which the user has logged in."""
    tabs = []

    def opened(user, url):
        context = browser.new_context(
            http_credentials={"username": user, "password": password(user)}
        )
        tabs.append(context)
        page = context.new_page()
        page.set_default_timeout(JOB_MS)
        page.goto(url)
        return page

    yield opened
    for context in tabs:
        context.close()


def refusal_of(server, user, model, version="1"):
    """Try to set the alias with MLflow's API as the user, and return the message of the
    refusal.
    """
    with server.logged_in(user) as client, pytest.raises(MlflowException) as refusal:
        client.set_registered_model_alias(model, TO[1:], version)
    assert refusal.value.error_code == "PERMISSION_DENIED"
    return str(refusal.value)


def history(server, model):
    counted = ("request", "approve", "decline", "promote", "alias")
    return [
        (event.action, event.actor) for event in server.store.events(model=model, actions=counted)
    ]


def test_a_promotion_is_requested_by_one_account_and_approved_by_another(server, open_as):
    model = server.register("alice", POLICY % "72h")
    server.store.add_endpoint("onnxserve", new_endpoint(model, f"models:/{model}{TO}"))
    console = f"{server.server.url}/onnxserve"

    author = open_as("alice", console)
    author.get_by_text("Promote or judge version 1").click()
    author.get_by_label("Target of version 1").select_option(TO)
    author.get_by_label("Why version 1").fill("half the latency")
    author.get_by_role("button", name="Request promotion of version 1").click()
    expect(author.locator(".notice.done")).to_contain_text(TO, timeout=JOB_MS)
    subject = f"the promotion of {model} version 1 to {TO}"
    author.locator("summary", has_text=f"Decide about {subject}").click()
    expect(author.get_by_role("button", name=f"Approve {subject}")).to_be_disabled()
    with (
        server.logged_in("alice"),
        refused(ScopeMissing, "alice", "requested", code="PERMISSION_DENIED"),
    ):
        send_decision("approve", model, "1", TO, report=listed_requests(model)[0].report_digest)
    message = refusal_of(server, "alice", model)
    assert mentions(message, "1 of 1", "risk")
    (link,) = re.findall(rf"{console}\S*model={model}", message)

    approver = open_as("carol", link)
    expect(approver.locator("table.requests tr", has_text=model)).to_contain_text(
        "half the latency"
    )
    expect(approver.get_by_role("link", name=f"report on {model}")).to_have_attribute(
        "href", re.compile("onnxserve/report")
    )
    assert accessibility_findings(approver) == []
    approver.locator("summary", has_text=f"Decide about {subject}").click()
    approver.get_by_label("Why").fill("the report is fine")
    assert accessibility_findings(approver) == []
    approver.get_by_role("button", name=f"Approve {subject}").click()
    expect(approver.get_by_text("complete")).to_be_visible()
    assert approver.url == link

    author.goto(console)
    author.get_by_text("Promote or judge version 1").click()
    author.get_by_label("Target of version 1").select_option(TO)
    author.get_by_role("button", name="Promote version 1").click()
    expect(author.locator(".notice.done")).to_contain_text(TO, timeout=JOB_MS)
    with server.logged_in("alice") as client:
        assert client.get_registered_model(model).aliases == {"champion": "1"}
    assert history(server, model) == [
        ("request", "alice"),
        ("approve", "carol"),
        ("alias", "alice"),
        ("promote", "alice"),
    ]
    (approval,) = server.store.events(model=model, actions=("approve",))
    (gate,) = server.store.events(model=model, actions=("gate",))
    assert approval.detail["report"] == gate.detail["report_digest"]
    expect(author.locator("table.events")).to_contain_text("the report is fine")
