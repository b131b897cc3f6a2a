"""Tests of `onnxserve request list`, `approve`, `decline` and `promote --request`, on a
server with MLflow's basic auth.
"""

import json
import re

import pytest
from click.testing import CliRunner

from mlflow_deploy_plugin.cli.commands import main
from mlflow_deploy_plugin.core.store.audit import current_actor
from tests.support.accounts import people
from tests.support.refusals import mentions
from tests.support.tracking import tracking_at

GATED = "gated_aliases: [champion]\nskip: [evaluation, robustness, budget]\n"
POLICY = f"{GATED}approvals: {{groups: [risk], evaluation: optional}}"


@pytest.fixture(scope="module")
def server(tmp_path_factory, new_database):
    with people(tmp_path_factory.mktemp("approvals"), new_database, "alice", "carol") as accounts:
        accounts.add_role("risk", "alice", "carol")
        yield accounts


def run(line):
    return CliRunner().invoke(main, line.split())


def actions(server, model):
    events = server.store.events(
        model=model, actions=("gate", "request", "approve", "decline", "promote")
    )
    return [
        (event.action, event.actor.partition("@")[0]) for event in events if event.action != "gate"
    ]


@pytest.mark.long
def test_a_promotion_is_requested_approved_and_done(server):
    model = server.register("alice", POLICY)
    with server.logged_in("alice"):
        refused = run(f"promote models:/{model}/1 --to @champion")
        requested = run(f"promote models:/{model}/1 --to @champion --request --why faster")
        self_approval = run(f"request approve models:/{model}/1 --to @champion")
    assert refused.exit_code == 1
    assert requested.exit_code == 0
    assert self_approval.exit_code == 1
    assert mentions(refused.stderr, "1 of 1", "risk", "--request")
    assert mentions(self_approval.stderr, "Error", "alice", "requested")
    assert mentions(requested.stdout, model, "version 1", "@champion", "faster", "passed", "1 of 1")

    with server.logged_in("carol"):
        (listed,) = json.loads(run(f"request list {model} -o json").stdout)
        approved = run(f"request approve models:/{model}/1 --to @Champion --why fine")
        again = run(f"request approve models:/{model}/1 --to @champion")
    assert listed["requested_by"] == "alice"
    assert listed["missing"] == 1
    assert listed["why"] == "faster"
    assert approved.exit_code == 0
    assert again.exit_code == 0
    assert mentions(approved.stdout, model, "passed", listed["report"], listed["report_digest"])

    with server.logged_in("alice"):
        table = run(f"request list {model}").stdout.splitlines()
        done = run(f"promote models:/{model}/1 --to @champion --wait 0")
    assert done.exit_code == 0, done.output
    assert mentions(table[1], model, "@champion", "alice", "carol", "passed")
    (approval,) = server.store.events(model=model, actions=("approve",))
    assert approval.actor == "carol"
    assert approval.why == "fine"
    assert approval.detail["report"] == listed["report_digest"]
    assert [action for action, _ in actions(server, model)] == ["request", "approve", "promote"]


@pytest.mark.long
def test_commands_record_the_name_of_the_login_and_the_machine_as_a_detail(server):
    model = server.register("alice", GATED)
    with server.logged_in("alice"):
        commands = [
            f"gate models:/{model}/1",
            f"promote models:/{model}/1 --to @champion --wait 0",
            f"keys create key-of-{model}",
        ]
        results = [run(line) for line in commands]
        history = run(f"audit history --model {model}").stdout
    assert [result.exit_code for result in results] == [0, 0, 0], results
    of_model = server.store.events(model=model, actions=("gate", "promote"))
    of_key = [
        event
        for event in server.store.events(actions=("key.create",))
        if event.after.endswith(model)
    ]
    events = [*of_model, *of_key]
    assert [(event.action, event.actor) for event in events] == [
        ("gate", "alice"),
        ("promote", "alice"),
        ("key.create", "alice"),
    ]
    assert {event.detail["machine"] for event in events} == {current_actor()}
    assert re.search(r" alice +promote ", history)
    assert not re.search(rf" {current_actor()} +promote ", history)


