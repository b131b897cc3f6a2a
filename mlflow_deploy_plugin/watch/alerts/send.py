"""Send due alerts: one message per endpoint and channel, retried until the channel
accepts it.

The store records which channel has received which event, so any process can continue. A
message that was sent but not recorded is sent again. Channels are configured for
Apprise. A channel's URL contains secrets, so it is neither logged nor stored, and
Apprise's own log, which quotes URLs, is disabled.
"""

import hashlib
import logging
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypedDict

from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.core.processes.child import backoff_seconds
from mlflow_deploy_plugin.core.registry.answers import bounded_answers
from mlflow_deploy_plugin.core.settings import Settings
from mlflow_deploy_plugin.core.store.alerts import Alert, Alerts, Silences
from mlflow_deploy_plugin.core.store.store import Store

if TYPE_CHECKING:
    from apprise import AppriseAsset, NotifyBase

_log = logging.getLogger(__name__)

GROUPING_DELAY = timedelta(seconds=5)
"""The time that an endpoint's alerts wait, so that the alerts of one round are sent
together.
"""
_LONGEST_PAUSE = timedelta(hours=1)
_MOST_TRIES = 30  # Thirty tries take more than a day.
_TRIES_AT_ONCE = 5
_CLAIM = timedelta(minutes=2)
_AT_ONCE = 8
_SECONDS = 20.0
MessageKind = Literal["info", "success", "warning", "failure"]
_EVENTS: Mapping[str, tuple[str, MessageKind]] = {
    "firing": ("Alarm", "failure"),
    "changed": ("Changed", "info"),
    "worse": ("Worse", "failure"),
    "still": ("Still", "failure"),
    "failing": ("Failing", "warning"),
    "resolved": ("Over", "success"),
    "said": ("For you", "info"),
}
_MARKUP = re.compile(r"(?<=@)(?=\w)|(?<=<)(?=!)|(?<=\])(?=\()|(?<=:)(?=//)")
"""Positions for a zero-width space that breaks mentions, links and images, because
Apprise does not escape Markdown.
"""
_GRAVITY = ("failure", "warning", "info", "success")


class _ChannelState(TypedDict, total=False):
    """The state of a channel: the number of the last event that it accepted, and the
    failed attempts since then.
    """

    number: int
    tries: int
    not_before: str


@dataclass(frozen=True)
class Channel:
    """A configured channel. The `id` is a digest of the URL, which contains secrets."""

    id: str
    name: str
    tags: frozenset[str]
    _service: "NotifyBase" = field(repr=False, compare=False)

    def takes(self, tags: Sequence[str]) -> bool:
        """Return True if the channel receives alerts with these tags. An alert without
        tags goes to every channel.
        """
        return not tags or bool(self.tags & {*tags}) or "always" in self.tags

    def send(self, title: str, body: str, kind: MessageKind) -> bool:
        """Send a plain text message and return True if the service accepted it within
        seconds. Does not raise.
        """
        import apprise  # The import takes a third of a second.

        _shut_log()
        notifier = apprise.Apprise(asset=_asset())
        notifier.add(self._service)
        try:
            with bounded_answers():
                sent = notifier.notify(
                    body=body,
                    title=title,
                    notify_type=kind,
                    body_format="text",  # HTML channels must not interpret names as markup.
                    timeout=_SECONDS,
                )
        except Exception:  # noqa: BLE001 - A plugin's error may contain the URL, so it is not raised.
            return False
        return bool(sent)


def read_channels(path: Path) -> list[Channel]:
    """Return the channels in a file in Apprise's YAML or text format; raise
    InvalidConfig without quoting the file.
    """
    import apprise

    _shut_log()
    if not os.path.isfile(path):  # `isfile` also returns False if the folder cannot be read.
        raise InvalidConfig(f"ONNXSERVE_ALERT_CONFIG: the file {path} does not exist")
    try:
        config = apprise.AppriseConfig(asset=_asset())
        services_in_file = apprise.Apprise(asset=_asset())
        is_read = config.add(str(path))
        services_in_file.add(config)
        services = list(services_in_file.find())
    except Exception as error:  # noqa: BLE001 - A plugin's error may contain the URL.
        raise InvalidConfig(
            f"ONNXSERVE_ALERT_CONFIG: {path} cannot be read: {type(error).__name__}",
        ) from None
    if not is_read or not services:
        raise InvalidConfig(f"ONNXSERVE_ALERT_CONFIG: {path} has no channel that Apprise supports")
    channels: dict[str, Channel] = {}
    for service in services:
        identity = hashlib.sha256(service.url(privacy=False).encode()).hexdigest()[:16]
        tags = frozenset(str(tag) for tag in service.tags)
        tag_text = f" ({', '.join(sorted(tags))})" if tags else ""
        service_name = service.service_name or "channel"
        name = f"{service_name}{tag_text} #{identity[:6]}"
        channels[identity] = Channel(identity, name, tags, service)
    return list(channels.values())


