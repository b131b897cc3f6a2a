"""Tests of the gate in MLflow's API: refused requests, the audit trail, and unchanged
requests.
"""

import shutil
from itertools import count

import pytest

from mlflow_deploy_plugin.core.mlmodel import combine_hashes, hash_files
from mlflow_deploy_plugin.core.registry.policy import parse_policy
from mlflow_deploy_plugin.ui.audit_trail import registry_name
from tests.support.console import AJAX, API, POLICY, events, move, point
from tests.support.refusals import mentions
from tests.support.waiting import wait_until


@pytest.mark.parametrize("base", [API, AJAX])
def test_a_version_that_did_not_pass_may_not_enter_a_gated_stage(mlflow_app, base):
    model = mlflow_app.model()
    answer = move(mlflow_app, model, "2", "production", base)
    assert answer.status_code == 403
    assert answer.json["error_code"] == "PERMISSION_DENIED"
    command = f"`onnxserve promote models:/{model}/2 --to Production`"
    assert mentions(
        answer.json["message"], f"version 2 of {model}", "Production", "the gate", command
    )
    assert mlflow_app.stage(model, "2") == "None"


def test_a_refusal_is_in_the_audit_trail_with_its_reason(mlflow_app):
    model = mlflow_app.model()
    reason = "evaluation: accuracy 0.71 against 0.80"
    mlflow_app.stands(model, "1", "failed", reason)
    move(mlflow_app, model, "1", "Production")
    (event,) = events(mlflow_app, model)
    assert event.action == "refused"
    assert event.version == "1"
    assert event.before == "None"
    assert event.after == "Production"
    assert event.actor == "anonymous@127.0.0.1"
    assert reason in event.why


@pytest.mark.parametrize("gate", ["passed", "passed without an evaluation", "forced"])
def test_a_version_that_passed_moves_and_leaves_who_when_from_and_to(mlflow_app, gate):
    model = mlflow_app.model()
    mlflow_app.stands(model, "1", gate, "all 5 checks passed")
    mlflow_app.stands(model, "2", gate, "all 5 checks passed")
    move(mlflow_app, model, "1", "Production")
    assert (
        move(mlflow_app, model, "2", "Production", archive_existing_versions=True).status_code
        == 200
    )
    assert mlflow_app.stage(model, "2") == "Production"
    first, second = events(mlflow_app, model)
    assert first.action == "transition"
    assert first.version == "1"
    assert first.before == "None"
    assert first.after == "Production"
    assert mentions(first.why, f"gate {gate}", "all 5 checks passed")
    files = combine_hashes(hash_files(mlflow_app.files(model, "2")))
    moved = {
        "stood_there": "1",
        "archived": True,
        "moved": {"place": "Production", "before": "1", "files": files},
    }
    detail = {"via": "mlflow", "address": "127.0.0.1", "registry": registry_name()}
    assert second.detail == detail | moved


def test_a_version_with_other_files_than_the_judged_ones_is_refused_until_they_are_back(mlflow_app):
    model = mlflow_app.model()
    judged = mlflow_app.files(model, "1")
    other_files = mlflow_app.files(model, "2")
    (judged / "data").mkdir()
    (judged / "data" / "weights.bin").write_bytes(b"judged")
    mlflow_app.stands(model, "1", "passed", "all 5 checks passed")
    right = (judged / "MLmodel").read_text()
    (judged / "MLmodel").write_text((other_files / "MLmodel").read_text())  # The size is the same.
    for answer in (
        move(mlflow_app, model, "1", "Production"),
        point(mlflow_app, model, "champion", "1"),
    ):
        assert answer.status_code == 403
        assert mentions(answer.json["message"], "differ", "the gate")
    (judged / "MLmodel").write_text(right)
    assert move(mlflow_app, model, "1", "Production").status_code == 200


def test_files_that_loading_a_version_in_place_writes_do_not_void_its_verdict(mlflow_app):
    model = mlflow_app.model()
    mlflow_app.stands(model, "1", "passed", "all 5 checks passed")
    files = mlflow_app.files(model, "1")
    (files / "registered_model_meta").write_text("model_version: 1")
    (files / "code" / "__pycache__").mkdir(parents=True)
    (files / "code" / "__pycache__" / "module.cpython-311.pyc").write_bytes(b"compiled")
    assert move(mlflow_app, model, "1", "Production").status_code == 200


