"""Tests of the gate and the console with MLflow's basic auth: a separate server with
four accounts.
"""

import re
from dataclasses import dataclass

import pytest
import requests
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from mlflow_deploy_plugin.core.spec.document import new_endpoint
from mlflow_deploy_plugin.core.store.database import open_store
from mlflow_deploy_plugin.core.store.store import Store
from tests.support.refusals import mentions, refused
from tests.support.services.basic_auth import basic_auth_server, password
from tests.support.services.mlflow_server import MlflowServer
from tests.support.waiting import wait_until

pytest.importorskip(
    "flask_wtf", reason="MLflow's basic auth needs Flask-WTF (pip install mlflow[auth])"
)
pytestmark = pytest.mark.long

BUTTON = "Promote version 1 of X"


@dataclass
class Accounts:
    """The server and its store. `x` serves alice's X (readable for bob only), `y` bob's
    Y and `z` carol's Z.
    """

    server: MlflowServer
    store: Store

    def browser(self, user: str) -> requests.Session:
        session = requests.Session()
        session.auth = (user, password(user))
        return session

    def page(self, user: str, **query: str) -> str:
        return self.browser(user).get(f"{self.server.url}/onnxserve", params=query, timeout=60).text

    def press(self, user: str, form: dict[str, str]) -> tuple[int, str]:
        """Send a form with the token of the user's page, and return the status and the
        resulting page.
        """
        browser = self.browser(user)
        url = f"{self.server.url}/onnxserve"
        token = re.findall(
            r'name="csrf_token" value="([\w.-]+)"', browser.get(url, timeout=60).text
        )[0]
        answer = browser.post(
            url, data={**form, "csrf_token": token}, timeout=60, allow_redirects=False
        )
        return answer.status_code, answer.text


@pytest.fixture(scope="module")
def accounts(tmp_path_factory, new_database):
    folder = tmp_path_factory.mktemp("accounts")
    new_database(folder)
    with (
        pytest.MonkeyPatch.context() as patch,
        basic_auth_server(folder, "alice", "bob", "carol") as server,
    ):
        store = open_store(f"sqlite:///{folder / 'home' / 'onnxserve.db'}")
        new_accounts = Accounts(server, store)
        admin = ("admin", password("admin"))
        try:
            log_in(patch, "alice")
            client = MlflowClient(server.url)
            client.create_registered_model(
                "X", tags={"onnxserve.gate.policy": "gated_stages: [Production]"}
            )
            client.create_model_version("X", "s3://bucket/x")
            permission = {
                "resource_type": "registered_model",
                "resource_id": "X",
                "permission": "READ",
            }
            requests.post(
                f"{server.url}/api/3.0/mlflow/users/permissions/grant",
                json={"username": "bob", **permission},
                auth=admin,
                timeout=60,
            ).raise_for_status()
            for user, model in (("bob", "Y"), ("carol", "Z")):
                log_in(patch, user)
                client.create_registered_model(model)
                client.create_model_version(model, f"s3://bucket/{model}")
                store.add_endpoint(
                    "onnxserve", new_endpoint(model.lower(), f"models:/{model}/Production")
                )
            store.add_endpoint("onnxserve", new_endpoint("x", "models:/X/Production"))
            yield new_accounts
        finally:
            store.close()


def log_in(patch, user):
    patch.setenv("MLFLOW_TRACKING_USERNAME", user)
    patch.setenv("MLFLOW_TRACKING_PASSWORD", password(user))


def test_the_trail_names_the_account_and_who_may_not_is_stopped_before_the_gate(
    accounts, monkeypatch
):
    client = MlflowClient(accounts.server.url)
    log_in(monkeypatch, "alice")
    client.transition_model_version_stage("X", "1", "Staging")
    with refused(MlflowException, "Production", "the gate", code="PERMISSION_DENIED"):
        client.transition_model_version_stage("X", "1", "Production")
    log_in(monkeypatch, "bob")
    with pytest.raises(MlflowException, match="Permission denied"):
        client.transition_model_version_stage("X", "1", "Production")
    events = [(event.actor, event.action) for event in accounts.store.events(model="X")][:4]
    # The first event is the policy, which was set at creation.
    assert events == [
        ("alice", "tag"),
        ("alice", "register"),
        ("alice", "transition"),
        ("alice", "refused"),
    ]


def test_the_console_wants_an_account_and_shows_buttons_to_whoever_may_edit_the_model(accounts):
    assert requests.get(f"{accounts.server.url}/onnxserve", timeout=60).status_code == 401
    assert BUTTON in accounts.page("admin")
    assert BUTTON in accounts.page("alice")
    assert BUTTON not in accounts.page("bob")
    assert ">x" in accounts.page("bob")


def test_the_comparison_of_versions_is_shown_to_whoever_may_read_the_model(accounts):
    url = f"{accounts.server.url}/onnxserve/diff"
    query = {"model": "X", "before": "1", "after": "1"}
    answers = {
        user: accounts.browser(user).get(url, params=query, timeout=60)
        for user in ("alice", "bob", "carol")
    }
    assert {user: answer.status_code for user, answer in answers.items()} == {
        "alice": 200,
        "bob": 200,
        "carol": 404,
    }
    assert requests.get(url, params=query, timeout=60).status_code == 401


