import pytest
from mlflow import MlflowClient

from mlflow_deploy_plugin.core.errors import NotFound
from mlflow_deploy_plugin.core.registry.tags import (
    ERROR_TAG,
    GATE_DIGEST_TAG,
    GATE_REASON_TAG,
    GATE_TAG,
    MAX_DESCRIPTION_LENGTH,
    GateStatus,
    gate_status_of,
    names_dataset,
    tag_version,
    with_description_section,
)
from tests.support.tracking import tracking_at


def test_version_is_tagged(store):
    reason = "it does not load"
    tag_version("tiny", "3", ERROR_TAG, reason)
    assert MlflowClient().get_model_version("tiny", "3").tags["onnxserve.error"] == reason


def test_missing_version_error_omits_error_code(mlflow_server):
    with tracking_at(mlflow_server.url), pytest.raises(NotFound) as missing:
        tag_version("nobody", "77", ERROR_TAG, "x")
    assert missing.value.message.startswith(
        "model nobody version 77 does not exist: Registered Model "
    )


@pytest.mark.parametrize(
    ("tags", "status"),
    [
        ({}, GateStatus(False, "", "it has not been through the gate")),
        (
            {GATE_TAG: "passed", GATE_REASON_TAG: "checked: parity", GATE_DIGEST_TAG: "ab"},
            GateStatus(True, "passed", "checked: parity", digest="ab"),
        ),
        (
            {GATE_TAG: "forced", GATE_DIGEST_TAG: "ab"},
            GateStatus(True, "forced", "the verdict of the gate is forced", digest="ab"),
        ),
        ({GATE_TAG: "failed"}, GateStatus(False, "failed", "the verdict of the gate is failed")),
        ({GATE_TAG: "Passed"}, GateStatus(False, "Passed", "the verdict of the gate is Passed")),
    ],
)
def test_gate_status_is_read_from_tags(tags, status):
    assert gate_status_of(tags) == status


@pytest.mark.parametrize(
    ("policy", "is_named"),
    [
        ("", False),
        ("evaluation: {margin: 0.1}", False),
        ("evaluation: {dataset: rows.csv, target: y}", True),
        ("skip: [evaluation]\nevaluation: {dataset: rows.csv, target: y}", True),
        ("evaluation: [", True),  # who knows
        ("evaluation: rows.csv", True),
    ],
)
def test_dataset_of_policy_is_found(policy, is_named):
    assert names_dataset(policy) is is_named


@pytest.mark.parametrize(
    ("state", "remedy"), [("passed", "onnxserve gate"), ("forced", "onnxserve promote --force")]
)
def test_verdict_without_digest_does_not_count(state, remedy):
    status = gate_status_of({GATE_TAG: state})
    assert (status.passed, status.state) == (False, "")
    assert remedy in status.reason


def test_verdict_counts_for_judged_files():
    passed = gate_status_of({GATE_TAG: "passed", GATE_DIGEST_TAG: "ab"})
    assert passed.on_files("ab") is passed
    on_others = passed.on_files("cd")
    assert (on_others.passed, on_others.state) == (False, "")
    assert "onnxserve gate" in on_others.reason
    never = gate_status_of({})
    assert never.on_files("cd") is never


HEAD = ["| monitor | verdict |", "| --- | --- |"]
DRIFT = [*HEAD, "| daily | drift |"]
CALM = [*HEAD, "| daily | no drift |"]


@pytest.mark.parametrize(
    "own", ["", "Trained on a Monday.", "Two\n\nparagraphs.\n\n| a | table |\n| --- | --- |"]
)
def test_section_is_appended_and_replaced(own):
    first = with_description_section(own, DRIFT)
    second = with_description_section(first, CALM)

    assert first.startswith(own)
    assert first == first.strip()
    assert DRIFT[-1] in first
    assert second == with_description_section(own, CALM)
    assert with_description_section(second, []) == own


def test_text_after_section_is_kept():
    changed = with_description_section("Before.", DRIFT) + "\n\nAfter."

    again = with_description_section(changed, CALM)

    assert again.startswith("Before.\n\nAfter.\n\n")
    assert DRIFT[-1] not in again


def test_damaged_section_loses_no_text():
    broken = with_description_section("Before.", DRIFT).replace("<!-- onnxserve: end -->", "Mine.")

    assert with_description_section(broken, []).split() == ["Before.", "Mine."]


def test_section_fits_remaining_length():
    lines = [*HEAD, *(f"| monitor {number} | {'x' * 400} |" for number in range(50))]

    bounded = with_description_section("Trained on a Monday.", lines)
    full = with_description_section("y" * (MAX_DESCRIPTION_LENGTH - 10), lines)

    assert len(bounded) <= MAX_DESCRIPTION_LENGTH
    assert lines[len(HEAD) + 5] in bounded
    assert full == "y" * (MAX_DESCRIPTION_LENGTH - 10)
