"""Tests of requests for promotions on MLflow's server: the JSON API, the section of the
page and its forms.
"""

import re
from functools import partial

import pytest

from mlflow_deploy_plugin.core.settings import load_settings
from mlflow_deploy_plugin.core.spec.document import new_endpoint
from mlflow_deploy_plugin.core.store.audit import move_detail
from mlflow_deploy_plugin.promote.gate.approvals import request_is_over
from mlflow_deploy_plugin.ui import approvals
from mlflow_deploy_plugin.ui.guard import mlflow_stores
from mlflow_deploy_plugin.watch.alerts.send import send_due
from tests.support.approvals import REPORT, RUN, record_gate
from tests.support.console import PAGE, HeaderLogin, open_page
from tests.support.refusals import mentions
from tests.support.services.alert_receiver import receiver
from tests.support.waiting import wait_until

REQUESTS = f"{PAGE}/requests"
TO = "@champion"
NEWER = "n" * 64
REQUESTED = [("alice", "request")]
APPROVED = [("alice", "request"), ("carol", "approve")]
DECLINED = [("alice", "request"), ("carol", "decline")]


@pytest.fixture(scope="module", autouse=True)
def shown(mlflow_app):
    """The digest of the report that MLflow shows to some people, as the only entry."""
    digests = [REPORT]
    login = HeaderLogin("alice bob carol dora", "alice bob", risk="carol dora alice")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mlflow_stores, "report_digest", lambda run_id: digests[0])
        patch.setitem(mlflow_app.app.extensions, "onnxserve.login", login)
        yield digests


@pytest.fixture
def reports(shown):
    yield shown
    shown[0] = REPORT


@pytest.fixture
def model(mlflow_app):
    return gated_model(mlflow_app)


def gated_model(mlflow_app):
    """Return a model whose versions have passed the gate, and need approvals."""
    policy = "gated_aliases: [champion]\napprovals: {groups: [risk]}"
    name = mlflow_app.model(policy=policy)
    name.passed("1", "2")
    for version in "12":
        judge(name, version)
    return name


def judge(model, version="2", report=REPORT):
    _, subject = model.promotion(version, TO)
    record_gate(model.mlflow.store, subject, report)


@pytest.fixture
def requested(model):
    """A model with a request of alice."""
    assert send(model, "alice", "request").status_code == 200
    return model


@pytest.fixture(scope="module")
def unchanged(mlflow_app, shown):
    """A model with a request of alice, which no test changes."""
    model = gated_model(mlflow_app)
    assert send(model, "alice", "request").status_code == 200
    return model


def send(of, user, action, headers=None, **more):
    body = {"action": action, "model": of, "version": "2", "to": TO, "report": REPORT, **more}
    headers = {"X-User": user, **(headers or {})}
    return of.mlflow.client.post(REQUESTS, json=body, headers=headers)


def listed(model, user):
    answer = model.mlflow.client.get(f"{REQUESTS}?model={model}", headers={"X-User": user})
    assert answer.status_code == 200
    return answer.json


def decisions(model):
    wanted = ("request", "approve", "decline")
    return [(event.actor, event.action) for event in model.events if event.action in wanted]


def test_promotion_is_requested_approved_and_done(requested):
    (entry,) = listed(requested, "carol")
    assert (entry["version"], entry["to"], entry["requested_by"]) == ("2", TO, "alice")
    assert (entry["verdict"], entry["report_digest"]) == ("passed", REPORT)
    assert entry["missing"] == 1
    assert requested.enter("2", TO) == 403

    answer = send(requested, "carol", "approve", why="the report is fine")

    assert answer.status_code == 200
    assert (answer.json["approved_by"], answer.json["missing"]) == (["carol"], 0)
    detail = requested.events[-1].detail
    assert (detail["report"], detail["verdict"]) == (REPORT, "passed")
    assert requested.enter("2", TO) == 200
    assert decisions(requested) == APPROVED
    assert listed(requested, "bob") == []


DENIED = "PERMISSION_DENIED"
INVALID = "INVALID_PARAMETER_VALUE"
MISSING = "RESOURCE_DOES_NOT_EXIST"


