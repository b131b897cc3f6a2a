"""MLflow's basic auth under the gate and the console: a server of its own with three accounts."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from mlflow_deploy_plugin.spec import new_endpoint
from mlflow_deploy_plugin.store import Store, open_store
from support.mlflow_server import MlflowServer
from support.waiting import wait_until

pytest.importorskip("flask_wtf", reason="MLflow's basic auth needs Flask-WTF (pip install mlflow[auth])")
pytestmark = pytest.mark.long

CONFIG = """[mlflow]
default_permission = READ
database_uri = sqlite:///{folder}/users.db
admin_username = admin
admin_password = password-of-admin
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
"""


@dataclass
class Accounts:
    """The server, and our store; the endpoint `x` serves the model X, which is alice's."""

    server: MlflowServer
    store: Store

    def browser(self, user: str) -> requests.Session:
        session = requests.Session()
        session.auth = (user, f"password-of-{user}")
        return session

    def page(self, user: str) -> str:
        return self.browser(user).get(f"{self.server.url}/onnxserve", timeout=60).text


@pytest.fixture(scope="module")
def accounts(tmp_path_factory: pytest.TempPathFactory, new_database: Callable[[Path], str]) -> Iterator[Accounts]:
    folder = tmp_path_factory.mktemp("accounts")
    new_database(folder)
    (folder / "auth.ini").write_text(CONFIG.format(folder=folder))
    server = MlflowServer(folder, app="onnxserve-basic-auth")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ONNXSERVE_HOME", str(folder / "home"))
        patch.setenv("MLFLOW_AUTH_CONFIG_PATH", str(folder / "auth.ini"))
        patch.setenv("MLFLOW_FLASK_SERVER_SECRET_KEY", "a key of sixteen bytes or more")
        patch.setenv("MLFLOW_AUTH_ADMIN_PASSWORD", "password-of-admin")
        patch.setenv("MLFLOW_BASIC_AUTH_FAIL_CLOSED", "true")
        patch.delenv("MLFLOW_TRACKING_URI")
        server.start()
        store = open_store(f"sqlite:///{folder / 'home' / 'onnxserve.db'}")
        found = Accounts(server, store)
        try:
            for user in ("alice", "bob"):
                new = {"username": user, "password": f"password-of-{user}"}
                requests.post(
                    f"{server.url}/api/2.0/mlflow/users/create",
                    json=new,
                    auth=("admin", "password-of-admin"),
                    timeout=60,
                ).raise_for_status()
            log_in(patch, "alice")
            client = MlflowClient(server.url)
            client.create_registered_model("X", tags={"onnxserve.gate.policy": "gated_stages: [Production]"})
            client.create_model_version("X", "s3://bucket/x")
            store.add_endpoint("onnxserve", new_endpoint("x", "models:/X/Production"))
            yield found
        finally:
            store.close()
            server.kill()


def log_in(patch: pytest.MonkeyPatch, user: str) -> None:
    patch.setenv("MLFLOW_TRACKING_USERNAME", user)
    patch.setenv("MLFLOW_TRACKING_PASSWORD", f"password-of-{user}")


def test_the_trail_names_the_account_and_who_may_not_is_stopped_before_the_gate(
    accounts: Accounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = MlflowClient(accounts.server.url)
    log_in(monkeypatch, "alice")
    client.transition_model_version_stage("X", "1", "Staging")
    with pytest.raises(MlflowException, match="has not been through the gate"):
        client.transition_model_version_stage("X", "1", "Production")
    log_in(monkeypatch, "bob")
    with pytest.raises(MlflowException, match="Permission denied"):
        client.transition_model_version_stage("X", "1", "Production")
    events = [(event.actor, event.action) for event in accounts.store.events(model="X")][:2]
    assert events == [("alice", "transition"), ("alice", "refused")]


def test_the_console_wants_an_account_and_shows_buttons_to_whoever_may_edit_the_model(accounts: Accounts) -> None:
    assert requests.get(f"{accounts.server.url}/onnxserve", timeout=60).status_code == 401
    assert "Promote" in accounts.page("admin")
    assert "Promote" in accounts.page("alice")
    assert "Promote" not in accounts.page("bob")
    assert ">x" in accounts.page("bob")


def test_a_button_acts_in_mlflow_as_whoever_pressed_it(accounts: Accounts) -> None:
    browser, url = accounts.browser("alice"), f"{accounts.server.url}/onnxserve"
    token = re.findall(r'name="token" value="(\w+)"', browser.get(url, timeout=60).text)[0]
    form = {"action": "promote", "model": "X", "version": "1", "to": "Archived", "token": token}
    answer = browser.post(f"{url}/act", data=form, timeout=60, allow_redirects=False)
    assert answer.status_code == 303
    page = f"{accounts.server.url}{answer.headers['Location']}"
    wait_until(lambda: "Done: promote version 1 of X" in browser.get(page, timeout=60).text, 90, "it is done")
    assert [event.actor for event in accounts.store.events(model="X") if event.action == "promote"] == ["alice"]
    assert "password-of-alice" not in "".join(path.read_text() for path in accounts.server.folder.rglob("jobs/*"))
