from datetime import UTC, datetime

import pytest

from mlflow_deploy_plugin.gate.verdict import CheckResult, GateVerdict

PASSED = CheckResult("parity", "passed", "the ONNX form is proven")
SKIPPED = CheckResult("budget", "skipped", "the policy skips it")
FAILED = CheckResult("evaluation", "failed", "worse by more than the margin of 0.0100")


@pytest.mark.parametrize(
    ("checks", "state", "reason"),
    [
        ((), "passed", "checked: nothing"),
        ((PASSED, SKIPPED), "passed", "checked: parity; not checked: budget: the policy skips it"),
        ((PASSED, FAILED, SKIPPED), "failed", "evaluation: worse by more than the margin of 0.0100"),
    ],
)
def test_one_failed_check_fails_the_version_and_is_its_reason(
    checks: tuple[CheckResult, ...], state: str, reason: str
) -> None:
    verdict = GateVerdict("toy", "2", "", datetime(2026, 11, 21, tzinfo=UTC), checks, {}, "0123", "the defaults")
    assert (verdict.state, verdict.reason) == (state, reason)
