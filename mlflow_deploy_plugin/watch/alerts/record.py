"""Alerts in the store. A message is due when an alert begins, becomes 1.5 times as bad,
lasts for the repeat interval, or ends. A change without a sign of harm is an alert
whose beginning, new columns and end are told.
"""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Literal

from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.core.messages import join_names, one_line
from mlflow_deploy_plugin.core.registry.approved_files import ChangedFiles
from mlflow_deploy_plugin.core.registry.console import console_page
from mlflow_deploy_plugin.core.settings import Settings
from mlflow_deploy_plugin.core.spec.monitors import MonitorSpec
from mlflow_deploy_plugin.core.store.alerts import Alert, Alerts
from mlflow_deploy_plugin.core.store.store import Store
from mlflow_deploy_plugin.core.store.tables import Json
from mlflow_deploy_plugin.watch.alerts.send import without_markup
from mlflow_deploy_plugin.watch.result import NO_EFFECT, OPEN, UNDECIDED, MonitorResult

AlertEvent = Literal["firing", "changed", "worse", "still", "resolved", "failing", "said"]
_WORSE = 1.5
_MOST_FINDINGS = 5
_LONGEST_TEXT = 400
_log = logging.getLogger(__name__)


def record_result(
    store: Store,
    settings: Settings,
    result: MonitorResult,
    spec: MonitorSpec,
) -> None:
    """Record a judged window, which begins, continues, worsens or ends an alert. An
    undecided window has no effect.
    """
    alerts = Alerts(store)
    now = store.now()
    endpoint = result.endpoint
    monitor = result.monitor
    content = _result_content(result, spec)
    if result.state in OPEN:
        repeat = timedelta(seconds=settings.alert_repeat_seconds)
        event: AlertEvent = "firing" if result.is_alarm else "changed"
        alerts.change(content.fingerprint, lambda before: fire(before, content, now, repeat, event))
    elif result.state not in UNDECIDED:
        alerts.change(content.fingerprint, lambda before: resolve(before, content, now))
    recovered = AlertContent(
        _failing_fingerprint(endpoint, monitor),
        endpoint,
        monitor,
        lines=("the monitor works again",),
        link=content.link,
    )
    # The judged window also ends the alert about a failing monitor.
    alerts.change(recovered.fingerprint, lambda before: resolve(before, recovered, now))


def record_failure(
    store: Store,
    settings: Settings,
    endpoint: str,
    monitor: str,
    reason: str,
) -> None:
    """Record that a monitor could not be run. The next judged window ends this
    alert.
    """
    _log.warning("%s, monitor %s failed: %s", endpoint, monitor, reason)
    now = store.now()
    content = AlertContent(
        _failing_fingerprint(endpoint, monitor),
        endpoint,
        monitor,
        lines=(f"{endpoint}: the monitor fails: {_short(reason)}",),
        next=_next_line(endpoint, f"onnxserve monitor list {endpoint}"),
        tags=_channel_tags(store, endpoint, monitor),
    )
    repeat = timedelta(seconds=settings.alert_repeat_seconds)
    Alerts(store).change(
        content.fingerprint,
        lambda before: fire(before, content, now, repeat, event="failing"),
    )


def resolve_orphaned(store: Store) -> None:
    """End alerts of monitors or endpoints that no longer exist."""
    open_alerts = Alerts(store).open()
    if not open_alerts:
        return
    monitors = {entry.name: entry.spec.monitors for entry in store.endpoints()}
    unreadable = {endpoint.name for endpoint in store.unreadable()}
    for alert in open_alerts:
        is_known = alert.monitor in monitors.get(alert.endpoint, {})
        if not is_known and alert.endpoint not in unreadable:
            end_alert(store, alert, "the monitor was removed")


def end_alert(store: Store, alert: Alert, line: str) -> None:
    """End a firing alert without a window, with this line as the message."""
    order = alert.detail.get("order", "")
    content = AlertContent(
        alert.fingerprint,
        alert.endpoint,
        alert.monitor,
        order,
        lines=(_short(line),),
    )
    Alerts(store).change(
        alert.fingerprint,
        partial(resolve, content=content, now=store.now()),
    )


def announce(
    store: Store,
    endpoint: str,
    monitor: str,
    text: str,
    link: str = "",
) -> None:
    """Record a message that is sent once and does not end, such as a version that waits
    for approval.
    """
    now = store.now()
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    content = AlertContent(
        f"{endpoint}/{monitor}/said/{digest}",
        endpoint,
        monitor,
        lines=(text,),
        link=link,
        tags=_channel_tags(store, endpoint, monitor),
    )
    Alerts(store).add_once(content.new_alert("said", now))


