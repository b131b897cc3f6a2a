"""What a check found, and the verdict over all of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

CheckState = Literal["passed", "failed", "skipped"]


@dataclass(frozen=True)
class ReportTable:
    """Figures that are read side by side."""

    names: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class CheckResult:
    """The outcome of one check.

    Attributes:
        reason: one line: what was found, with the figures that decided.
        figures: numbers by name, which become metrics of the run.
        notes: what a reader has to know beside it.
    """

    name: str
    state: CheckState
    reason: str
    figures: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    table: ReportTable | None = None


@dataclass(frozen=True)
class GateVerdict:
    """What the gate says of one version.

    Attributes:
        against: the version it was compared with, as models:/X/6; empty where nothing was served.
        policy: the fields of the policy; `policy_digest` tells it from others.
        policy_from: where the policy stands.
    """

    model: str
    version: str
    against: str
    at: datetime
    checks: tuple[CheckResult, ...]
    policy: Mapping[str, Any]
    policy_digest: str
    policy_from: str

    @property
    def passed(self) -> bool:
        return not any(check.state == "failed" for check in self.checks)

    @property
    def state(self) -> Literal["passed", "failed"]:
        return "passed" if self.passed else "failed"

    @property
    def reason(self) -> str:
        """One line: what failed; of a passed one, what was not looked at."""
        failed = [check for check in self.checks if check.state == "failed"]
        if failed:
            return "; ".join(f"{check.name}: {check.reason}" for check in failed)
        skipped = [f"{check.name}: {check.reason}" for check in self.checks if check.state == "skipped"]
        passed = ", ".join(check.name for check in self.checks if check.state == "passed")
        return "; ".join([f"checked: {passed or 'nothing'}", *(f"not checked: {one}" for one in skipped)])