def test_the_files_of_a_version_are_read_again_if_a_name_a_size_or_its_mlmodel_changes(mlflow_app):
    model = mlflow_app.model()
    weights = mlflow_app.files(model, "1") / "weights.bin"
    weights.write_bytes(b"judged")
    mlflow_app.stands(model, "1", "passed", "all 5 checks passed")
    # The file of the second request is not read, because its size is unchanged.
    for content, status in ((b"judged", 200), (b"edited", 200), (b"judged and more", 403)):
        weights.write_bytes(content)
        assert move(mlflow_app, model, "1", "Archived").status_code == 200
        assert move(mlflow_app, model, "1", "Production").status_code == status


def test_a_version_whose_files_are_gone_is_refused(mlflow_app):
    model = mlflow_app.model()
    mlflow_app.stands(model, "1", "passed", "all 5 checks passed")
    shutil.rmtree(mlflow_app.files(model, "1"))
    answer = move(mlflow_app, model, "1", "Production")
    assert answer.status_code == 403
    assert "cannot be read" in answer.json["message"]


def test_no_files_of_a_model_without_a_policy_or_for_a_place_without_a_gate_are_read(
    mlflow_app, caplog
):
    gated = mlflow_app.model()
    free = mlflow_app.model(policy=None)
    for model in (gated, free):
        shutil.rmtree(mlflow_app.files(model, "1"))
        assert move(mlflow_app, model, "1", "Staging").status_code == 200
    assert point(mlflow_app, free, "champion", "1").status_code == 200
    assert caplog.records == []
    assert {
        "files" in event.detail["moved"]
        for model in (gated, free)
        for event in events(mlflow_app, model)
    } == {False}


@pytest.mark.parametrize(
    ("to", "stays"), [("Production", False), ("@best", False), ("Staging", True)]
)
def test_promotion_to_a_followed_target_clears_the_rolled_back_mark(mlflow_app, to, stays):
    from mlflow.entities.model_registry import ModelVersionTag

    tag = "onnxserve.rolled_back"
    model = mlflow_app.model(policy=None)
    mlflow_app.registry.set_model_version_tag(model, "1", ModelVersionTag(tag, "flights: too slow"))
    answer = (
        point(mlflow_app, model, to[1:], "1")
        if to.startswith("@")
        else move(mlflow_app, model, "1", to)
    )
    assert answer.status_code == 200
    assert (tag in mlflow_app.registry.get_model_version(model, "1").tags) is stays


def test_refused_promotion_keeps_the_rolled_back_mark(mlflow_app):
    from mlflow.entities.model_registry import ModelVersionTag

    tag = "onnxserve.rolled_back"
    model = mlflow_app.model()
    mlflow_app.registry.set_model_version_tag(model, "1", ModelVersionTag(tag, "flights: too slow"))
    assert move(mlflow_app, model, "1", "Production").status_code == 403
    assert tag in mlflow_app.registry.get_model_version(model, "1").tags


@pytest.mark.parametrize(
    ("asked", "status", "code"),
    [
        ({"name": "nobody", "version": "1", "stage": "Production"}, 404, "RESOURCE_DOES_NOT_EXIST"),
        ({"name": "", "version": "1", "stage": "Production"}, 400, "INVALID_PARAMETER_VALUE"),
        ({"version": "1"}, 400, "INVALID_PARAMETER_VALUE"),
        ({"name": "model-0", "version": 1, "stage": "Production"}, 400, "INVALID_PARAMETER_VALUE"),
    ],
)
def test_invalid_transition_gets_the_error_of_mlflow(mlflow_app, asked, status, code):
    answer = mlflow_app.client.post(f"{API}/model-versions/transition-stage", json=asked)
    assert answer.status_code == status
    assert answer.json["error_code"] == code
    if isinstance(asked["version"], int):
        assert mentions(answer.json["message"], "'version'")