def announce_request(
    store: Store,
    model: str,
    text: str,
    link: str,
    step: str,
    request: Json,
) -> None:
    """Record a message, which is sent once, about the request for a promotion of the
    model, in place of an endpoint.

    The detail `request` identifies the request, so that the message is dropped if the
    request ends first.
    """
    now = store.now()
    content = AlertContent(
        f"request/{model}/{now.isoformat()}",
        model,
        monitor="",
        lines=(_short(text),),
        link=link,
        next=step,
    )
    alert = content.new_alert("said", now)
    Alerts(store).add_once(
        replace(
            alert,
            detail={**alert.detail, "request": request},
        )
    )


def announce_changed_files(store: Store, changed: ChangedFiles) -> None:
    """Record a message, which is sent once per digest, that the files of a version in a
    gated place have changed, or that the version moved there past MLflow's server.
    """
    model = changed.model
    version = changed.version
    if changed.now:
        compared = f"sha256 {changed.now[:12]}, recorded {changed.recorded[:12]}"
    else:
        compared = "they cannot be read"
    fingerprint = f"files/{model}/{version}/{changed.place}/{changed.now[:12]}"
    text = (
        f"the files of {model} version {version}, which is in {changed.place}, are no longer the "
        f"files that the gate let in ({compared}). Servers that have the version keep serving the "
        "earlier files"
    )
    step = (
        f"restore the files, or promote another version: onnxserve audit history --model {model} "
        "shows the moves"
    )
    if changed.is_outside:
        fingerprint = f"outside/{model}/{version}/{changed.place}"
        text = (
            f"{model} version {version} is in {changed.place}, which the gate policy names, but "
            "it did not move there through MLflow's server with onnxserve"
        )
        step = (
            f"move the version that belongs there, or judge this one: onnxserve gate "
            f"models:/{model}/{version}, then onnxserve promote … --to {changed.place}"
        )
    content = AlertContent(
        fingerprint,
        model,
        monitor="",
        lines=(_short(text),),
        next=step,
    )
    Alerts(store).add_once(content.new_alert("said", store.now()))


def _failing_fingerprint(endpoint: str, monitor: str) -> str:
    return f"{endpoint}/{monitor}/failing"


def _channel_tags(
    store: Store,
    endpoint: str,
    monitor: str,
) -> tuple[str, ...]:
    """Return the tags of the channels that receive the monitor's alerts; empty for all
    channels, also if the monitor is unknown or its spec cannot be read.
    """
    try:
        stored = store.endpoint(endpoint)
    except InvalidConfig:
        return ()
    if stored is None or monitor not in stored.spec.monitors:
        return ()
    return stored.spec.monitors[monitor].alert


@dataclass(frozen=True)
class AlertContent:
    """The content of an alert.

    Attributes:
        fingerprint: the identity of the alert.
        order: the window start and the revision. Content with an older order than the
            alert's last content has no effect.
        weight: the severity; a larger weight is worse.
        tags: the tags of the channels that receive the alert; empty for all channels.
        changes: the columns with an alarm or a change, as `alarm_key`.
    """

    fingerprint: str
    endpoint: str
    monitor: str
    order: str = ""
    weight: float = 1.0
    lines: Sequence[str] = ()
    link: str = ""
    next: str = ""
    tags: Sequence[str] = ()
    changes: Sequence[str] = ()

    def event_detail(
        self,
        event: AlertEvent,
        now: datetime,
        before: Alert | None,
    ) -> dict[str, object]:
        """Return the detail of an alert with a new event, which must be sent. Fields
        that this module does not write are kept.
        """
        detail = {} if before is None else before.detail
        return {
            **detail,
            **self.detail(),
            "news": event,
            "number": detail.get("number", 0) + 1,
            "since": now.isoformat(),
            "told_weight": self.weight,
            "changes": sorted(self.changes),
            "is_told": False,
        }

    def detail(self) -> dict[str, object]:
        """Return the content as fields of an alert's detail."""
        texts = {
            "lines": list(self.lines),
            "link": self.link,
            "next": self.next,
            "tags": list(self.tags),
        }
        return {"order": self.order, "weight": self.weight, **texts}

    def new_alert(self, event: AlertEvent, now: datetime) -> Alert:
        return Alert(
            self.fingerprint,
            self.endpoint,
            self.monitor,
            state=event if event in ("changed", "said") else "firing",
            first_at=now,
            last_at=now,
            detail=self.event_detail(event, now, None),
        )


