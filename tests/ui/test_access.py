"""Tests of the permissions of callers and of forms from other sites. See
test_access_accounts.py for accounts.
"""

import pytest
from flask import Flask

from mlflow_deploy_plugin.core.spec.document import empty_endpoint, new_endpoint
from mlflow_deploy_plugin.core.store.database import open_store
from mlflow_deploy_plugin.core.store.keys import ApiKeys
from mlflow_deploy_plugin.ui import access
from mlflow_deploy_plugin.ui.access import add_sessions
from mlflow_deploy_plugin.ui.logins.login import ModelPermission
from tests.support.console import PAGE, HeaderLogin, form, open_page
from tests.support.refusals import mentions


@pytest.fixture
def store(tmp_path, monkeypatch):
    """Yield a store for a caller who may read only the model `open`."""
    monkeypatch.setattr(access, "is_administrator", lambda: False)
    monkeypatch.setattr(access, "may_read", lambda model: model == "open")
    opened = open_store(f"sqlite:///{tmp_path}/store.db")
    yield opened
    opened.close()


def served(store, *models):
    """Create the endpoint `flights`, which serves these models in turn."""
    store.add_endpoint("onnxserve", empty_endpoint("flights"))
    for model in models:
        store.replace_spec(new_endpoint("flights", f"models:/{model}/1"))


def visible(store, endpoint=None):
    """Return the actions that the caller sees in a new request."""
    with Flask(__name__).test_request_context():
        return [event.action for event in access.visible_events(store, [*store.events(endpoint)])]


def is_hidden(store):
    seen = visible(store, "flights")
    assert len(seen) in (0, len([*store.events("flights")]))
    return not seen


@pytest.mark.parametrize(
    ("models", "is_emptied", "hidden"),
    [
        ([], False, False),
        (["secret", "open"], True, False),
        (["open", "secret"], True, True),
        (["open", "secret"], False, True),
    ],
)
def test_last_served_model_decides_visibility(store, models, is_emptied, hidden):
    served(store, *models)
    if is_emptied:
        store.replace_spec(empty_endpoint("flights"))
    assert is_hidden(store) is hidden

    store.remove_endpoint("flights")
    assert is_hidden(store) is hidden


def test_endpoint_with_unreadable_spec_is_hidden(store):
    served(store, "open")
    store.remove_endpoint("flights")
    newer = "name: flights\nvariants: {champion: {model: 'models:/secret/1'}}\nsampling: often\n"
    store.record("update", endpoint="flights", detail={"spec": newer})
    store.record("delete", endpoint="flights")

    assert is_hidden(store)


def test_name_without_any_recorded_spec_is_hidden(store):
    store.record("rollout.end", endpoint="flights", why="version 7 of secret was worse")

    assert is_hidden(store)


def test_keys_are_shown_only_to_administrators(store, monkeypatch):
    ApiKeys(store).create("shop", ["infer"], ["secret-endpoint"])

    assert visible(store) == []
    monkeypatch.setattr(access, "is_administrator", lambda: True)
    assert visible(store) == ["key.create"]


class People(HeaderLogin):
    """Everybody may edit `Z`, so that every page has a form."""

    def permission(self, model):
        return ModelPermission(True, True) if model == "Z" else super().permission(model)


@pytest.fixture
def people(mlflow_app, monkeypatch):
    login = People("alice bob", "alice")
    monkeypatch.setitem(mlflow_app.app.extensions, "onnxserve.login", login)


@pytest.fixture
def own(mlflow_app):
    """An endpoint of bob and carol."""
    mlflow_app.store.add_endpoint("onnxserve", new_endpoint("z", "models:/Z/1"))
    yield "z"
    mlflow_app.store.remove_endpoint("z")


def get(mlflow_app, user, path=""):
    return mlflow_app.client.get(f"{PAGE}{path}", headers={"X-User": user})


def press(mlflow_app, user, **fields):
    """Send a form with the token of the user's page."""
    headers = {"X-User": user}
    browser, _, token = open_page(mlflow_app, headers=headers)
    return browser.post(PAGE, data={"csrf_token": token, **fields}, headers=headers)


def test_buttons_are_shown_to_editors(mlflow_app, people, endpoint):
    button = f"Promote version 1 of {endpoint.removeprefix('of-')}"
    assert button in get(mlflow_app, "alice").text
    page = get(mlflow_app, "bob").text
    assert button not in page
    assert f">{endpoint}" in page


@pytest.mark.parametrize("path", ["/history", "/history.jsonl"])
def test_unreadable_history_is_not_shown(mlflow_app, people, endpoint, path):
    assert endpoint in get(mlflow_app, "bob", path).text
    assert endpoint not in get(mlflow_app, "carol", path).text


