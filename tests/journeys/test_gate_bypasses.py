"""Tests of attempts to move a version past the gate: without accounts, with MLflow's
basic auth, and behind a proxy.

The tests of mlflow-oidc-auth in test_oidc.py run the same table.
"""

from contextlib import contextmanager

import pytest
import requests

from tests.support.gate_bypasses import ATTEMPTS, GATED, GatedRegistry, check_refused, is_moved, run
from tests.support.services.basic_auth import basic_auth_server, password
from tests.support.services.mlflow_server import MlflowServer

pytestmark = pytest.mark.long


def without_accounts(folder):
    with running(folder, {}) as server:
        session = requests.Session()
        yield GatedRegistry(server.url, session, session)


def with_basic_auth(folder):
    """The caller is not an administrator, and may manage the models that the caller
    creates.
    """
    pytest.importorskip(
        "flask_wtf", reason="MLflow's basic auth needs Flask-WTF (pip install mlflow[auth])"
    )
    with basic_auth_server(folder, "alice") as server:
        alice = requests.Session()
        admin = requests.Session()
        alice.auth = ("alice", password("alice"))
        admin.auth = ("admin", password("admin"))
        yield GatedRegistry(server.url, alice, admin)


def behind_a_proxy(folder):
    """The requests come from the address of the proxy, with the header in which the
    proxy names the caller.
    """
    variables = {
        "ONNXSERVE_USER_HEADER": "X-Forwarded-User",
        "ONNXSERVE_TRUSTED_PROXIES": "127.0.0.1",
    }
    with running(folder, variables) as server:
        alice = requests.Session()
        alice.headers["X-Forwarded-User"] = "alice"
        yield GatedRegistry(server.url, alice, alice)


@contextmanager
def running(folder, variables):
    server = MlflowServer(
        folder, app="onnxserve", variables={"ONNXSERVE_HOME": str(folder / "home"), **variables}
    )
    with server.running():
        yield server


@pytest.fixture(scope="module", params=[without_accounts, with_basic_auth, behind_a_proxy])
def registry(request, tmp_path_factory, new_database):
    folder = tmp_path_factory.mktemp("gated")
    new_database(folder)
    with contextmanager(request.param)(folder) as gated:
        yield gated


@pytest.mark.parametrize("name", ATTEMPTS)
def test_bypass_attempt_is_refused(registry, name):
    check_refused(registry, ATTEMPTS[name])


def test_attempts_succeed_without_gate(mlflow_server):
    """The table would prove nothing if MLflow itself refused its requests."""
    session = requests.Session()
    moved = []
    registry = GatedRegistry(mlflow_server.url, session, session)
    for name, attempt in ATTEMPTS.items():
        names, _ = run(registry, attempt)
        moved += [name] if is_moved(registry, names[GATED]) else []
    assert len(moved) >= 70
