"""Tests of verdicts that `onnxserve gate` sends to MLflow's server, which writes their
tags and events.
"""

import json

import pytest
from mlflow import MlflowClient

from mlflow_deploy_plugin.core.mlmodel import combine_hashes, hash_folder
from mlflow_deploy_plugin.core.registry.policy import parse_policy
from mlflow_deploy_plugin.promote.gate.recording import PATH
from mlflow_deploy_plugin.ui.guard import mlflow_stores
from tests.support.console import POLICY, HeaderLogin
from tests.support.refusals import mentions

APPROVALS = f"{POLICY}\napprovals: {{count: 1}}"


@pytest.fixture(autouse=True)
def people(mlflow_app, monkeypatch):
    login = HeaderLogin("eva rob", "eva")
    monkeypatch.setitem(mlflow_app.app.extensions, "onnxserve.login", login)


@pytest.fixture
def model(mlflow_app):
    return mlflow_app.model()


@pytest.fixture
def approved_model(mlflow_app):
    """A model whose policy requires approvals."""
    return mlflow_app.model(policy=APPROVALS)


def verdict(model, policy=POLICY, **more):
    return {
        "model": model,
        "version": "1",
        "state": "passed",
        "reason": "all checks passed",
        "files": hash_folder(model.files("1")),
        "policy_digest": parse_policy(policy, "the test").digest,
        "at": "2026-11-26T10:00:00+00:00",
        "actor": "root@vm",
        **more,
    }


def answer(model, document, user="eva", **headers):
    return model.mlflow.client.post(PATH, json=document, headers={"X-User": user, **headers})


def send(model, document, user="eva"):
    return answer(model, document, user).status_code


def test_verdict_is_recorded_with_the_account(model):
    document = verdict(model, run_id="f" * 32, checks={"parity": {"state": "passed"}})
    assert send(model, document) == 200
    tags = model.tags("1")
    assert tags["onnxserve.gate"] == "passed"
    for name, field in {"digest": "files", "reason": "reason", "at": "at"}.items():
        assert tags[f"onnxserve.gate.{name}"] == document[field]
    (event,) = model.events
    assert (event.actor, event.action) == ("eva", "gate")
    assert (event.version, event.after) == ("1", "passed")
    assert (event.detail["files"], event.detail["tagged"]) == (document["files"], True)
    assert event.detail["checks"] == {"parity": {"state": "passed"}}
    assert model.enter("1") == 200


def test_actor_without_accounts_is_the_command(mlflow_app):
    model = mlflow_app.model(policy=None)
    assert send(model, verdict(model, "{}"), user="") == 200
    assert [event.actor for event in model.events] == ["root@vm"]


def test_forced_version_needs_its_current_files(model):
    forced = verdict(model, state="forced", reason="forced by eva: a drill", policy_digest="")
    assert send(model, forced | {"files": ""}) == 403
    assert send(model, forced) == 200
    assert model.enter("1") == 200
    (model.files("1") / "MLmodel").write_text("model_id: never judged")
    assert send(model, forced) == 403


def test_verdict_counts_after_same_size_repair(model):
    right = verdict(model)
    mlmodel = model.files("1") / "MLmodel"
    judged = mlmodel.read_text()
    assert send(model, right) == 200
    mlmodel.write_text(judged[::-1])
    assert send(model, right) == 403
    mlmodel.write_text(judged)
    assert send(model, right) == 200


@pytest.mark.parametrize(
    ("user", "changed", "status", "named"),
    [
        ("rob", {}, 403, ["may not record", "edit"]),
        ("mallory", {}, 404, ["no registered model"]),
        ("eva", {"version": "7"}, 404, ["7"]),
        ("eva", {"files": "0" * 64}, 403, ["files", "differ", "`onnxserve gate"]),
        ("eva", {"policy_digest": "0" * 16}, 403, ["policy", "changed"]),
        ("eva", {"state": "approved"}, 400, ["not a verdict"]),
        ("eva", {"run_id": "https://elsewhere.example"}, 400, ["run_id"]),
        ("eva", {"checks": {"parity": {"share": float("nan")}}}, 400, ["JSON", "column"]),
    ],
)
def test_unfit_verdict_is_refused(model, user, changed, status, named):
    refused = answer(model, verdict(model) | changed, user)
    assert refused.status_code == status
    assert mentions(refused.json["message"], *named)
    assert model.tags("1") == {}
    assert model.events == []


