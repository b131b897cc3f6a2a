"""Tests of a server behind a proxy that logs callers in: only listed addresses may name
a caller.
"""

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from flask import Flask, jsonify

from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.core.settings import Settings
from mlflow_deploy_plugin.ui.access import caller, is_administrator, may_act_on, set_login
from mlflow_deploy_plugin.ui.logins import front
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


def proxy_header(root="", **settings):
    return ProxyHeader(Settings.model_validate({**SETTINGS, **settings}), root)


def with_login(login, served=None, **options):
    """Return an app behind this login."""
    app = Flask(__name__, **options)
    app.secret_key = "a key of sixteen bytes or more"
    set_login(app, login)
    login.install(app, served or app)
    front.install(served or app, app, login, "/observed/")
    return app


@pytest.fixture
def app():
    """Return an app that reports its caller."""
    login = proxy_header()
    app = with_login(login)

    @app.get("/")
    def who():
        return jsonify(
            actor=caller().actor,
            groups=sorted(login.groups()),
            is_administrator=is_administrator(),
            may_edit=may_act_on(["X"]),
            token=login.credentials()["MLFLOW_TRACKING_TOKEN"],
        )

    @app.get("/health")
    def health():
        return "OK"

    return app


def get(app, headers, address=PROXY, path="/"):
    return app.test_client().get(path, headers=headers, environ_base={"REMOTE_ADDR": address})


@pytest.mark.parametrize("address", ["10.0.0.7", "10.1.255.255", "::1", "::ffff:10.0.0.7"])
def test_listed_address_names_the_caller(app, address):
    answer = get(app, CAROL, address).json
    assert (answer["actor"], answer["groups"]) == ("carol", ["data", "risk"])
    assert not answer["is_administrator"]
    assert answer["may_edit"]


def test_administrators_are_of_an_administrators_group(app):
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
def test_other_requests_are_refused(app, address, headers, named):
    answer = get(app, headers, address)
    assert answer.status_code == 401
    assert answer.json["error_code"] == "UNAUTHENTICATED"
    assert mentions(answer.json["message"], *named)


def sent(text, encoding="utf-8"):
    """Return the text of a header with these bytes as WSGI passes it."""
    return text.encode(encoding).decode("latin-1")


@pytest.mark.parametrize("name", ["andré", "Zoë", "mlà", "mlÅ", "李明", "Łucja"])
def test_name_is_read_as_utf_8(app, name):
    headers = {"X-Forwarded-User": sent(name), "X-Forwarded-Groups": sent("Prüfer, été")}
    answer = get(app, headers).json
    assert answer["actor"] == name
    assert answer["groups"] == ["Prüfer", "été"]


def test_invalid_utf_8_is_latin_1(app):
    answer = get(app, {"X-Forwarded-User": sent("andré", "latin-1")}).json
    assert answer["actor"] == "andré"


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


def test_health_check_needs_no_login(app):
    assert get(app, {}, "10.0.0.8", "/health").status_code == 200


def test_job_has_its_caller_token(app):
    token = get(app, CAROL).json["token"]
    answer = get(app, {"Authorization": f"Bearer {token}"}, "127.0.0.1").json
    assert answer["actor"] == "carol"
    assert answer["groups"] == ["data", "risk"]


EDIT_GROUPS = "data, ops"
READER = {"X-Forwarded-User": "dora", "X-Forwarded-Groups": "risk"}
API = "/api/2.0/mlflow"


@pytest.fixture
def with_editors():
    """Return an app with two editing groups that answers every path, and reports if the
    caller may edit a model.
    """
    app = with_login(proxy_header("/ml", edit_groups=EDIT_GROUPS), static_folder=None)

    @app.route("/<path:path>", methods=["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"])
    def any_path(path):
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
def test_only_edit_groups_and_administrators_may_change(with_editors, method, path):
    answer = call(with_editors, READER, method, path)
    assert answer.status_code == 403
    assert answer.json["error_code"] == "PERMISSION_DENIED"
    assert mentions(answer.json["message"], "dora", "ONNXSERVE_EDIT_GROUPS")
    for group in ("ops", "admins"):
        headers = {**READER, "X-Forwarded-Groups": group}
        assert call(with_editors, headers, method, path).json["may_edit"]


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
def test_other_groups_may_read_and_decide(with_editors, method, path):
    answer = call(with_editors, READER, method, path)
    assert answer.status_code == 200
    assert answer.json["may_edit"] is False


def statuses(login, *calls):
    """Return the statuses of calls of a route that FastAPI answers without Flask."""
    served = FastAPI()
    with_login(login, served)
    served.add_api_route("/gateway", lambda: "reached", methods=["POST"])
    with TestClient(served, client=(PROXY, 1)) as client:
        return [client.post("/gateway", headers=headers).status_code for headers in calls]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([("X-Forwarded-User", "carol")], 200),
        ([], 401),
        ([("X-Forwarded-User", "carol"), ("X-Forwarded-User", "dora")], 401),
        ([("X_Forwarded_User", "carol")], 401),
    ],
)
def test_fastapi_routes_need_one_name(headers, status):
    assert statuses(proxy_header(), headers) == [status]


def test_fastapi_routes_are_closed_to_readers():
    underscored = [*READER.items(), ("X_Forwarded_Groups", "admins")]
    given = [READER, CAROL, underscored]
    assert statuses(proxy_header(edit_groups=EDIT_GROUPS), *given) == [403, 200, 403]


def test_edit_groups_need_a_groups_header():
    with refused(InvalidConfig, "ONNXSERVE_EDIT_GROUPS", "ONNXSERVE_GROUPS_HEADER"):
        proxy_header(edit_groups=EDIT_GROUPS, groups_header="")


@pytest.mark.parametrize("addresses", ["", "10.0.0.0/33", "proxy.example"])
def test_unusable_addresses_are_refused(addresses):
    with refused(InvalidConfig, "ONNXSERVE_TRUSTED_PROXIES", addresses):
        proxy_header(trusted_proxies=addresses)