def fire(
    before: Alert | None,
    content: AlertContent,
    now: datetime,
    repeat: timedelta,
    event: AlertEvent = "firing",
) -> Alert | None:
    """Return the alert after an alarm; None if the alarm is older than the alert's last
    window.

    A new alert has the `event`, and so has an alert that was firing and is "changed",
    or the reverse. A firing alert has an event if it is 1.5 times as bad as in its last
    message ("worse"), or if its last message is older than `repeat` ("still"). A
    changed alert has an event if another column has changed.
    """
    if before is None:
        return content.new_alert(event, now)
    last = _last_order(before, now)
    if content.order < last:
        return None
    is_new_window = content.order > last or not content.order
    updated = replace(
        before,
        state="changed" if event == "changed" else "firing",
        last_at=now,
        count=before.count + is_new_window,
    )
    told = {*before.detail.get("changes", ())}
    news: AlertEvent | None = None
    if updated.state != before.state:
        news = event
    elif event == "changed":
        news = None if told.issuperset(content.changes) else event
    elif content.weight >= _WORSE * before.detail.get("told_weight", 0.0):
        news = "worse"
    # A message from the future was sent under a wrong clock.
    elif before.told_at is not None and not timedelta() <= now - before.told_at < repeat:
        news = "still"
    # A change that has ended is told again when it returns.
    still_told = sorted(told.intersection(content.changes))
    detail = {**before.detail, **content.detail(), "changes": still_told}
    if news is not None:
        detail = content.event_detail(news, now, before)
    return replace(updated, detail=detail)


def resolve(before: Alert | None, content: AlertContent, now: datetime) -> Alert | None:
    """Return the alert after a window without an alarm; None if the alert does not
    change.
    """
    if before is None or content.order < _last_order(before, now):
        return None
    over = {"told_weight": 0.0, "tags": before.detail.get("tags", [])}
    detail = content.event_detail("resolved", now, before) | over
    return replace(before, state="resolved", last_at=now, detail=detail)


def _last_order(before: Alert, now: datetime) -> str:
    """Return the order of the alert's newest window; empty if the window begins in the
    future.
    """
    order: str = before.detail.get("order", "")
    return order if order <= now.isoformat() else ""


def _result_content(result: MonitorResult, spec: MonitorSpec) -> AlertContent:
    """Return the content of an alert about a judged window. Its weight is the sum of
    the weights of the alarms.
    """
    alarms = [alarm for alarm in result.findings if alarm.is_open]
    if result.model:
        answered = f"{result.model} version {result.version}"
    else:
        answered = "no version"
    lines = [f"{result.endpoint}, {answered}, {result.window}: {result.state}"]
    lines += filter(None, [_short(result.estimate)])
    if result.reason and not alarms:  # The reason repeats the first alarm, if any.
        lines.append(_short(result.reason))
    told = [alarm for alarm in alarms if not alarm.has_no_effect]
    for alarm in told[:_MOST_FINDINGS]:
        subject = alarm.subject
        if alarm.segment:
            subject += f" [{alarm.segment}]"
        line = f"- {_short(subject)}, {alarm.check}"
        if alarm.measure:
            line += f", {alarm.measure}"
        if alarm.value_text and alarm.threshold_text:
            line += f" {alarm.value_text} (threshold {alarm.threshold_text})"
        explanation = "; ".join(filter(None, [alarm.history, alarm.reason]))
        if explanation:
            line += f": {_short(explanation)}"
        lines.append(line)
    if len(told) > _MOST_FINDINGS:
        lines.append(f"and {len(told) - _MOST_FINDINGS} more")
    quiet = dict.fromkeys(alarm.title for alarm in alarms if alarm.has_no_effect)
    if quiet:
        lines.append(_short(f"{NO_EFFECT}: {join_names(quiet)}"))
    budget = result.figures.get("false_alarms_per_year")
    if alarms and budget:
        lines.append(f"the budget of this monitor is {budget:.2g} false alarms per year")
    step = ""
    if result.state in OPEN:
        monitor = f"{result.endpoint} --monitor {result.monitor}"
        step = f"onnxserve monitor list {result.endpoint}"
        if spec.retrain:
            step = f"onnxserve retrain run {monitor}"
        if result.accept_command:
            step += f", {without_markup(_short(result.accept_command))}"
        step = _next_line(result.endpoint, f"{step}, or onnxserve alert silence {monitor} --for 2h")
    return AlertContent(
        fingerprint=f"{result.endpoint}/{result.monitor}",
        endpoint=result.endpoint,
        monitor=result.monitor,
        order=f"{result.window.start.isoformat()} {result.revision:06}",
        weight=sum(alarm.weight for alarm in alarms) or 1.0,
        lines=lines,
        link=f"{result.run.url}/artifacts/report.html" if result.run.url else "",
        next=step,
        tags=spec.alert,
        changes=result.evidence.alarms,
    )


def _next_line(endpoint: str, commands: str) -> str:
    """Return the line about the next step, with the endpoint's page if the console has
    an address.
    """
    page = console_page(endpoint=endpoint)
    if page:
        return f"next ({page}): {commands}"
    return f"next: {commands}"


def _short(text: str) -> str:
    """Return the text as a single short line, because column names and categories may
    have any length and content.
    """
    line = one_line(text)
    if len(line) <= _LONGEST_TEXT:
        return line
    return f"{line[: _LONGEST_TEXT - 1]}…"