def test_an_unknown_stage_is_answered_by_mlflow_and_not_written_down(mlflow_app):
    model = mlflow_app.model()
    assert move(mlflow_app, model, "1", "Nowhere").json["error_code"] == "INVALID_PARAMETER_VALUE"
    assert events(mlflow_app, model) == []


def test_a_new_version_brings_no_verdict_along(mlflow_app):
    model = mlflow_app.model()
    tags = [
        {"key": key, "value": "passed"}
        for key in ("onnxserve.gate", "onnxserve.gate.reason", "team")
    ]
    body = {"name": model, "source": "s3://bucket/x", "tags": tags}
    assert mlflow_app.client.post(f"{API}/model-versions/create", json=body).status_code == 200
    assert mlflow_app.registry.get_model_version(model, "3").tags == {"team": "passed"}


def test_version_is_not_moved_while_its_model_cannot_be_read(mlflow_app, monkeypatch):
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import TEMPORARILY_UNAVAILABLE

    model = mlflow_app.model()

    def busy(*arguments):
        raise MlflowException("the database is locked", TEMPORARILY_UNAVAILABLE)

    with monkeypatch.context() as patch:
        patch.setattr(mlflow_app.registry, "get_registered_model", busy)
        answer = move(mlflow_app, model, "1", "Production")
    assert answer.status_code == 503
    assert answer.json["error_code"] == "TEMPORARILY_UNAVAILABLE"
    assert mlflow_app.stage(model, "1") == "None"


def test_a_gated_alias_is_refused_and_others_are_written_down(mlflow_app):
    model = mlflow_app.model()
    assert point(mlflow_app, model, "Champion", "1").status_code == 403
    assert point(mlflow_app, model, "candidate", "1").status_code == 200
    point(mlflow_app, model, "candidate", "2")
    body = {"name": model, "alias": "candidate"}
    assert mlflow_app.client.delete(f"{API}/registered-models/alias", json=body).status_code == 200
    assert [(event.action, event.before, event.after) for event in events(mlflow_app, model)] == [
        ("refused", "", "version 1 in @Champion"),
        ("alias", "", "version 1 in @candidate"),
        ("alias", "version 1 in @candidate", "version 2 in @candidate"),
        ("alias", "version 2 in @candidate", ""),
    ]


def test_a_version_that_is_deleted_out_of_a_stage_is_in_the_trail(mlflow_app):
    model = mlflow_app.model(policy=None)
    move(mlflow_app, model, "1", "Production")
    body = {"name": model, "version": "1"}
    assert mlflow_app.client.delete(f"{API}/model-versions/delete", json=body).status_code == 200
    assert [event.after for event in events(mlflow_app, model)] == ["Production", "deleted"]


def set_policy(mlflow_app, model, policy):
    tag = {"name": model, "key": "onnxserve.gate.policy", "value": policy}
    assert mlflow_app.client.post(f"{API}/registered-models/set-tag", json=tag).status_code == 200


@pytest.mark.parametrize("tag", ["", "onnxserve.rolled_back"])
def test_earlier_production_version_may_return_ungated_unless_rolled_back(mlflow_app, tag):
    from mlflow.entities.model_registry import ModelVersionTag

    model = mlflow_app.model(policy="gated_stages: [Staging]", versions=3)
    move(mlflow_app, model, "1", "Production")
    set_policy(mlflow_app, model, "skip: []")
    mlflow_app.stands(model, "2", "passed", "all checks passed")
    assert (
        move(mlflow_app, model, "2", "Production", archive_existing_versions=True).status_code
        == 200
    )
    if tag:
        mlflow_app.registry.set_model_version_tag(model, "1", ModelVersionTag(tag, "it was worse"))
    assert move(mlflow_app, model, "3", "Production").status_code == 403
    assert move(mlflow_app, model, "1", "Production").status_code == (403 if tag else 200)


