"""Tests of the gate and the console on top of mlflow-oidc-auth: users of a loopback
issuer log in, also in Chromium.
"""

from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import requests

from mlflow_deploy_plugin.core.spec.document import new_endpoint
from mlflow_deploy_plugin.core.store.database import open_store
from mlflow_deploy_plugin.core.store.store import Store
from tests.support.browser import NEEDS_CHROMIUM, chromium
from tests.support.classifiers import write_classifier
from tests.support.console import API, PAGE, POLICY
from tests.support.gate_bypasses import ATTEMPTS, SOURCE, GatedRegistry, check_refused
from tests.support.services.oidc_environment import oidc_python
from tests.support.services.oidc_issuer import LOGIN_BUTTON, USER_FIELD
from tests.support.services.oidc_server import RISK, TEAM, USERS, OidcServer
from tests.support.waiting import wait_until

pytestmark = pytest.mark.long

MODELS = {
    "X": "x",
    "Shared": "shared",
    "Hidden": "hidden",
    "Reading": "reading",
    "Strange": "strange",
}
"""Each model and its endpoint. The editor may edit X and Shared, the reader may read X,
and only admins see Hidden. The reader and the stranger have a model each, so that their
pages have forms.
"""
OWNERS = {"Reading": "reader", "Strange": "stranger"}
SECONDS = 60
SKIPPED = "gated_aliases: [champion]\nskip: [evaluation, robustness, budget]"
APPROVALS = f"{SKIPPED}\napprovals: {{groups: [{RISK}], evaluation: optional}}"


@dataclass
class Platform:
    """The server, its store, and a session of each user who may log in."""

    server: OidcServer
    store: Store
    sessions: dict[str, requests.Session]

    @property
    def console(self):
        return f"{self.server.url}{PAGE}"

    def page(self, user, **query):
        answer = self.sessions[user].get(self.console, params=query, timeout=SECONDS)
        assert answer.status_code == 200, answer.text
        return answer.text

    def call(self, method, path, fields, user="admin"):
        return self.sessions[user].request(
            method, f"{self.server.url}{API}{path}", json=fields, timeout=SECONDS
        )

    def decide(self, user, decision):
        """Send a decision about the request of a promotion, with the report that the
        console lists.
        """
        (entry,) = (
            self.sessions[user]
            .get(f"{self.console}/requests?model={decision['model']}", timeout=SECONDS)
            .json()
        )
        body = {**decision, "report": entry["report_digest"]}
        return self.sessions[user].post(f"{self.console}/requests", json=body, timeout=SECONDS)

    def events(self, model, action):
        return [event for event in self.store.events(model=model) if event.action == action]


@pytest.fixture(scope="module")
def platform(tmp_path_factory, new_database):
    folder = tmp_path_factory.mktemp("oidc")
    new_database(folder)
    server = OidcServer(folder, oidc_python(), app="onnxserve")
    try:
        server.issuer.start()
        server.start()
        sessions = {user: server.log_in(user) for user in ("admin", "reader", "editor", "stranger")}
        store = open_store(f"sqlite:///{server.folder / 'home' / 'onnxserve.db'}")
        new_platform = Platform(server, store, sessions)
        for model, endpoint in MODELS.items():
            policy = [{"key": "onnxserve.gate.policy", "value": POLICY}]
            new = {"name": model, "tags": policy}
            version = {"name": model, "source": "gs://bucket/x"}
            owner = OWNERS.get(model, "admin")
            new_platform.call("POST", "/registered-models/create", new, owner).raise_for_status()
            # Only administrators may create a version from files outside of a run.
            new_platform.call("POST", "/model-versions/create", version).raise_for_status()
            store.add_endpoint("onnxserve", new_endpoint(endpoint, f"models:/{model}/Staging"))
        server.grant(sessions["admin"], "reader", "X", "READ")
        server.grant(sessions["admin"], "editor", "X", "EDIT")
        server.grant_group(sessions["admin"], TEAM, "Shared", "EDIT")
        yield new_platform
        store.close()
    finally:
        server.stop()


@pytest.fixture(scope="module")
def browser():
    with chromium() as running:
        yield running


def in_chromium(test):
    """Mark a test that needs Chromium."""
    for mark in NEEDS_CHROMIUM:
        test = mark(test)
    return test


@contextmanager
def logged_in(browser, platform, user):
    """Open the console in a new context of the browser, and log in at the issuer, to
    which the browser is sent.
    """
    context = browser.new_context()
    try:
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.goto(platform.console)
        assert page.url.startswith(platform.server.issuer.url)
        page.get_by_label(USER_FIELD).select_option(user)
        page.get_by_role("button", name=LOGIN_BUTTON).click()
        page.wait_for_url(platform.console)
        yield page
    finally:
        context.close()


def press(page, button, model, target):
    """Select a target for version 1 of the model on the console's page, and press the
    button.
    """
    field = page.get_by_label(f"Target of version 1 of {model}")
    page.locator("details", has=field).locator("summary").click()
    field.select_option(target)
    page.get_by_role("button", name=f"{button} version 1 of {model}").click()


