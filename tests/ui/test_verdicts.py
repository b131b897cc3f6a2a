"""Tests of verdicts that `onnxserve gate` sends to MLflow's server, which writes their
tags and events.
"""

import json

import pytest
from flask import request
from mlflow import MlflowClient

from mlflow_deploy_plugin.core.mlmodel import combine_hashes, hash_files
from mlflow_deploy_plugin.core.registry.policy import parse_policy
from mlflow_deploy_plugin.promote.gate.recording import PATH
from mlflow_deploy_plugin.ui.logins.login import Login, ModelPermission
from tests.support.console import POLICY, events, move
from tests.support.refusals import mentions

APPROVALS = f"{POLICY}\napprovals: {{count: 1}}"


class Editors(Login):
    """A login that believes the name in a header. Eva may edit all models, and rob may
    read them.
    """

    def user(self) -> str:
        return request.headers.get("X-User", "")

    def is_administrator(self) -> bool:
        return not self.user()

    def permission(self, model: str) -> ModelPermission:
        return ModelPermission(self.user() in ("eva", "rob"), self.user() == "eva")


@pytest.fixture(autouse=True)
def editors(mlflow_app):
    extensions = mlflow_app.app.extensions
    before = extensions["onnxserve.login"]
    extensions["onnxserve.login"] = Editors()
    yield
    extensions["onnxserve.login"] = before


def verdict(mlflow_app, model, policy=POLICY, **more):
    files = combine_hashes(hash_files(mlflow_app.files(model, "1")))
    digest = parse_policy(policy, "the test").digest
    document = {
        "model": model,
        "version": "1",
        "state": "passed",
        "reason": "all checks passed",
        "files": files,
    }
    return (
        document
        | {"policy_digest": digest, "at": "2026-11-26T10:00:00+00:00", "actor": "root@vm"}
        | more
    )


def send(mlflow_app, document, user="eva", **headers):
    return mlflow_app.client.post(PATH, json=document, headers={"X-User": user, **headers})


def test_a_recorded_verdict_is_in_the_tags_and_in_the_trail_under_the_name_of_the_account(
    mlflow_app,
):
    model = mlflow_app.model()
    document = verdict(mlflow_app, model, run_id="f" * 32, checks={"parity": {"state": "passed"}})
    assert send(mlflow_app, document).status_code == 200
    tags = mlflow_app.registry.get_model_version(model, "1").tags
    assert tags["onnxserve.gate"] == "passed"
    assert tags["onnxserve.gate.digest"] == document["files"]
    assert tags["onnxserve.gate.reason"] == "all checks passed"
    assert tags["onnxserve.gate.at"] == document["at"]
    (event,) = events(mlflow_app, model)
    assert event.actor == "eva"
    assert event.action == "gate"
    assert event.version == "1"
    assert event.after == "passed"
    assert (event.detail["files"], event.detail["tagged"]) == (document["files"], True)
    assert event.detail["checks"] == {"parity": {"state": "passed"}}
    assert move(mlflow_app, model, "1", "Production").status_code == 200


def test_a_server_without_accounts_records_the_name_that_the_command_knows(mlflow_app):
    model = mlflow_app.model(policy=None)
    assert send(mlflow_app, verdict(mlflow_app, model, "{}"), user="").status_code == 200
    assert [event.actor for event in events(mlflow_app, model)] == ["root@vm"]


def test_a_forced_version_needs_the_files_that_it_has_now(mlflow_app):
    model = mlflow_app.model()
    forced = verdict(
        mlflow_app, model, state="forced", reason="forced by eva: a drill", policy_digest=""
    )
    assert send(mlflow_app, forced | {"files": ""}).status_code == 403
    assert send(mlflow_app, forced).status_code == 200
    assert move(mlflow_app, model, "1", "Production").status_code == 200
    (mlflow_app.files(model, "1") / "MLmodel").write_text("model_id: never judged")
    assert send(mlflow_app, forced).status_code == 403


@pytest.mark.parametrize(
    ("user", "changed", "status", "named"),
    [
        ("rob", {}, 403, ["may not record", "edit"]),
        ("mallory", {}, 404, ["no registered model"]),
        ("eva", {"version": "7"}, 404, ["7"]),
        ("eva", {"files": "0" * 64}, 403, ["files", "differ", "`onnxserve gate"]),
        ("eva", {"policy_digest": "0" * 16}, 403, ["policy", "changed"]),
        ("eva", {"state": "approved"}, 400, ["not a verdict"]),
        ("eva", {"files": None}, 400, ["not a verdict"]),
        ("eva", {"run_id": "https://elsewhere.example"}, 400, ["run_id"]),
    ],
)
def test_a_verdict_that_does_not_match_the_version_is_refused_and_not_recorded(
    user, changed, status, named, mlflow_app
):
    model = mlflow_app.model()
    answer = send(mlflow_app, verdict(mlflow_app, model) | changed, user)
    assert answer.status_code == status
    assert mentions(answer.json["message"], *named)
    assert mlflow_app.registry.get_model_version(model, "1").tags == {}
    assert events(mlflow_app, model) == []