@pytest.mark.parametrize(
    ("user", "action", "more", "status", "code", "names"),
    [
        ("alice", "approve", {}, 403, DENIED, ["alice", "requested"]),
        ("bob", "approve", {}, 403, DENIED, ["bob", "risk"]),
        ("carol", "decline", {}, 400, INVALID, ["reason"]),
        ("carol", "request", {"version": "1"}, 403, DENIED, ["carol", "edit"]),
        ("carol", "approve", {"version": "1"}, 404, MISSING, ["version 1", TO]),
        ("carol", "approve", {"version": 2}, 400, INVALID, ["version"]),
        ("carol", "approve", {"to": "Mars"}, 400, INVALID, ["Mars"]),
        ("carol", "promote", {}, 400, INVALID, ["promote"]),
        ("carol", "approve", {"why": "x" * 501}, 400, INVALID, ["501"]),
        ("", "approve", {}, 401, "UNAUTHENTICATED", ["login"]),
    ],
)
def test_invalid_decision_is_refused(unchanged, user, action, more, status, code, names):
    answer = send(unchanged, user, action, **more)

    assert answer.status_code == status
    assert answer.json["error_code"] == code
    assert mentions(answer.json["message"], *names)
    assert "\n" not in answer.json["message"]
    assert decisions(unchanged) == REQUESTED


def test_unreadable_model_does_not_exist(unchanged):
    assert listed(unchanged, "mallory") == []
    overview = unchanged.mlflow.client.get(PAGE, headers={"X-User": "mallory"})
    assert unchanged not in overview.text
    refused = send(unchanged, "mallory", "approve")
    unknown = send(unchanged, "mallory", "approve", model="nothing")
    assert refused.status_code == unknown.status_code == 404
    assert refused.json["message"].replace(unchanged, "nothing") == unknown.json["message"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Content-Type": "text/plain"}, 400),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 400),
    ],
)
def test_decision_of_another_site_is_refused(unchanged, headers, status):
    assert send(unchanged, "carol", "approve", headers).status_code == status
    assert decisions(unchanged) == REQUESTED


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ('{"action"', "BAD_REQUEST"),
        ("[" * 100_000, "BAD_REQUEST"),
        ("[]", INVALID),
        ('{"action": null}', INVALID),
    ],
)
def test_invalid_body_is_refused(mlflow_app, body, code):
    headers = {"X-User": "carol", "Content-Type": "application/json"}
    answer = mlflow_app.client.post(REQUESTS, data=body, headers=headers)
    assert answer.status_code == 400
    assert answer.json["error_code"] == code


def test_newer_report_must_be_approved(requested, reports):
    judge(requested, report=NEWER)
    reports[0] = NEWER
    assert send(requested, "carol", "approve").status_code == 403
    (entry,) = listed(requested, "carol")
    newest = entry["report_digest"]
    assert send(requested, "carol", "approve", report=newest).status_code == 200


def test_replaced_report_cannot_be_approved(requested, reports):
    reports[0] = NEWER
    answer = send(requested, "carol", "approve")
    assert answer.status_code == 403
    assert answer.json["error_code"] == DENIED
    assert mentions(answer.json["message"], "https://mlflow/report")
    assert decisions(requested) == REQUESTED


def test_changed_files_can_only_be_declined(requested):
    file = requested.files("2") / "MLmodel"
    file.write_text("other")
    answer = send(requested, "carol", "approve")
    assert answer.status_code == 403
    assert mentions(answer.json["message"], "lapsed", "files")
    file.unlink()
    assert send(requested, "carol", "decline", why="lost").status_code == 200
    assert decisions(requested) == DECLINED


def test_request_for_deleted_version_is_declinable(requested):
    requested.mlflow.registry.delete_model_version(requested, "2")
    assert mentions(page(requested, "carol"), "Approve is not available", "not found")
    _, answer = press(requested, "carol", "decline", why="the version is gone")
    assert answer.status_code == 303
    assert decisions(requested) == DECLINED


@pytest.fixture
def channel(tmp_path):
    """A receiver of the alerts of processes with the file `alerts.yaml`."""
    with receiver() as alert_receiver:
        (tmp_path / "alerts.yaml").write_text(f"urls:\n  - {alert_receiver.url('risk')}\n")
        yield alert_receiver


def test_server_sends_the_request_once(model, channel, tmp_path, monkeypatch):
    monkeypatch.setenv("ONNXSERVE_ALERT_CONFIG", str(tmp_path / "alerts.yaml"))
    monkeypatch.setenv("MLFLOW_SERVER_ALLOWED_HOSTS", "localhost")
    for _ in range(2):
        send(model, "alice", "request", why="faster")
    wait_until(lambda: bool(channel.got), 30, "the message is received")
    (message,) = channel.got["/risk"]
    command = f"onnxserve request approve models:/{model}/2 --to {TO}"
    link = f"http://localhost{PAGE}?model={model}"
    assert mentions(message["message"], "alice", "version 2", "faster", command, link)
    assert send_due(model.mlflow.store, load_settings(), endpoint=model) == 0