@in_chromium
def test_promotion_is_approved_by_group_member(browser, platform):
    registry = GatedRegistry(
        platform.server.url, platform.sessions["editor"], platform.sessions["admin"]
    )
    files = registry.files[SOURCE].removeprefix("mlflow-artifacts:/")
    write_classifier(platform.server.folder / "artifacts" / files)
    model = registry.create_model(APPROVALS)
    for user in ("reader", "stranger"):
        platform.server.grant(platform.sessions["admin"], user, model, "READ")
    platform.store.add_endpoint("onnxserve", new_endpoint(model, f"models:/{model}@champion"))

    with logged_in(browser, platform, "editor") as page:
        press(page, "Request promotion of", model, "@champion")
        wait_until(lambda: platform.events(model, "request"), 120, "the promotion is requested")
    request = {"action": "approve", "model": model, "version": "1", "to": "@champion"}
    refusals = {
        user: platform.decide(user, request).status_code for user in ("editor", "stranger", "admin")
    }
    assert refusals == {"editor": 403, "stranger": 403, "admin": 403}
    assert platform.decide("reader", request).ok
    with logged_in(browser, platform, "editor") as page:
        press(page, "Promote", model, "@champion")
        wait_until(lambda: platform.events(model, "promote"), 120, "the version is promoted")
        cookies = {entry["name"]: entry["value"] for entry in page.context.cookies()}
    # The process of the action calls MLflow with the editor's session.
    jobs = [path.read_text() for path in (platform.server.folder / "home").rglob("jobs/*")]
    assert jobs
    assert not any(cookies["session"] in text for text in jobs)

    assert registry.placed(model) == {"none", "champion"}
    actions = {
        action: platform.events(model, action)[0].actor
        for action in ("request", "approve", "alias", "promote")
    }
    editor = USERS["editor"].email
    reader = USERS["reader"].email
    assert actions == {"request": editor, "approve": reader, "alias": editor, "promote": editor}


@in_chromium
def test_user_without_group_is_refused(browser, platform):
    page = browser.new_page()
    page.goto(platform.console)
    page.get_by_label(USER_FIELD).select_option("outsider")
    page.get_by_role("button", name=LOGIN_BUTTON).click()
    page.wait_for_url("**/oidc/ui/**")
    answer = page.request.get(platform.console)
    assert answer.status == 401 or answer.url.startswith(platform.server.issuer.url)
    page.close()


@pytest.mark.parametrize(
    ("user", "endpoints", "editable"),
    [
        ("admin", {*MODELS.values()}, {*MODELS}),
        ("editor", {"x", "shared"}, {"X", "Shared"}),
        ("reader", {"x", "reading"}, {"Reading"}),
        ("stranger", {"strange"}, {"Strange"}),
    ],
)
def test_user_sees_only_readable_endpoints(platform, user, endpoints, editable):
    page = platform.page(user)
    assert {name for name in MODELS.values() if f'id="endpoint-{name}"' in page} == endpoints
    assert {name for name in MODELS if f"Promote version 1 of {name}" in page} == editable
    assert ("models:/Hidden" in page) == ("hidden" in endpoints)
    trail = platform.sessions[user].get(f"{platform.console}/history.jsonl", timeout=SECONDS).text
    assert {name for name in MODELS if f'"{name}"' in trail} <= {
        name for name, endpoint in MODELS.items() if endpoint in endpoints
    }


@pytest.mark.parametrize(
    "path", ["", "/requests", "/history", "/history.jsonl", "/pictures?endpoint=x"]
)
def test_console_without_login_is_refused(platform, path):
    assert requests.get(f"{platform.console}{path}", timeout=SECONDS).status_code == 401
    assert (
        requests.post(platform.console, data={"action": "gate"}, timeout=SECONDS).status_code == 401
    )
    browser = {"Accept": "text/html", "Sec-Fetch-Dest": "document"}
    answer = requests.get(
        f"{platform.console}{path}", headers=browser, timeout=SECONDS, allow_redirects=False
    )
    assert answer.is_redirect
    assert answer.headers["Location"].startswith("/login")


@pytest.mark.parametrize("credential", ["access token", "token of the issuer"])
def test_token_client_is_recorded_and_gated(platform, credential, monkeypatch):
    answers = {}
    for user in ("editor", "reader"):
        client = requests.Session()
        if credential == "access token":
            client.auth = (USERS[user].email, platform.server.access_token(platform.sessions[user]))
        else:
            client.headers["Authorization"] = f"Bearer {platform.server.issuer.token(user)}"
        for stage in ("Archived", "Production"):
            body = {"name": "X", "version": "1", "stage": stage}
            path = f"{platform.server.url}{API}/model-versions/transition-stage"
            answers[user, stage] = client.post(path, json=body, timeout=SECONDS).status_code
        assert 'id="endpoint-x"' in client.get(platform.console, timeout=SECONDS).text
    assert answers == {
        ("editor", "Archived"): 200,
        ("editor", "Production"): 403,
        ("reader", "Archived"): 403,
        ("reader", "Production"): 403,
    }
    refusals = {(event.actor, event.after) for event in platform.events("X", "refused")}
    assert refusals == {(USERS["editor"].email, "Production")}


@pytest.fixture(scope="module", params=["editor", "admin"])
def registry(platform, request):
    """The callers have a session. The editor may manage the models that the editor
    creates.
    """
    return GatedRegistry(
        platform.server.url, platform.sessions[request.param], platform.sessions["admin"]
    )


@pytest.mark.parametrize("name", ATTEMPTS)
def test_bypass_attempt_is_refused(registry, name):
    check_refused(registry, ATTEMPTS[name])


def test_session_is_refused_after_logout(platform):
    session = platform.server.log_in("stranger")
    assert session.get(platform.console, timeout=SECONDS).status_code == 200
    cookies = dict(session.cookies)
    session.get(f"{platform.server.url}/logout", timeout=SECONDS)
    assert requests.get(platform.console, cookies=cookies, timeout=SECONDS).status_code == 401
