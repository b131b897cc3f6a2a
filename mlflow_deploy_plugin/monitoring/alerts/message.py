"""What a channel is sent: the news of one endpoint, as plain text."""

from collections.abc import Sequence
from typing import Literal

from mlflow_deploy_plugin.monitoring.alerts.channels import ChannelMessage
from mlflow_deploy_plugin.monitoring.alerts.lifecycle import AlertContent
from mlflow_deploy_plugin.monitoring.result import Finding, MonitorResult
from mlflow_deploy_plugin.store.alerts import Alert

_MOST_FINDINGS, _LONGEST_TEXT = 5, 400
_HEADS = {
    "firing": "Alarm",
    "worse": "Worse",
    "still": "Still",
    "failing": "Failing",
    "resolved": "Over",
    "said": "For you",
}
_KINDS: dict[str, Literal["info", "success", "warning", "failure"]] = {
    "firing": "failure",
    "worse": "failure",
    "still": "failure",
    "failing": "warning",
    "resolved": "success",
    "said": "info",
}
_GRAVITY = ("failure", "warning", "info", "success")


def build_message(alerts: Sequence[Alert]) -> ChannelMessage:
    """One message for all of them, the gravest first; they are of one endpoint."""
    ordered = sorted(alerts, key=lambda alert: (_GRAVITY.index(_kind(alert)), alert.monitor, alert.id))
    parts = ["\n".join([_head(alert), *alert.detail["lines"], *_link(alert)]) for alert in ordered]
    first = ordered[0]
    more = f" and {len(ordered) - 1} more" if len(ordered) > 1 else ""
    return ChannelMessage(f"onnxserve: {first.endpoint}: {_head(first)}{more}", "\n\n".join(parts), _kind(first))


def result_content(result: MonitorResult, run_url: str, tags: Sequence[str]) -> AlertContent:
    """What there is to tell of a judged window."""
    alarms = [finding for finding in result.findings if finding.is_alarm]
    answered = f"{result.model} version {result.version}" if result.model else "no version"
    lines = [f"{result.endpoint}, {answered}, {result.window}: {result.state}"]
    if result.reason:
        lines.append(_short(result.reason))
    lines += [_line(finding) for finding in alarms[:_MOST_FINDINGS]]
    if len(alarms) > _MOST_FINDINGS:
        lines.append(f"and {len(alarms) - _MOST_FINDINGS} more")
    return AlertContent(
        fingerprint=f"{result.endpoint}/{result.monitor}",
        endpoint=result.endpoint,
        monitor=result.monitor,
        order=f"{result.window.start.isoformat()} {result.revision:06}",
        weight=sum(_weight(finding) for finding in alarms) or 1.0,
        lines=lines,
        link=f"{run_url}/artifacts/report.html" if run_url else "",
        tags=tags,
    )


def _line(finding: Finding) -> str:
    name = _short(f"{finding.subject} [{finding.segment}]" if finding.segment else finding.subject)
    figures = ""
    if finding.value is not None and finding.threshold is not None and finding.check != "presence":
        figures = f" {finding.value:.4g} (threshold {finding.threshold:.4g})"
    why = _short("; ".join(filter(None, (finding.history, finding.reason))))
    return f"- {name}, {finding.check}{figures}{f': {why}' if why else ''}"


def _short(text: str) -> str:
    """In one line: columns and categories have names of any length, with anything in them."""
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST_TEXT else f"{line[: _LONGEST_TEXT - 1]}…"


def _weight(finding: Finding) -> float:
    """How far beyond its threshold it is: 1 at the threshold, and no more than ten times that."""
    if finding.value is None or not finding.threshold:
        return 1.0
    ratio = abs(finding.value / finding.threshold)
    return min(max(ratio, 1 / ratio if ratio else 10.0), 10.0)


def _head(alert: Alert) -> str:
    return f"{_HEADS[alert.detail['news']]}: monitor {alert.monitor}"


def _link(alert: Alert) -> list[str]:
    return [alert.detail["link"]] if alert.detail.get("link") else []


def _kind(alert: Alert) -> Literal["info", "success", "warning", "failure"]:
    return _KINDS[alert.detail["news"]]