def test_a_version_without_a_verdict_returns_only_with_the_files_that_were_served(mlflow_app):
    model = mlflow_app.model(policy=None, versions=2)
    for version in "12":
        assert (
            move(
                mlflow_app, model, version, "Production", archive_existing_versions=True
            ).status_code
            == 200
        )
    set_policy(mlflow_app, model, POLICY)
    weights = mlflow_app.files(model, "1") / "weights.bin"
    weights.write_bytes(b"of a version that was never served")
    answer = move(mlflow_app, model, "1", "Production", archive_existing_versions=True)
    assert answer.status_code == 403
    assert mentions(answer.json["message"], "version 1", "differ", "served")
    weights.unlink()
    assert (
        move(mlflow_app, model, "1", "Production", archive_existing_versions=True).status_code
        == 200
    )


def test_the_alias_that_was_there_before_may_come_back(mlflow_app):
    model = mlflow_app.model(policy=None)
    point(mlflow_app, model, "best", "1")
    point(mlflow_app, model, "best", "2")
    set_policy(mlflow_app, model, "gated_aliases: [best]")
    assert point(mlflow_app, model, "best", "1").status_code == 200


@pytest.mark.parametrize("gate", ["passed", "passed without an evaluation"])
def test_a_verdict_by_another_policy_does_not_count(mlflow_app, gate):
    from mlflow.entities.model_registry import ModelVersionTag

    model = mlflow_app.model()
    mlflow_app.stands(model, "1", gate, "all 5 checks passed")
    digest = parse_policy(POLICY, "here").digest
    for tagged_digest, status in (("0" * 16, 403), (digest, 200)):
        mlflow_app.registry.set_model_version_tag(
            model, "1", ModelVersionTag("onnxserve.gate.policy_digest", tagged_digest)
        )
        assert move(mlflow_app, model, "1", "Production").status_code == status


def test_who_writes_a_policy_or_tries_to_write_a_verdict_by_hand_is_in_the_trail(mlflow_app):
    model = mlflow_app.model(policy=None)
    policy = {"name": model, "key": "onnxserve.gate.policy", "value": "gated_stages: [Production]"}
    verdict = {"name": model, "version": "1", "key": "onnxserve.gate", "value": "passed"}
    other = {"name": model, "version": "1", "key": "team", "value": "flights"}
    for path, body in (
        ("registered-models", policy),
        ("model-versions", verdict),
        ("model-versions", other),
    ):
        status = 403 if body is verdict else 200
        assert mlflow_app.client.post(f"{API}/{path}/set-tag", json=body).status_code == status
    body = {"name": model, "key": "onnxserve.gate.policy"}
    assert (
        mlflow_app.client.delete(f"{API}/registered-models/delete-tag", json=body).status_code
        == 200
    )
    assert [
        (event.action, event.version, event.before, event.after)
        for event in events(mlflow_app, model)
    ] == [
        ("tag", "", "", "gated_stages: [Production]"),
        ("refused", "1", "", "passed"),
        ("tag", "", "gated_stages: [Production]", ""),
    ]


def test_a_policy_that_cannot_be_read_lets_nothing_through(mlflow_app):
    model = mlflow_app.model(policy="gated_stage: [Production]")
    answer = move(mlflow_app, model, "1", "Production")
    assert answer.status_code == 403
    assert "gated_stage" in answer.json["message"]


def test_a_tag_that_makes_a_model_a_prompt_opens_no_gate(mlflow_app):
    from mlflow.entities.model_registry import RegisteredModelTag

    model = mlflow_app.model()
    mlflow_app.registry.set_registered_model_tag(
        model, RegisteredModelTag("mlflow.prompt.is_prompt", "true")
    )
    assert point(mlflow_app, model, "champion", "1").status_code == 403


@pytest.mark.parametrize(
    "key", ["onnxserve.gate", "onnxserve.gate.digest", "onnxserve.gate.policy_digest"]
)
def test_no_caller_sets_or_deletes_a_tag_of_a_verdict(mlflow_app, key):
    from mlflow.entities.model_registry import ModelVersionTag

    model = mlflow_app.model(policy=None)
    mlflow_app.registry.set_model_version_tag(model, "1", ModelVersionTag(key, "old"))
    body = {"name": model, "version": "1", "key": key}
    for base in (API, AJAX):
        answer = mlflow_app.client.post(
            f"{base}/model-versions/set-tag", json={**body, "value": "new"}
        )
        assert answer.status_code == 403
        assert mentions(answer.json["message"], key, f"`onnxserve gate models:/{model}/1`")
        assert (
            mlflow_app.client.delete(f"{base}/model-versions/delete-tag", json=body).status_code
            == 403
        )
    assert mlflow_app.registry.get_model_version(model, "1").tags == {key: "old"}
    assert [(event.action, event.before, event.after) for event in events(mlflow_app, model)] == [
        ("refused", "old", "new"),
        ("refused", "old", ""),
    ] * 2


