"""Tests of requests for promotions on MLflow's server: the JSON API, the section of the
page and its forms.
"""

import re
from functools import partial
from typing import Any

import pytest
from flask import request

from mlflow_deploy_plugin.core.registry.transitions import parse_stage_or_alias
from mlflow_deploy_plugin.core.settings import load_settings
from mlflow_deploy_plugin.core.spec.document import new_endpoint
from mlflow_deploy_plugin.core.store.alerts import Alerts
from mlflow_deploy_plugin.core.store.audit import move_detail
from mlflow_deploy_plugin.promote.gate.approvals import request_is_over
from mlflow_deploy_plugin.ui import approvals
from mlflow_deploy_plugin.ui.guard import mlflow_stores, moves
from mlflow_deploy_plugin.ui.logins.login import Login, ModelPermission
from mlflow_deploy_plugin.watch.alerts.send import send_due
from tests.support.approvals import REPORT, RUN, record_gate
from tests.support.console import PAGE, events, open_page, point
from tests.support.refusals import mentions
from tests.support.services.alert_receiver import receiver
from tests.support.waiting import wait_until

REQUESTS = f"{PAGE}/requests"
TO = "@champion"
READERS = {"alice", "bob", "carol", "dora"}
EDITORS = {"alice", "bob"}
RISK = {"carol", "dora", "alice"}
NEWER = "n" * 64


class People(Login):
    """A login that believes the name in a header."""

    def user(self) -> str:
        return request.headers.get("X-User", "")

    def is_administrator(self) -> bool:
        return not self.user()

    def groups(self) -> frozenset[str]:
        return frozenset({"risk"} if self.user() in RISK else ())

    def permission(self, model: str) -> ModelPermission:
        return ModelPermission(self.user() in READERS, self.user() in EDITORS)


@pytest.fixture(autouse=True)
def reports(monkeypatch):
    """The digest of the report that MLflow shows, as the only entry."""
    shown = [REPORT]
    monkeypatch.setattr(mlflow_stores, "report_digest", lambda run_id: shown[0])
    return shown


@pytest.fixture(autouse=True)
def people(mlflow_app):
    extensions = mlflow_app.app.extensions
    before, extensions["onnxserve.login"] = extensions["onnxserve.login"], People()
    yield
    extensions["onnxserve.login"] = before


def a_model(mlflow_app, approvals="{groups: [risk]}"):
    """Register a model whose versions have passed the gate, and need approvals."""
    name: str = mlflow_app.model(policy=f"gated_aliases: [champion]\napprovals: {approvals}")
    for version in "12":
        mlflow_app.stands(name, version, "passed", "all checks passed")
        judge(mlflow_app, name, version)
    return name


def judge(mlflow_app, model, version="2", report=REPORT):
    with mlflow_app.app.test_request_context():
        _, subject = moves.promotion_now(model, version, parse_stage_or_alias(TO))
    record_gate(mlflow_app.store, subject, report)


@pytest.fixture
def model(mlflow_app):
    return a_model(mlflow_app)


@pytest.fixture
def requested(mlflow_app, model):
    """A model with a request of alice."""
    assert send(mlflow_app, "alice", "request", model).status_code == 200
    return model


def send(mlflow_app, user, action, model, headers=None, **more):
    body = {"action": action, "model": model, "version": "2", "to": TO, "report": REPORT, **more}
    return mlflow_app.client.post(REQUESTS, json=body, headers={"X-User": user, **(headers or {})})


def listed(mlflow_app, user, model):
    answer = mlflow_app.client.get(
        REQUESTS, query_string={"model": model}, headers={"X-User": user}
    )
    assert answer.status_code == 200
    entries: list[dict[str, Any]] = answer.json
    return entries


def decisions(mlflow_app, model):
    wanted = ("request", "approve", "decline")
    return [
        (event.actor, event.action) for event in events(mlflow_app, model) if event.action in wanted
    ]


def test_a_promotion_is_requested_approved_and_done(mlflow_app, requested):
    (entry,) = listed(mlflow_app, "carol", requested)
    assert entry["version"] == "2"
    assert entry["to"] == TO
    assert entry["requested_by"] == "alice"
    assert entry["verdict"] == "passed"
    assert entry["report_digest"] == REPORT
    assert entry["missing"] == 1
    assert point(mlflow_app, requested, "champion", "2").status_code == 403

    answer = send(
        mlflow_app,
        "carol",
        "approve",
        requested,
        why="the report is fine",
        report=entry["report_digest"],
    )

    assert answer.status_code == 200
    assert answer.json["approved_by"] == ["carol"]
    assert answer.json["missing"] == 0
    assert (
        events(mlflow_app, requested)[-1].detail.items()
        >= {"report": REPORT, "verdict": "passed"}.items()
    )
    assert point(mlflow_app, requested, "champion", "2").status_code == 200
    assert decisions(mlflow_app, requested) == [("alice", "request"), ("carol", "approve")]
    assert listed(mlflow_app, "bob", requested) == []


