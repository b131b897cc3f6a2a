"""The result of a check, and the verdict over all checks of a version."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

CheckState = Literal["passed", "failed", "skipped"]


@dataclass(frozen=True)
class ReportTable:
    """A table of the report; the cells are texts."""

    names: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class CheckResult:
    """The result of one check.

    Attributes:
        reason: one line with the figures that decided.
        figures: numbers by name, which become metrics of the run.
        notes: further sentences for the reader.
    """

    name: str
    state: CheckState
    reason: str
    figures: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    table: ReportTable | None = None


@dataclass(frozen=True)
class GateVerdict:
    """The gate's verdict on one version.

    Attributes:
        against: the version that it was compared with, as models:/X/6; empty if nothing was served.
        policy: the fields of the policy; `policy_digest` identifies them.
        policy_from: the place of the policy, for the reader.
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
        """One line: the failed checks or, for a passed version, the passed and the skipped ones."""
        failed = [check for check in self.checks if check.state == "failed"]
        if failed:
            return "; ".join(f"{check.name}: {check.reason}" for check in failed)
        skipped = [f"{check.name}: {check.reason}" for check in self.checks if check.state == "skipped"]
        passed = ", ".join(check.name for check in self.checks if check.state == "passed")
        return "; ".join([f"checked: {passed or 'nothing'}", *(f"not checked: {one}" for one in skipped)])
