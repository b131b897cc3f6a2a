"""Tests of the gate and the console with MLflow's basic auth: a separate server with
accounts. See test_access.py for the permissions of pages and forms.
"""

import pytest
import requests
from mlflow.exceptions import MlflowException

from mlflow_deploy_plugin.core.errors import NotFound, OnnxserveError
from mlflow_deploy_plugin.core.registry.approved_files import approval_of
from mlflow_deploy_plugin.core.registry.change_feed import CHANGES
from mlflow_deploy_plugin.core.registry.model_uri import parse_model_uri
from mlflow_deploy_plugin.core.registry.resolution import resolve, selected_models
from mlflow_deploy_plugin.core.spec.document import new_endpoint
from mlflow_deploy_plugin.promote.gate.recording import PATH as VERDICTS
from tests.support.accounts import people
from tests.support.commands import done, onnxserve
from tests.support.console import PAGE
from tests.support.refusals import refused
from tests.support.services.basic_auth import password
from tests.support.waiting import wait_until

pytest.importorskip(
    "flask_wtf", reason="MLflow's basic auth needs Flask-WTF (pip install mlflow[auth])"
)
pytestmark = pytest.mark.long

GATED = "gated_stages: [Production]"
APPROVED = (
    "gated_aliases: [champion]\nskip: [evaluation, robustness, budget]\n"
    "approvals: {count: 1, evaluation: optional}"
)
DENIED = ("denied", "versionless")
"""Two editors of all models. The first has a DENY for one model, and the other one for
all versions. A third editor, `viewer`, may only read versions.
"""
PATHS = (
    "?model={0}",
    "?endpoint=of-{0}",
    "/history?model={0}",
    "/history.jsonl?endpoint=of-{0}",
    "/history.jsonl?model={0}",
    "/pictures?whole=1&endpoint=of-{0}",
    "/requests?model={0}",
    "/report?model={0}&run={run}",
    "/diff?model={0}&before=1&after=1",
    "/approved?model={0}&version=1",
    "/audit-trail?endpoint=of-{0}&period=2026-01-01/2099-01-01&document=x",
)


@pytest.fixture(scope="module")
def server(tmp_path_factory, new_database):
    folder = tmp_path_factory.mktemp("accounts")
    users = ("alice", "bob", "carol", "viewer", "machine", *DENIED)
    with people(folder, new_database, *users) as accounts:
        accounts.add_role("readers", "bob", "machine")
        accounts.add_role("readers of files", "machine", of="experiment")
        accounts.add_role("editors", "viewer", *DENIED, permission="EDIT")
        of_versions = "registered_model_version"
        accounts.add_role("viewers", "viewer", of=of_versions)
        accounts.add_role("no versions", "versionless", permission="DENY", of=of_versions)
        yield accounts


@pytest.fixture(scope="module")
def model(server):
    """A model of alice that bob may read, and its endpoint."""
    name = server.register("alice", GATED)
    server.store.add_endpoint("onnxserve", new_endpoint(name, f"models:/{name}/Production"))
    return name


@pytest.fixture(scope="module")
def approved(server):
    """A model with a request, an approval, an alias and an endpoint."""
    name = server.register("alice", APPROVED)
    server.add_role(f"not {name}", "denied", permission="DENY", pattern=name)
    server.store.add_endpoint("onnxserve", new_endpoint(f"of-{name}", f"models:/{name}@champion"))
    promote = f"promote models:/{name}/1 --to @champion"
    with server.logged_in("alice"):
        done(f"{promote} --request")
    with server.logged_in("admin"):
        done(f"request approve models:/{name}/1 --to @champion")
    with server.logged_in("alice"):
        done(f"{promote} --wait 0")
        done(f"promote models:/{name}/1 --to @champion --request")
    return name


def events(server, model):
    return [(event.actor, event.action) for event in server.store.events(model=model)]


def browser(user):
    session = requests.Session()
    session.auth = (user, password(user))
    return session


def test_permissions_come_before_the_gate(server, model):
    with server.logged_in("alice") as client:
        client.transition_model_version_stage(model, "1", "Staging")
        with refused(MlflowException, "Production", "the gate", code="PERMISSION_DENIED"):
            client.transition_model_version_stage(model, "1", "Production")
    with server.logged_in("bob") as client, pytest.raises(MlflowException, match="Permission"):
        client.transition_model_version_stage(model, "1", "Production")
    events = [(event.actor, event.action) for event in server.store.events(model=model)]
    # The first event is the policy, which was set at creation.
    actions = ("tag", "intend", "register", "transition", "refused")
    assert events == [("alice", action) for action in actions]


