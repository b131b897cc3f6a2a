"""Tests of a server behind a proxy that logs callers in: only listed addresses may name
a caller.
"""

from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from flask import Flask, jsonify

from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.core.settings import Settings
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
def app():
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


def get(app, headers, address=PROXY, path="/"):
    return app.test_client().get(path, headers=headers, environ_base={"REMOTE_ADDR": address})


@pytest.mark.parametrize("address", ["10.0.0.7", "10.1.255.255", "::1", "::ffff:10.0.0.7"])
def test_a_listed_address_names_the_caller(app, address):
    answer = get(app, CAROL, address).json
    assert (answer["actor"], answer["groups"], answer["is_administrator"]) == (
        "carol",
        ["data", "risk"],
        False,
    )
    assert answer["may_edit"]


def test_a_member_of_an_administrators_group_is_an_administrator(app):
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
def test_all_other_requests_are_refused(app, address, headers, named):
    answer = get(app, headers, address)
    assert answer.status_code == 401
    assert answer.json["error_code"] == "UNAUTHENTICATED"
    assert mentions(answer.json["message"], *named)


def sent(text, encoding="utf-8"):
    """Return the text of a header with these bytes as WSGI passes it."""
    return text.encode(encoding).decode("latin-1")


@pytest.mark.parametrize("name", ["andré", "Zoë", "mlà", "mlÅ", "李明", "Łucja"])
def test_a_name_is_read_as_utf_8(app, name):
    headers = {"X-Forwarded-User": sent(name), "X-Forwarded-Groups": sent("Prüfer, été")}
    answer = get(app, headers).json
    assert answer["actor"] == name
    assert answer["groups"] == ["Prüfer", "été"]


def test_a_name_that_is_not_utf_8_is_read_as_latin_1(app):
    headers = {
        "X-Forwarded-User": sent("andré", "latin-1"),
        "X-Forwarded-Groups": sent("Prüfer", "latin-1"),
    }
    answer = get(app, headers).json
    assert answer["actor"] == "andré"
    assert answer["groups"] == ["Prüfer"]


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("r" * 256, "256"),
        ("anonymous@10.0.0.7", "login"),
        ("Anonymous@10.0.0.7", "login"),
        ("a\u200bnonymous@10.0.0.7", "login"),
        ("re\x85viewer", "control"),
        ("re\tviewer", "control"),
        ("\u200b", "visible"),
    ],
)
def test_confusable_user_name_is_refused(app, name, named):
    answer = get(app, {"X-Forwarded-User": sent(name)})
    assert answer.status_code == 401
    assert answer.json["error_code"] == "UNAUTHENTICATED"
    assert mentions(answer.json["message"], PROXY, "X-Forwarded-User", named)


def test_a_health_check_needs_no_login(app):
    assert get(app, {}, "10.0.0.8", "/health").status_code == 200


def test_a_job_of_the_server_calls_mlflow_with_a_token_of_the_caller(app):
    token = get(app, CAROL).json["token"]
    answer = get(app, {"Authorization": f"Bearer {token}"}, "127.0.0.1").json
    assert answer["actor"] == "carol"
    assert answer["groups"] == ["data", "risk"]


EDITORS = {**SETTINGS, "edit_groups": "data, ops"}
READER = {"X-Forwarded-User": "dora", "X-Forwarded-Groups": "risk"}
API = "/api/2.0/mlflow"


@pytest.fixture
def with_editors():
    """Return an app with two editing groups that answers every path, and reports if the
    caller may edit a model.
    """
    app = Flask(__name__, static_folder=None)
    app.secret_key = "a key of sixteen bytes or more"
    login = ProxyHeader(Settings.model_validate(EDITORS), "/ml")
    set_login(app, login)
    login.install(app, app)

    @app.route("/<path:path>", methods=["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"])
    def any_path(path: str) -> Any:
        return jsonify(may_edit=may_act_on(["X"]))

    return app


def call(app, headers, method, path):
    return app.test_client().open(
        f"/ml{path}", method=method, headers=headers, environ_base={"REMOTE_ADDR": PROXY}
    )


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", f"{API}/registered-models/alias"),
        ("POST", f"{API}/model-versions/transition-stage"),
        ("POST", f"{API}/model-versions/set-tag"),
        ("DELETE", f"{API}/registered-models/delete"),
        ("PATCH", f"{API}/registered-models/update"),
        ("PUT", "/api/2.0/mlflow-artifacts/artifacts/0/runs/search"),
        ("POST", f"/api/2.0/mlflow-artifacts/mpu/create{API}/runs/search"),
        ("POST", "/ajax-api/2.0/mlflow/upload-artifact"),
        ("POST", "/onnxserve/requests/more"),
    ],
)
def test_with_edit_groups_only_their_members_and_administrators_may_change(
    with_editors, method, path
):
    answer = call(with_editors, READER, method, path)
    assert answer.status_code == 403
    assert answer.json["error_code"] == "PERMISSION_DENIED"
    assert mentions(answer.json["message"], "dora", "ONNXSERVE_EDIT_GROUPS")
    for group in ("ops", "admins"):
        assert call(with_editors, {**READER, "X-Forwarded-Groups": group}, method, path).json[
            "may_edit"
        ]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", f"{API}/registered-models/get"),
        ("POST", f"{API}/runs/search"),
        ("POST", "/ajax-api/3.0/mlflow/traces/search"),
        ("POST", "/graphql"),
        ("POST", "/onnxserve"),
        ("POST", "/onnxserve/requests"),
    ],
)
def test_with_edit_groups_other_callers_may_read_and_decide(with_editors, method, path):
    answer = call(with_editors, READER, method, path)
    assert (answer.status_code, answer.json["may_edit"]) == (200, False)


@pytest.fixture
def through_fastapi():
    """Yield a client of an app with a route that FastAPI answers without Flask."""
    served = FastAPI()
    app = Flask(__name__)
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
def test_routes_of_fastapi_need_one_name_too(through_fastapi, headers, status):
    assert through_fastapi.get("/gateway", headers=headers).status_code == status


def test_routes_of_fastapi_are_closed_to_readers_too():
    served = FastAPI()
    app = Flask(__name__)
    app.secret_key = "a key of sixteen bytes or more"
    ProxyHeader(Settings.model_validate(EDITORS), "").install(app, served)

    @served.post("/gateway")
    def gateway() -> str:
        return "reached"

    with TestClient(served, client=(PROXY, 1)) as client:
        statuses = [
            client.post("/gateway", headers=headers).status_code for headers in (READER, CAROL)
        ]
    assert statuses == [403, 200]


def test_edit_groups_without_a_header_of_groups_are_refused():
    with refused(InvalidConfig, "ONNXSERVE_EDIT_GROUPS", "ONNXSERVE_GROUPS_HEADER"):
        ProxyHeader(Settings.model_validate({**EDITORS, "groups_header": ""}), "")


@pytest.mark.parametrize("addresses", ["", "10.0.0.0/33", "proxy.example"])
def test_addresses_that_cannot_be_used_are_refused(addresses):
    with refused(InvalidConfig, "ONNXSERVE_TRUSTED_PROXIES", addresses):
        ProxyHeader(Settings.model_validate({**SETTINGS, "trusted_proxies": addresses}), "")
