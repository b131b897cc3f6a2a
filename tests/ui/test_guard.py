"""Tests of the gate in MLflow's API: refused requests, the audit trail, and unchanged
requests.
"""

import shutil

import pytest
from mlflow.entities.model_registry import RegisteredModelTag
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import TEMPORARILY_UNAVAILABLE

from mlflow_deploy_plugin.core.mlmodel import hash_folder
from mlflow_deploy_plugin.ui.audit_trail import registry_name
from tests.support.console import AJAX, API, POLICY, events
from tests.support.refusals import mentions
from tests.support.waiting import wait_until

POLICY_TAG = "onnxserve.gate.policy"
ROLLED_BACK = "onnxserve.rolled_back"


@pytest.fixture
def model(mlflow_app):
    return mlflow_app.model()


@pytest.fixture
def ungated(mlflow_app):
    return mlflow_app.model(policy=None)


@pytest.mark.parametrize("base", [API, AJAX])
def test_failed_version_is_refused_and_recorded(model, base):
    reason = "evaluation: accuracy 0.71 against 0.80"
    model.mlflow.stands(model, "2", "failed", reason)

    answer = model.ask("2", "production", base=base)

    assert answer.status_code == 403
    assert answer.json["error_code"] == "PERMISSION_DENIED"
    message = answer.json["message"]
    assert mentions(message, f"version 2 of {model}", "Production", reason)
    assert mentions(message, f"`onnxserve promote models:/{model}/2 --to Production`")
    assert model.stage("2") == "None"
    (event,) = model.events
    assert (event.action, event.version, event.before) == ("refused", "2", "None")
    assert (event.after, event.actor) == ("Production", "anonymous@127.0.0.1")
    assert reason in event.why


@pytest.mark.parametrize("gate", ["passed", "forced"])
def test_passed_version_moves_and_is_recorded(model, gate):
    model.passed("1", "2", gate=gate)
    assert model.enter("1") == 200
    assert model.enter("2", archive_existing_versions=True) == 200
    assert model.stage("2") == "Production"
    first, second = model.events
    assert (first.action, first.version) == ("transition", "1")
    assert (first.before, first.after) == ("None", "Production")
    assert mentions(first.why, f"gate {gate}", "all 5 checks passed")
    files = hash_folder(model.files("2"))
    assert second.detail == {
        "via": "mlflow",
        "address": "127.0.0.1",
        "registry": registry_name(),
        "stood_there": "1",
        "archived": True,
        "moved": {"place": "Production", "before": "1", "files": files},
    }


def test_unjudged_files_are_refused(model):
    judged = model.files("1")
    (judged / "data").mkdir()
    (judged / "data" / "weights.bin").write_bytes(b"judged")
    model.passed("1")
    right = (judged / "MLmodel").read_text()
    (judged / "MLmodel").write_text((model.files("2") / "MLmodel").read_text())  # The same size.
    for place in ("Production", "@champion"):
        assert mentions(model.refusal("1", place), "differ", "the gate")
    (judged / "MLmodel").write_text(right)
    assert model.enter("1") == 200


def test_files_from_loading_keep_the_verdict(model):
    model.passed("1")
    files = model.files("1")
    (files / "registered_model_meta").write_text("model_version: 1")
    (files / "code" / "__pycache__").mkdir(parents=True)
    (files / "code" / "__pycache__" / "module.cpython-311.pyc").write_bytes(b"compiled")
    assert model.enter("1") == 200


def test_version_without_files_is_refused(model):
    model.passed("1")
    shutil.rmtree(model.files("1"))
    answer = model.ask("1")
    assert answer.status_code == 403
    assert "cannot be read" in answer.json["message"]


def test_ungated_move_reads_no_files(model, ungated, caplog):
    for each in (model, ungated):
        shutil.rmtree(each.files("1"))
        assert each.enter("1", "Staging") == 200
    assert ungated.enter("1", "@champion") == 200
    assert caplog.records == []
    recorded = [*model.events, *ungated.events]
    assert {"files" in event.detail["moved"] for event in recorded} == {False}


