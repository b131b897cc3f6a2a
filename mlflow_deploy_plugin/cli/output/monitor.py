"""Monitors and their results, as lines for people and as JSON for programs."""

from collections.abc import Iterator
from typing import Any

from mlflow_deploy_plugin.cli.output.terminal import align_columns
from mlflow_deploy_plugin.controller import EvaluatedWindow, MonitorOverview
from mlflow_deploy_plugin.inference_log import Window
from mlflow_deploy_plugin.monitoring import to_document
from mlflow_deploy_plugin.store import MonitorWindow

MONITOR_HEAD = ("ENDPOINT", "MONITOR", "KIND", "EVERY", "STATE", "LAST WINDOW", "VERDICT", "NEXT DUE (UTC)")
_SHOWN = 8


def monitor_row(one: MonitorOverview) -> tuple[str, ...]:
    """Return the cells below `MONITOR_HEAD`."""
    last = str(Window(one.last.start, one.last.end)) if one.last else "-"
    due = f"{one.next_due:%Y-%m-%d %H:%M}" if one.next_due else "-"
    by_hand = " (by hand)" if one.last and one.last.by_hand else ""
    verdict = f"{one.last.verdict}{by_hand}" if one.last else "-"
    return one.endpoint, one.monitor, one.spec.kind, one.spec.every, one.status, last, verdict, due


def monitor_document(one: MonitorOverview) -> dict[str, Any]:
    """Return a monitor as JSON; times are in ISO 8601."""
    return {
        "endpoint": one.endpoint,
        "monitor": one.monitor,
        "kind": one.spec.kind,
        "every": one.spec.every,
        "schedule": one.spec.schedule,
        "state": one.status,
        "why": one.why,
        "paused_by": one.state.paused_by,
        "consecutive": one.state.consecutive,
        "next_due": one.next_due.isoformat() if one.next_due else None,
        "given_up": one.given_up,
        "last": _window_document(one.last) if one.last else None,
        "open": _window_document(one.open) if one.open else None,
    }


def _window_document(window: MonitorWindow) -> dict[str, Any]:
    return {
        "start": window.start.isoformat(),
        "end": window.end.isoformat(),
        "revision": window.revision,
        "by_hand": window.by_hand,
        "state": window.state,
        "verdict": window.verdict,
        "reason": window.reason,
        "rows": window.rows,
        "attempts": window.attempts,
        "run_id": window.run_id,
        "run_url": window.run_url,
    }


def result_document(window: MonitorWindow, evaluated: EvaluatedWindow) -> dict[str, Any]:
    """Return the result of a window as JSON, with the window as the store has it."""
    result = evaluated.result
    return {
        "endpoint": result.endpoint,
        "monitor": result.monitor,
        "kind": result.kind,
        "model": result.model,
        "version": result.version,
        **_window_document(window),
        "findings": to_document(result)["findings"],
        "figures": dict(window.figures),
        "notes": list(result.notes),
    }


def result_lines(window: MonitorWindow, evaluated: EvaluatedWindow) -> Iterator[str]:
    """Yield the lines of `monitor run`: the verdict, the worst findings, and the report's address."""
    result = evaluated.result
    revision = f" (revision {window.revision})" if window.revision > 1 else ""
    yield f"{result.endpoint} {result.monitor} {result.window}{revision}: {result.state}"
    model = f"model {result.model} version {result.version}, " if result.model else ""
    yield f"  {model}{result.rows:,} rows"
    if result.reason:
        yield f"  {result.reason}"
    rows = []
    own = [finding for finding in result.findings if finding.reason != result.reason]
    for finding in own[:_SHOWN]:
        subject = f"{finding.subject} ({finding.segment})" if finding.segment else finding.subject
        value = "" if finding.value is None else f"{finding.value:.4g}"
        threshold = "" if finding.threshold is None else f"threshold {finding.threshold:.4g}"
        why = finding.history or ("" if finding.value is not None else finding.reason)
        shown = finding.history if finding.since else f"{finding.state}{f': {why}' if why else ''}"
        rows.append((f"  {subject}", finding.check, value, threshold, shown))
    if rows:
        yield from align_columns(rows)
    if len(own) > _SHOWN:
        yield f"  and {len(own) - _SHOWN} more findings, in the report"
    for note in result.notes:
        yield f"  note: {note}"
    yield f"  report: {evaluated.run.url or f'run {evaluated.run.run_id} in experiment {evaluated.run.experiment}'}"
