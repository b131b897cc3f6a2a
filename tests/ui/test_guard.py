"""The gate in MLflow's own API: what is refused, what is written down, and what is left to MLflow."""

from typing import Any

import pytest

from tests.support.console import AJAX, API, events, move, point


@pytest.mark.parametrize("base", [API, AJAX])
def test_a_version_that_did_not_pass_may_not_enter_a_gated_stage(mlflow_app: Any, base: str) -> None:
    model = mlflow_app.model()
    answer = move(mlflow_app, model, "2", "production", base)
    assert answer.status_code == 403
    assert answer.json["error_code"] == "PERMISSION_DENIED"
    assert answer.json["message"] == (
        f"version 2 of {model} may not become Production: it has not been through the gate. "
        f"`onnxserve promote {model} 2 --to Production` runs the gate and says what is missing"
    )
    assert mlflow_app.stage(model, "2") == "None"


def test_a_refusal_is_in_the_audit_trail_with_its_reason(mlflow_app: Any) -> None:
    model = mlflow_app.model()
    mlflow_app.stands(model, "1", "failed", "evaluation: accuracy 0.71 against 0.80")
    move(mlflow_app, model, "1", "Production")
    (event,) = events(mlflow_app, model)
    assert (event.action, event.version, event.before, event.after) == ("refused", "1", "None", "Production")
    assert event.actor == "anonymous@127.0.0.1"
    assert "accuracy 0.71 against 0.80" in event.why


@pytest.mark.parametrize("gate", ["passed", "forced"])
def test_a_version_that_passed_moves_and_leaves_who_when_from_and_to(mlflow_app: Any, gate: str) -> None:
    model = mlflow_app.model()
    mlflow_app.stands(model, "1", gate, "all 5 checks passed")
    mlflow_app.stands(model, "2", gate, "all 5 checks passed")
    move(mlflow_app, model, "1", "Production")
    assert move(mlflow_app, model, "2", "Production", archive_existing_versions=True).status_code == 200
    assert mlflow_app.stage(model, "2") == "Production"
    first, second = events(mlflow_app, model)
    assert (first.action, first.version, first.before, first.after) == ("transition", "1", "None", "Production")
    assert first.why == f"gate {gate}: all 5 checks passed"
    assert second.detail == {"via": "mlflow", "address": "127.0.0.1", "stood_there": "1", "archived": True}


def test_a_stage_that_is_not_gated_and_a_model_without_a_policy_are_left_alone(mlflow_app: Any) -> None:
    gated, free = mlflow_app.model(), mlflow_app.model(policy=None)
    assert move(mlflow_app, gated, "1", "Staging").status_code == 200
    assert move(mlflow_app, free, "1", "Production").status_code == 200
    assert [event.after for event in events(mlflow_app, gated) + events(mlflow_app, free)] == ["Staging", "Production"]


@pytest.mark.parametrize(("to", "stays"), [("Production", False), ("@best", False), ("Staging", True)])
def test_what_was_rolled_back_and_is_promoted_again_may_be_gone_back_to(mlflow_app: Any, to: str, stays: bool) -> None:
    from mlflow.entities.model_registry import ModelVersionTag

    tag, model = "onnxserve.rolled_back", mlflow_app.model(policy=None)
    mlflow_app.registry.set_model_version_tag(model, "1", ModelVersionTag(tag, "flights: too slow"))
    answer = point(mlflow_app, model, to[1:], "1") if to.startswith("@") else move(mlflow_app, model, "1", to)
    assert answer.status_code == 200
    assert (tag in mlflow_app.registry.get_model_version(model, "1").tags) is stays


def test_what_is_refused_stays_rolled_back(mlflow_app: Any) -> None:
    from mlflow.entities.model_registry import ModelVersionTag

    tag, model = "onnxserve.rolled_back", mlflow_app.model()
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
def test_what_makes_no_sense_is_answered_by_mlflow(mlflow_app: Any, asked: Any, status: int, code: str) -> None:
    answer = mlflow_app.client.post(f"{API}/model-versions/transition-stage", json=asked)
    assert (answer.status_code, answer.json["error_code"]) == (status, code)
    if isinstance(asked["version"], int):
        assert "Invalid value 1 for parameter 'version'" in answer.json["message"]


def test_an_unknown_stage_is_answered_by_mlflow_and_not_written_down(mlflow_app: Any) -> None:
    model = mlflow_app.model()
    assert move(mlflow_app, model, "1", "Nowhere").json["error_code"] == "INVALID_PARAMETER_VALUE"
    assert events(mlflow_app, model) == []


def test_a_new_version_brings_no_verdict_along(mlflow_app: Any) -> None:
    model = mlflow_app.model()
    tags = [{"key": key, "value": "passed"} for key in ("onnxserve.gate", "onnxserve.gate.reason", "team")]
    asked = {"name": model, "source": "s3://bucket/x", "tags": tags}
    assert mlflow_app.client.post(f"{API}/model-versions/create", json=asked).status_code == 200
    assert mlflow_app.registry.get_model_version(model, "3").tags == {"team": "passed"}


def test_what_cannot_be_read_is_not_moved(mlflow_app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import TEMPORARILY_UNAVAILABLE

    model = mlflow_app.model()

    def busy(*arguments: Any) -> None:
        raise MlflowException("the database is locked", TEMPORARILY_UNAVAILABLE)

    with monkeypatch.context() as patch:
        patch.setattr(mlflow_app.registry, "get_registered_model", busy)
        answer = move(mlflow_app, model, "1", "Production")
    assert (answer.status_code, answer.json["error_code"]) == (503, "TEMPORARILY_UNAVAILABLE")
    assert mlflow_app.stage(model, "1") == "None"
