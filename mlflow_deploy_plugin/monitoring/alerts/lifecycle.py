"""The course of an alert: when it begins, grows worse and is over, and when that is worth telling.

One message when it begins; again when it has become half as bad again, or when it goes on for the repeat interval; one
when it is over.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Literal

from mlflow_deploy_plugin.store.alerts import Alert

AlertEvent = Literal["firing", "worse", "still", "resolved", "failing", "said"]
_WORSE = 1.5


@dataclass(frozen=True)
class AlertContent:
    """What an alert is made of.

    Attributes:
        fingerprint: what it is about.
        order: of what was seen: window start and revision; what is older than the last changes nothing.
        weight: how bad it is, larger is worse.
        lines: what is said, the most important first.
        link: where more is to be read; may be empty.
        tags: of the channels that are told; empty: all.
    """

    fingerprint: str
    endpoint: str
    monitor: str
    order: str = ""
    weight: float = 1.0
    lines: Sequence[str] = ()
    link: str = ""
    tags: Sequence[str] = ()

    def told(self, news: AlertEvent, now: datetime, before: Alert | None) -> dict[str, Any]:
        """The detail of an alert with something new to tell."""
        detail = {} if before is None else before.detail
        return {
            **detail,
            **self.said(),
            "news": news,
            "number": detail.get("number", 0) + 1,
            "since": now.isoformat(),
            "told_weight": self.weight,
            "is_told": False,
        }

    def said(self) -> dict[str, Any]:
        return {
            "order": self.order,
            "weight": self.weight,
            "lines": list(self.lines),
            "link": self.link,
            "tags": list(self.tags),
        }


def fire(
    before: Alert | None, seen: AlertContent, now: datetime, repeat: timedelta, news: AlertEvent = "firing"
) -> Alert | None:
    """The alert after an alarm; None where the alarm is older than what is known."""
    if before is None:
        detail = seen.told(news, now, None)
        return Alert(seen.fingerprint, seen.endpoint, seen.monitor, "firing", now, now, detail=detail)
    last = _last_order(before, now)
    if seen.order < last:
        return None
    again = replace(before, last_at=now, count=before.count + (seen.order > last or not seen.order))
    if seen.weight >= _WORSE * before.detail.get("told_weight", 0.0):
        return replace(again, detail=seen.told("worse", now, before))
    if before.told_at is not None and not timedelta() <= now - before.told_at < repeat:
        return replace(again, detail=seen.told("still", now, before))
    return replace(again, detail={**before.detail, **seen.said()})


def resolve(before: Alert | None, seen: AlertContent, now: datetime) -> Alert | None:
    """The alert after a window without an alarm; None where nothing changes."""
    if before is None or seen.order < _last_order(before, now):
        return None
    detail = {**seen.told("resolved", now, before), "told_weight": 0.0, "tags": before.detail.get("tags", [])}
    return replace(before, state="resolved", last_at=now, detail=detail)


def announcement(seen: AlertContent, now: datetime) -> Alert:
    """Something that is told once and has no end."""
    return Alert(seen.fingerprint, seen.endpoint, seen.monitor, "said", now, now, detail=seen.told("said", now, None))


def _last_order(before: Alert, now: datetime) -> str:
    """Of the newest window that the alert has seen, unless it is one that has not begun yet."""
    order: str = before.detail.get("order", "")
    return order if order <= now.isoformat() else ""
