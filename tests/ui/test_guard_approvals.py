"""Tests of approvals in MLflow's API: attempts to move a version without the approvals
that the policy requires.
"""

import hashlib
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
from mlflow import MlflowClient

from mlflow_deploy_plugin.core.errors import NotFound
from mlflow_deploy_plugin.core.mlmodel import combine_hashes, hash_files
from mlflow_deploy_plugin.core.registry.policy import parse_policy
from mlflow_deploy_plugin.core.registry.transitions import parse_stage_or_alias
from mlflow_deploy_plugin.core.store.served_files import served_files
from mlflow_deploy_plugin.promote.gate.approvals import (
    Person,
    approve,
    promotion_requests,
    request_promotion,
    version_authors,
)
from mlflow_deploy_plugin.ui.guard import mlflow_stores, moves, readers, views
from tests.support.approvals import REPORT, record_gate
from tests.support.console import API, events, move, point
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
    monkeypatch.setattr(readers, "is_administrator", lambda: who.is_administrator)
    return who


@pytest.fixture
def model(mlflow_app, caller):
    """A model whose two versions have passed the gate, but have no approvals."""
    name: str = mlflow_app.model(policy=POLICY)
    for version in "12":
        mlflow_app.stands(name, version, "passed", "all 5 checks passed")
    return name


def approve_all(mlflow_app, model, version="1", place="Production", report=""):
    """Request the promotion, and approve it by two people."""
    with mlflow_app.app.test_request_context():
        policy, subject = moves.promotion_now(model, version, parse_stage_or_alias(place))
    if not report:
        record_gate(mlflow_app.store, subject)
    request_promotion(mlflow_app.store, policy, subject, Person("eva", frozenset(), may_edit=True))
    for user in ("ada", "bob"):
        person = Person(user, frozenset({"risk"}), may_edit=False)
        approve(mlflow_app.store, policy, subject, person, report or REPORT)


def send(mlflow_app, path, **body):
    method = (
        mlflow_app.client.delete
        if path.endswith(("/delete", "/delete-tag"))
        else mlflow_app.client.post
    )
    status: int = method(f"{API}/{path}", json=body).status_code
    return status


def test_a_version_moves_only_with_its_approvals(mlflow_app, model):
    for answer in (
        move(mlflow_app, model, "1", "Production"),
        point(mlflow_app, model, "champion", "1"),
    ):
        assert answer.status_code == 403
        assert answer.json["error_code"] == "PERMISSION_DENIED"
        assert mentions(
            answer.json["message"], "2 of 2", "risk", f"http://localhost/onnxserve?model={model}"
        )
    approve_all(mlflow_app, model)
    assert move(mlflow_app, model, "1", "Production").status_code == 200
    assert mlflow_app.stage(model, "1") == "Production"
    assert promotion_requests(mlflow_app.store, model) == []


def test_the_refusal_links_to_the_address_of_the_operator(mlflow_app, model, monkeypatch):
    monkeypatch.setenv("ONNXSERVE_MLFLOW_URL", "https://mlflow.example/ml/")
    message = move(mlflow_app, model, "1", "Production").json["message"]
    assert mentions(message, f"https://mlflow.example/ml/onnxserve?model={model}")
    assert events(mlflow_app, model)[-1].action == "refused"
    assert events(mlflow_app, model)[-1].actor == "mallory"


def test_an_anonymous_caller_reads_that_a_login_is_needed(mlflow_app, model, caller):
    caller.user = ""
    caller.is_administrator = True
    answer = move(mlflow_app, model, "1", "Production")
    assert answer.status_code == 403
    assert mentions(answer.json["message"], "login")


@pytest.mark.parametrize(
    ("approved", "other"), [("Production", "@champion"), ("@champion", "Production")]
)
def test_an_approval_is_for_one_stage_or_alias(approved, other, mlflow_app, model):
    approve_all(mlflow_app, model, place=approved)
    statuses = {
        "Production": move(mlflow_app, model, "1", "Production").status_code,
        "@champion": point(mlflow_app, model, "champion", "1").status_code,
    }
    assert statuses == {approved: 200, other: 403}