def test_who_makes_renames_or_deletes_a_gated_model_is_in_the_trail_of_both_names(mlflow_app):
    model = "made-here"
    tags = [{"key": "onnxserve.gate.policy", "value": POLICY}]
    client = mlflow_app.client
    base = f"{API}/registered-models"
    assert client.post(f"{base}/create", json={"name": model, "tags": tags}).status_code == 200
    assert (
        client.post(f"{base}/rename", json={"name": model, "new_name": "renamed"}).status_code
        == 200
    )
    assert client.delete(f"{base}/delete", json={"name": "renamed"}).status_code == 200
    assert [(event.action, event.after) for event in events(mlflow_app, model)] == [
        ("tag", POLICY),
        ("rename", "renamed"),
    ]
    assert [(event.action, event.before) for event in events(mlflow_app, "renamed")] == [
        ("rename", model),
        ("delete", "renamed"),
    ]


def test_version_of_a_renamed_model_is_gated_despite_the_history_of_the_name(mlflow_app):
    first = mlflow_app.model(policy=None)
    second = mlflow_app.model(policy=None)
    for model, versions in ((first, "12"), (second, "2")):
        for version in versions:
            move(mlflow_app, model, version, "Production", archive_existing_versions=True)
    rename = f"{API}/registered-models/rename"
    for name, new in ((first, f"{first}-old"), (second, first)):
        assert (
            mlflow_app.client.post(rename, json={"name": name, "new_name": new}).status_code == 200
        )
    policy = {"name": first, "key": "onnxserve.gate.policy", "value": POLICY}
    assert (
        mlflow_app.client.post(f"{API}/registered-models/set-tag", json=policy).status_code == 200
    )
    assert move(mlflow_app, first, "1", "Production").status_code == 403


def test_changes_are_counted_for_the_change_feed(mlflow_app):
    model = mlflow_app.model()
    counts = count(1)

    def is_counted():
        expected = next(counts)
        wait_until(
            lambda: mlflow_app.store.recent_changes().get(model) == expected,
            what=f"change {expected} is counted",
        )

    version = {"name": model, "version": "1"}
    for path, body in (
        ("model-versions/create", {"name": model, "source": "s3://bucket/x"}),
        ("model-versions/set-tag", {**version, "key": "region", "value": "eu"}),
        ("model-versions/delete-tag", {**version, "key": "region"}),
        (
            "registered-models/set-tag",
            {"name": model, "key": "onnxserve.gate.policy", "value": "{}"},
        ),
        ("registered-models/alias", {**version, "alias": "shadow"}),
    ):
        method = "delete" if "delete" in path else "post"
        assert mlflow_app.client.open(f"{API}/{path}", method=method, json=body).status_code == 200
        is_counted()
    assert move(mlflow_app, model, "1", "Staging").status_code == 200
    is_counted()
    new_name = f"{model}-new"
    rename = {"name": model, "new_name": new_name}
    assert mlflow_app.client.post(f"{API}/registered-models/rename", json=rename).status_code == 200
    is_counted()
    wait_until(
        lambda: mlflow_app.store.recent_changes().get(new_name) == 1,
        what="the new name has changed",
    )


def test_an_event_is_kept_and_mlflow_goes_on_if_the_audit_store_is_broken(
    mlflow_app, monkeypatch, caplog
):
    model = mlflow_app.model(policy=None)
    monkeypatch.setenv("ONNXSERVE_STORE_URI", "sqlite:////proc/nobody/can/write/here.db")
    assert move(mlflow_app, model, "1", "Production").status_code == 200
    assert mlflow_app.stage(model, "1") == "Production"
    assert mentions(caplog.text, "transition by anonymous@127.0.0.1 is kept", "store")
