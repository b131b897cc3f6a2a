"""The result of a check, the verdict on a version from all checks, and the report in
JSON and HTML.
"""

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from mlflow_deploy_plugin.core.registry.tags import PASSED_WITHOUT_EVALUATION, VerdictState

NO_CURRENT = "there is no version to compare it with"
CheckState = Literal["passed", "failed", "skipped"]
MAX_FIGURE = 1e300
"""MLflow stores infinity as the largest float. Figures above this limit are not
logged.
"""


@dataclass(frozen=True)
class ReportTable:
    names: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]


def state_of(failures: Collection[str]) -> CheckState:
    return "failed" if failures else "passed"


@dataclass(frozen=True)
class CheckResult:
    """The result of a check.

    Attributes:
        reason: one line with the decisive figures.
        figures: the values that are logged as metrics.
    """

    name: str
    state: CheckState
    reason: str
    figures: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    table: ReportTable | None = None


@dataclass(frozen=True)
class GateVerdict:
    """The gate's verdict on a version.

    `digest` covers all judged files (`core.mlmodel.combine_hashes`). `against` is the
    compared version, or empty.
    """

    model: str
    version: str
    digest: str
    against: str
    at: datetime
    checks: tuple[CheckResult, ...]
    policy: Mapping[str, Any]
    policy_digest: str
    policy_from: str

    @property
    def passed(self) -> bool:
        return not self._checks("failed")

    def _checks(self, state: CheckState) -> list[CheckResult]:
        return [check for check in self.checks if check.state == state]

    @property
    def state(self) -> VerdictState:
        """The state of the verdict. A verdict without a passed evaluation proves
        less.
        """
        if not self.passed:
            return "failed"
        if any(check.name == "evaluation" for check in self._checks("passed")):
            return "passed"
        return PASSED_WITHOUT_EVALUATION

    @property
    def reason(self) -> str:
        """One line with the failed checks or, if no check failed, with the passed and
        the skipped checks.
        """
        if failed := self._checks("failed"):
            return "; ".join(f"{check.name}: {check.reason}" for check in failed)
        checked = ", ".join(check.name for check in self._checks("passed")) or "nothing"
        skipped = [
            f"not checked: {check.name}: {check.reason}" for check in self._checks("skipped")
        ]
        return "; ".join([f"checked: {checked}", *skipped])


def verdict_as_json(verdict: GateVerdict) -> dict[str, object]:
    document = asdict(verdict)
    document["at"] = verdict.at.isoformat(timespec="seconds")
    return {"state": verdict.state, "reason": verdict.reason, **document}


def verdict_as_html(verdict: GateVerdict) -> str:
    """Return the verdict as a page without external resources, because MLflow shows it
    in a sandboxed frame.
    """
    policy = yaml.safe_dump(dict(verdict.policy), sort_keys=False)
    page = report_templates(Path(__file__).parent).get_template("report.html")
    return page.render(verdict=verdict, policy=policy, interval=_plot_positions)


def report_templates(folder: Path) -> Environment:
    """Return the templates of reports in a folder. The texts of a report are escaped,
    because they may be hostile.
    """
    return Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )


def _plot_positions(figures: Mapping[str, float]) -> dict[str, float] | None:
    """Return the x coordinates of the difference, its bounds, the margin and zero in a
    plot of width 600, which has a border of 20 and a tenth of the span on both sides.

    The result is None for a check without a comparison, or if a figure is too large.
    """
    if not {"difference", "margin"} <= figures.keys():
        return None
    bounds = {name: figures[name] for name in ("difference_low", "difference", "difference_high")}
    bounds |= {"margin": -figures["margin"], "zero": 0.0}
    if not all(abs(value) < MAX_FIGURE for value in bounds.values()):
        return None
    least = min(bounds.values())
    most = max(bounds.values())
    span = (most - least) or 1.0
    positions = {}
    for name, value in bounds.items():
        share = (value - least + span * 0.1) / (span * 1.2)
        positions[name] = round(20 + share * 560, 1)
    return positions