@pytest.mark.parametrize("ending", ["none", "decline", "approve", "promote", "delete"])
def test_controller_sends_only_open_requests(model, channel, tmp_path, ending):
    store = model.mlflow.store
    send(model, "alice", "request")
    if ending in ("decline", "approve"):
        assert send(model, "carol", ending, why="no").status_code == 200
    elif ending != "none":
        store.record(ending, model=model, version="2", detail=move_detail(TO, "1"))
    settings = load_settings().model_copy(update={"alert_config": tmp_path / "alerts.yaml"})
    is_over = partial(request_is_over, store)
    is_sent = ending == "none"
    assert send_due(store, settings, is_over=is_over, endpoint=model) == int(is_sent)
    assert send_due(store, settings, endpoint=model) == 0
    assert bool(channel.got) is is_sent


def test_request_succeeds_without_alert_channels(model, monkeypatch):
    monkeypatch.setattr(approvals, "announce_request", lambda *_: 1 / 0)
    assert send(model, "alice", "request").status_code == 200


def page(model, user):
    return model.mlflow.client.get(f"{PAGE}?model={model}", headers={"X-User": user}).text


def press(model, user, action, **more):
    """Press a button of the page, and return the browser and the answer."""
    path = f"{PAGE}?model={model}"
    browser, _, token = open_page(model.mlflow, path, headers={"X-User": user})
    form = {"csrf_token": token, "action": action, "model": model, "version": "2", "to": TO}
    form |= {"report": REPORT, **more}
    return browser, browser.post(path, data=form, headers={"X-User": user})


def test_button_decides(requested):
    browser, answer = press(requested, "carol", "approve", why="fine")
    assert answer.status_code == 303
    location = answer.headers["Location"]
    assert location == f"{PAGE}?model={requested}"
    shown = browser.get(location, headers={"X-User": "carol"}).text
    later = browser.get(location, headers={"X-User": "carol"}).text
    assert mentions(shown, "Done", f"version 2 of {requested}")
    assert "Done" not in later
    assert decisions(requested) == APPROVED


@pytest.mark.parametrize(
    ("user", "action", "more", "status"),
    [
        ("alice", "approve", {}, 403),
        ("carol", "approve", {"csrf_token": ""}, 403),
        ("carol", "decline", {}, 400),
    ],
)
def test_invalid_form_is_refused(unchanged, user, action, more, status):
    _, answer = press(unchanged, user, action, **more)
    assert answer.status_code == status
    assert 'role="alert"' in answer.text
    assert decisions(unchanged) == REQUESTED


def test_decision_is_offered_to_approvers(unchanged):
    subject = f"the promotion of {unchanged} version 2 to {TO}"
    disabled = 'value="approve" formnovalidate disabled'
    shown = {user: page(unchanged, user) for user in ("carol", "alice", "bob", "")}
    assert f'aria-label="Approve {subject}"' in shown["carol"]
    assert disabled not in shown["carol"]
    assert disabled in shown["alice"]  # The requester may only withdraw the request.
    assert mentions(shown["alice"], "Approve is not available")
    assert mentions(shown["bob"], "Not available", "risk")
    assert mentions(shown[""], "Not available", "login")
    assert f'name="report" value="{REPORT}"' in shown["carol"]
    assert f"{PAGE}/report?model={unchanged}&amp;run={RUN}" in shown["carol"]


def test_request_button_needs_an_approval_target(mlflow_app, model, started):
    free = mlflow_app.model(policy="gated_aliases: [champion]")
    for name in (model, free):
        spec = new_endpoint(f"of-{name}", f"models:/{name}@champion")
        mlflow_app.store.add_endpoint("onnxserve", spec)
    button = 'name="action" value="request"'
    assert button in page(model, "alice")
    assert button not in page(free, "alice")
    assert button not in page(model, "carol")
    assert mentions(page(model, ""), "Request promotion is not available", "login")
    _, answer = press(model, "alice", "request", why="faster")
    assert answer.status_code == 303
    (job,) = started
    assert job.actor == "alice"
    assert job.arguments.items() >= {"action": "request", "to": TO, "why": "faster"}.items()


def test_refusal_leads_to_the_request_button(model):
    """The model has no endpoint, and none of its versions has been promoted."""
    model.mlflow.stands(model, "1", "failed", "evaluation: accuracy 0.71 against 0.80")
    refusal = model.refusal("2", TO)
    (link,) = re.findall(r"http:[^ ]+/onnxserve[?][\w=&-]+", refusal)
    shown = model.mlflow.client.get(link, headers={"X-User": "alice"}).text
    assert f"Target of version 2 of {model}" in shown
    assert f'value="{TO}">{TO} – needs approvals' in shown
    button = f"Request promotion of version 2 of {model}"
    assert f'aria-label="{button}"' in shown
    assert mentions(shown, "all 5 checks passed", "accuracy 0.71")
    assert f"Target of version 2 of {model}" not in page(model, "nobody")
