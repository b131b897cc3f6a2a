"""Changes of stages, aliases, tags and models: the gate's decision about them, and what the audit trail has of them."""

from typing import Any

import pytest

from mlflow_deploy_plugin.gate import parse_policy
from tests.support.console import API, POLICY, events, move, point


def test_a_gated_alias_is_refused_and_others_are_written_down(mlflow_app: Any) -> None:
    model = mlflow_app.model()
    assert point(mlflow_app, model, "Champion", "1").status_code == 403
    assert point(mlflow_app, model, "candidate", "1").status_code == 200
    point(mlflow_app, model, "candidate", "2")
    asked = {"name": model, "alias": "candidate"}
    assert mlflow_app.client.delete(f"{API}/registered-models/alias", json=asked).status_code == 200
    assert [(event.action, event.before, event.after) for event in events(mlflow_app, model)] == [
        ("refused", "", "version 1 in @Champion"),
        ("alias", "", "version 1 in @candidate"),
        ("alias", "version 1 in @candidate", "version 2 in @candidate"),
        ("alias", "version 2 in @candidate", ""),
    ]


def test_a_version_that_is_deleted_out_of_a_stage_is_in_the_trail(mlflow_app: Any) -> None:
    model = mlflow_app.model(policy=None)
    move(mlflow_app, model, "1", "Production")
    asked = {"name": model, "version": "1"}
    assert mlflow_app.client.delete(f"{API}/model-versions/delete", json=asked).status_code == 200
    assert [event.after for event in events(mlflow_app, model)] == ["Production", "deleted"]


@pytest.mark.parametrize("tag", ["", "onnxserve.rolled_back"])
def test_what_stood_there_before_may_come_back_without_a_gate_unless_it_was_taken_back(
    mlflow_app: Any, tag: str
) -> None:
    from mlflow.entities.model_registry import ModelVersionTag

    model = mlflow_app.model(policy="gated_stages: [Staging]", versions=3)
    move(mlflow_app, model, "1", "Production")
    mlflow_app.registry.set_registered_model_tag(model, ModelVersionTag("onnxserve.gate.policy", "skip: []"))
    mlflow_app.stands(model, "2", "passed", "all checks passed")
    assert move(mlflow_app, model, "2", "Production", archive_existing_versions=True).status_code == 200
    if tag:
        mlflow_app.registry.set_model_version_tag(model, "1", ModelVersionTag(tag, "it was worse"))
    assert move(mlflow_app, model, "3", "Production").status_code == 403
    assert move(mlflow_app, model, "1", "Production").status_code == (403 if tag else 200)


def test_the_alias_that_was_there_before_may_come_back(mlflow_app: Any) -> None:
    model = mlflow_app.model(policy=None)
    point(mlflow_app, model, "best", "1")
    point(mlflow_app, model, "best", "2")
    from mlflow.entities.model_registry import RegisteredModelTag

    mlflow_app.registry.set_registered_model_tag(
        model, RegisteredModelTag("onnxserve.gate.policy", "gated_aliases: [best]")
    )
    assert point(mlflow_app, model, "best", "1").status_code == 200


def test_a_verdict_by_another_policy_does_not_count(mlflow_app: Any) -> None:
    from mlflow.entities.model_registry import ModelVersionTag

    model = mlflow_app.model()
    mlflow_app.stands(model, "1", "passed", "all 5 checks passed")
    digest = parse_policy(POLICY, "here").digest
    for given, status in (("0" * 16, 403), (digest, 200)):
        mlflow_app.registry.set_model_version_tag(model, "1", ModelVersionTag("onnxserve.gate.policy_digest", given))
        assert move(mlflow_app, model, "1", "Production").status_code == status