@pytest.mark.parametrize("state", ["passed", "passed without an evaluation", "forced"])
def test_tags_are_not_approvals(state, mlflow_app, model):
    tags = {
        "onnxserve.gate": state,
        "onnxserve.gate.policy_digest": parse_policy(POLICY, "it").digest,
    }
    texts = ("reason", "report", "against", "at", "approve", "approvals", "approved_by", "request")
    tags |= {f"onnxserve.gate.{name}": "ada, bob" for name in texts} | {
        "approve": "ada",
        "onnxserve.approve": "ada",
    }
    for key, value in tags.items():
        status = 403 if key.startswith("onnxserve.gate") else 200
        assert (
            send(
                mlflow_app, "model-versions/set-tag", name=model, version="1", key=key, value=value
            )
            == status
        )
        assert (
            send(mlflow_app, "registered-models/set-tag", name=model, key=f"x.{key}", value=value)
            == 200
        )
    assert move(mlflow_app, model, "1", "Production").status_code == 403


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("registered-models/set-tag", {"key": POLICY_TAG, "value": GATED}),
        (
            "registered-models/set-tag",
            {"key": POLICY_TAG, "value": f"{GATED}approvals: {{count: 1}}"},
        ),
        (
            "registered-models/set-tag",
            {"key": POLICY_TAG, "value": "gated_stages: []\ngated_aliases: []"},
        ),
        ("registered-models/delete-tag", {"key": POLICY_TAG}),
        ("registered-models/rename", {"new_name": "elsewhere"}),
        ("registered-models/delete", {}),
    ],
)
def test_only_an_administrator_may_remove_the_need_for_approvals(path, body, mlflow_app, model):
    assert send(mlflow_app, path, name=model, **body) == 403
    assert mlflow_app.registry.get_registered_model(model).tags[POLICY_TAG] == POLICY
    assert [(event.action, event.actor) for event in events(mlflow_app, model)] == [
        ("refused", "mallory")
    ]
    assert move(mlflow_app, model, "1", "Production").status_code == 403


@pytest.mark.parametrize(
    "policy", ["approvals: {count: 0}", "approvals: [", "gated_stages: [Production]"]
)
def test_an_administrator_may_change_the_policy_and_an_editor_a_policy_without_approvals(
    policy, mlflow_app, model, caller
):
    tag = {"name": model, "key": POLICY_TAG}
    caller.is_administrator = True
    assert send(mlflow_app, "registered-models/set-tag", **tag, value=policy) == 200
    caller.is_administrator = False
    # An invalid policy may be meant to require approvals.
    status = 403 if "approvals" in policy else 200
    assert send(mlflow_app, "registered-models/set-tag", **tag, value=GATED) == status


@pytest.mark.parametrize("target", ["same", "other"])
def test_a_copy_of_an_approved_version_needs_its_own_approvals(target, mlflow_app, model):
    approve_all(mlflow_app, model)
    name = model if target == "same" else mlflow_app.model(policy=POLICY, versions=0)
    assert send(mlflow_app, "model-versions/create", name=name, source=f"models:/{model}/1") == 200
    copy = "3" if target == "same" else "1"
    mlflow_app.stands(name, copy, "passed", "all 5 checks passed")
    assert move(mlflow_app, name, copy, "Production").status_code == 403
    assert move(mlflow_app, model, "1", "Production").status_code == 200


@pytest.mark.parametrize("slashes", ["/", "///"])
def test_the_authors_of_a_version_are_authors_of_its_copies(slashes, mlflow_app, model, caller):
    other = mlflow_app.model(policy=POLICY, versions=0)
    for user, name, source in (
        ("lea", model, "s3://bucket/x"),
        ("max", other, f"models:{slashes}{model}/3"),
    ):
        caller.user = user
        assert send(mlflow_app, "model-versions/create", name=name, source=source) == 200
    for name, version, authors in ((model, "3", ("lea",)), (other, "1", ("max", "lea"))):
        created = mlflow_app.registry.get_model_version(name, version).creation_timestamp
        assert version_authors(mlflow_app.store, version, created) == authors


def test_approvals_do_not_survive_a_rename_there_and_back(mlflow_app, model, caller):
    approve_all(mlflow_app, model)
    caller.is_administrator = True
    for before, after in ((model, f"{model}-away"), (f"{model}-away", model)):
        assert send(mlflow_app, "registered-models/rename", name=before, new_name=after) == 200
    assert move(mlflow_app, model, "1", "Production").status_code == 403


def test_approvals_are_not_for_another_model_of_the_same_name(mlflow_app, model, caller):
    approve_all(mlflow_app, model)
    source = mlflow_app.registry.get_model_version(model, "1").source
    caller.is_administrator = True
    assert send(mlflow_app, "registered-models/delete", name=model) == 200
    tags = [{"key": POLICY_TAG, "value": POLICY}]
    assert send(mlflow_app, "registered-models/create", name=model, tags=tags) == 200
    mlflow_app.registry.create_model_version(model, source)
    mlflow_app.stands(model, "1", "passed", "all 5 checks passed")
    assert move(mlflow_app, model, "1", "Production").status_code == 403