def test_unreadable_endpoints_are_only_counted(mlflow_app, people, endpoint, own):
    page = get(mlflow_app, "carol").text
    assert mentions(page, "1 more", "may not read")
    assert endpoint not in page


def test_unreadable_model_page_equals_unknown_model(mlflow_app, people, endpoint):
    model = endpoint.removeprefix("of-")
    assert f'id="endpoint-{endpoint}"' in get(mlflow_app, "bob", f"?model={model}").text
    for name in (model, "nothing"):
        page = get(mlflow_app, "carol", f"?model={name}").text
        assert mentions(page, "No endpoint", f"<bdi>{name}</bdi>")
        assert "may not read" not in page


@pytest.mark.parametrize(
    "fields",
    [
        {"action": "promote", "model": "X", "version": "1", "to": "Archived"},
        {"action": "gate", "model": "X", "version": "1"},
        {"action": "rollback", "endpoint": ""},
        {"action": "traffic", "endpoint": "", "weight:champion": "100"},
    ],
)
def test_form_without_edit_permission_is_refused(mlflow_app, people, endpoint, own, fields):
    if "endpoint" in fields:
        fields = fields | {"endpoint": endpoint}
    answer = press(mlflow_app, "bob", **fields)
    assert answer.status_code == 403
    assert "you may not" in answer.text


def test_form_for_invisible_endpoint_is_404(mlflow_app, people, endpoint, own):
    for name, status in ((endpoint, 404), ("nothing", 404), (own, 400)):
        answer = press(mlflow_app, "carol", action="traffic", endpoint=name)
        assert answer.status_code == status  # The form has no weight.


@pytest.mark.parametrize(
    "path", ["/pictures?whole=0&endpoint=", "/pictures?whole=1&endpoint=", "?endpoint="]
)
def test_invisible_endpoint_has_no_figures(mlflow_app, people, endpoint, path):
    assert "Latency" in get(mlflow_app, "bob", path + endpoint).text
    answer = get(mlflow_app, "carol", path + endpoint)
    assert answer.status_code == 404
    assert mentions(answer.text, "no endpoint")
    assert "Latency" not in answer.text


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://[evil.example"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_form_of_another_site_is_refused(mlflow_app, endpoint, headers):
    browser, _, token = open_page(mlflow_app)
    answer = browser.post(PAGE, data=form(endpoint, token), headers=headers)
    assert answer.status_code == 403
    assert mentions(answer.text, "another site")


def test_request_with_another_host_is_refused(mlflow_app, endpoint):
    """A name that leads here gets neither the page nor its token."""
    browser, _, token = open_page(mlflow_app)
    evil = {"Host": "evil.example", "Origin": "http://evil.example"}
    headers = {**evil, "Sec-Fetch-Site": "same-origin"}
    assert browser.get(PAGE, headers=headers).status_code == 403
    assert browser.post(PAGE, data=form(endpoint, token), headers=headers).status_code == 403


def test_token_of_another_browser_is_refused(mlflow_app, endpoint):
    _, _, token = open_page(mlflow_app)
    other, _, _ = open_page(mlflow_app)
    assert other.post(PAGE, data=form(endpoint, token)).status_code == 403


def test_cookies_of_servers_have_different_names(mlflow_app, tmp_path):
    other = Flask("other")
    add_sessions(other, tmp_path / "key")
    assert len((tmp_path / "key").read_bytes()) == 32
    assert other.config["SESSION_COOKIE_NAME"] != mlflow_app.app.config["SESSION_COOKIE_NAME"]


def test_workers_share_one_key(tmp_path):
    workers = [Flask("first"), Flask("second")]
    for worker in workers:
        add_sessions(worker, tmp_path / "console" / "key")
    assert workers[0].secret_key == workers[1].secret_key
    assert (tmp_path / "console" / "key").stat().st_mode & 0o077 == 0


def test_cookie_is_restricted_to_the_site(mlflow_app):
    [plain] = mlflow_app.client.get(PAGE).headers.getlist("Set-Cookie")
    answer = mlflow_app.client.get(PAGE, base_url="https://localhost")
    [secure] = answer.headers.getlist("Set-Cookie")
    assert all("HttpOnly" in cookie and "SameSite=Strict" in cookie for cookie in (plain, secure))
    assert "Secure" in secure
    assert "Secure" not in plain


def test_unwritable_key_file_is_ignored(tmp_path):
    (tmp_path / "file").touch()
    app = Flask("alone")
    add_sessions(app, tmp_path / "file" / "key")
    assert app.secret_key