def test_who_writes_a_verdict_or_a_policy_by_hand_is_in_the_trail(mlflow_app: Any) -> None:
    model = mlflow_app.model(policy=None)
    policy = {"name": model, "key": "onnxserve.gate.policy", "value": "gated_stages: [Production]"}
    verdict = {"name": model, "version": "1", "key": "onnxserve.gate", "value": "passed"}
    other = {"name": model, "version": "1", "key": "team", "value": "flights"}
    for path, asked in (("registered-models", policy), ("model-versions", verdict), ("model-versions", other)):
        assert mlflow_app.client.post(f"{API}/{path}/set-tag", json=asked).status_code == 200
    asked = {"name": model, "key": "onnxserve.gate.policy"}
    assert mlflow_app.client.delete(f"{API}/registered-models/delete-tag", json=asked).status_code == 200
    assert [(event.action, event.version, event.before, event.after) for event in events(mlflow_app, model)] == [
        ("tag", "", "", "gated_stages: [Production]"),
        ("tag", "1", "", "passed"),
        ("tag", "", "gated_stages: [Production]", ""),
    ]


def test_a_policy_that_cannot_be_read_lets_nothing_through(mlflow_app: Any) -> None:
    model = mlflow_app.model(policy="gated_stage: [Production]")
    answer = move(mlflow_app, model, "1", "Production")
    assert answer.status_code == 403
    assert "gated_stage" in answer.json["message"]


def test_a_tag_that_makes_a_model_a_prompt_opens_no_gate(mlflow_app: Any) -> None:
    from mlflow.entities.model_registry import RegisteredModelTag

    model = mlflow_app.model()
    mlflow_app.registry.set_registered_model_tag(model, RegisteredModelTag("mlflow.prompt.is_prompt", "true"))
    assert point(mlflow_app, model, "champion", "1").status_code == 403


def test_who_makes_a_stale_verdict_count_is_in_the_trail(mlflow_app: Any) -> None:
    from mlflow.entities.model_registry import ModelVersionTag

    model, digest = mlflow_app.model(), "onnxserve.gate.policy_digest"
    mlflow_app.registry.set_model_version_tag(model, "1", ModelVersionTag(digest, "old"))
    asked = {"name": model, "version": "1", "key": digest}
    assert mlflow_app.client.post(f"{API}/model-versions/set-tag", json={**asked, "value": "new"}).status_code == 200
    assert mlflow_app.client.delete(f"{API}/model-versions/delete-tag", json=asked).status_code == 200
    assert [(event.before, event.after, event.detail["tag"]) for event in events(mlflow_app, model)] == [
        ("old", "new", digest),
        ("new", "", digest),
    ]


def test_who_makes_renames_or_deletes_a_gated_model_is_in_the_trail_of_both_names(mlflow_app: Any) -> None:
    model, tags = "made-here", [{"key": "onnxserve.gate.policy", "value": POLICY}]
    client, base = mlflow_app.client, f"{API}/registered-models"
    assert client.post(f"{base}/create", json={"name": model, "tags": tags}).status_code == 200
    assert client.post(f"{base}/rename", json={"name": model, "new_name": "renamed"}).status_code == 200
    assert client.delete(f"{base}/delete", json={"name": "renamed"}).status_code == 200
    assert [(event.action, event.after) for event in events(mlflow_app, model)] == [
        ("tag", POLICY),
        ("rename", "renamed"),
    ]
    assert [(event.action, event.before) for event in events(mlflow_app, "renamed")] == [
        ("rename", model),
        ("delete", "renamed"),
    ]


def test_what_stood_in_another_model_of_the_same_name_may_not_come_back(mlflow_app: Any) -> None:
    first, second = mlflow_app.model(policy=None), mlflow_app.model(policy=None)
    for model, versions in ((first, "12"), (second, "2")):
        for version in versions:
            move(mlflow_app, model, version, "Production", archive_existing_versions=True)
    rename = f"{API}/registered-models/rename"
    for name, new in ((first, f"{first}-old"), (second, first)):
        assert mlflow_app.client.post(rename, json={"name": name, "new_name": new}).status_code == 200
    policy = {"name": first, "key": "onnxserve.gate.policy", "value": POLICY}
    assert mlflow_app.client.post(f"{API}/registered-models/set-tag", json=policy).status_code == 200
    assert move(mlflow_app, first, "1", "Production").status_code == 403
