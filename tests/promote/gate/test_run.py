"""Tests of a run of the gate: the logged report, the tags of the version and the audit
trail.
"""

import json
import shutil
from pathlib import Path

import pytest

from mlflow_deploy_plugin.core.errors import InvalidConfig, NotFound
from mlflow_deploy_plugin.core.registry import tags
from mlflow_deploy_plugin.core.registry.model_files import version_digest
from mlflow_deploy_plugin.core.registry.resolution import resolve
from mlflow_deploy_plugin.promote.gate.run import run_gate, verdict_of_served
from tests.support.refusals import mentions
from tests.support.stores import own_store


@pytest.fixture
def policy(folders, registry):
    """Set the policy of `toy` to all checks that do not need a separate process."""
    evaluation = f"{{dataset: {folders['holdout']}, target: label, resamples: 200}}"
    text = f"evaluation: {evaluation}\nskip: [budget]\n"
    registry.set_registered_model_tag("toy", "onnxserve.gate.policy", text)


def events():
    with own_store() as store:
        return [*store.events(model="toy")]


def test_passed_verdict_is_in_tags_run_and_trail(policy, registry, tmp_path):
    gated = run_gate("toy", "2", actor="eva")
    run = registry.get_run(gated.run.run_id)
    assert run.info.run_name == "gate toy v2"
    assert run.info.status == "FINISHED"
    # The version was not logged by a run.
    assert registry.get_experiment(run.info.experiment_id).name == "onnxserve/toy"
    assert run.data.metrics["gate_passed"] == 1
    assert run.data.metrics["evaluation/accuracy_current"] > 0.8
    names = {entry.path for entry in registry.list_artifacts(gated.run.run_id)}
    assert names == {"gate_report.html", "gate.json"}
    document = json.loads(
        Path(registry.download_artifacts(gated.run.run_id, "gate.json", str(tmp_path))).read_text()
    )
    assert document["state"] == "passed"
    assert document["against"] == "models:/toy/1"
    assert resolve("models:/toy/2").gate_status.passed
    tags = registry.get_model_version("toy", "2").tags
    assert tags["onnxserve.gate"] == "passed"
    assert tags["onnxserve.gate.report"] == f"{gated.run.run_id}/gate_report.html"
    assert tags["onnxserve.gate.against"] == "models:/toy/1"
    assert tags["onnxserve.gate.digest"] == document["digest"] == version_digest("models:/toy/2")
    (event,) = events()
    assert event.action == "gate"
    assert event.actor == "eva"
    assert event.version == "2"
    assert event.after == "passed"
    assert event.detail["checks"]["evaluation"]["difference"] == 0


def test_status_is_consistent_while_tags_are_written(policy, registry, monkeypatch):
    write = tags.tag_version
    seen = list[str]()

    def write_and_read(name, version, key, value):
        write(name, version, key, value)
        seen.append(tags.gate_status_of(registry.get_model_version(name, version).tags).reason)

    monkeypatch.setattr(tags, "tag_version", write_and_read)
    run_gate("toy", "2")
    assert {reason for reason in seen if "again" in reason} == set()
    assert {"it has not been through the gate", seen[-1]} == {*seen}


def test_verdict_of_another_policy_is_not_tagged(registry, tmp_path):
    model_policy = "skip: [evaluation, robustness, budget]"
    registry.set_registered_model_tag("toy", "onnxserve.gate.policy", model_policy)
    (tmp_path / "easy.yaml").write_text(f"parity: any\n{model_policy}")
    gated = run_gate("toy", "4", policy_file=tmp_path / "easy.yaml")
    assert gated.verdict.passed
    assert not gated.is_tagged
    assert resolve("models:/toy/4").gate_status.state == ""
    (tmp_path / "same.yaml").write_text(model_policy)
    assert run_gate("toy", "4", policy_file=tmp_path / "same.yaml").is_tagged
    assert resolve("models:/toy/4").gate_status.state == "failed"


@pytest.mark.long
def test_promoted_version_is_compared_with_its_predecessor(registry, tmp_path):
    (tmp_path / "p.yaml").write_text("skip: [evaluation, robustness, budget]")
    registry.transition_model_version_stage("toy", "2", "Production")
    assert run_gate("toy", "2", policy_file=tmp_path / "p.yaml").verdict.against == "models:/toy/1"
    assert run_gate("toy", "3", policy_file=tmp_path / "p.yaml").verdict.against == "models:/toy/2"
    other = run_gate("toy", "3", policy_file=tmp_path / "p.yaml", against="models:/toy/1")
    assert (other.verdict.against, other.is_tagged) == ("models:/toy/1", False)
    reasons = {check.name: check.reason for check in other.verdict.checks}
    # Version 2 is served, not version 1.
    assert mentions(reasons["signature"], "the same", "models:/toy/1")
    same = run_gate("toy", "3", policy_file=tmp_path / "p.yaml", against="models:/toy/Production")
    assert (same.verdict.against, same.is_tagged) == ("models:/toy/2", True)


def test_served_version_keeps_its_verdict(registry, own_files, folders):
    policy = "skip: [evaluation, robustness, budget]"
    registry.set_registered_model_tag("toy", "onnxserve.gate.policy", policy)
    registry.transition_model_version_stage(
        "toy", "5", "Production", archive_existing_versions=True
    )
    assert verdict_of_served("toy", "5") is None  # The version is served without a verdict.
    run_gate("toy", "5")
    message = str(verdict_of_served("toy", "5"))
    assert message.startswith(
        "toy version 5 is the served version (Production), and there is no version to compare it "
        "with"
    )
    assert mentions(message, "remains passed", "without an evaluation")
    assert verdict_of_served("toy", "2") is None
    registry.set_registered_model_tag("toy", "onnxserve.gate.policy", f"{policy}\nseed: 1")
    assert verdict_of_served("toy", "5") is None  # The policy has changed.
    registry.set_registered_model_tag("toy", "onnxserve.gate.policy", policy)
    assert verdict_of_served("toy", "5") is not None
    shutil.copytree(folders["worse"], own_files, dirs_exist_ok=True)
    assert verdict_of_served("toy", "5") is None  # The files have changed.


@pytest.mark.parametrize(
    ("model", "version", "error", "message"),
    [
        ("toy", "9", NotFound, "model toy has no version 9"),
        ("none", "1", NotFound, "there is no registered model none"),
        (
            "toy",
            "Production",
            InvalidConfig,
            "'Production' is not a version of toy; a number is expected",
        ),
    ],
)
def test_unknown_version_is_named(model, version, error, message, registry):
    with pytest.raises(error, match=message):
        run_gate(model, version)
