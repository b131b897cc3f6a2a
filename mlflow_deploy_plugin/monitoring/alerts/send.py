"""Tells what is to be told: one message an endpoint and channel, for as long as a channel fails again and again.

Who was told of what stands in the store, so that any process goes on where another was killed. What was sent and not
yet written down then is sent twice; nothing is forgotten.
"""

import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any

from mlflow_deploy_plugin.errors import InvalidConfig
from mlflow_deploy_plugin.monitoring.alerts.channels import Channel, read_channels
from mlflow_deploy_plugin.monitoring.alerts.message import build_message
from mlflow_deploy_plugin.settings import Settings
from mlflow_deploy_plugin.store.alerts import Alert, Alerts, Silences
from mlflow_deploy_plugin.store.store import Store

_log = logging.getLogger(__name__)

GROUPING_DELAY = timedelta(seconds=5)
"""How long news of one endpoint are waited for, so that those of one round go together."""
_FIRST_PAUSE, _LONGEST_PAUSE = timedelta(seconds=10), timedelta(hours=1)
_MOST_TRIES = 30  # more than a day
_CLAIM = timedelta(minutes=2)
_AT_ONCE = 8


@dataclass(frozen=True)
class _Parcel:
    """What one channel is told of one endpoint."""

    channel: Channel
    alerts: Sequence[Alert]


def send_due(store: Store, settings: Settings, wait: timedelta = timedelta(0)) -> int:
    """Sends what is due. Raises nothing for a channel or a configuration that fails: it is logged, and tried again by
    a later call, after a pause that doubles.

    Args:
        wait: so old must the newest news of an endpoint be, so that those of one round go together.

    Returns:
        The number of messages that were taken.

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
    parcels = _parcels(claimed, channels, now)
    with ThreadPoolExecutor(_AT_ONCE, "alert") as pool:
        taken = list(pool.map(lambda parcel: parcel.channel.send(build_message(parcel.alerts)), parcels))
    for alert in claimed:
        _settle(store, alert, channels, list(zip(parcels, taken, strict=True)))
    return sum(taken)


@lru_cache(maxsize=8)
def _say_hourly(text: str, _hour: int) -> None:
    """What is wrong is found at each call, every few seconds, for as long as nobody mends it."""
    _log.error("%s", text)


def _due(store: Store, wait: timedelta) -> list[Alert]:
    """What somebody is still to be told, but for what is silenced."""
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
    """The alert, for this process to tell; None where another does."""

    def claim(found: Alert) -> Alert | None:
        if found.detail.get("is_told", True) or _is_ahead(found.detail.get("claimed_until", ""), now, _CLAIM):
            return None
        return replace(found, detail={**found.detail, "claimed_until": (now + _CLAIM).isoformat()})

    return Alerts(store).change_one(alert.id, claim)


def _parcels(alerts: Sequence[Alert], channels: Sequence[Channel], now: datetime) -> list[_Parcel]:
    by_place: dict[tuple[str, str], tuple[Channel, list[Alert]]] = {}
    for alert in alerts:
        for channel in channels:
            not_before = _told(alert, channel).get("not_before", "")
            if _is_owed(alert, channel) and not _is_ahead(not_before, now, _LONGEST_PAUSE):
                by_place.setdefault((alert.endpoint, channel.id), (channel, []))[1].append(alert)
    return [_Parcel(channel, found) for channel, found in by_place.values()]


def _is_ahead(moment: str, now: datetime, most: timedelta) -> bool:
    """Whether the moment is still to come; one that is further ahead than it may be is of a clock that was wrong."""
    return now.isoformat() < moment <= (now + most).isoformat()


def _told(alert: Alert, channel: Channel) -> dict[str, Any]:
    """What is known of the channel: `number` of the last news that it took, `tries` that have failed since."""
    told: dict[str, Any] = alert.detail.get("channels", {}).get(channel.id, {})
    return told


def _is_owed(alert: Alert, channel: Channel) -> bool:
    """Whether the channel is still to be told; that something is over, only who was told that it began."""
    told = _told(alert, channel)
    is_known = told.get("number", 0) > 0
    return (
        channel.takes(alert.detail.get("tags", ()))
        and told.get("number", 0) < alert.detail["number"]
        and told.get("tries", 0) < _MOST_TRIES
        and (is_known or alert.detail["news"] != "resolved")
    )


def _settle(store: Store, alert: Alert, channels: Sequence[Channel], sent: Sequence[tuple[_Parcel, bool]]) -> None:
    """Writes down who was told, and whether that were all."""
    now = store.now()
    number = alert.detail["number"]
    outcome = {
        parcel.channel.id: (parcel.channel, is_taken)
        for parcel, is_taken in sent
        if any(one.id == alert.id for one in parcel.alerts)
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

    Alerts(store).change_one(alert.id, settled)


def _failed(before: dict[str, Any], alert: Alert, channel: Channel, now: datetime) -> dict[str, Any]:
    tries = before.get("tries", 0) + 1
    pause = min(_FIRST_PAUSE * 2 ** min(tries - 1, 20), _LONGEST_PAUSE)
    what = f"{alert.endpoint}, monitor {alert.monitor}"
    if tries < _MOST_TRIES:
        _log.warning("%s: %s did not take the alert; again in %d s", what, channel.name, pause.total_seconds())
    else:
        _log.error("%s: %s did not take the alert %d times and is not told of it", what, channel.name, tries)
    return {**before, "tries": tries, "not_before": (now + pause).isoformat()}
