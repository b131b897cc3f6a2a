"""Send the alerts that are due: one message for each endpoint and channel, tried again for as long as a channel fails.

The store says which channel has had which event, so that any process continues where another was killed. A message that
was sent and not yet recorded is then sent twice; none is lost.
"""

import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any, Literal

from mlflow_deploy_plugin.errors import InvalidConfig
from mlflow_deploy_plugin.monitoring.alerts.channels import Channel, ChannelMessage, read_channels
from mlflow_deploy_plugin.settings import Settings
from mlflow_deploy_plugin.store import Alert, Alerts, Silences, Store

_log = logging.getLogger(__name__)

GROUPING_DELAY = timedelta(seconds=5)
"""Alerts of one endpoint wait so long, so that those of one round go together."""
_FIRST_PAUSE, _LONGEST_PAUSE = timedelta(seconds=10), timedelta(hours=1)
_MOST_TRIES = 30  # more than a day
_CLAIM = timedelta(minutes=2)
_AT_ONCE = 8
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


@dataclass(frozen=True)
class _Delivery:
    """The alerts of one endpoint that one channel gets."""

    channel: Channel
    alerts: Sequence[Alert]


def send_due(store: Store, settings: Settings, wait: timedelta = timedelta(0)) -> int:
    """Send what is due. A channel or a configuration that fails is logged, and a later call tries again, after a pause
    that doubles.

    Args:
        wait: how old the newest alert of an endpoint has to be.

    Returns:
        The number of messages that channels have taken.

    Raises:
        StoreUnavailable: the store cannot be used.
    """
    due = _due(store, wait)
    if not due or settings.alert_config is None:
        return 0
    try:
        channels = read_channels(settings.alert_config)
    except InvalidConfig as error:
        _say_hourly(f"nobody is told: {error.message}", int(time.monotonic() // 3600))
        return 0
    now = store.now()
    claimed = [one for one in (_claimed(store, alert, now) for alert in due) if one is not None]
    deliveries = _deliveries(claimed, channels, now)
    with ThreadPoolExecutor(_AT_ONCE, "alert") as pool:
        taken = list(pool.map(lambda delivery: delivery.channel.send(_build_message(delivery.alerts)), deliveries))
    for alert in claimed:
        _settle(store, alert, channels, list(zip(deliveries, taken, strict=True)))
    return sum(taken)


@lru_cache(maxsize=8)
def _say_hourly(text: str, _hour: int) -> None:
    """Log an error once an hour: each call finds it, every few seconds, until somebody mends it."""
    _log.error("%s", text)


def _due(store: Store, wait: timedelta) -> list[Alert]:
    """Return the alerts that some channel still has to get, without the silenced ones."""
    now = store.now()
    untold = [alert for alert in Alerts(store).recent() if not alert.detail.get("is_told", True)]
    if not untold:
        return []
    silences = Silences(store).active()
    newest: dict[str, datetime] = {}
    for alert in untold:
        since = datetime.fromisoformat(alert.detail["since"])
        newest[alert.endpoint] = max(since, newest.get(alert.endpoint, since))
    return [
        alert
        for alert in untold
        if not now - wait < newest[alert.endpoint] <= now
        and not any(silence.covers(alert.endpoint, alert.monitor) for silence in silences)
    ]


def _claimed(store: Store, alert: Alert, now: datetime) -> Alert | None:
    """Return the alert if this process may send it; None if another process does."""

    def claim(found: Alert) -> Alert | None:
        if found.detail.get("is_told", True) or _is_ahead(found.detail.get("claimed_until", ""), now, _CLAIM):
            return None
        return replace(found, detail={**found.detail, "claimed_until": (now + _CLAIM).isoformat()})

    return Alerts(store).change_by_id(alert.id, claim)


def _deliveries(alerts: Sequence[Alert], channels: Sequence[Channel], now: datetime) -> list[_Delivery]:
    by_place: dict[tuple[str, str], tuple[Channel, list[Alert]]] = {}
    for alert in alerts:
        for channel in channels:
            not_before = _channel_state(alert, channel).get("not_before", "")
            if _is_owed(alert, channel) and not _is_ahead(not_before, now, _LONGEST_PAUSE):
                by_place.setdefault((alert.endpoint, channel.id), (channel, []))[1].append(alert)
    return [_Delivery(channel, found) for channel, found in by_place.values()]


def _is_ahead(moment: str, now: datetime, most: timedelta) -> bool:
    """Return True if the moment is still to come. One further ahead than `most` is of a clock that was wrong."""
    return now.isoformat() < moment <= (now + most).isoformat()


def _channel_state(alert: Alert, channel: Channel) -> dict[str, Any]:
    """Return the state of a channel: `number` of the last event that it took, `tries` that have failed since."""
    told: dict[str, Any] = alert.detail.get("channels", {}).get(channel.id, {})
    return told


def _is_owed(alert: Alert, channel: Channel) -> bool:
    """Return True if the channel still has to get the alert. Only a channel that had its begin gets its end."""
    told = _channel_state(alert, channel)
    is_known = told.get("number", 0) > 0
    return (
        channel.takes(alert.detail.get("tags", ()))
        and told.get("number", 0) < alert.detail["number"]
        and told.get("tries", 0) < _MOST_TRIES
        and (is_known or alert.detail["news"] != "resolved")
    )


def _settle(store: Store, alert: Alert, channels: Sequence[Channel], sent: Sequence[tuple[_Delivery, bool]]) -> None:
    """Record which channels have had the alert, and whether these are all."""
    now = store.now()
    number = alert.detail["number"]
    outcome = {
        delivery.channel.id: (delivery.channel, is_taken)
        for delivery, is_taken in sent
        if any(one.id == alert.id for one in delivery.alerts)
    }

    def settled(found: Alert) -> Alert:
        known = dict(found.detail.get("channels", {}))
        for key, (channel, is_taken) in outcome.items():
            before = known.get(key, {})
            known[key] = {"number": number} if is_taken else _failed(before, alert, channel, now)
        told_at = now if any(is_taken for _, is_taken in outcome.values()) else found.told_at
        detail = {**found.detail, "channels": known, "claimed_until": ""}
        after = replace(found, detail=detail, told_at=told_at)
        is_told = not any(_is_owed(after, channel) for channel in channels)
        has_reached = any(channel.takes(after.detail.get("tags", ())) for channel in channels)
        if is_told and not has_reached:
            _log.error(
                "%s, monitor %s: no channel of ONNXSERVE_ALERT_CONFIG has one of its tags",
                found.endpoint,
                found.monitor,
            )
        return replace(after, detail={**detail, "is_told": is_told})

    Alerts(store).change_by_id(alert.id, settled)


def _failed(before: dict[str, Any], alert: Alert, channel: Channel, now: datetime) -> dict[str, Any]:
    tries = before.get("tries", 0) + 1
    pause = min(_FIRST_PAUSE * 2 ** min(tries - 1, 20), _LONGEST_PAUSE)
    what = f"{alert.endpoint}, monitor {alert.monitor}"
    if tries < _MOST_TRIES:
        _log.warning("%s: %s did not take the alert; again in %d s", what, channel.name, pause.total_seconds())
    else:
        _log.error("%s: %s did not take the alert %d times and is not told of it", what, channel.name, tries)
    return {**before, "tries": tries, "not_before": (now + pause).isoformat()}


def _build_message(alerts: Sequence[Alert]) -> ChannelMessage:
    """Return one message for alerts of one endpoint, the gravest first."""
    ordered = sorted(alerts, key=lambda alert: (_GRAVITY.index(_kind(alert)), alert.monitor, alert.id))
    parts = ["\n".join([_head(alert), *alert.detail["lines"], *_link(alert)]) for alert in ordered]
    first = ordered[0]
    more = f" and {len(ordered) - 1} more" if len(ordered) > 1 else ""
    return ChannelMessage(f"onnxserve: {first.endpoint}: {_head(first)}{more}", "\n\n".join(parts), _kind(first))


def _head(alert: Alert) -> str:
    return f"{_HEADS[alert.detail['news']]}: monitor {alert.monitor}"


def _link(alert: Alert) -> list[str]:
    return [alert.detail["link"]] if alert.detail.get("link") else []


def _kind(alert: Alert) -> Literal["info", "success", "warning", "failure"]:
    return _KINDS[alert.detail["news"]]