def _asset() -> "AppriseAsset":
    import apprise

    return apprise.AppriseAsset(
        app_id="onnxserve",
        app_desc="onnxserve",
        app_url="",
        async_mode=False,
    )


def _shut_log() -> None:
    """Disable the logs that would show secrets."""
    logging.getLogger("apprise").setLevel(logging.CRITICAL + 1)
    # At DEBUG, urllib3 logs paths, which contain secrets.
    connections = logging.getLogger("urllib3.connectionpool")
    if connections.isEnabledFor(logging.DEBUG):
        connections.setLevel(logging.INFO)


def send_until_accepted(
    store: Store,
    settings: Settings,
    endpoint: str,
    is_over: Callable[[Alert], bool],
) -> None:
    """Send the due alerts of an endpoint now, and repeat failed attempts for a few
    minutes.

    Later attempts are left to the controller. An alert for which `is_over` is true is
    dropped.
    """
    for tries in range(1, _TRIES_AT_ONCE + 1):
        send_due(store, settings, is_over=is_over, endpoint=endpoint)
        if tries == _TRIES_AT_ONCE or not _due_alerts(store, timedelta(0), endpoint):
            return
        time.sleep(_pause_seconds(tries) + 1)


def send_due(
    store: Store,
    settings: Settings,
    wait: timedelta = timedelta(0),
    is_over: Callable[[Alert], bool] = lambda alert: False,
    endpoint: str | None = None,
) -> int:
    """Send due alerts, and return the number of messages that channels have accepted.
    Failures are logged and retried with exponential backoff. Alerts of an endpoint are
    sent only when its newest alert is at least `wait` old.

    An alert for which `is_over` is true is dropped, because its message no longer
    matters. `endpoint` selects the alerts of one endpoint.
    """
    # Alerts that no longer matter are marked as sent.
    due = []
    for alert in _due_alerts(store, wait, endpoint):
        if is_over(alert):
            Alerts(store).change_by_id(
                alert.id,
                lambda old: replace(old, detail={**old.detail, "is_told": True}),
            )
        else:
            due.append(alert)
    if not due or settings.alert_config is None:
        return 0
    try:
        channels = read_channels(settings.alert_config)
    except InvalidConfig as error:
        _log_hourly(f"alerts cannot be sent: {error.message}", int(time.monotonic() // 3600))
        return 0
    now = store.now()

    def claim(alert: Alert) -> Alert | None:
        """Return the claimed alert; None if it was sent or another process sends it."""
        claimed_until = alert.detail.get("claimed_until", "")
        if alert.detail.get("is_told", True) or _is_ahead(claimed_until, now, _CLAIM):
            return None
        return replace(
            alert,
            detail={**alert.detail, "claimed_until": (now + _CLAIM).isoformat()},
        )

    # Another process has sent, or is sending, the alerts that cannot be claimed.
    changed = [Alerts(store).change_by_id(alert.id, claim) for alert in due]
    claimed = [alert for alert in changed if alert is not None]
    # A delivery has the alerts of an endpoint that the channel must receive now.
    planned: dict[tuple[str, str], _Delivery] = {}
    for alert, channel in product(claimed, channels):
        not_before = _channel_state(alert, channel).get("not_before", "")
        if _is_owed(alert, channel) and not _is_ahead(not_before, now, _LONGEST_PAUSE):
            key = alert.endpoint, channel.id
            planned.setdefault(key, _Delivery(channel)).alerts.append(alert)
    deliveries = list(planned.values())
    with ThreadPoolExecutor(_AT_ONCE, "alert") as pool:
        acceptances = list(pool.map(_Delivery.send, deliveries))
    for alert in claimed:
        outcomes = [
            (delivery.channel, is_accepted)
            for delivery, is_accepted in zip(deliveries, acceptances, strict=True)
            if alert in delivery.alerts
        ]
        _store_outcomes(store, alert, channels, outcomes)
    return sum(acceptances)


@dataclass(frozen=True)
class _Delivery:
    """The message that a channel receives about the alerts of one endpoint."""

    channel: Channel
    alerts: list[Alert] = field(default_factory=list)

    def send(self) -> bool:
        """Send the message, and return True if the channel accepted it."""
        # The most severe alert comes first.
        ordered = sorted(
            self.alerts,
            key=lambda alert: (_GRAVITY.index(_message_kind(alert)), alert.monitor, alert.id),
        )
        first = ordered[0]
        more = f" and {len(ordered) - 1} more" if len(ordered) > 1 else ""
        title = f"onnxserve: {without_markup(first.endpoint)}: {_headline(first)}{more}"
        paragraphs = []
        for alert in ordered:
            detail = alert.detail
            lines = [_headline(alert), *map(without_markup, detail["lines"])]
            lines += [detail.get("link") or "", detail.get("next") or ""]
            paragraphs.append("\n".join(filter(None, lines)))
        return self.channel.send(title, "\n\n".join(paragraphs), _message_kind(first))


@lru_cache(maxsize=8)
def _log_hourly(text: str, _hour: int) -> None:
    """Log an error at most once per hour, because every call finds the same error until
    it is corrected.
    """
    _log.error("%s", text)


def _due_alerts(
    store: Store,
    wait: timedelta,
    endpoint: str | None,
) -> list[Alert]:
    """Return the alerts (of one endpoint) that at least one channel has not received
    yet, except silenced alerts and endpoints whose newest alert is younger than `wait`.
    """
    now = store.now()
    recent = (alert for alert in Alerts(store).recent() if endpoint in (None, alert.endpoint))
    untold = [alert for alert in recent if not alert.detail.get("is_told", True)]
    if not untold:
        return []
    silences = Silences(store).active()
    newest: dict[str, datetime] = {}
    for alert in untold:
        since = datetime.fromisoformat(alert.detail["since"])
        newest[alert.endpoint] = max(since, newest.get(alert.endpoint, since))
    waiting = {endpoint for endpoint, since in newest.items() if now - wait < since <= now}
    due = []
    for alert in untold:
        is_silenced = any(silence.covers(alert.endpoint, alert.monitor) for silence in silences)
        if alert.endpoint not in waiting and not is_silenced:
            due.append(alert)
    return due


def _is_ahead(moment: str, now: datetime, most: timedelta) -> bool:
    """Return True if the moment is in the future by at most `most`. A later moment
    comes from a wrong clock.
    """
    return now.isoformat() < moment <= (now + most).isoformat()


def _channel_state(alert: Alert, channel: Channel) -> "_ChannelState":
    state: _ChannelState = alert.detail.get("channels", {}).get(channel.id, {})
    return state


def _is_owed(alert: Alert, channel: Channel) -> bool:
    """Return True if the channel must still receive the alert. Only a channel that
    knows the alert gets its end.
    """
    state = _channel_state(alert, channel)
    is_known = state.get("number", 0) > 0
    return (
        channel.takes(alert.detail.get("tags", ()))
        and state.get("number", 0) < alert.detail["number"]
        and state.get("tries", 0) < _MOST_TRIES
        and (is_known or alert.detail["news"] != "resolved")
    )


def _pause_seconds(tries: int) -> float:
    """Return the seconds after which an attempt that has failed `tries` times is
    repeated.
    """
    return backoff_seconds(tries, _LONGEST_PAUSE.total_seconds(), first=10.0)


def _store_outcomes(
    store: Store,
    alert: Alert,
    channels: Sequence[Channel],
    outcomes: Sequence[tuple[Channel, bool]],
) -> None:
    """Store and log the outcomes of an alert: the channels, and whether each of them
    accepted the message. An alert for no channel is logged, too.
    """
    now = store.now()

    def update(stored: Alert) -> Alert:
        """Return the alert with the channels' states and without the claim. It is done
        if no channel must still receive it.
        """
        states = dict(stored.detail.get("channels", {}))
        for channel, is_accepted in outcomes:
            if is_accepted:
                states[channel.id] = {"number": alert.detail["number"]}
            else:
                state = states.get(channel.id, {})
                tries = state.get("tries", 0) + 1
                not_before = now + timedelta(seconds=_pause_seconds(tries))
                states[channel.id] = {**state, "tries": tries, "not_before": not_before.isoformat()}
        detail = {**stored.detail, "channels": states, "claimed_until": ""}
        after = replace(stored, detail=detail)
        if any(is_accepted for _, is_accepted in outcomes):
            after = replace(after, told_at=now)
        is_told = not any(_is_owed(after, channel) for channel in channels)
        return replace(after, detail={**detail, "is_told": is_told})

    after = Alerts(store).change_by_id(alert.id, update)
    if after is None:
        return
    subject = f"{after.endpoint}, monitor {after.monitor}"
    for channel in [channel for channel, is_accepted in outcomes if not is_accepted]:
        tries = _channel_state(after, channel).get("tries", 0)
        if tries < _MOST_TRIES:
            _log.warning(
                "%s: %s did not accept the alert; retry in %d s",
                subject,
                channel.name,
                _pause_seconds(tries),
            )
        else:
            _log.error("%s: %s failed %d times; the alert is dropped", subject, channel.name, tries)
    has_reached = any(channel.takes(after.detail.get("tags", ())) for channel in channels)
    if after.detail["is_told"] and not has_reached:
        _log.error("%s: no channel in ONNXSERVE_ALERT_CONFIG has a tag of the alert", subject)


def without_markup(text: str) -> str:
    """Turn mentions and links into plain text with zero-width spaces, because the texts
    quote column names and categories from callers.
    """
    return _MARKUP.sub("\u200b", text)


def _headline(alert: Alert) -> str:
    event, _ = _EVENTS[alert.detail["news"]]
    if alert.monitor:
        return f"{event}: monitor {alert.monitor}"
    return event


def _message_kind(alert: Alert) -> MessageKind:
    return _EVENTS[alert.detail["news"]][1]
