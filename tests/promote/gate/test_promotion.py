import hashlib
import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient

from mlflow_deploy_plugin.core.errors import GateRefused, InvalidConfig
from mlflow_deploy_plugin.core.registry.model_files import version_digest
from mlflow_deploy_plugin.core.registry.policy import Permissions, choose_policy
from mlflow_deploy_plugin.core.registry.resolution import resolve
from mlflow_deploy_plugin.core.registry.transitions import StageOrAlias
from mlflow_deploy_plugin.promote.gate.approvals import (
    Person,
    approve,
    request_promotion,
    subject_of,
)
from mlflow_deploy_plugin.promote.gate.promotion import promote
from mlflow_deploy_plugin.promote.gate.run import run_gate
from tests.support.refusals import mentions, refused
from tests.support.stores import own_store


@pytest.fixture
def toy(registry):
    """Configure only the cheap checks. test_judge.py, test_run.py and
    tests/journeys/test_gate.py test the other checks.
    """
    text = "skip: [evaluation, robustness, budget]\n"
    registry.set_registered_model_tag("toy", "onnxserve.gate.policy", text)
    return registry


UNEVALUATED = "passed without an evaluation"


def stages(client):
    return {v.version: v.current_stage for v in client.search_model_versions("name='toy'")}


def events():
    with own_store() as store:
        return [*store.events(model="toy")]


def actions():
    return [(event.action, event.version, event.actor) for event in events()]


def test_passed_version_replaces_the_production_version(toy):
    progress = []
    promotion = promote("toy", "2", "production", actor="eva", progress=progress.append)
    assert promotion.to == "Production"
    assert promotion.before == "1"
    assert promotion.gate == UNEVALUATED
    assert promotion.uri == "models:/toy/Production"
    assert stages(toy) == {1: "Archived", 2: "Production", 3: "None", 4: "None"}
    assert actions() == [("gate", "2", "eva"), ("promote", "2", "eva")]
    assert mentions(progress[-1], "version 2", "Production")
    event = events()[-1]
    assert event.before == "version 1 in Production"
    assert event.after == "version 2 in Production"
    assert event.detail["report"] == promotion.report
    assert event.detail["moved"] == {"place": "Production", "before": "1"}

    again = promote("toy", "2", "Production", actor="eva")
    assert not again.is_moved
    assert again.gate == UNEVALUATED
    assert again.location_text == "is in Production"
    assert again.reason == promotion.reason
    assert len(actions()) == 2


def test_failed_version_changes_no_stage(toy):
    with refused(GateRefused, "toy version 4", "Production", "form", "report"):
        promote("toy", "4", "Production", actor="eva")
    assert stages(toy) == {1: "Production", 2: "None", 3: "None", 4: "None"}
    assert actions() == [("gate", "4", "eva"), ("refused", "4", "eva")]
    assert events()[-1].after == ""
    assert "moved" not in events()[-1].detail


def test_forced_promotion_is_visible(toy):
    with refused(InvalidConfig, "forced", "reason"):
        promote("toy", "4", "Production", force=True)
    promotion = promote(
        "toy", "4", "Production", force=True, why="the old one is broken", actor="eva"
    )
    assert promotion.gate == "forced"
    assert stages(toy)[4] == "Production"
    tags = toy.get_model_version("toy", "4").tags
    assert tags["onnxserve.gate"] == "forced"
    assert tags["onnxserve.gate.digest"] == version_digest("models:/toy/4")
    assert resolve("models:/toy/4").gate_status.passed
    assert tags["onnxserve.gate.reason"].startswith(
        "forced by eva: the old one is broken (the gate: parity: the ONNX form is warned"
    )
    event = events()[-1]
    assert event.action == "promote"
    assert event.actor == "eva"
    assert event.why == "the old one is broken"
    assert event.detail["forced"] is True


@pytest.mark.long
def test_only_a_fresh_verdict_is_reused(toy):
    run_gate("toy", "2")
    progress = []
    promote("toy", "2", "Production", progress=progress.append)
    assert progress[0].startswith("the verdict on version 2 from ")
    # Version 1 is compared with version 2.
    promote("toy", "1", "Production", progress=progress.append)
    run_gate("toy", "2")
    toy.set_registered_model_tag(
        "toy", "onnxserve.gate.policy", "skip: [evaluation, robustness, budget]\nseed: 1"
    )
    progress.clear()
    promote("toy", "2", "Production", progress=progress.append)
    assert progress[0].startswith("fetching")  # The policy has changed.
    for version, year in (
        ("1", 2020),
        ("2", 2096),
    ):  # Version 2 was judged by a machine whose clock was ahead.
        toy.set_model_version_tag(
            "toy", version, "onnxserve.gate.at", f"{year}-01-01T00:00:00+00:00"
        )
        progress.clear()
        promote("toy", version, "Production", progress=progress.append)
        assert progress[0].startswith("fetching")


def test_verdict_on_other_files_is_not_reused(toy, own_files, folders):
    run_gate("toy", "5")
    shutil.copytree(folders["unproven"], own_files, dirs_exist_ok=True)
    with pytest.raises(GateRefused, match="form is warned"):
        promote("toy", "5", "Production")
    assert stages(toy)[5] == "None"
    tags = toy.get_model_version("toy", "5").tags
    assert tags["onnxserve.gate"] == "failed"
    assert tags["onnxserve.gate.digest"] == version_digest("models:/toy/5")


@pytest.mark.long
def test_version_in_place_with_other_files_is_judged(toy, own_files, folders):
    assert promote("toy", "5", "Production").is_moved
    shutil.copytree(folders["unproven"], own_files, dirs_exist_ok=True)
    with pytest.raises(GateRefused, match="form is warned"):
        promote("toy", "5", "Production")