@pytest.mark.parametrize(
    ("policy", "place", "status", "stays"),
    [
        (None, "Production", 200, False),
        (None, "@best", 200, False),
        (None, "Staging", 200, True),
        (POLICY, "Production", 403, True),
    ],
)
def test_promotion_clears_the_rollback_mark(mlflow_app, policy, place, status, stays):
    model = mlflow_app.model(policy=policy)
    model.tag("1", ROLLED_BACK, "flights: too slow")
    assert model.enter("1", place) == status
    assert (ROLLED_BACK in model.tags("1")) is stays


@pytest.mark.parametrize(
    ("asked", "status", "code"),
    [
        ({"name": "nobody"}, 404, "RESOURCE_DOES_NOT_EXIST"),
        ({"name": ""}, 400, "INVALID_PARAMETER_VALUE"),
        ({"version": 1}, 400, "INVALID_PARAMETER_VALUE"),
        ({"stage": "Nowhere"}, 400, "INVALID_PARAMETER_VALUE"),
    ],
)
def test_invalid_move_gets_mlflow_error(mlflow_app, model, asked, status, code):
    body = {"name": model, "version": "1", "stage": "Production", **asked}
    answer = mlflow_app.client.post(f"{API}/model-versions/transition-stage", json=body)
    assert answer.status_code == status
    assert answer.json["error_code"] == code
    assert model.events == []


def test_unreadable_model_is_not_moved(model, monkeypatch):
    def busy(*arguments):
        raise MlflowException("the database is locked", TEMPORARILY_UNAVAILABLE)

    with monkeypatch.context() as patch:
        patch.setattr(model.mlflow.registry, "get_registered_model", busy)
        answer = model.ask("1")
    assert answer.status_code == 503
    assert answer.json["error_code"] == "TEMPORARILY_UNAVAILABLE"
    assert model.stage("1") == "None"


def test_moves_of_aliases_are_recorded(model):
    assert model.enter("1", "@Champion") == 403
    assert model.enter("1", "@candidate") == 200
    assert model.enter("2", "@candidate") == 200
    body = {"name": model, "alias": "candidate"}
    answer = model.mlflow.client.delete(f"{API}/registered-models/alias", json=body)
    assert answer.status_code == 200
    assert [(event.action, event.before, event.after) for event in model.events] == [
        ("refused", "", "version 1 in @Champion"),
        ("alias", "", "version 1 in @candidate"),
        ("alias", "version 1 in @candidate", "version 2 in @candidate"),
        ("alias", "version 2 in @candidate", ""),
    ]


def test_deleted_staged_version_is_recorded(ungated):
    ungated.enter("1")
    assert ungated.send("model-versions/delete", version="1") == 200
    assert [event.after for event in ungated.events] == ["Production", "deleted"]


@pytest.mark.parametrize(("is_rolled_back", "status"), [(False, 200), (True, 403)])
def test_earlier_version_returns_unless_rolled_back(mlflow_app, is_rolled_back, status):
    model = mlflow_app.model(policy="gated_stages: [Staging]", versions=3)
    model.enter("1")
    model.set_policy("skip: []")
    model.passed("2")
    assert model.enter("2", archive_existing_versions=True) == 200
    if is_rolled_back:
        model.tag("1", ROLLED_BACK, "it was worse")
    assert model.enter("3") == 403
    assert model.enter("1") == status


def test_earlier_version_needs_its_served_files(ungated):
    for version in "12":
        assert ungated.enter(version, archive_existing_versions=True) == 200
    ungated.set_policy(POLICY)
    weights = ungated.files("1") / "weights.bin"
    weights.write_bytes(b"of a version that was never served")
    assert mentions(
        ungated.refusal("1", archive_existing_versions=True), "version 1", "differ", "served"
    )
    weights.unlink()
    assert ungated.enter("1", archive_existing_versions=True) == 200


def test_verdict_needs_the_current_policy(model):
    model.passed("1", gate="passed without an evaluation")
    for policy, status in ((f"{POLICY}\nseed: 1", 403), (POLICY, 200)):
        assert model.set_policy(policy) == 200
        assert model.enter("1") == status


def test_changes_of_a_policy_are_recorded(ungated):
    policy = "gated_stages: [Production]"
    assert ungated.set_policy(policy) == 200
    team = {"version": "1", "key": "team", "value": "flights"}
    assert ungated.send("model-versions/set-tag", **team) == 200
    assert ungated.send("registered-models/delete-tag", key=POLICY_TAG) == 200
    assert [(event.action, event.before, event.after) for event in ungated.events] == [
        ("tag", "", policy),
        ("tag", policy, ""),
    ]


