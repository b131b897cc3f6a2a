"""Tests of attempts to move a version past the gate, without accounts and with MLflow's basic auth.

The tests of the other logins run the same table: test_oidc.py.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests

from tests.support.gate_bypasses import ATTEMPTS, GATED, GatedRegistry, check_refused, is_moved, run
from tests.support.services.basic_auth import basic_auth_server, password
from tests.support.services.mlflow_server import MlflowServer

pytestmark = pytest.mark.long


def without_accounts(folder: Path) -> Iterator[GatedRegistry]:
    server = MlflowServer(folder, app="onnxserve", variables={"ONNXSERVE_HOME": str(folder / "home")})
    try:
        server.start()
        yield GatedRegistry(server.url, requests.Session(), requests.Session())
    finally:
        server.kill()


def with_basic_auth(folder: Path) -> Iterator[GatedRegistry]:
    """The caller is not an administrator, and may manage the models that the caller creates."""
    pytest.importorskip("flask_wtf", reason="MLflow's basic auth needs Flask-WTF (pip install mlflow[auth])")
    with basic_auth_server(folder, "alice") as server:
        alice, admin = requests.Session(), requests.Session()
        alice.auth, admin.auth = ("alice", password("alice")), ("admin", password("admin"))
        yield GatedRegistry(server.url, alice, admin)


@pytest.fixture(scope="module", params=[without_accounts, with_basic_auth])
def registry(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, new_database: Callable[[Path], str]
) -> Iterator[GatedRegistry]:
    folder = tmp_path_factory.mktemp("gated")
    new_database(folder)
    with contextmanager(request.param)(folder) as gated:
        yield gated


@pytest.mark.parametrize("name", ATTEMPTS)
def test_an_attempt_to_bypass_the_gate_is_refused(registry: GatedRegistry, name: str) -> None:
    check_refused(registry, ATTEMPTS[name])


def test_without_the_gate_many_of_the_attempts_move_the_version(mlflow_server: MlflowServer) -> None:
    """The table would prove nothing if MLflow itself refused its requests."""
    session, moved = requests.Session(), []
    registry = GatedRegistry(mlflow_server.url, session, session)
    for name, attempt in ATTEMPTS.items():
        names, _ = run(registry, attempt)
        moved += [name] if is_moved(registry, names[GATED]) else []
    assert len(moved) >= 70