def test_console_shows_buttons_to_editors(server, model):
    console = f"{server.server.url}/onnxserve"
    assert requests.get(console, timeout=60).status_code == 401
    pages = {
        user: browser(user).get(console, timeout=60).text
        for user in ("admin", "alice", "bob", "carol")
    }
    button = f"Promote version 1 of {model}"
    assert {user for user, page in pages.items() if button in page} == {"admin", "alice"}
    assert f">{model}" in pages["bob"]
    assert model not in pages["carol"]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("user", DENIED)
def test_deny_answers_like_a_missing_model(server, approved, user, path):
    [run] = {event.detail["run_id"] for event in server.store.events(actions=("gate",))}

    def get(who, model):
        url = f"{server.server.url}{PAGE}{path.format(model, run=run)}"
        answer = browser(who).get(url, timeout=60)
        return answer.status_code, answer.text.replace(model, "NAME").replace(who, "USER")

    assert get(user, approved) == get(user, "nothing")
    assert get("bob", approved) != get("bob", "nothing")


@pytest.mark.parametrize(
    ("path", "has_others"),
    [("", True), ("/history", True), ("/history.jsonl", True), ("/requests", False)],
)
def test_deny_leaves_the_lists_of_others(server, model, approved, path, has_others):
    url = f"{server.server.url}{PAGE}{path}"
    pages = {user: browser(user).get(url, timeout=60) for user in ("admin", "bob", *DENIED)}
    assert {page.status_code for page in pages.values()} == {200}
    assert {user for user, page in pages.items() if approved in page.text} == {"admin", "bob"}
    assert (model in pages["denied"].text) is has_others


@pytest.mark.parametrize(("user", "status"), [*dict.fromkeys(DENIED, 404).items(), ("viewer", 403)])
def test_deny_prevents_decisions_and_verdicts(server, approved, user, status):
    url = server.server.url
    subject = {"model": approved, "version": "1"}
    before = events(server, approved)
    for action in ("request", "approve", "decline"):
        document = {"action": action, **subject, "to": "@champion", "why": "x", "report": ""}
        answer = browser(user).post(f"{url}{PAGE}/requests", json=document, timeout=60)
        assert answer.status_code == status
    verdict = {**subject, "state": "failed", "reason": "x", "files": "x"}
    answer = browser(user).post(f"{url}{VERDICTS}", json=verdict, timeout=60)
    assert answer.status_code == status
    assert events(server, approved) == before


@pytest.mark.parametrize("user", DENIED)
def test_deny_prevents_moves_and_commands(server, approved, user):
    before = events(server, approved)
    with server.logged_in(user) as client:
        for move in (
            lambda: client.transition_model_version_stage(approved, "1", "Staging"),
            lambda: client.set_registered_model_alias(approved, "champion", "1"),
            lambda: client.delete_registered_model_alias(approved, "champion"),
        ):
            with pytest.raises(MlflowException, match="Permission"):
                move()
        version = f"models:/{approved}/1"
        for command in ("gate {}", "promote {} --to @other", "promote {} --to @champion --request"):
            assert onnxserve(command.format(version)).exit_code == 1
        assert approved not in done("request list")
    assert events(server, approved) == before


@pytest.mark.parametrize("user", DENIED)
def test_deny_hides_versions_from_servers(server, approved, user):
    url = f"{server.server.url}{CHANGES}"
    followed = {"uri": f"models:/{approved}@champion"}
    with server.logged_in(user):
        for selector in ("@champion", "/Production", "/1"):
            with pytest.raises(OnnxserveError):
                resolve(f"models:/{approved}{selector}")
        with pytest.raises(NotFound):
            approval_of(approved, "1")
        [*_, marks] = selected_models(parse_model_uri("models:/*@champion"))
        assert approved not in marks
    assert browser(user).get(url, params=followed, timeout=60).status_code == 403
    with server.logged_in("bob"):
        [*_, marks] = selected_models(parse_model_uri("models:/*@champion"))
    assert approved in marks


def test_deny_ends_the_service_of_models(server, serve, monkeypatch):
    monkeypatch.setenv("ONNXSERVE_POLL_SECONDS", "0.3")
    names = [server.register("alice", GATED) for _ in range(2)]
    with server.logged_in("alice") as client:
        for name in names:
            client.set_registered_model_alias(name, "served", "1")
    with server.logged_in("machine"):
        served = serve("--registry", "@served").wait_ready()

    def statuses():
        rows = {"inputs": [{"a": 1.0, "b": 2.0}]}
        paths = [f"{served.url}/models/{name}/invocations" for name in names]
        return [requests.post(path, json=rows, timeout=60).status_code for path in paths]

    assert statuses() == [200, 200]
    server.add_role("not one", "machine", permission="DENY", pattern=names[0])
    wait_until(lambda: statuses() == [404, 200], 30, "the model is gone")
    of_versions = "registered_model_version"
    server.add_role("no version", "machine", permission="DENY", of=of_versions)
    wait_until(lambda: statuses() == [404, 404], 30, "the versions are gone")
