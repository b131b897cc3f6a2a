import pytest
from mlflow import MlflowClient

from mlflow_deploy_plugin.core.errors import NotFound
from mlflow_deploy_plugin.core.registry.tags import (
    ERROR_TAG,
    GATE_DIGEST_TAG,
    GATE_REASON_TAG,
    GATE_TAG,
    GateStatus,
    gate_status_of,
    names_dataset,
    tag_version,
)
from tests.support.refusals import refused
from tests.support.tracking import tracking_at


def test_a_version_carries_the_tag(store):
    reason = "it does not load"
    tag_version("tiny", "3", ERROR_TAG, reason)
    assert MlflowClient().get_model_version("tiny", "3").tags["onnxserve.error"] == reason


def test_a_version_that_is_not_there_is_named(store):
    with refused(NotFound, "model tiny version 77"):
        tag_version("tiny", "77", ERROR_TAG, "x")


def test_a_server_that_does_not_have_a_version_is_quoted_without_its_error_code(mlflow_server):
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
def test_a_version_has_passed_its_gate_or_was_forced_past_it(tags, status):
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
def test_the_labelled_rows_of_a_policy_are_found(policy, is_named):
    assert names_dataset(policy) is is_named


@pytest.mark.parametrize(
    ("state", "remedy"), [("passed", "onnxserve gate"), ("forced", "onnxserve promote --force")]
)
def test_a_verdict_that_records_no_digest_does_not_count_and_names_the_remedy(state, remedy):
    status = gate_status_of({GATE_TAG: state})
    assert (status.passed, status.state) == (False, "")
    assert remedy in status.reason


def test_a_verdict_counts_for_the_files_that_were_judged():
    passed = gate_status_of({GATE_TAG: "passed", GATE_DIGEST_TAG: "ab"})
    assert passed.on_files("ab") is passed
    on_others = passed.on_files("cd")
    assert (on_others.passed, on_others.state) == (False, "")
    assert "onnxserve gate" in on_others.reason
    never = gate_status_of({})
    assert never.on_files("cd") is never