def test_another_site_records_no_verdict(mlflow_app):
    model = mlflow_app.model()
    answer = send(mlflow_app, verdict(mlflow_app, model), Origin="https://elsewhere.example")
    assert answer.status_code == 403
    assert events(mlflow_app, model) == []


@pytest.mark.parametrize(("depth", "status"), [(490, 200), (600, 400), (1000, 400), (100_000, 400)])
def test_deeply_nested_verdicts_are_recorded_or_refused(depth, status, mlflow_app):
    nested = "[" * depth + "]" * depth
    document = verdict(mlflow_app, mlflow_app.model(), checks={"parity": {"figures": "nested"}})
    body = json.dumps(document).replace('"nested"', nested)
    headers = {"X-User": "eva", "Content-Type": "application/json"}
    answer = mlflow_app.client.post(PATH, data=body, headers=headers)
    assert answer.status_code == status
    assert len(events(mlflow_app, document["model"])) == (status == 200)


def test_if_people_must_approve_the_report_in_mlflow_is_the_report_of_the_verdict(mlflow_app):
    model = mlflow_app.model(policy=APPROVALS)
    client = MlflowClient()
    run_id = client.create_run("0").info.run_id
    client.log_text(run_id, "judged", "gate_report.html")
    right = combine_hashes({})  # Any other digest.
    document = verdict(mlflow_app, model, APPROVALS, run_id=run_id, report_digest=right)
    answer = send(mlflow_app, document)
    assert answer.status_code == 403
    assert mentions(answer.json["message"], "report")
    with mlflow_app.app.test_request_context():
        from mlflow_deploy_plugin.ui.guard import mlflow_stores

        document["report_digest"] = mlflow_stores.report_digest(run_id)
    assert send(mlflow_app, document).status_code == 200


def logged_report(mlflow_app, text):
    """Log a report in a new run, and return its fields of a verdict."""
    from mlflow_deploy_plugin.ui.guard import mlflow_stores

    client = MlflowClient()
    run_id = client.create_run("0").info.run_id
    client.log_text(run_id, text, "gate_report.html")
    with mlflow_app.app.test_request_context():
        return {"run_id": run_id, "report_digest": mlflow_stores.report_digest(run_id)}


def test_an_earlier_verdict_is_not_recorded_again_after_a_failure(mlflow_app):
    model = mlflow_app.model(policy=APPROVALS)
    passed = verdict(mlflow_app, model, APPROVALS, **logged_report(mlflow_app, "passed"))
    failed = verdict(
        mlflow_app, model, APPROVALS, state="failed", **logged_report(mlflow_app, "failed")
    )
    assert [send(mlflow_app, document).status_code for document in (passed, failed)] == [200, 200]
    copied = passed | logged_report(mlflow_app, "passed")  # The same report in another run.
    for document in (passed, copied):
        answer = send(mlflow_app, document)
        assert answer.status_code == 403
        assert mentions(answer.json["message"], "recorded already", "run the gate again")
    assert [event.after for event in events(mlflow_app, model)] == ["passed", "failed"]
    assert mlflow_app.registry.get_model_version(model, "1").tags["onnxserve.gate"] == "failed"


def test_a_forced_version_has_no_report_that_people_could_approve(mlflow_app):
    model = mlflow_app.model(policy=APPROVALS)
    report = logged_report(mlflow_app, "never judged")
    forced = verdict(
        mlflow_app, model, APPROVALS, state="forced", report="https://mlflow/report", **report
    )
    assert send(mlflow_app, forced).status_code == 200
    (event,) = events(mlflow_app, model)
    assert event.actor == "eva"
    assert event.after == "forced"
    assert event.detail["files"] == forced["files"]
    fields = ("report", "run_id", "report_digest", "policy_digest")
    assert {event.detail[name] for name in fields} == {""}


def test_a_version_whose_files_this_server_cannot_read_gets_a_verdict_only_without_a_policy(
    mlflow_app,
):
    for policy, status in ((POLICY, 404), (None, 200)):
        model = mlflow_app.model(policy=policy)
        document = verdict(mlflow_app, model)
        (mlflow_app.files(model, "1") / "MLmodel").unlink()
        assert send(mlflow_app, document).status_code == status


def test_verdict_before_the_policy_is_not_of_its_judges(mlflow_app):
    judges = f"{POLICY}\njudges: [ci-bot]"
    model = mlflow_app.model(policy=None)
    assert send(mlflow_app, verdict(mlflow_app, model, judges)).status_code == 200
    MlflowClient().set_registered_model_tag(model, "onnxserve.gate.policy", judges)
    assert move(mlflow_app, model, "1", "Production").status_code == 403


def test_report_address_for_judges_is_made_by_the_server(mlflow_app, monkeypatch):
    monkeypatch.setenv("ONNXSERVE_MLFLOW_URL", "https://mlflow.bank")
    model = mlflow_app.model()
    document = verdict(mlflow_app, model, run_id="f" * 32, report="https://elsewhere.example")
    send(mlflow_app, document)
    page = f"https://mlflow.bank/onnxserve/report?model={model}&run={'f' * 32}"
    assert mlflow_app.registry.get_model_version(model, "1").tags["onnxserve.gate.report"] == page
