from typing import Any

import pytest
from mlflow import MlflowClient

from mlflow_deploy_plugin.errors import NotFound
from mlflow_deploy_plugin.registry.tags import (
    ERROR_TAG,
    GATE_REASON_TAG,
    GATE_TAG,
    GateStatus,
    gate_status_of,
    tag_version,
)
from tests.support.services.mlflow_server import MlflowServer
from tests.support.tracking import tracking_at


def test_a_version_carries_the_tag(store: Any) -> None:
    tag_version("tiny", "3", ERROR_TAG, "it does not load")
    assert MlflowClient().get_model_version("tiny", "3").tags["onnxserve.error"] == "it does not load"


def test_a_version_that_is_not_there_is_named(store: Any) -> None:
    with pytest.raises(NotFound, match="model tiny version 77 does not exist"):
        tag_version("tiny", "77", ERROR_TAG, "x")


def test_a_server_that_does_not_have_a_version_is_quoted_without_its_error_code(mlflow_server: MlflowServer) -> None:
    with tracking_at(mlflow_server.url), pytest.raises(NotFound) as missing:
        tag_version("nobody", "77", ERROR_TAG, "x")
    assert missing.value.message.startswith("model nobody version 77 does not exist: Registered Model ")


@pytest.mark.parametrize(
    ("tags", "status"),
    [
        ({}, GateStatus(False, "", "it has not been through the gate")),
        ({GATE_TAG: "passed", GATE_REASON_TAG: "checked: parity"}, GateStatus(True, "passed", "checked: parity")),
        ({GATE_TAG: "forced"}, GateStatus(True, "forced", "the gate says forced")),
        ({GATE_TAG: "failed"}, GateStatus(False, "failed", "the gate says failed")),
        ({GATE_TAG: "Passed"}, GateStatus(False, "Passed", "the gate says Passed")),
    ],
)
def test_a_version_has_passed_its_gate_or_was_forced_past_it(tags: dict[str, str], status: GateStatus) -> None:
    assert gate_status_of(tags) == status
