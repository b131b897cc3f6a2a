"""Tests of the gate and the console on top of mlflow-kubernetes-plugins: a loopback API
of Kubernetes reviews tokens and permissions.
"""

from contextlib import closing
from dataclasses import dataclass
from http.client import HTTPConnection

import pytest
import requests
from kubernetes.config import kube_config

from mlflow_deploy_plugin.core.registry.connection import registry_client
from mlflow_deploy_plugin.core.store.database import open_store
from tests.support.clusters import kubeconfig
from tests.support.commands import onnxserve, said
from tests.support.console import form_token
from tests.support.gate_bypasses import ATTEMPTS, check_refused
from tests.support.login_platform import SECONDS, Platform
from tests.support.refusals import mentions
from tests.support.services.kubernetes_login import (
    RULES,
    KubernetesApi,
    kubernetes_login,
    proxy_headers,
    token_headers,
)
from tests.support.tracking import tracking_at

pytestmark = pytest.mark.long

MODELS = {"X": "x", "Owned": "owned"}
"""Each model in the namespace of the team, and its endpoint."""
MODES = {"self_subject_access_review": token_headers, "subject_access_review": proxy_headers}
"""Each authorization mode of the plugin, and the headers of a user."""
with_tokens = pytest.mark.parametrize("platform", ["self_subject_access_review"], indirect=True)


@dataclass
class KubernetesPlatform(Platform):
    """The server with the API of its cluster."""

    api: KubernetesApi


@pytest.fixture(scope="module", params=MODES)
def platform(request, tmp_path_factory, new_database):
    folder = tmp_path_factory.mktemp("kubernetes")
    new_database(folder)
    home = folder / "home/workspaces/team"
    home.mkdir(parents=True)
    with (
        kubernetes_login(folder, request.param) as (server, api),
        closing(open_store(f"sqlite:///{home}/onnxserve.db")) as store,
    ):
        sessions = {user: requests.Session() for user in RULES}
        for user, session in sessions.items():
            session.headers.update({"X-MLFLOW-WORKSPACE": "team", **MODES[request.param](user)})
        new_platform = KubernetesPlatform(server, store, sessions, api)
        for model, endpoint in MODELS.items():
            new_platform.add_model(model, endpoint)
        yield new_platform


@pytest.mark.parametrize("name", ATTEMPTS)
def test_kubernetes_auth_refuses_bypass_attempt(platform, name):
    check_refused(platform.registry("editor"), ATTEMPTS[name])


@pytest.mark.parametrize(
    ("user", "endpoints", "editable"),
    [
        ("admin", {"x", "owned"}, {"X", "Owned"}),
        ("editor", {"x", "owned"}, {"X", "Owned"}),
        ("reader", {"x", "owned"}, set()),
        ("owner", {"owned"}, {"Owned"}),
    ],
)
def test_kubernetes_auth_limits_seen_endpoints(platform, user, endpoints, editable):
    assert platform.seen(user, MODELS) == (endpoints, editable)


def test_kubernetes_auth_gates_and_records_editor(platform):
    platform.check_moves("editor")


def test_kubernetes_auth_promotes_by_group(platform):
    model = platform.add_approved_model()

    def press(action):
        form = {"action": action, "model": model, "version": "1", "to": "@champion"}
        form["csrf_token"] = form_token(platform.page("editor"))
        platform.sessions["editor"].post(platform.console, data=form, timeout=SECONDS)
        platform.wait_for_event(model, action)

    actors = platform.promote_by_group(model, press, ("editor", "admin"))
    assert actors == ["editor", "reader", "editor", "editor"]
    assert "token-of-editor" not in platform.job_files()


@pytest.mark.parametrize(
    ("user", "workspace", "status"),
    [
        ("editor", "team", 200),
        ("editor", "other", 403),
        ("editor", "absent", 404),
        ("stranger", "other", 200),
        ("stranger", "team", 403),
    ],
)
def test_kubernetes_auth_checks_namespace_of_url(platform, user, workspace, status):
    """The header of the session names the namespace `team`."""
    query = {"workspace": workspace}
    answer = platform.sessions[user].get(platform.console, params=query, timeout=SECONDS)
    assert answer.status_code == status


@with_tokens
def test_kubernetes_auth_reads_no_body_before_the_key(platform):
    """The plugin reads a query of GraphQL before it asks for the permissions."""
    connection = HTTPConnection(platform.server.host, platform.server.port, timeout=SECONDS)
    with closing(connection):
        connection.putrequest("POST", "/graphql")
        connection.putheader("Authorization", "Bearer wrong")
        connection.putheader("Content-Type", "application/json")
        connection.putheader("Content-Length", "1000")
        connection.endheaders(b"{")
        assert connection.getresponse().status == 401


@with_tokens
def test_kubernetes_auth_sends_styles_without_workspace(platform):
    style = f"{platform.console}/console.css"
    for headers, status in (token_headers("reader"), 200), ({}, 401):
        assert requests.get(style, headers=headers, timeout=SECONDS).status_code == status


@with_tokens
@pytest.mark.parametrize(
    ("field", "value", "status", "names"),
    [
        ("users", {}, 401, ("token", "expired")),
        ("review_status", 403, 403, ("TokenReviews", "system:auth-delegator")),
        ("review_status", 500, 503, ("Kubernetes", "token")),
    ],
)
def test_kubernetes_auth_without_review_changes_nothing(
    platform, monkeypatch, field, value, status, names
):
    with monkeypatch.context() as patch:
        patch.setattr(platform.api, field, value)
        answer = platform.move("editor", "Archived", "Owned")
    assert answer.status_code == status
    assert mentions(answer.json()["message"], *names)
    assert platform.registry("admin").placed("Owned") == {"none"}


@with_tokens
def test_kubernetes_auth_client_follows_rotated_token(platform, monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_WORKSPACE", "team")
    monkeypatch.setitem(platform.api.users, "rotated", "editor")
    path = kubeconfig(tmp_path, platform.server.url, "rotated")
    monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(path))
    with tracking_at(platform.server.url):
        with monkeypatch.context() as patch:
            patch.setenv("MLFLOW_TRACKING_TOKEN", "expired")
            assert mentions(said(onnxserve("promote models:/X/1 --to Production")), "expired")
        monkeypatch.setenv("MLFLOW_TRACKING_AUTH", "kubernetes")
        registry_client().transition_model_version_stage("X", "1", "Staging")