@pytest.mark.long
def test_a_declined_request_cannot_be_approved(server):
    model = server.register("alice", POLICY)
    with server.logged_in("alice"):
        run(f"promote models:/{model}/1 --to @champion --request -o json")
    with server.logged_in("carol"):
        declined = run(f"request decline models:/{model}/1 --to @champion --why slower")
        approved = run(f"request approve models:/{model}/1 --to @champion")
    assert declined.exit_code == 0
    assert approved.exit_code == 1
    assert mentions(declined.stdout, model, "version 1", "@champion")
    assert mentions(approved.stderr, "Error", model, "@champion", "--request")
    assert actions(server, model) == [("request", "alice"), ("decline", "carol")]


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
def test_a_request_that_makes_no_sense_is_refused_before_the_gate(server, options, names):
    model = server.register("alice", POLICY)
    with server.logged_in("alice"):
        refused = run(f"promote models:/{model}/1 --request {options}")
    assert refused.exit_code in (1, 2)
    assert mentions(refused.stderr.splitlines()[-1], "Error", *names)
    assert [event.action for event in server.store.events(model=model)] == ["tag", "register"]


@pytest.mark.long
def test_a_failed_gate_is_requested_only_by_force(server):
    model = server.register("alice", POLICY, parity="warned")
    with server.logged_in("alice"):
        refused = run(f"promote models:/{model}/1 --to @champion --request")
        forced = run(
            f"promote models:/{model}/1 --to @champion --request --force --why urgent -o json"
        )
    assert refused.exit_code == 1
    assert forced.exit_code == 0
    assert mentions(refused.stderr, "parity")
    assert json.loads(forced.stdout)["verdict"] == "failed"
    with server.logged_in("carol"):
        assert run(f"request approve models:/{model}/1 --to @champion").exit_code == 0
    with server.logged_in("alice"):
        done = run(f"promote models:/{model}/1 --to @champion --force --why urgent --wait 0")
    assert done.exit_code == 0, done.output


@pytest.mark.long
def test_a_wrong_password_is_one_line(server, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "alice")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong")
    refused = run("request list")
    assert refused.exit_code == 1
    assert mentions(refused.stderr, "Error", "MLFLOW_TRACKING_PASSWORD", server.server.url)
    assert len(refused.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "line",
    [
        "request list",
        "request approve models:/m/1 --to @champion",
        "request decline models:/m/1 --to @champion --why slow",
    ],
)
@pytest.mark.parametrize("has_server", [True, False], ids=["without the app", "a database"])
def test_an_mlflow_without_requests_is_one_line_with_the_remedy(
    line, has_server, mlflow_server, tmp_path
):
    with tracking_at(mlflow_server.url if has_server else f"sqlite:///{tmp_path}/mlflow.db"):
        refused = run(line)
    assert refused.exit_code == 1
    assert mentions(refused.stderr, "Error", "--app-name onnxserve", "MLFLOW_TRACKING_URI")
    assert len(refused.stderr.splitlines()) == 1


@pytest.mark.long
def test_history_verifies_the_trail_of_a_server(server):
    model = server.register("alice", POLICY)
    with server.logged_in("alice"):
        run(f"promote models:/{model}/1 --to @champion --request")
        server.store.record(
            "approve",
            actor="carol",
            model=model,
            version="1",
            after="@champion",
            detail={"report": "", "verdict": "passed"},
        )
        (listed,) = json.loads(run(f"request list {model} -o json").stdout)
        refused = run(f"promote models:/{model}/1 --to @champion")
        verified = run(f"audit history --verify --model {model}")
    assert listed["approved_by"] == []
    assert refused.exit_code == 1
    assert mentions(verified.stdout, "intact", "keys: MLflow's server")
