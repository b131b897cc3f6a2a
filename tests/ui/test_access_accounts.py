"""Tests of the gate and the console with MLflow's basic auth: a separate server with
accounts. See test_access.py for the permissions of pages and forms.
"""

import pytest
import requests
from mlflow.exceptions import MlflowException

from mlflow_deploy_plugin.core.spec.document import new_endpoint
from tests.support.accounts import people
from tests.support.refusals import refused
from tests.support.services.basic_auth import password

pytest.importorskip(
    "flask_wtf", reason="MLflow's basic auth needs Flask-WTF (pip install mlflow[auth])"
)
pytestmark = pytest.mark.long

GATED = "gated_stages: [Production]"


@pytest.fixture(scope="module")
def server(tmp_path_factory, new_database):
    folder = tmp_path_factory.mktemp("accounts")
    with people(folder, new_database, "alice", "bob", "carol") as accounts:
        accounts.add_role("readers", "bob")
        yield accounts


@pytest.fixture(scope="module")
def model(server):
    """A model of alice that bob may read, and its endpoint."""
    name = server.register("alice", GATED)
    server.store.add_endpoint("onnxserve", new_endpoint(name, f"models:/{name}/Production"))
    return name


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
