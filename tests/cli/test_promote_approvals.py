"""Tests of `onnxserve request list`, `approve`, `decline` and `promote --request`, on a
server with MLflow's basic auth.
"""

import json

import pytest

from mlflow_deploy_plugin.core.store.audit import current_actor
from tests.support.accounts import people
from tests.support.commands import done, onnxserve, said, told
from tests.support.refusals import mentions
from tests.support.tracking import tracking_at

GATED = "gated_aliases: [champion]\nskip: [evaluation, robustness, budget]\n"
POLICY = f"{GATED}approvals: {{groups: [risk], evaluation: optional}}"


@pytest.fixture(scope="module")
def server(tmp_path_factory, new_database):
    with people(tmp_path_factory.mktemp("approvals"), new_database, "alice", "carol") as accounts:
        accounts.add_role("risk", "alice", "carol")
        yield accounts


def decisions(server, model):
    actions = ("request", "approve", "decline", "promote")
    return [*server.store.events(model=model, actions=actions)]


@pytest.mark.long
def test_promotion_is_requested_approved_and_done(server):
    model = server.register("alice", POLICY)
    promote = f"promote models:/{model}/1 --to @champion"
    approve = f"request approve models:/{model}/1 --to @champion"
    with server.logged_in("alice"):
        refused = onnxserve(promote)
        requested = onnxserve(f"{promote} --request --why faster")
        self_approval = onnxserve(approve)
    assert [result.exit_code for result in (refused, requested, self_approval)] == [1, 0, 1]
    assert mentions(refused.stderr, "1 of 1", "risk", "--request")
    assert mentions(self_approval.stderr, "Error", "alice", "requested")
    assert mentions(requested.stdout, model, "version 1", "@champion", "faster", "passed", "1 of 1")

    with server.logged_in("carol"):
        (listed,) = told(f"request list {model}")
        approved = done(f"{approve} --why fine")
        done(approve)
    assert (listed["requested_by"], listed["missing"], listed["why"]) == ("alice", 1, "faster")
    assert mentions(approved, model, "passed", listed["report"], listed["report_digest"])

    with server.logged_in("alice"):
        table = done(f"request list {model}").splitlines()
        done(f"{promote} --wait 0")
        verified = done("audit history --verify")
    assert mentions(table[1], model, "@champion", "alice", "carol", "passed")
    assert mentions(verified, "intact", "keys: MLflow's server")
    request, approval, promotion = decisions(server, model)
    assert (request.action, request.actor) == ("request", "alice")
    assert (approval.action, approval.actor, approval.why) == ("approve", "carol", "fine")
    assert approval.detail["report"] == listed["report_digest"]
    assert (promotion.action, promotion.actor) == ("promote", "alice")
    assert promotion.detail["machine"] == current_actor()


@pytest.mark.long
def test_forced_request_can_be_declined(server):
    model = server.register("alice", POLICY, parity="warned")
    request = f"promote models:/{model}/1 --to @champion --request"
    with server.logged_in("alice"):
        refused = onnxserve(request)
        forced = onnxserve(f"{request} --force --why urgent -o json")
    with server.logged_in("carol"):
        declined = onnxserve(f"request decline models:/{model}/1 --to @champion --why slower")
        approved = onnxserve(f"request approve models:/{model}/1 --to @champion")
    assert refused.exit_code == 1
    assert mentions(refused.stderr, "parity")
    assert json.loads(forced.stdout)["verdict"] == "failed"
    assert declined.exit_code == 0
    assert mentions(declined.stdout, model, "version 1", "@champion")
    assert approved.exit_code == 1
    assert mentions(approved.stderr, "Error", model, "@champion", "--request")
    assert [(event.action, event.actor) for event in decisions(server, model)] == [
        ("request", "alice"),
        ("decline", "carol"),
    ]


@pytest.mark.long
@pytest.mark.parametrize(
    ("options", "names"),
    [
        ("--to Staging", ["no approvals", "Staging"]),
        ("--to Mars", ["Mars"]),
        ("--to @champion --force", ["--why"]),
        ("--to @champion --policy p.yaml", ["--policy"]),
    ],
)
def test_invalid_request_is_refused_before_the_gate(server, options, names):
    model = server.register("alice", POLICY)
    with server.logged_in("alice"):
        refused = onnxserve(f"promote models:/{model}/1 --request {options}")
    assert refused.exit_code in (1, 2)
    assert mentions(refused.stderr.splitlines()[-1], *names)
    assert [event.action for event in server.store.events(model=model)] == [
        "tag",
        "intend",
        "register",
    ]


@pytest.mark.long
def test_wrong_password_is_refused(server, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "alice")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong")
    refused = said(onnxserve("request list"))
    assert mentions(refused, "MLFLOW_TRACKING_PASSWORD", server.server.url)


@pytest.mark.parametrize("command", ["list", "decline models:/m/1 --to @champion --why slow"])
def test_mlflow_without_requests_is_refused(command, tmp_path):
    with tracking_at(f"sqlite:///{tmp_path}/mlflow.db"):
        refused = said(onnxserve(f"request {command}"))
    assert mentions(refused, "--app-name onnxserve", "MLFLOW_TRACKING_URI")
