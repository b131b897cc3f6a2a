import re
from pathlib import Path

import pytest
from mlflow import MlflowClient

from mlflow_deploy_plugin.core.errors import InvalidConfig, NotFound
from mlflow_deploy_plugin.core.registry.policy import (
    ApprovalPolicy,
    GatePolicy,
    PolicyChoice,
    UnapprovedPolicy,
    choose_policy,
    parse_policy,
)
from mlflow_deploy_plugin.core.registry.transitions import StageOrAlias
from tests.support.refusals import mentions, refused
from tests.support.tracking import tracking_at


@pytest.fixture
def registry(new_database, tmp_path):
    with tracking_at(new_database(tmp_path)):
        client = MlflowClient()
        client.create_registered_model("toy")
        yield client


def test_empty_policy_has_defaults():
    policy = parse_policy("{}", "it")
    assert policy == GatePolicy()
    assert policy.gates(StageOrAlias(stage="production"))
    assert not policy.gates(StageOrAlias(stage="Staging"))
    assert policy.gates(StageOrAlias(alias="champion"))
    assert not policy.gates(StageOrAlias(alias="challenger"))
    assert policy.gated_places == [StageOrAlias(alias="champion"), StageOrAlias(stage="Production")]
    assert policy.parity == "proven"


def test_yaml_and_json_are_equal():
    yaml = parse_policy("gated_aliases: [best]\nevaluation: {dataset: d.csv, target: y}", "it")
    json = parse_policy(
        '{"gated_aliases": ["best"], "evaluation": {"dataset": "d.csv", "target": "y"}}', "it"
    )
    assert yaml == json
    assert yaml.digest == json.digest != GatePolicy().digest
    assert yaml.gates(StageOrAlias(alias="Best"))
    assert not yaml.gates(StageOrAlias(alias="champion"))
    assert parse_policy("gated_aliases: ['@best']", "it").gates(StageOrAlias(alias="best"))


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("evaluaton: {}", ["'evaluaton'", "'evaluation'"]),
        ("evaluation: {margin: -1}", ["evaluation.margin"]),
        ("evaluation: {dataset: d.csv}", ["evaluation", "target"]),
        (
            "robustness: {disturbances: {noise: 1}}",
            ["robustness.disturbances", "robustness.dataset"],
        ),
        ("robustness: {disturbances: [noise]}", ["robustness.disturbances", "a mapping"]),
        (
            "robustness: {disturbances: {noise: -1}}",
            ["robustness.disturbances", "noise", "strength -1"],
        ),
        ("evaluation: {at_least: .nan}", ["evaluation.at_least", "finite"]),
        ("robustness: {dataset: d.csv}", ["robustness", "target"]),
        ("gated_stages: [Prod]", ["gated_stages.0", "'Staging'", "'Production'", "'Archived'"]),
        ("- a", ["the policy", "a mapping"]),
        ("a: [", ["the policy", "YAML"]),
        ("a: 2020-13-45", ["the policy", "YAML", "month"]),
        ("[" * 2400, ["the policy", "YAML", "100 levels"]),
        ("fresh_hours: .inf", ["fresh_hours", "87600"]),
        ("approvals: {count: 0}", ["approvals.count"]),
        ("approvals: {valid_for: 3 days}", ["approvals.valid_for"]),
        ("approvals: {group: risk}", ["approvals.group"]),
        ("unapproved: {share: 5%}", ["unapproved.for"]),
        ("unapproved: {share: 500%, for: 1h}", ["unapproved.share"]),
        ("unapproved: {share: few, for: 1h}", ["unapproved.share"]),
        ("unapproved: {share: 5%, for: an hour}", ["unapproved.for"]),
    ],
)
def test_invalid_policy_error_names_field(text, names):
    with refused(InvalidConfig, *names):
        parse_policy(text, "the policy")


def test_guide_shows_all_fields_and_defaults():
    guide = (Path(__file__).parents[3] / "docs" / "gate.md").read_text()
    (shown,) = re.findall(r"<!-- every field -->\n+```yaml\n(.*?)```", guide, re.DOTALL)
    policy = parse_policy(shown, "the guide")
    assert policy == GatePolicy()
    assert "approvals: {count: 2, groups: [risk], not_author: true, valid_for: 72h}" in guide
    for part in (policy, policy.evaluation, policy.robustness, policy.budget, policy.backtest):
        assert all(f"{name}:" in shown for name in type(part).model_fields)


def test_unapproved_share_is_a_percentage():
    for text in ("5%", "5", "5.0 %"):
        limit = parse_policy(f"unapproved: {{share: {text}, for: 1h}}", "it").unapproved
        assert limit == UnapprovedPolicy.model_validate({"share": 5.0, "length": "1h"})


def test_approvals_are_required_at_gated_places():
    policy = parse_policy("gated_aliases: [champion]\napprovals: {groups: [risk]}", "it")
    approvals = policy.approvals_for(StageOrAlias(alias="Champion"))
    assert approvals == ApprovalPolicy(count=1, groups=("risk",), not_author=True, valid_for="72h")
    assert policy.approvals_for(StageOrAlias(stage="Staging")) is None
    assert GatePolicy().approvals_for(StageOrAlias(stage="Production")) is None
    assert (
        policy.digest
        != parse_policy("gated_aliases: [champion]\napprovals: {groups: [law]}", "it").digest
    )


@pytest.mark.usefixtures("registry")
def test_missing_policy_file_is_named(tmp_path):
    with refused(InvalidConfig, "the policy", str(tmp_path / "gate.yaml")):
        choose_policy("toy", tmp_path / "gate.yaml")


def test_policy_is_read_from_model_tag(registry):
    assert choose_policy("toy") == PolicyChoice(GatePolicy(), "the defaults", True)
    registry.set_registered_model_tag("toy", "onnxserve.gate.policy", "gated_stages: [Staging]")
    choice = choose_policy("toy")
    assert choice.policy.gated_stages == ("Staging",)
    assert mentions(choice.where, "onnxserve.gate.policy", "model toy")
    registry.set_registered_model_tag("toy", "onnxserve.gate.policy", "gated_stage: x")
    with refused(InvalidConfig, "onnxserve.gate.policy", "model toy", "gated_stage"):
        choose_policy("toy")
    with refused(NotFound, "model none"):
        choose_policy("none")


@pytest.mark.parametrize(
    ("text", "digest"),
    [
        ("{}", "dff831792ea7e412"),
        ("approvals: {count: 1}", "a5f1d2fb8f2f98bd"),
        (
            "approvals: {count: 1, evaluation: required}\nunapproved: {share: 5%, for: 1h}",
            "a5f1d2fb8f2f98bd",
        ),
        ("approvals: {count: 1, evaluation: optional}", "958abf01030a3711"),
        ("steps: []", "dff831792ea7e412"),
        ("steps: [a]", "15e919064396387f"),
    ],
)
def test_policy_digest_is_stable(text, digest):
    assert parse_policy(text, "it").digest == digest