@pytest.mark.parametrize(
    ("user", "action", "more", "status", "code", "names"),
    [
        ("alice", "approve", {}, 403, "PERMISSION_DENIED", ["alice", "requested"]),
        ("bob", "approve", {}, 403, "PERMISSION_DENIED", ["bob", "risk"]),
        ("bob", "decline", {"why": "no"}, 403, "PERMISSION_DENIED", ["bob", "risk"]),
        ("carol", "decline", {}, 400, "INVALID_PARAMETER_VALUE", ["reason"]),
        ("carol", "request", {"version": "1"}, 403, "PERMISSION_DENIED", ["carol", "edit"]),
        ("carol", "approve", {"version": "1"}, 404, "RESOURCE_DOES_NOT_EXIST", ["version 1", TO]),
        ("carol", "approve", {"version": "9"}, 404, "RESOURCE_DOES_NOT_EXIST", ["9"]),
        (
            "carol",
            "approve",
            {"to": "Staging"},
            400,
            "INVALID_PARAMETER_VALUE",
            ["no approvals", "Staging"],
        ),
        ("carol", "approve", {"report": NEWER}, 403, "PERMISSION_DENIED", ["report"]),
        ("carol", "approve", {"version": 2}, 400, "INVALID_PARAMETER_VALUE", ["version"]),
        ("carol", "approve", {"to": "Mars"}, 400, "INVALID_PARAMETER_VALUE", ["Mars"]),
        ("carol", "promote", {}, 400, "INVALID_PARAMETER_VALUE", ["promote"]),
        ("carol", "approve", {"why": "x" * 501}, 400, "INVALID_PARAMETER_VALUE", ["501"]),
        ("mallory", "approve", {}, 404, "RESOURCE_DOES_NOT_EXIST", []),
        ("", "request", {}, 401, "UNAUTHENTICATED", ["login"]),
        ("", "approve", {}, 401, "UNAUTHENTICATED", ["login"]),
    ],
)
def test_a_decision_that_is_refused_is_one_line_and_records_nothing(
    mlflow_app, requested, user, action, more, status, code, names
):
    answer = send(mlflow_app, user, action, requested, **more)

    assert answer.status_code == status
    assert answer.json["error_code"] == code
    assert mentions(answer.json["message"], *names)
    assert "\n" not in answer.json["message"]
    assert decisions(mlflow_app, requested) == [("alice", "request")]


def test_a_model_that_one_may_not_read_has_no_requests_and_does_not_exist(mlflow_app, requested):
    assert listed(mlflow_app, "mallory", requested) == []
    assert requested not in page(mlflow_app, "mallory")
    refused = send(mlflow_app, "mallory", "approve", requested)
    unknown = send(mlflow_app, "mallory", "approve", "nothing")
    assert refused.status_code == unknown.status_code == 404
    assert refused.json["message"].replace(requested, "nothing") == unknown.json["message"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Content-Type": "text/plain"}, 400),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 400),
    ],
)
def test_another_site_cannot_decide(mlflow_app, requested, headers, status):
    assert send(mlflow_app, "carol", "approve", requested, headers).status_code == status
    assert decisions(mlflow_app, requested) == [("alice", "request")]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("", "BAD_REQUEST"),
        ('{"action"', "BAD_REQUEST"),
        ("[" * 100_000, "BAD_REQUEST"),
        ("[]", "INVALID_PARAMETER_VALUE"),
        ('"approve"', "INVALID_PARAMETER_VALUE"),
        ('{"action": null}', "INVALID_PARAMETER_VALUE"),
    ],
)
def test_a_body_that_is_not_a_decision_is_refused(mlflow_app, requested, body, code):
    headers = {"X-User": "carol", "Content-Type": "application/json"}
    answer = mlflow_app.client.post(REQUESTS, data=body, headers=headers)
    assert answer.status_code == 400
    assert answer.json["error_code"] == code


def test_a_newer_report_must_be_seen(mlflow_app, requested, reports):
    judge(mlflow_app, requested, report=NEWER)
    reports[0] = NEWER
    assert send(mlflow_app, "carol", "approve", requested).status_code == 403
    (entry,) = listed(mlflow_app, "carol", requested)
    assert (
        send(mlflow_app, "carol", "approve", requested, report=entry["report_digest"]).status_code
        == 200
    )


def test_a_report_that_was_replaced_cannot_be_approved(mlflow_app, requested, reports):
    reports[0] = NEWER
    answer = send(mlflow_app, "carol", "approve", requested)
    assert answer.status_code == 403
    assert answer.json["error_code"] == "PERMISSION_DENIED"
    assert mentions(answer.json["message"], "https://mlflow/report")
    assert decisions(mlflow_app, requested) == [("alice", "request")]


