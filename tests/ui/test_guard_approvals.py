"""Tests of approvals in MLflow's API: attempts to move a version without the approvals
that the policy requires.
"""

import hashlib
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace

import pytest
from mlflow import MlflowClient

from mlflow_deploy_plugin.core.errors import NotFound
from mlflow_deploy_plugin.core.mlmodel import hash_folder
from mlflow_deploy_plugin.core.store.served_files import MOVES, stay_of
from mlflow_deploy_plugin.promote.gate.approvals import promotion_requests, version_authors
from mlflow_deploy_plugin.ui.guard import mlflow_stores, moves, readers, views
from tests.support import approvals
from tests.support.refusals import mentions

GATED = "gated_stages: [Production]\ngated_aliases: [champion]\n"
POLICY = f"{GATED}approvals: {{count: 2, groups: [risk]}}"
POLICY_TAG = "onnxserve.gate.policy"


@dataclass
class Caller:
    """The caller of MLflow's API. Most bypass attempts are made by an editor who is not
    an administrator.
    """

    user: str = "mallory"
    is_administrator: bool = False


@pytest.fixture
def caller(monkeypatch):
    who = Caller()

    def identity():
        return SimpleNamespace(
            user=who.user, address="127.0.0.1", actor=who.user or "anonymous@127.0.0.1"
        )

    monkeypatch.setattr(moves, "caller", identity)
    monkeypatch.setattr(views, "caller", identity)
    monkeypatch.setattr(readers, "caller", identity)
    monkeypatch.setattr(readers, "is_administrator", lambda: who.is_administrator)
    return who


@pytest.fixture
def model(mlflow_app, caller):
    """A model whose two versions have passed the gate, but have no approvals."""
    name = mlflow_app.model(policy=POLICY)
    name.passed("1", "2")
    return name


@pytest.fixture
def administrator(caller):
    caller.is_administrator = True


def approve_all(model, version="1", place="Production"):
    approvals.approve_all(model.mlflow.store, model.promotion(version, place))


def promote_both(model, place="Production", **more):
    """Move version 1 and then version 2, both with their approvals."""
    for version in "12":
        approve_all(model, version, place)
        assert model.enter(version, place, **more) == 200


def replace_files(model, version):
    """Change a file, and return a function that restores it."""
    file = model.files(version) / "MLmodel"
    approved = file.read_text()
    file.write_text("model_id: never judged")
    return lambda: file.write_text(approved)


def files_of(model, version):
    return hash_folder(model.files(version))


def recorded_files(model, version="1", place="@champion"):
    return stay_of(model.mlflow.store.counted_events(model, MOVES), version, place).files


def test_version_moves_only_with_approvals(model):
    for place in ("Production", "@champion"):
        answer = model.ask("1", place)
        assert answer.status_code == 403
        assert answer.json["error_code"] == "PERMISSION_DENIED"
        link = f"http://localhost/onnxserve?model={model}"
        assert mentions(answer.json["message"], "2 of 2", "risk", link)
    approve_all(model)
    model.passed("1", gate="failed")
    assert model.enter("1") == 403
    model.passed("1")
    assert model.enter("1") == 200
    assert model.stage("1") == "Production"
    assert promotion_requests(model.mlflow.store, model) == []


def test_refusal_links_to_the_configured_address(model, monkeypatch):
    monkeypatch.setenv("ONNXSERVE_MLFLOW_URL", "https://mlflow.example/ml/")
    message = model.refusal("1")
    assert mentions(message, f"https://mlflow.example/ml/onnxserve?model={model}")
    assert (model.events[-1].action, model.events[-1].actor) == ("refused", "mallory")


def test_anonymous_caller_is_refused(model, caller, administrator):
    caller.user = ""
    assert mentions(model.refusal("1"), "login")


@pytest.mark.parametrize(
    ("key", "status"),
    [
        ("onnxserve.gate.approved_by", 403),
        ("onnxserve.approve", 200),
    ],
)
def test_tags_are_not_approvals(model, key, status):
    tag = {"key": key, "value": "ada, bob"}
    assert model.send("model-versions/set-tag", version="1", **tag) == status
    assert model.send("registered-models/set-tag", key=f"x.{key}", value="ada, bob") == 200
    assert model.enter("1") == 403


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("set-tag", {"key": POLICY_TAG, "value": f"{GATED}approvals: {{count: 1}}"}),
        ("set-tag", {"key": POLICY_TAG, "value": "gated_stages: []\ngated_aliases: []"}),
        ("delete-tag", {"key": POLICY_TAG}),
        ("rename", {"new_name": "elsewhere"}),
        ("delete", {}),
    ],
)
def test_editor_may_not_remove_approvals(model, path, body):
    assert model.send(f"registered-models/{path}", **body) == 403
    assert model.mlflow.registry.get_registered_model(model).tags[POLICY_TAG] == POLICY
    (event,) = model.events
    assert (event.action, event.actor) == ("refused", "mallory")
    assert model.enter("1") == 403