def test_forced_unjudged_version_has_a_digest(toy):
    policy = "skip: [robustness, budget]\nevaluation: {dataset: /a.csv, target: y}"
    toy.set_registered_model_tag("toy", "onnxserve.gate.policy", policy)
    promote("toy", "4", "Production", force=True, why="a drill", allowed=Permissions(files=False))
    assert resolve("models:/toy/4").gate_status.passed
    assert toy.get_model_version("toy", "4").tags["onnxserve.gate.digest"] == version_digest(
        "models:/toy/4"
    )


def test_version_moved_meanwhile_is_not_replaced(toy):
    def overtaken(line):
        if line.startswith("logging"):
            toy.transition_model_version_stage(
                "toy", "3", "Production", archive_existing_versions=True
            )

    with refused(GateRefused, "version 3", "Production", "version 2", "again"):
        promote("toy", "2", "Production", progress=overtaken)
    assert stages(toy)[3] == "Production"
    assert promote("toy", "2", "Production").before == "3"


def test_alias_champion_is_gated_by_default(toy):
    toy.set_registered_model_alias("toy", "champion", "1")
    with refused(GateRefused, "toy version 4", "@champion"):
        promote("toy", "4", "@champion")
    promotion = promote("toy", "2", "@champion")
    assert mentions(promotion.location_text, "@champion")
    assert promotion.gate == UNEVALUATED
    assert promotion.before == "1"
    assert promotion.uri == "models:/toy@champion"
    assert toy.get_model_version_by_alias("toy", "champion").version == 2


def test_ungated_place_needs_no_verdict_or_approval(toy):
    toy.set_registered_model_tag("toy", "onnxserve.gate.policy", APPROVED)
    promotion = promote("toy", "4", "Staging")
    assert promotion.gate == "not asked"
    assert promotion.reason == "the policy does not gate Staging"
    assert promote("toy", "4", "@shadow").gate == "not asked"
    assert stages(toy)[4] == "Staging"
    assert actions() == [("promote", "4", this := actions()[0][2]), ("promote", "4", this)]


def test_rolled_back_version_is_refused_until_forced(toy):
    toy.set_model_version_tag("toy", "2", "onnxserve.rolled_back", "flights: too slow")
    again = (
        r"version 2 is not promoted to Production, .* rolled back \(flights: too slow\).*--force "
        r"--why TEXT"
    )
    with pytest.raises(GateRefused, match=again):
        promote("toy", "2", "Production", actor="eva")
    assert actions() == [("refused", "2", "eva")]
    promote("toy", "2", "Staging")  # No endpoint follows Staging.
    assert promote("toy", "2", "Production", force=True, why="it is fast now").gate == UNEVALUATED
    assert "onnxserve.rolled_back" not in toy.get_model_version("toy", "2").tags


def test_version_in_place_without_a_verdict_gets_one(toy):
    assert promote("toy", "1", "Production").is_moved
    assert toy.get_model_version("toy", "1").tags["onnxserve.gate"] == UNEVALUATED


def test_policy_file_cannot_replace_the_model_policy(toy, tmp_path):
    (tmp_path / "easy.yaml").write_text("parity: any\nskip: [evaluation, robustness, budget]")
    with refused(InvalidConfig, "model toy", "already has a policy"):
        promote("toy", "4", "Production", policy_file=tmp_path / "easy.yaml")


APPROVED = (
    "skip: [evaluation, robustness, budget]\n"
    "approvals: {count: 2, groups: [risk], evaluation: optional}"
)


def approve_as(toy, version, *users):
    """Request the promotion to Production, and approve it with the last report of the
    gate.
    """
    policy = choose_policy("toy").policy
    place = StageOrAlias(stage="Production")
    entry = toy.get_model_version("toy", version)
    files = version_digest(f"models:/toy/{version}")
    subject = subject_of(entry, place, files, policy)
    with own_store() as store:
        request, _ = request_promotion(
            store, policy, subject, Person("eva", frozenset(), may_edit=True)
        )
        report = MlflowClient().download_artifacts(
            request.report.partition("/")[0], "gate_report.html"
        )
        seen = hashlib.sha256(Path(report).read_bytes()).hexdigest()
        for user in users:
            approve(
                store,
                policy,
                subject,
                Person(user, frozenset({"risk"}), may_edit=False),
                report=seen,
            )


@pytest.mark.parametrize(
    ("version", "force"), [pytest.param("2", False, marks=pytest.mark.long), ("4", True)]
)
def test_forced_promotion_needs_approvals(version, force, toy):
    toy.set_registered_model_tag("toy", "onnxserve.gate.policy", APPROVED)
    for users, missing in ((), "2 of 2"), (("ada",), "1 of 2"):
        if users:
            approve_as(toy, version, *users)
        with refused(
            GateRefused,
            missing,
            "risk",
            *users,
            f"onnxserve promote models:/toy/{version} --to Production --request",
        ):
            promote("toy", version, "Production", force=force, why="a drill")
        assert stages(toy)[1] == "Production"
        assert toy.get_model_version("toy", version).tags["onnxserve.gate"] in (
            "failed",
            UNEVALUATED,
        )
        assert events()[-1].action == "refused"
        assert events()[-1].version == version
    approve_as(toy, version, "bob")
    assert promote("toy", version, "Production", force=force, why="a drill").is_moved
    # The version is already there.
    promote("toy", version, "Production", force=force, why="a drill")
    toy.transition_model_version_stage("toy", version, "Archived")
    with refused(GateRefused, "2 of 2"):
        promote("toy", version, "Production", force=force, why="a drill")