def test_a_version_that_is_deleted_and_created_again_needs_new_approvals(mlflow_app, model):
    approve_all(mlflow_app, model, "2")
    source = mlflow_app.registry.get_model_version(model, "2").source
    assert send(mlflow_app, "model-versions/delete", name=model, version="2") == 200
    created = mlflow_app.registry.create_model_version(model, source)
    mlflow_app.stands(model, str(created.version), "passed", "all 5 checks passed")
    assert move(mlflow_app, model, str(created.version), "Production").status_code == 403


def test_approvals_lapse_when_a_file_changes_even_if_the_gate_passes_again(mlflow_app, model):
    approve_all(mlflow_app, model)
    mlmodel = mlflow_app.files(model, "1") / "MLmodel"
    approved = mlmodel.read_text()
    mlmodel.write_text("model_id: another")
    mlflow_app.stands(model, "1", "passed", "all 5 checks passed")
    answer = move(mlflow_app, model, "1", "Production")
    assert answer.status_code == 403
    assert mentions(answer.json["message"], "lapsed", "files")
    mlmodel.write_text(approved)
    mlflow_app.stands(model, "1", "passed", "all 5 checks passed")
    assert move(mlflow_app, model, "1", "Production").status_code == 200


def test_approvals_lapse_when_the_policy_changes(mlflow_app, model, caller):
    approve_all(mlflow_app, model)
    caller.is_administrator = True
    tag = {
        "name": model,
        "key": POLICY_TAG,
        "value": f"{GATED}approvals: {{count: 1, groups: [risk]}}",
    }
    assert send(mlflow_app, "registered-models/set-tag", **tag) == 200
    answer = move(mlflow_app, model, "1", "Production")
    assert answer.status_code == 403
    assert mentions(answer.json["message"], "1 of 1", "lapsed", "policy")


@pytest.mark.parametrize("state", ["forced", "passed"])
def test_after_a_failure_a_version_moves_only_if_the_approvers_saw_it(state, mlflow_app, model):
    approve_all(mlflow_app, model)
    with mlflow_app.app.test_request_context():
        _, subject = moves.promotion_now(model, "1", parse_stage_or_alias("Production"))
    record_gate(mlflow_app.store, subject, "2" * 64, "failed")
    mlflow_app.stands(model, "1", state, "set by mallory")
    assert move(mlflow_app, model, "1", "Production").status_code == 403
    approve_all(mlflow_app, model, report="2" * 64)
    assert move(mlflow_app, model, "1", "Production").status_code == 200


def test_a_promotion_uses_its_approvals_up(mlflow_app, model):
    approve_all(mlflow_app, model)
    assert move(mlflow_app, model, "1", "Production").status_code == 200
    # The version is already there.
    assert move(mlflow_app, model, "1", "Production").status_code == 200
    assert move(mlflow_app, model, "1", "Archived").status_code == 200
    assert move(mlflow_app, model, "1", "Production").status_code == 403


def test_a_version_that_was_rolled_back_does_not_return_as_a_rollback(mlflow_app, model):
    for version in "12":
        approve_all(mlflow_app, model, version, "@champion")
        assert point(mlflow_app, model, "champion", version).status_code == 200
    for _ in range(2):  # The way back stays open after every promotion.
        assert [point(mlflow_app, model, "champion", version).status_code for version in "12"] == [
            200,
            403,
        ]
        approve_all(mlflow_app, model, "2", "@champion")
        assert point(mlflow_app, model, "champion", "2").status_code == 200


def test_a_version_returns_only_with_the_files_that_were_approved(mlflow_app, model):
    for version in "12":
        approve_all(mlflow_app, model, version, "@champion")
        assert point(mlflow_app, model, "champion", version).status_code == 200
    files = mlflow_app.files(model, "1") / "MLmodel"
    approved = files.read_text()
    files.write_text("model_id: never judged")
    answer = point(mlflow_app, model, "champion", "1")
    assert answer.status_code == 403
    assert mentions(answer.json["message"], "version 1", "differ", "served")
    assert mlflow_app.registry.get_registered_model(model).aliases == {"champion": 2}
    files.write_text(approved)
    assert point(mlflow_app, model, "champion", "1").status_code == 200


