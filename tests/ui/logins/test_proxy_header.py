"""Tests of a server behind a proxy that logs callers in: only listed addresses may name a caller."""

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from flask import Flask, jsonify

from mlflow_deploy_plugin.errors import InvalidConfig
from mlflow_deploy_plugin.settings import Settings
from mlflow_deploy_plugin.ui.access import caller, is_administrator, may_act_on, set_login
from mlflow_deploy_plugin.ui.logins.proxy_header import ProxyHeader
from tests.support.refusals import mentions, refused

SETTINGS = {
    "user_header": "X-Forwarded-User",
    "groups_header": "X-Forwarded-Groups",
    "trusted_proxies": "10.0.0.7, 10.1.0.0/16, ::1",
    "admin_groups": "admins, owners",
}
PROXY = "10.1.2.3"
CAROL = {"X-Forwarded-User": "carol", "X-Forwarded-Groups": "risk, data"}


@pytest.fixture
def app() -> Flask:
    """Return an app that reports its caller."""
    app = Flask(__name__)
    app.secret_key = "a key of sixteen bytes or more"
    login = ProxyHeader(Settings.model_validate(SETTINGS), "")
    set_login(app, login)
    login.install(app, app)

    @app.get("/")
    def who() -> Any:
        token = login.credentials()["MLFLOW_TRACKING_TOKEN"]
        return jsonify(
            actor=caller().actor,
            groups=sorted(login.groups()),
            is_administrator=is_administrator(),
            may_edit=may_act_on(["X"]),
            token=token,
        )

    @app.get("/health")
    def health() -> str:
        return "OK"

    return app


def get(app: Flask, headers: dict[str, str], address: str = PROXY, path: str = "/") -> Any:
    return app.test_client().get(path, headers=headers, environ_base={"REMOTE_ADDR": address})


@pytest.mark.parametrize("address", ["10.0.0.7", "10.1.255.255", "::1", "::ffff:10.0.0.7"])
def test_a_listed_address_names_the_caller(app: Flask, address: str) -> None:
    answer = get(app, CAROL, address).json
    assert (answer["actor"], answer["groups"], answer["is_administrator"]) == ("carol", ["data", "risk"], False)
    assert answer["may_edit"]


def test_a_member_of_an_administrators_group_is_an_administrator(app: Flask) -> None:
    assert get(app, {**CAROL, "X-Forwarded-Groups": "data,owners"}).json["is_administrator"]


@pytest.mark.parametrize(
    ("address", "headers", "named"),
    [
        ("10.0.0.8", CAROL, ("10.0.0.8", "ONNXSERVE_TRUSTED_PROXIES")),
        ("", CAROL, ("ONNXSERVE_TRUSTED_PROXIES",)),
        (PROXY, {}, (PROXY, "X-Forwarded-User")),
        (PROXY, {"X-Forwarded-User": " "}, (PROXY, "X-Forwarded-User")),
        (PROXY, {"X-Forwarded-User": "carol, dora"}, (PROXY, "X-Forwarded-User")),
        ("10.0.0.8", {"X-Forwarded-For": PROXY, **CAROL}, ("10.0.0.8",)),
        ("10.0.0.8", {"Authorization": "Bearer forged"}, ("10.0.0.8",)),
    ],
)
def test_all_other_requests_are_refused(
    app: Flask, address: str, headers: dict[str, str], named: tuple[str, ...]
) -> None:
    answer = get(app, headers, address)
    assert (answer.status_code, answer.json["error_code"]) == (401, "UNAUTHENTICATED")
    assert mentions(answer.json["message"], *named)


def test_a_health_check_needs_no_login(app: Flask) -> None:
    assert get(app, {}, "10.0.0.8", "/health").status_code == 200


def test_a_job_of_the_server_calls_mlflow_with_a_token_of_the_caller(app: Flask) -> None:
    token = get(app, CAROL).json["token"]
    answer = get(app, {"Authorization": f"Bearer {token}"}, "127.0.0.1").json
    assert (answer["actor"], answer["groups"]) == ("carol", ["data", "risk"])


@pytest.fixture
def through_fastapi() -> Iterator[TestClient]:
    """Yield a client of an app with a route that FastAPI answers without Flask."""
    served, app = FastAPI(), Flask(__name__)
    app.secret_key = "a key of sixteen bytes or more"
    ProxyHeader(Settings.model_validate(SETTINGS), "").install(app, served)

    @served.get("/gateway")
    def gateway() -> str:
        return "reached"

    with TestClient(served, client=(PROXY, 1)) as client:
        yield client


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([("X-Forwarded-User", "carol")], 200),
        ([], 401),
        ([("X-Forwarded-User", "carol"), ("X-Forwarded-User", "dora")], 401),
        ([("X-Forwarded-User", "carol"), ("X_Forwarded_Groups", "admins")], 401),
        ([("X-Forwarded-User", "carol"), ("X_Forwarded-Groups", "admins")], 401),
        ([("X_Forwarded_User", "carol")], 401),
    ],
)
def test_routes_of_fastapi_need_one_name_too(
    through_fastapi: TestClient, headers: list[tuple[str, str]], status: int
) -> None:
    assert through_fastapi.get("/gateway", headers=headers).status_code == status


@pytest.mark.parametrize("addresses", ["", "10.0.0.0/33", "proxy.example"])
def test_addresses_that_cannot_be_used_are_refused(addresses: str) -> None:
    with refused(InvalidConfig, "ONNXSERVE_TRUSTED_PROXIES", addresses):
        ProxyHeader(Settings.model_validate({**SETTINGS, "trusted_proxies": addresses}), "")