def test_unreadable_policy_refuses_every_move(mlflow_app):
    answer = mlflow_app.model(policy="gated_stage: [Production]").ask("1")
    assert answer.status_code == 403
    assert "gated_stage" in answer.json["message"]


def test_prompt_tag_opens_no_gate(model):
    tag = RegisteredModelTag("mlflow.prompt.is_prompt", "true")
    model.mlflow.registry.set_registered_model_tag(model, tag)
    assert model.enter("1", "@champion") == 403


@pytest.mark.parametrize(
    "key", ["onnxserve.gate", "onnxserve.gate.policy_digest", "OnnxServe.Gate", "onnxserve.gaté.at"]
)
def test_callers_may_not_change_verdict_tags(ungated, key):
    ungated.tag("1", key, "old")
    client = ungated.mlflow.client
    body = {"name": ungated, "version": "1", "key": key}
    for base in (API, AJAX):
        changed = client.post(f"{base}/model-versions/set-tag", json={**body, "value": "new"})
        deleted = client.delete(f"{base}/model-versions/delete-tag", json=body)
        assert changed.status_code == deleted.status_code == 403
        assert mentions(changed.json["message"], key, f"`onnxserve gate models:/{ungated}/1`")
    assert ungated.tags("1") == {key: "old"}
    assert [(event.action, event.before, event.after) for event in ungated.events] == [
        ("refused", "old", "new"),
        ("refused", "old", ""),
    ] * 2


def test_creation_rename_and_deletion_are_recorded(mlflow_app):
    tags = [{"key": POLICY_TAG, "value": POLICY}]
    assert mlflow_app.send("registered-models/create", name="made-here", tags=tags) == 200
    rename = {"name": "made-here", "new_name": "renamed"}
    assert mlflow_app.send("registered-models/rename", **rename) == 200
    assert mlflow_app.send("registered-models/delete", name="renamed") == 200
    recorded = [
        (event.action, event.before, event.after)
        for name in ("made-here", "renamed")
        for event in events(mlflow_app, name)
    ]
    renamed = ("rename", "made-here", "renamed")
    assert recorded == [("tag", "", POLICY), renamed, renamed, ("delete", "renamed", "")]


def test_renamed_model_stays_gated(mlflow_app):
    first = mlflow_app.model(policy=None)
    second = mlflow_app.model(policy=None)
    for version in "12":
        first.enter(version, archive_existing_versions=True)
    second.enter("2", archive_existing_versions=True)
    assert first.send("registered-models/rename", new_name=f"{first}-old") == 200
    assert second.send("registered-models/rename", new_name=first) == 200
    assert first.set_policy(POLICY) == 200
    assert first.enter("1") == 403


def test_changes_are_counted_for_the_change_feed(model):
    def wait_for(name, count):
        changes = model.mlflow.store.recent_changes
        wait_until(lambda: changes().get(name) == count, what=f"change {count} is counted")

    version = {"version": "1"}
    new_name = f"{model}-new"
    requests = [
        ("model-versions/create", {"source": "s3://bucket/x"}),
        ("model-versions/set-tag", {**version, "key": "region", "value": "eu"}),
        ("model-versions/delete-tag", {**version, "key": "region"}),
        ("registered-models/set-tag", {"key": POLICY_TAG, "value": "{}"}),
        ("registered-models/alias", {**version, "alias": "shadow"}),
        ("model-versions/transition-stage", {**version, "stage": "Staging"}),
        ("registered-models/rename", {"new_name": new_name}),
    ]
    for number, (path, body) in enumerate(requests, 1):
        assert model.send(path, **body) == 200
        wait_for(model, number)
    wait_for(new_name, 1)


def test_move_survives_a_broken_audit_store(ungated, monkeypatch, caplog):
    monkeypatch.setenv("ONNXSERVE_STORE_URI", "sqlite:////proc/nobody/can/write/here.db")
    assert ungated.enter("1") == 200
    assert ungated.stage("1") == "Production"
    assert mentions(caplog.text, "transition by anonymous@127.0.0.1 is kept", "store")