def test_a_move_to_the_same_place_does_not_make_other_files_the_approved_ones(mlflow_app, model):
    for version in "12":
        approve_all(mlflow_app, model, version)
        if version == "2":
            (mlflow_app.files(model, "1") / "MLmodel").write_text("model_id: never judged")
            for archives in (False, True):  # The version is already there, so nothing moves.
                assert (
                    move(
                        mlflow_app, model, "1", "Production", archive_existing_versions=archives
                    ).status_code
                    == 200
                )
        assert (
            move(
                mlflow_app, model, version, "Production", archive_existing_versions=True
            ).status_code
            == 200
        )
    assert move(mlflow_app, model, "1", "Production").status_code == 403


@pytest.mark.parametrize("path", ["transition-stage", "delete"])
def test_a_version_leaves_a_stage_only_if_the_version_below_has_its_approved_files(
    path, mlflow_app, model
):
    for version in "12":
        approve_all(mlflow_app, model, version)
        assert move(mlflow_app, model, version, "Production").status_code == 200
    files = mlflow_app.files(model, "1") / "MLmodel"
    approved = files.read_text()
    files.write_text("model_id: never judged")
    leave = {"name": model, "version": "2"} | (
        {"stage": "Archived"} if path == "transition-stage" else {}
    )
    assert send(mlflow_app, f"model-versions/{path}", **leave) == 403
    assert mlflow_app.stage(model, "2") == "Production"
    files.write_text(approved)
    assert send(mlflow_app, f"model-versions/{path}", **leave) == 200


def test_a_version_leaves_a_stage_if_the_version_below_is_judged_but_not_recorded(
    mlflow_app, caller
):
    name = mlflow_app.model(policy=GATED)
    for version in "12":
        mlflow_app.registry.transition_model_version_stage(name, version, "Production", False)
    answer = move(mlflow_app, name, "2", "Archived")
    assert answer.status_code == 403
    assert mentions(answer.json["message"], "version 1", "audit trail", "digest")
    mlflow_app.stands(name, "1", "passed", "all 5 checks passed")
    assert move(mlflow_app, name, "2", "Archived").status_code == 200


def test_a_version_leaves_a_stage_if_people_have_approved_the_version_below(
    mlflow_app, model, tmp_path, monkeypatch
):
    for version in "12":
        mlflow_app.registry.transition_model_version_stage(model, version, "Production", False)
    with monkeypatch.context() as changed:
        changed.setenv("ONNXSERVE_STORE_URI", f"sqlite:///{tmp_path}")
        answer = move(mlflow_app, model, "2", "Archived")
        assert answer.status_code == 503
        assert mentions(answer.json["message"], "audit trail", "store")
    assert move(mlflow_app, model, "2", "Archived").status_code == 403
    approve_all(mlflow_app, model)
    assert move(mlflow_app, model, "2", "Archived").status_code == 200


def test_the_files_of_a_served_version_are_recorded_when_approvals_become_required(
    mlflow_app, caller
):
    name = mlflow_app.model(policy=None)
    # Without the guard, as by an older server.
    mlflow_app.registry.set_registered_model_alias(name, "champion", "1")
    caller.is_administrator = True
    tag = {"name": name, "key": POLICY_TAG, "value": POLICY}
    assert send(mlflow_app, "registered-models/set-tag", **tag) == 200
    recorded = combine_hashes(hash_files(mlflow_app.files(name, "1")))
    assert served_files(mlflow_app.store, name, "1", "@champion") == recorded
    assert send(mlflow_app, "registered-models/rename", name=name, new_name=f"{name}-new") == 200
    assert served_files(mlflow_app.store, f"{name}-new", "1", "@champion") == recorded
    (mlflow_app.files(f"{name}-new", "1") / "MLmodel").write_text("model_id: never judged")
    assert send(mlflow_app, "registered-models/set-tag", **tag | {"name": f"{name}-new"}) == 200
    assert served_files(mlflow_app.store, f"{name}-new", "1", "@champion") == recorded


def test_the_same_policy_records_the_files_of_a_version_that_an_older_server_moved(
    mlflow_app, model, caller
):
    mlflow_app.registry.set_registered_model_alias(model, "champion", "1")
    caller.is_administrator = True
    tag = {"name": model, "key": POLICY_TAG, "value": POLICY}
    for _ in range(2):
        assert send(mlflow_app, "registered-models/set-tag", **tag) == 200
    assert [event.action for event in events(mlflow_app, model)] == ["tag"]
    files = combine_hashes(hash_files(mlflow_app.files(model, "1")))
    assert served_files(mlflow_app.store, model, "1", "@champion") == files