def test_a_button_acts_in_mlflow_as_whoever_pressed_it(accounts):
    browser = accounts.browser("alice")
    url = f"{accounts.server.url}/onnxserve"
    token = re.findall(r'name="csrf_token" value="([\w.-]+)"', browser.get(url, timeout=60).text)[0]
    form = {
        "action": "promote",
        "model": "X",
        "version": "1",
        "to": "Archived",
        "csrf_token": token,
    }
    answer = browser.post(url, data=form, timeout=60, allow_redirects=False)
    assert answer.status_code == 303
    page = f"{accounts.server.url}{answer.headers['Location']}"
    wait_until(
        lambda: mentions(browser.get(page, timeout=60).text, "Done", "version 1 of X"),
        90,
        "it is done",
    )
    assert [
        event.actor for event in accounts.store.events(model="X") if event.action == "promote"
    ] == ["alice"]
    assert password("alice") not in "".join(
        path.read_text() for path in accounts.server.folder.rglob("jobs/*")
    )


def test_history_of_an_unreadable_model_is_neither_shown_nor_exported(accounts):
    accounts.store.add_endpoint("onnxserve", new_endpoint("gone", "models:/X/Production"))
    accounts.store.remove_endpoint("gone")
    url = f"{accounts.server.url}/onnxserve/history"
    for suffix, event in ((".jsonl", '"endpoint": "%s"'), ("", ">created the endpoint %s<")):
        of_bob, of_carol = (
            accounts.browser(user).get(url + suffix, timeout=60).text for user in ("bob", "carol")
        )
        for name in ("x", "gone"):
            assert event % name in of_bob
            assert event % name not in of_carol
    assert mentions(accounts.page("carol"), "2 more", "may not read")
    assert "models:/X" not in accounts.page("carol")


def test_the_page_of_a_model_that_one_may_not_read_is_that_of_a_model_that_does_not_exist(accounts):
    assert 'id="endpoint-x"' in accounts.page("bob", model="X")
    for model in ("X", "nothing"):
        page = accounts.page("carol", model=model)
        assert mentions(page, "No endpoint", f"<bdi>{model}</bdi>")
        assert "may not read" not in page


@pytest.mark.parametrize(
    "form",
    [
        {"action": "promote", "model": "X", "version": "1", "to": "Archived"},
        {"action": "promote", "model": "nothing", "version": "1", "to": "Archived"},
        {"action": "gate", "model": "X", "version": "1"},
        {"action": "rollback", "endpoint": "x"},
        {"action": "traffic", "endpoint": "x", "weight:x": "100"},
    ],
)
def test_form_without_edit_permission_is_refused(accounts, form):
    status, page = accounts.press("bob", form)
    assert status == 403
    assert "you may not" in page


def test_an_endpoint_that_one_may_not_see_is_not_there(accounts):
    assert accounts.press("carol", {"action": "traffic", "endpoint": "x"})[0] == 404
    assert accounts.press("carol", {"action": "traffic", "endpoint": "nothing"})[0] == 404
    # The form has no weight.
    assert accounts.press("carol", {"action": "traffic", "endpoint": "z"})[0] == 400


@pytest.mark.parametrize(
    "path", ["/pictures?endpoint=x", "/pictures?endpoint=x&whole=1", "?endpoint=x"]
)
def test_of_an_endpoint_that_one_may_not_see_there_are_no_figures(accounts, path):
    url = f"{accounts.server.url}/onnxserve{path}"
    assert "Latency" in accounts.browser("bob").get(url, timeout=60).text
    answer = accounts.browser("carol").get(url, timeout=60)
    assert answer.status_code == 404
    assert mentions(answer.text, "no endpoint")
    assert "Latency" not in answer.text


def test_only_an_administrator_may_change_a_policy_with_approvals(accounts, monkeypatch):
    client = MlflowClient(accounts.server.url)
    tag = "onnxserve.gate.policy"
    log_in(monkeypatch, "alice")
    client.create_registered_model("W", tags={tag: "approvals: {count: 1}"})
    client.create_model_version("W", "s3://bucket/w")
    for change in (
        lambda: client.set_registered_model_tag("W", tag, "skip: []"),
        lambda: client.delete_registered_model_tag("W", tag),
        lambda: client.rename_registered_model("W", "V"),
        lambda: client.delete_registered_model("W"),
    ):
        with refused(MlflowException, "administrator", "W", code="PERMISSION_DENIED"):
            change()
    log_in(monkeypatch, "admin")
    client.set_registered_model_tag("W", tag, "skip: []")
    log_in(monkeypatch, "alice")
    client.rename_registered_model("W", "V")
    (registered,) = [
        event for event in accounts.store.events(model="W") if event.action == "register"
    ]
    assert registered.actor == "alice"
    assert registered.version == "1"
    assert registered.detail["authors"] == ["alice"]