def test_changed_files_are_refused_and_the_request_can_be_declined_without_files(
    mlflow_app, requested
):
    (mlflow_app.files(requested, "2") / "MLmodel").write_text("other")
    answer = send(mlflow_app, "carol", "approve", requested)
    assert answer.status_code == 403
    assert mentions(answer.json["message"], "lapsed", "files")
    (mlflow_app.files(requested, "2") / "MLmodel").unlink()
    assert send(mlflow_app, "carol", "decline", requested, why="lost").status_code == 200
    assert decisions(mlflow_app, requested) == [("alice", "request"), ("carol", "decline")]


def test_the_request_of_a_deleted_version_can_be_declined_on_the_page(mlflow_app, requested):
    mlflow_app.registry.delete_model_version(requested, "2")
    shown = page(mlflow_app, "carol", model=requested)
    assert mentions(shown, "Approve is not available", "not found")
    _, answer = press(mlflow_app, "carol", requested, "decline", why="the version is gone")
    assert answer.status_code == 303
    assert decisions(mlflow_app, requested) == [("alice", "request"), ("carol", "decline")]


def test_an_expired_approval_does_not_count(mlflow_app):
    model = a_model(mlflow_app, "{groups: [risk], valid_for: 1s}")
    send(mlflow_app, "alice", "request", model)
    send(mlflow_app, "carol", "approve", model)
    (entry,) = wait_until(
        lambda: [item for item in listed(mlflow_app, "bob", model) if item["missing"]],
        20,
        "it expires",
    )
    assert mentions(entry["reason"], "carol", "1s")
    assert entry["approved_by"] == []
    refused = point(mlflow_app, model, "champion", "2")
    assert refused.status_code == 403
    assert mentions(refused.json["message"], "carol", "1s")


def test_a_request_is_announced_once(mlflow_app, model, monkeypatch):
    monkeypatch.setenv("MLFLOW_SERVER_ALLOWED_HOSTS", "localhost")
    for _ in range(2):
        send(mlflow_app, "alice", "request", model, why="faster")
    (alert,) = [alert for alert in Alerts(mlflow_app.store).recent() if alert.endpoint == model]
    assert mentions(alert.detail["lines"][0], "alice", "version 2", "champion", "faster")
    assert alert.detail["link"] == f"http://localhost{PAGE}?model={model}"


@pytest.fixture
def channel(tmp_path):
    """A web server that receives the alerts of processes
    with the file `alerts.yaml`.
    """
    with receiver() as alert_receiver:
        (tmp_path / "alerts.yaml").write_text(f"urls:\n  - {alert_receiver.url('risk')}\n")
        yield alert_receiver


def test_the_server_that_records_a_request_sends_it(
    mlflow_app, model, channel, tmp_path, monkeypatch
):
    monkeypatch.setenv("ONNXSERVE_ALERT_CONFIG", str(tmp_path / "alerts.yaml"))
    send(mlflow_app, "alice", "request", model, why="faster")
    wait_until(lambda: bool(channel.got), 30, "the message is received")
    (message,) = channel.got["/risk"]
    assert mentions(
        message["message"],
        "alice",
        "version 2",
        "faster",
        f"onnxserve request approve models:/{model}/2 --to {TO}",
    )
    assert send_due(mlflow_app.store, load_settings(), endpoint=model) == 0


@pytest.mark.parametrize("ending", ["none", "decline", "approve", "promote", "delete"])
def test_a_controller_sends_a_request_only_before_its_end(
    mlflow_app, model, channel, tmp_path, ending
):
    send(mlflow_app, "alice", "request", model)
    if ending in ("decline", "approve"):
        assert send(mlflow_app, "carol", ending, model, why="no").status_code == 200
    elif ending != "none":
        mlflow_app.store.record(ending, model=model, version="2", detail=move_detail(TO, "1"))
    settings = load_settings().model_copy(update={"alert_config": tmp_path / "alerts.yaml"})
    is_over = partial(request_is_over, mlflow_app.store)
    is_sent = ending == "none"
    assert send_due(mlflow_app.store, settings, is_over=is_over, endpoint=model) == int(is_sent)
    assert send_due(mlflow_app.store, settings, endpoint=model) == 0
    assert bool(channel.got) is is_sent


def test_a_request_does_not_depend_on_the_alert_channels(mlflow_app, model, monkeypatch):
    monkeypatch.setattr(approvals, "announce_request", lambda *_: 1 / 0)
    assert send(mlflow_app, "alice", "request", model).status_code == 200


def page(mlflow_app, user, **query):
    html: str = mlflow_app.client.get(PAGE, query_string=query, headers={"X-User": user}).text
    return html