@pytest.mark.parametrize("place", ["@champion", "Production"])
def test_files_that_are_approved_again_for_a_version_that_is_there_are_recorded(
    place, mlflow_app, model
):
    def enter(version):
        is_alias = place.startswith("@")
        answer = (
            point(mlflow_app, model, place[1:], version)
            if is_alias
            else move(mlflow_app, model, version, place)
        )
        return int(answer.status_code)

    for version in "12":
        approve_all(mlflow_app, model, version, place)
        assert enter(version) == 200
    (mlflow_app.files(model, "2") / "MLmodel").write_text("model_id: replaced")
    before = served_files(mlflow_app.store, model, "2", place)
    assert enter("2") == 200
    assert served_files(mlflow_app.store, model, "2", place) == before
    mlflow_app.stands(model, "2", "passed", "all 5 checks passed")
    approve_all(mlflow_app, model, "2", place)
    assert enter("2") == 200
    replaced = combine_hashes(hash_files(mlflow_app.files(model, "2")))
    assert served_files(mlflow_app.store, model, "2", place) == replaced != before
    assert promotion_requests(mlflow_app.store, model) == []
    assert enter("1") == 200  # The way back to version 1 stays open.


def test_a_rollback_by_command_counts_as_a_rollback_too(mlflow_app, model):
    for version in "12":
        approve_all(mlflow_app, model, version)
        assert (
            move(
                mlflow_app, model, version, "Production", archive_existing_versions=True
            ).status_code
            == 200
        )
    assert (
        move(mlflow_app, model, "1", "Production", archive_existing_versions=True).status_code
        == 200
    )
    moved = {"moved": {"place": "Production", "before": "2"}}
    mlflow_app.store.record(
        "transition", endpoint="flights", model=model, version="1", detail=moved
    )
    assert move(mlflow_app, model, "2", "Production").status_code == 403


@pytest.mark.parametrize("approved", ["1", "2"])
def test_a_second_promotion_during_the_first_needs_its_own_approvals(approved, mlflow_app, model):
    approve_all(mlflow_app, model, approved)
    with ThreadPoolExecutor(4) as pool:
        answers = [
            *pool.map(
                lambda version: (version, move(mlflow_app, model, version, "Production")), "1212"
            )
        ]
    assert {version for version, answer in answers if answer.status_code == 200} == {approved}
    assert {version: mlflow_app.stage(model, version) for version in "12"}[approved] == "Production"


def test_an_intention_without_a_result_uses_the_approvals_up(mlflow_app, model):
    """MLflow's server was killed after it had stored the intention."""
    approve_all(mlflow_app, model)
    moved = {"moved": {"place": "Production", "before": ""}}
    detail = {"intention": "1", "intended": "transition", **moved}
    mlflow_app.store.record("intend", actor="eva", model=model, version="1", detail=detail)
    assert move(mlflow_app, model, "1", "Production").status_code == 403


def test_a_failed_intention_leaves_the_approvals(mlflow_app, model):
    approve_all(mlflow_app, model)
    moved = {"moved": {"place": "Production", "before": ""}}
    detail = {"intention": "1", "intended": "transition", **moved}
    for action in ("intend", "failed"):
        mlflow_app.store.record(action, actor="eva", model=model, version="1", detail=detail)
    assert move(mlflow_app, model, "1", "Production").status_code == 200


def test_a_failed_gate_is_refused_even_with_approvals(mlflow_app, model):
    approve_all(mlflow_app, model)
    mlflow_app.stands(model, "1", "failed", "evaluation: accuracy 0.71 against 0.80")
    assert move(mlflow_app, model, "1", "Production").status_code == 403


@pytest.mark.parametrize(
    ("break_store", "status"),
    [(lambda path: shutil.copy("/dev/null", path), 403), (lambda path: path.mkdir(), 503)],
)
def test_approvals_that_cannot_be_read_let_nothing_through(
    break_store, status, mlflow_app, model, tmp_path, monkeypatch
):
    approve_all(mlflow_app, model)
    break_store(tmp_path / "store.db")
    monkeypatch.setenv("ONNXSERVE_STORE_URI", f"sqlite:///{tmp_path / 'store.db'}")
    assert move(mlflow_app, model, "1", "Production").status_code == status
    assert mlflow_app.stage(model, "1") == "None"


def test_a_report_that_was_replaced_in_its_run_has_another_digest(mlflow_app, model):
    client = MlflowClient()
    run_id = client.create_run("0").info.run_id
    for text in ("judged", "replaced"):
        client.log_text(run_id, text, "gate_report.html")
        with mlflow_app.app.test_request_context():
            assert mlflow_stores.report_digest(run_id) == hashlib.sha256(text.encode()).hexdigest()
    with pytest.raises(NotFound), mlflow_app.app.test_request_context():
        mlflow_stores.report_digest("0" * 32)
