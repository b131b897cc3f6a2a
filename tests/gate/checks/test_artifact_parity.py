from pathlib import Path
from typing import Literal

import pytest

from mlflow_deploy_plugin.gate.checks.artifact import check_parity
from mlflow_deploy_plugin.gate.policy import GatePolicy
from mlflow_deploy_plugin.runtime import read_artifact, read_served_artifact
from tests.support.classifiers import write_classifier


@pytest.mark.parametrize(
    ("state", "wanted", "verdict"),
    [
        ("proven", "proven", "passed"),
        ("warned", "proven", "failed"),
        ("no-original", "proven", "failed"),
        ("warned", "warned", "passed"),
        ("no-original", "warned", "failed"),
        ("no-original", "any", "passed"),
    ],
)
def test_the_policy_says_how_much_has_to_be_known(
    state: str, wanted: Literal["proven", "warned", "any"], verdict: str, tmp_path: Path
) -> None:
    artifact = read_artifact(write_classifier(tmp_path / "model", parity=state))
    result = check_parity(artifact, GatePolicy(parity=wanted))
    assert result.state == verdict
    assert state in result.reason
    assert ("the policy asks for" in result.reason) == (verdict == "failed")


def test_what_has_no_onnx_form_answers_for_itself(tmp_path: Path) -> None:
    (tmp_path / "MLmodel").write_text("flavors: {python_function: {loader_module: json}}")
    result = check_parity(read_served_artifact(tmp_path), GatePolicy())
    assert (result.state, result.reason) == ("skipped", "it has no ONNX form: the original itself answers")