@pytest.mark.parametrize(
    ("policy", "status"),
    [
        ("approvals: {count: 0}", 403),
        ("approvals: [", 403),  # An invalid policy may be meant to require approvals.
        ("gated_stages: [Production]", 200),
    ],
)
def test_editor_may_change_unapproved_policies(model, caller, administrator, policy, status):
    assert model.set_policy(policy) == 200
    caller.is_administrator = False
    assert model.set_policy(GATED) == status


@pytest.mark.parametrize("is_same", [True, False])
def test_copy_needs_its_own_approvals(mlflow_app, model, is_same):
    approve_all(model)
    target = model if is_same else mlflow_app.model(policy=POLICY, versions=0)
    assert target.send("model-versions/create", source=f"models:/{model}/1") == 200
    copy = "3" if is_same else "1"
    target.passed(copy)
    assert target.enter(copy) == 403
    assert model.enter("1") == 200


@pytest.mark.parametrize("slashes", ["/", "///"])
def test_copies_keep_their_authors(mlflow_app, model, caller, slashes):
    other = mlflow_app.model(policy=POLICY, versions=0)
    caller.user = "lea"
    assert model.send("model-versions/create", source="s3://bucket/x") == 200
    caller.user = "max"
    assert other.send("model-versions/create", source=f"models:{slashes}{model}/3") == 200
    for name, version, authors in ((model, "3", ("lea",)), (other, "1", ("max", "lea"))):
        created = mlflow_app.registry.get_model_version(name, version).creation_timestamp
        assert version_authors(mlflow_app.store, name, version, created) == authors


def test_deleted_version_loses_its_approvals(model):
    approve_all(model, "2")
    source = model.mlflow.registry.get_model_version(model, "2").source
    assert model.send("model-versions/delete", version="2") == 200
    created = str(model.mlflow.registry.create_model_version(model, source).version)
    model.passed(created)
    assert model.enter(created) == 403


def test_promotion_uses_up_its_approvals(model):
    approve_all(model)
    assert model.enter("1") == 200
    # The version is already there.
    assert model.enter("1") == 200
    assert model.enter("1", "Archived") == 200
    assert model.enter("1") == 403


def test_rolled_back_version_needs_new_approvals(model):
    promote_both(model, "@champion")
    for _ in range(2):  # The way back stays open after every promotion.
        assert model.enter("1", "@champion") == 200
        assert model.enter("2", "@champion") == 403
        approve_all(model, "2", "@champion")
        assert model.enter("2", "@champion") == 200


def test_version_returns_with_approved_files_only(model):
    promote_both(model, "@champion")
    restore = replace_files(model, "1")
    assert mentions(model.refusal("1", "@champion"), "version 1", "differ", "served")
    assert model.mlflow.registry.get_registered_model(model).aliases == {"champion": 2}
    restore()
    assert model.enter("1", "@champion") == 200


def test_repeated_move_approves_no_files(model):
    approve_all(model)
    assert model.enter("1") == 200
    replace_files(model, "1")
    for archives in (False, True):
        assert model.enter("1", archive_existing_versions=archives) == 200
    approve_all(model, "2")
    assert model.enter("2", archive_existing_versions=True) == 200
    assert model.enter("1") == 403


@pytest.mark.parametrize(
    ("path", "more"), [("transition-stage", {"stage": "Archived"}), ("delete", {})]
)
def test_version_leaves_only_to_approved_files(model, path, more):
    promote_both(model)
    restore = replace_files(model, "1")
    assert model.send(f"model-versions/{path}", version="2", **more) == 403
    assert model.stage("2") == "Production"
    restore()
    assert model.send(f"model-versions/{path}", version="2", **more) == 200


def stage_both(model):
    """Move both versions without the guard, as by an older server."""
    for version in "12":
        model.mlflow.registry.transition_model_version_stage(model, version, "Production", False)


def test_version_leaves_to_a_judged_version(mlflow_app, caller):
    model = mlflow_app.model(policy=GATED)
    stage_both(model)
    assert mentions(model.refusal("2", "Archived"), "version 1", "audit trail", "digest")
    model.passed("1")
    assert model.enter("2", "Archived") == 200


