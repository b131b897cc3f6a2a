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
from tests.support.console import PAGE, form, open_page
from tests.support.refusals import mentions


@pytest.fixture
def store(tmp_path, monkeypatch):
    """Yield a store for a caller who may read only the model `open`."""
    monkeypatch.setattr(access, "is_administrator", lambda: False)
    monkeypatch.setattr(access, "may_read", lambda model: model == "open")
    opened = open_store(f"sqlite:///{tmp_path}/store.db")
    yield opened
    opened.close()


def deleted(store, *models):
    """Create and delete the endpoint `flights`,
    which has served these models in turn.
    """
    for model in models:
        spec = new_endpoint("flights", f"models:/{model}/1")
        store.replace_spec(spec) if store.endpoint("flights") else store.add_endpoint(
            "onnxserve", spec
        )
    store.remove_endpoint("flights")


def visible(store, endpoint=None):
    """Return the actions that the caller sees in a new request."""
    with Flask(__name__).test_request_context():
        return [event.action for event in access.visible_events(store, [*store.events(endpoint)])]


def is_hidden(store):
    seen = visible(store, "flights")
    assert len(seen) in (0, len([*store.events("flights")]))
    return not seen


@pytest.mark.parametrize(
    ("models", "hidden"), [(["secret", "open"], False), (["open", "secret"], True)]
)
def test_last_served_model_decides_if_a_deleted_endpoint_is_hidden(store, models, hidden):
    deleted(store, *models)

    assert is_hidden(store) is hidden


def test_deleted_endpoint_with_an_unreadable_last_spec_is_hidden(store):
    deleted(store, "open")
    newer = "name: flights\nvariants: {champion: {model: 'models:/secret/1'}}\nsampling: often\n"
    store.record("update", endpoint="flights", detail={"spec": newer})
    store.record("delete", endpoint="flights")

    assert is_hidden(store)


@pytest.mark.parametrize(("model", "hidden"), [("open", False), ("secret", True)])
def test_last_served_model_decides_if_an_endpoint_without_deployments_is_hidden(
    store, model, hidden
):
    store.add_endpoint("onnxserve", new_endpoint("flights", f"models:/{model}/1"))
    store.replace_spec(empty_endpoint("flights"))
    assert is_hidden(store) is hidden

    store.remove_endpoint("flights")
    assert is_hidden(store) is hidden


def test_an_endpoint_that_never_served_is_shown(store):
    store.add_endpoint("onnxserve", empty_endpoint("flights"))

    assert not is_hidden(store)


def test_name_without_any_recorded_spec_is_hidden(store):
    store.record("rollout.end", endpoint="flights", why="version 7 of secret was worse")

    assert is_hidden(store)


def test_keys_which_name_endpoints_are_shown_to_administrators_alone(store, monkeypatch):
    ApiKeys(store).create("shop", ["infer"], ["secret-endpoint"])

    assert visible(store) == []
    monkeypatch.setattr(access, "is_administrator", lambda: True)
    assert visible(store) == ["key.create"]


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
def test_a_form_of_another_site_is_refused(mlflow_app, endpoint, headers):
    browser, _, token = open_page(mlflow_app)
    answer = browser.post(PAGE, data=form(endpoint, token), headers=headers)
    assert answer.status_code == 403
    assert mentions(answer.text, "another site")


def test_a_name_that_leads_here_for_the_moment_gets_neither_the_page_nor_its_token(
    mlflow_app, endpoint
):
    """MLflow also checks the Host header of requests to our pages."""
    browser, _, token = open_page(mlflow_app)
    headers = {
        "Host": "evil.example",
        "Origin": "http://evil.example",
        "Sec-Fetch-Site": "same-origin",
    }
    assert browser.get(PAGE, headers=headers).status_code == 403
    assert browser.post(PAGE, data=form(endpoint, token), headers=headers).status_code == 403


def test_the_token_of_one_browser_is_not_that_of_another(mlflow_app, endpoint):
    _, _, token = open_page(mlflow_app)
    other, _, _ = open_page(mlflow_app)
    assert other.post(PAGE, data=form(endpoint, token)).status_code == 403


def test_a_server_with_another_key_does_not_replace_the_cookie(mlflow_app, tmp_path):
    other = Flask("other")
    add_sessions(other, tmp_path / "key")
    assert len((tmp_path / "key").read_bytes()) == 32
    assert other.config["SESSION_COOKIE_NAME"] != mlflow_app.app.config["SESSION_COOKIE_NAME"]


def test_the_workers_of_a_server_share_one_key(tmp_path):
    workers = [Flask("first"), Flask("second")]
    for worker in workers:
        add_sessions(worker, tmp_path / "console" / "key")
    assert workers[0].secret_key == workers[1].secret_key
    assert (tmp_path / "console" / "key").stat().st_mode & 0o077 == 0


def test_the_cookie_goes_to_this_site_alone_and_over_tls_if_it_came_so(mlflow_app):
    [plain] = mlflow_app.client.get(PAGE).headers.getlist("Set-Cookie")
    [secure] = mlflow_app.client.get(PAGE, base_url="https://localhost").headers.getlist(
        "Set-Cookie"
    )
    assert all("HttpOnly" in cookie and "SameSite=Strict" in cookie for cookie in (plain, secure))
    assert "Secure" in secure
    assert "Secure" not in plain


def test_a_key_that_cannot_be_written_costs_only_the_sharing_between_workers(tmp_path):
    (tmp_path / "file").touch()
    app = Flask("alone")
    add_sessions(app, tmp_path / "file" / "key")
    assert app.secret_key