def press(mlflow_app, user, model, action, **more):
    """Press a button of the page, and return the browser and the answer."""
    browser, _, token = open_page(mlflow_app, f"{PAGE}?model={model}", headers={"X-User": user})
    form = {
        "csrf_token": token,
        "action": action,
        "model": model,
        "version": "2",
        "to": TO,
        "report": REPORT,
        **more,
    }
    return browser, browser.post(f"{PAGE}?model={model}", data=form, headers={"X-User": user})


def test_a_button_decides_and_the_page_shows_it_once(mlflow_app, requested):
    browser, answer = press(mlflow_app, "carol", requested, "approve", why="fine")
    assert answer.status_code == 303
    assert answer.headers["Location"] == f"{PAGE}?model={requested}"
    shown, later = (
        browser.get(answer.headers["Location"], headers={"X-User": "carol"}).text for _ in range(2)
    )
    assert mentions(shown, "Done", f"version 2 of {requested}")
    assert "Done" not in later
    assert decisions(mlflow_app, requested) == [("alice", "request"), ("carol", "approve")]


@pytest.mark.parametrize(
    ("user", "action", "more", "status"),
    [
        ("alice", "approve", {}, 403),
        ("carol", "approve", {"report": NEWER}, 403),
        ("carol", "approve", {"csrf_token": ""}, 403),
        ("carol", "decline", {}, 400),
    ],
)
def test_a_form_that_is_refused_records_nothing(mlflow_app, requested, user, action, more, status):
    _, answer = press(mlflow_app, user, requested, action, **more)
    assert answer.status_code == status
    assert 'role="alert"' in answer.text
    assert decisions(mlflow_app, requested) == [("alice", "request")]


def test_the_page_offers_a_decision_to_people_who_may_decide(mlflow_app, requested):
    subject = f"the promotion of {requested} version 2 to {TO}"
    approve = f'aria-label="Approve {subject}"'
    disabled = 'value="approve" formnovalidate disabled'
    shown = {
        user: page(mlflow_app, user, model=requested) for user in ("carol", "alice", "bob", "")
    }
    assert approve in shown["carol"]
    assert disabled not in shown["carol"]
    assert disabled in shown["alice"]  # The requester may only withdraw the request.
    assert mentions(shown["alice"], "Approve is not available")
    assert mentions(shown["bob"], "Not available", "risk")
    assert mentions(shown[""], "Not available", "login")
    assert f'name="report" value="{REPORT}"' in shown["carol"]
    assert f"{PAGE}/report?model={requested}&amp;run={RUN}" in shown["carol"]


def test_a_version_has_the_button_if_a_target_needs_approvals(mlflow_app, model, started):
    mlflow_app.store.add_endpoint(
        "onnxserve", new_endpoint(f"of-{model}", f"models:/{model}@champion")
    )
    free = mlflow_app.model(policy="gated_aliases: [champion]")
    mlflow_app.store.add_endpoint(
        "onnxserve", new_endpoint(f"of-{free}", f"models:/{free}@champion")
    )
    button = 'name="action" value="request"'
    assert button in page(mlflow_app, "alice", model=model)
    assert button not in page(mlflow_app, "alice", model=free)
    assert button not in page(mlflow_app, "carol", model=model)
    assert mentions(
        page(mlflow_app, "", model=model), "Request promotion is not available", "login"
    )
    _, answer = press(mlflow_app, "alice", model, "request", why="faster")
    assert answer.status_code == 303
    (job,) = started
    assert job.actor == "alice"
    assert job.arguments["action"] == "request"
    assert job.arguments["to"] == TO
    assert job.arguments["why"] == "faster"


def test_the_refusal_of_a_first_promotion_leads_to_a_page_with_the_versions_and_the_button(
    mlflow_app, model, started
):
    mlflow_app.stands(model, "1", "failed", "evaluation: accuracy 0.71 against 0.80")
    refusal = point(mlflow_app, model, "champion", "2").json["message"]
    (link,) = re.findall(r"http:[^ ]+/onnxserve[?][\w=&-]+", refusal)
    shown = mlflow_app.client.get(link, headers={"X-User": "alice"}).text
    assert f"Target of version 2 of {model}" in shown
    assert f'value="{TO}">{TO} – needs approvals' in shown
    assert f'aria-label="Request promotion of version 2 of {model}"' in shown
    assert mentions(shown, "all checks passed", "accuracy 0.71")
    _, answer = press(mlflow_app, "alice", model, "request", why="the first")
    assert answer.status_code == 303
    assert [job.arguments["to"] for job in started] == [TO]
    assert f"Target of version 2 of {model}" not in page(mlflow_app, "nobody", model=model)
    assert f"Request promotion of version 2 of {model}" not in page(
        mlflow_app, "carol", model=model
    )