def test_version_leaves_to_an_approved_version(model, tmp_path, monkeypatch):
    stage_both(model)
    with monkeypatch.context() as changed:
        changed.setenv("ONNXSERVE_STORE_URI", f"sqlite:///{tmp_path}")
        assert mentions(model.refusal("2", "Archived", status=503), "the store")
    assert model.enter("2", "Archived") == 403
    approve_all(model)
    assert model.enter("2", "Archived") == 200


def test_new_policy_records_served_files(mlflow_app, administrator):
    model = mlflow_app.model(policy=None)
    mlflow_app.registry.set_registered_model_alias(model, "champion", "1")
    assert model.set_policy(POLICY) == 200
    recorded = files_of(model, "1")
    assert recorded_files(model) == recorded
    new_name = f"{model}-new"
    assert model.send("registered-models/rename", new_name=new_name) == 200
    moves_of = partial(mlflow_app.store.counted_events, new_name, MOVES)
    assert stay_of(moves_of(), "1", "@champion").files == recorded
    (mlflow_app.files(new_name, "1") / "MLmodel").write_text("model_id: never judged")
    tag = {"name": new_name, "key": POLICY_TAG, "value": POLICY}
    assert mlflow_app.send("registered-models/set-tag", **tag) == 200
    assert stay_of(moves_of(), "1", "@champion").files == recorded


def test_repeated_policy_records_served_files(model, administrator):
    model.mlflow.registry.set_registered_model_alias(model, "champion", "1")
    for _ in range(2):
        assert model.set_policy(POLICY) == 200
    assert [event.action for event in model.events] == ["outside", "tag"]
    assert recorded_files(model) == files_of(model, "1")


def test_newly_approved_files_are_recorded(model):
    place = "@champion"
    promote_both(model, place)
    replace_files(model, "2")
    before = recorded_files(model, "2", place)
    assert model.enter("2", place) == 200
    assert recorded_files(model, "2", place) == before
    model.passed("2")
    approve_all(model, "2", place)
    assert model.enter("2", place) == 200
    assert recorded_files(model, "2", place) == files_of(model, "2") != before
    assert promotion_requests(model.mlflow.store, model) == []
    assert model.enter("1", place) == 200  # The way back to version 1 stays open.


def test_rollback_by_command_counts(model):
    promote_both(model, archive_existing_versions=True)
    assert model.enter("1", archive_existing_versions=True) == 200
    moved = {"version": "1", "detail": {"moved": {"place": "Production", "before": "2"}}}
    model.mlflow.store.record("transition", endpoint="flights", model=model, **moved)
    assert model.enter("2") == 403


def test_concurrent_promotions_need_their_own_approvals(model):
    approve_all(model, "2")
    with ThreadPoolExecutor(4) as pool:
        statuses = [*pool.map(model.enter, "1212")]
    passed = {version for version, status in zip("1212", statuses, strict=True) if status == 200}
    assert passed == {"2"}
    assert model.stage("2") == "Production"


@pytest.mark.parametrize(("actions", "status"), [(["intend"], 403), (["intend", "failed"], 200)])
def test_intention_uses_up_its_approvals(model, actions, status):
    """Without a result, the server was killed after it had stored the intention."""
    approve_all(model)
    moved = {"moved": {"place": "Production", "before": ""}}
    detail = {"intention": "1", "intended": "transition", **moved}
    for action in actions:
        model.mlflow.store.record(action, actor="eva", model=model, version="1", detail=detail)
    assert model.enter("1") == status


@pytest.mark.parametrize(
    ("break_store", "status"),
    [(lambda path: shutil.copy("/dev/null", path), 403), (lambda path: path.mkdir(), 503)],
)
def test_unreadable_approvals_refuse_a_move(model, tmp_path, monkeypatch, break_store, status):
    approve_all(model)
    break_store(tmp_path / "store.db")
    monkeypatch.setenv("ONNXSERVE_STORE_URI", f"sqlite:///{tmp_path / 'store.db'}")
    assert model.enter("1") == status
    assert model.stage("1") == "None"


def test_report_digest_follows_the_report(mlflow_app):
    client = MlflowClient()
    run_id = client.create_run("0").info.run_id
    for text in ("judged", "replaced"):
        client.log_text(run_id, text, "gate_report.html")
        with mlflow_app.app.test_request_context():
            assert mlflow_stores.report_digest(run_id) == hashlib.sha256(text.encode()).hexdigest()
    with pytest.raises(NotFound), mlflow_app.app.test_request_context():
        mlflow_stores.report_digest("0" * 32)
