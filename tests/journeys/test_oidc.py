"""Tests of the gate and the console on top of mlflow-oidc-auth: users of a loopback
issuer log in, also in Chromium.
"""

from contextlib import contextmanager
from dataclasses import replace

import pytest
import requests

from mlflow_deploy_plugin.core.store.database import open_store
from tests.support.browser import NEEDS_CHROMIUM, chromium
from tests.support.gate_bypasses import ATTEMPTS, check_refused
from tests.support.login_platform import SECONDS, Platform
from tests.support.services.oidc_issuer import LOGIN_BUTTON, USER_FIELD, OidcIssuer
from tests.support.services.oidc_server import TEAM, USERS, OidcServer

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


@pytest.fixture(scope="module")
def platform(tmp_path_factory, new_database):
    folder = tmp_path_factory.mktemp("oidc")
    new_database(folder)
    server = OidcServer(folder)
    try:
        server.issuer.start()
        server.start()
        sessions = {user: server.log_in(user) for user in ("admin", "reader", "editor", "stranger")}
        store = open_store(f"sqlite:///{server.folder / 'home' / 'onnxserve.db'}")
        new_platform = Platform(server, store, sessions)
        for model, endpoint in MODELS.items():
            new_platform.add_model(model, endpoint, OWNERS.get(model, "admin"))
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
    model = platform.add_approved_model()
    for user in ("reader", "stranger"):
        platform.server.grant(platform.sessions["admin"], user, model, "READ")
    cookies = {}

    def press_button(action):
        button = {"request": "Request promotion of", "promote": "Promote"}[action]
        with logged_in(browser, platform, "editor") as page:
            press(page, button, model, "@champion")
            platform.wait_for_event(model, action)
            cookies.update({entry["name"]: entry["value"] for entry in page.context.cookies()})

    actors = platform.promote_by_group(model, press_button, ("editor", "stranger", "admin"))
    editor = USERS["editor"].email
    assert actors == [editor, USERS["reader"].email, editor, editor]
    # The process of the action calls MLflow with the editor's session.
    assert cookies["session"] not in platform.job_files()


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
    assert platform.seen(user, MODELS) == (endpoints, editable)
    assert ("models:/Hidden" in platform.page(user)) == ("hidden" in endpoints)
    trail = platform.sessions[user].get(f"{platform.console}/history.jsonl", timeout=SECONDS).text
    assert {name for name in MODELS if f'"{name}"' in trail} <= {
        name for name, endpoint in MODELS.items() if endpoint in endpoints
    }


def test_deny_of_user_beats_edit_of_group(platform):
    """The plugin's explicit denial of a user is NO_PERMISSIONS."""
    names = {"Denied": "denied"}
    platform.add_model("Denied", "denied")
    platform.server.grant_group(platform.sessions["admin"], TEAM, "Denied", "EDIT")
    assert platform.seen("editor", names) == ({"denied"}, {"Denied"})
    platform.server.grant(platform.sessions["admin"], "editor", "Denied", "NO_PERMISSIONS")
    assert platform.seen("editor", names) == (set(), set())
    approved = f"{platform.console}/approved?model=Denied&version=1"
    assert platform.sessions["editor"].get(approved, timeout=SECONDS).status_code == 404
    assert platform.move("editor", "Archived", "Denied").status_code == 403


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
def test_token_client_is_recorded_and_gated(platform, credential):
    clients = {user: requests.Session() for user in ("editor", "reader")}
    for user, client in clients.items():
        if credential == "access token":
            client.auth = (USERS[user].email, platform.server.access_token(platform.sessions[user]))
        else:
            client.headers["Authorization"] = f"Bearer {platform.server.issuer.token(user)}"
        assert 'id="endpoint-x"' in client.get(platform.console, timeout=SECONDS).text
    replace(platform, sessions=clients).check_moves(USERS["editor"].email)


@pytest.fixture(scope="module", params=["editor", "admin"])
def registry(platform, request):
    """The callers have a session. The editor may manage the models that the editor
    creates.
    """
    return platform.registry(request.param)


@pytest.mark.parametrize("name", ATTEMPTS)
def test_bypass_attempt_is_refused(registry, name):
    check_refused(registry, ATTEMPTS[name])


def test_false_signatures_before_the_key_fetch_once(platform):
    server = platform.server
    forged = OidcIssuer(USERS, port=server.issuer.port).token("admin")

    def status(token):
        headers = {"Authorization": f"Bearer {token}"}
        return requests.get(platform.console, headers=headers, timeout=SECONDS).status_code

    assert status(server.issuer.token("admin")) == 200
    server.issuer.asked.clear()
    assert [status(forged) for _ in range(4)] == [401] * 4
    assert server.issuer.asked.count("/jwks") <= 1
    assert status(server.issuer.token("admin")) == 200


def test_session_is_refused_after_logout(platform):
    session = platform.server.log_in("stranger")
    assert session.get(platform.console, timeout=SECONDS).status_code == 200
    cookies = dict(session.cookies)
    session.get(f"{platform.server.url}/logout", timeout=SECONDS)
    assert requests.get(platform.console, cookies=cookies, timeout=SECONDS).status_code == 401