def test_verdict_of_another_site_is_refused(model):
    assert answer(model, verdict(model), Origin="https://elsewhere.example").status_code == 403
    assert model.events == []


@pytest.mark.parametrize(("depth", "status"), [(490, 200), (600, 400), (100_000, 400)])
def test_nesting_depth_is_limited(model, depth, status):
    document = json.dumps(verdict(model, checks={"parity": {"figures": "nested"}}))
    body = document.replace('"nested"', "[" * depth + "]" * depth)
    headers = {"X-User": "eva", "Content-Type": "application/json"}
    sent = model.mlflow.client.post(PATH, data=body, headers=headers)
    assert sent.status_code == status
    assert len(model.events) == (status == 200)


def logged_report(model, text):
    """Log a report in a new run, and return its fields of a verdict."""
    client = MlflowClient()
    run_id = client.create_run("0").info.run_id
    client.log_text(run_id, text, "gate_report.html")
    with model.mlflow.app.test_request_context():
        return {"run_id": run_id, "report_digest": mlflow_stores.report_digest(run_id)}


def test_report_digest_must_match(approved_model):
    report = logged_report(approved_model, "judged")
    document = verdict(approved_model, APPROVALS, **report)
    refused = answer(approved_model, document | {"report_digest": combine_hashes({})})
    assert refused.status_code == 403
    assert mentions(refused.json["message"], "report")
    assert send(approved_model, document) == 200


def test_old_verdict_is_refused_after_failure(approved_model):
    model = approved_model
    passed = verdict(model, APPROVALS, **logged_report(model, "passed"))
    failed = verdict(model, APPROVALS, state="failed", **logged_report(model, "failed"))
    assert send(model, passed) == send(model, failed) == 200
    copied = passed | logged_report(model, "passed")  # The same report in another run.
    for document in (passed, copied):
        refused = answer(model, document)
        assert refused.status_code == 403
        assert mentions(refused.json["message"], "recorded already", "run the gate again")
    assert [event.after for event in model.events] == ["passed", "failed"]
    assert model.tags("1")["onnxserve.gate"] == "failed"


def test_forced_version_has_no_report(approved_model):
    more = {"state": "forced", "report": "https://mlflow/report"}
    more |= logged_report(approved_model, "never judged")
    forced = verdict(approved_model, APPROVALS, **more)
    assert send(approved_model, forced) == 200
    (event,) = approved_model.events
    assert (event.actor, event.after) == ("eva", "forced")
    assert event.detail["files"] == forced["files"]
    fields = ("report", "run_id", "report_digest", "policy_digest")
    assert {event.detail[name] for name in fields} == {""}


@pytest.mark.parametrize(("policy", "status"), [(POLICY, 404), (None, 200)])
def test_policy_needs_readable_files(mlflow_app, policy, status):
    model = mlflow_app.model(policy=policy)
    document = verdict(model)
    (model.files("1") / "MLmodel").unlink()
    assert send(model, document) == status


def test_verdict_before_the_policy_is_void(mlflow_app):
    judges = f"{POLICY}\njudges: [ci-bot]"
    model = mlflow_app.model(policy=None)
    assert send(model, verdict(model, judges)) == 200
    MlflowClient().set_registered_model_tag(model, "onnxserve.gate.policy", judges)
    assert model.enter("1") == 403


def test_report_address_is_made_by_the_server(model, monkeypatch):
    monkeypatch.setenv("ONNXSERVE_MLFLOW_URL", "https://mlflow.bank")
    send(model, verdict(model, run_id="f" * 32, report="https://elsewhere.example"))
    page = f"https://mlflow.bank/onnxserve/report?model={model}&run={'f' * 32}"
    assert model.tags("1")["onnxserve.gate.report"] == page
