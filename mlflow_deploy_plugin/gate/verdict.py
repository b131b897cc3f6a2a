"""The result of a check, the verdict over all checks of a version, and its report as JSON and as an HTML page."""

import html
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, Literal

import yaml

CheckState = Literal["passed", "failed", "skipped"]
MAX_FIGURE = 1e300  # MLflow stores infinity as the largest number there is, which looks like a figure
_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #666; --ok: #1a7f37; --bad: #cf222e; --skip: #8a6d00 }
@media (prefers-color-scheme: dark) { :root { --soft: #aaa; --ok: #3fb950; --bad: #ff7b72; --skip: #d29922 } }
body { font: 14px/1.45 system-ui, sans-serif; margin: 1rem 1.25rem; max-width: 60rem }
body { background: Canvas; color: CanvasText }
h1 { font-size: 1.25rem; margin: 0 0 .25rem } p { margin: .25rem 0 .75rem }
.passed { color: var(--ok) } .failed { color: var(--bad) } .skipped { color: var(--skip) }
b.passed, b.failed, b.skipped { white-space: nowrap }
table { border-collapse: collapse; width: 100%; margin: .25rem 0 .5rem }
th, td { text-align: left; padding: .25rem .75rem .25rem 0; border-bottom: 1px solid var(--line); vertical-align: top }
h1, td { overflow-wrap: anywhere } td:first-child { min-width: 6.5em } td.n { font-variant-numeric: tabular-nums }
details { margin: .25rem 0 } summary { cursor: pointer } small, .note { color: var(--soft) }
pre { white-space: pre-wrap; font-size: 12px } svg { display: block; max-width: 100%; margin: .5rem 0 }
svg text { font: 11px system-ui, sans-serif; fill: currentColor }
"""


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


def verdict_as_json(verdict: GateVerdict) -> dict[str, Any]:
    """Return the verdict as a JSON document."""
    document = asdict(verdict)
    document["at"] = verdict.at.isoformat(timespec="seconds")
    return {"state": verdict.state, "reason": verdict.reason, **document}


def verdict_as_html(verdict: GateVerdict) -> str:
    """Return the verdict as a page that loads nothing from elsewhere: MLflow shows it in a sandboxed frame."""
    against = f"compared with {verdict.against}" if verdict.against else "nothing was served to compare it with"
    title = f"{verdict.model} version {verdict.version}"
    policy = yaml.safe_dump(dict(verdict.policy), sort_keys=False)
    body = [
        f"<h1>{_text(title)}: <span class='{verdict.state}'>{verdict.state}</span></h1>",
        f"<p>{_text(against)}, {verdict.at.isoformat(timespec='seconds')}<br>"
        f"<small>policy: {_text(verdict.policy_from)} ({verdict.policy_digest})</small></p>",
        "<table><tr><th>check<th>verdict<th>why</tr>",
        *(
            f"<tr><td>{_text(check.name)}<td><b class='{check.state}'>{check.state}</b><td>{_text(check.reason)}</tr>"
            for check in verdict.checks
        ),
        "</table>",
        *(_section(check) for check in verdict.checks if check.figures or check.table or check.notes),
        f"<details><summary>Policy</summary><pre>{_text(policy)}</pre></details>",
    ]
    return (
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{_text(title)}</title>"
        f"<meta name='viewport' content='width=device-width'><style>{_STYLE}</style></head>"
        f"<body><main>{''.join(body)}</main></body></html>"
    )


def _section(check: CheckResult) -> str:
    inner = [f"<p class='note'>{_text(note)}</p>" for note in check.notes]
    if {"difference", "margin"} <= check.figures.keys():
        inner.append(_interval(check.figures))
    if check.table is not None and check.table.lines:
        inner.append(_table(check.table))
    if check.figures:
        lines = tuple((name.replace("_", " "), f"{value:.6g}") for name, value in check.figures.items())
        inner.append(_table(ReportTable(("metric", "value"), lines)))
    opened = " open" if check.state == "failed" else ""
    return f"<details{opened}><summary>{_text(check.name.capitalize())}</summary>{''.join(inner)}</details>"


def _table(table: ReportTable) -> str:
    head = "".join(f"<th>{_text(name)}" for name in table.names)
    rows = "".join(f"<tr>{''.join(f'<td class=n>{_text(cell)}' for cell in line)}</tr>" for line in table.lines)
    return f"<table><tr>{head}</tr>{rows}</table>"


def _interval(figures: Mapping[str, float]) -> str:
    """Draw the difference with its bounds and the margin, a dashed line: right of it is good enough."""
    low, middle, high, margin = (
        figures[name] for name in ("difference_low", "difference", "difference_high", "margin")
    )
    values = [low, middle, high, -margin, 0.0]
    if not all(abs(value) < MAX_FIGURE for value in values):
        return ""
    span = (max(values) - min(values)) or 1.0
    start = min(values) - span * 0.1

    def x(value: float) -> float:
        return round(20 + (value - start) / (span * 1.2) * 560, 1)

    state = "passed" if low >= -margin else "failed"
    return (
        "<svg viewBox='0 0 600 62' width='600' role='img' aria-label='difference with its interval and the margin'>"
        f"<line x1='{x(0)}' x2='{x(0)}' y1='8' y2='42' stroke='currentColor' opacity='.4'/>"
        f"<text x='{x(0)}' y='56' text-anchor='middle'>as served</text>"
        f"<line x1='{x(-margin)}' x2='{x(-margin)}' y1='8' y2='42' stroke='currentColor' stroke-dasharray='4 3'/>"
        f"<text x='{x(-margin)}' y='8' text-anchor='middle'>margin</text>"
        f"<g class='{state}' stroke='currentColor' stroke-width='3'>"
        f"<line x1='{x(low)}' x2='{x(high)}' y1='26' y2='26'/>"
        f"<circle cx='{x(middle)}' cy='26' r='4' fill='currentColor'/></g></svg>"
    )


def _text(value: object) -> str:
    return html.escape(str(value))
