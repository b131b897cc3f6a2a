import json
import re
from datetime import UTC, datetime

import pytest

from mlflow_deploy_plugin.core.registry.policy import GatePolicy
from mlflow_deploy_plugin.promote.gate.verdict import (
    CheckResult,
    GateVerdict,
    ReportTable,
    verdict_as_html,
    verdict_as_json,
)

PASSED = CheckResult("parity", "passed", "the ONNX form is proven")
SKIPPED = CheckResult("budget", "skipped", "the policy skips it")
EVALUATED = CheckResult("evaluation", "passed", "0.0000 better")
FAILED = CheckResult("evaluation", "failed", "worse by more than the margin of 0.0100")


@pytest.mark.parametrize(
    ("checks", "state", "reason"),
    [
        ((), "passed without an evaluation", "checked: nothing"),
        (
            (PASSED, SKIPPED),
            "passed without an evaluation",
            "checked: parity; not checked: budget: the policy skips it",
        ),
        ((PASSED, EVALUATED), "passed", "checked: parity, evaluation"),
        (
            (PASSED, FAILED, SKIPPED),
            "failed",
            "evaluation: worse by more than the margin of 0.0100",
        ),
    ],
)
def test_state_and_reason_follow_the_checks(checks, state, reason):
    at = datetime(2026, 11, 21, tzinfo=UTC)
    verdict = GateVerdict("toy", "2", "ab12", "", at, checks, {}, "0123", "the defaults")
    assert verdict.state == state
    assert verdict.reason == reason


FIGURES = {"difference": -0.1, "difference_low": -0.2, "difference_high": 0.0, "margin": 0.01}


@pytest.fixture
def verdict():
    return GateVerdict(
        model="toy",
        version="2",
        digest="ab12",
        against="models:/toy/1",
        at=datetime(2026, 11, 20, 12, tzinfo=UTC),
        checks=(
            CheckResult("parity", "passed", "the ONNX form is proven"),
            CheckResult(
                "evaluation",
                "failed",
                "worse, <b>much</b>",
                FIGURES,
                ("a note",),
                ReportTable(("x",), (("1",),)),
            ),
            CheckResult("budget", "skipped", "the policy skips it"),
        ),
        policy=GatePolicy().model_dump(mode="json"),
        policy_digest="abc",
        policy_from="the defaults",
    )


def test_page_is_self_contained_and_shows_failures(verdict):
    page = verdict_as_html(verdict)
    assert not re.search(r"(?i)<script|<link|src=|https?://", page)
    assert "2: <span class='failed'>failed</span>" in page
    assert "worse, &lt;b&gt;much&lt;/b&gt;" in page
    assert re.search("<line x1='66.7' x2='533.3' y1='26'", page)  # from -0.2 to 0.0
    assert "<circle cx='300.0'" in page  # -0.1
    assert "<line x1='510.0' x2='510.0'" in page  # the margin, -0.01
    assert page.count("<details open>") == 1
    assert "gated_stages:\n- Production\n" in page  # The syntax of a policy file.
    assert "<tr><th>metric<th>value</tr><tr><td class=n>difference<td class=n>-0.1</tr>" in page


def test_infinite_interval_is_not_drawn(verdict):
    figures = {**FIGURES, "difference_low": float("-inf")}
    checks = (CheckResult("evaluation", "failed", "no", figures),)
    assert "<svg" not in verdict_as_html(GateVerdict(**{**vars(verdict), "checks": checks}))


def test_json_has_verdict_and_figures(verdict):
    document = json.loads(json.dumps(verdict_as_json(verdict)))
    assert document["state"] == "failed"
    assert document["reason"] == "evaluation: worse, <b>much</b>"
    assert document["at"] == "2026-11-20T12:00:00+00:00"
    assert document["checks"][1]["figures"] == FIGURES
    assert document["digest"] == "ab12"
    assert document["policy"]["parity"] == "proven"
