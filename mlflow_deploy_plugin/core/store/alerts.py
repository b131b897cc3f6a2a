"""Alerts and silences in the store."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from mlflow_deploy_plugin.core.store.audit import save_row
from mlflow_deploy_plugin.core.store.store import Store
from mlflow_deploy_plugin.core.store.tables import (
    AlertRow,
    Json,
    SilenceRow,
    from_row,
    given,
    storable_text,
    write_fields,
)

FIRING = "firing"
OPEN = (FIRING, "changed")
_REMEMBERED = timedelta(days=7)
"""The time during which a resolved alert can still be sent, from the last change of the
alert.
"""


@dataclass(frozen=True)
class Alert:
    """An alert, from its start until it is resolved.

    Attributes:
        fingerprint: the identifier of the alert's subject; at most one alert per
            fingerprint is firing or changed.
        state: `changed` is a change without a sign of harm; `said` is an announcement,
            which is never resolved.
        first_at / last_at / told_at: the times of the first and last observation and of
            the last notification (None if never sent), by the store's clock.
        detail: the content and the recipients (`watch/alerts`).
    """

    fingerprint: str
    endpoint: str
    monitor: str
    state: Literal["firing", "changed", "resolved", "said"]
    first_at: datetime
    last_at: datetime
    told_at: datetime | None = None
    count: int = 1
    detail: Json = field(default_factory=dict)
    id: int = 0


@dataclass(frozen=True)
class Silence:
    """A period without alerts for an endpoint or one of its monitors. An empty
    `monitor` means all monitors.
    """

    id: int
    endpoint: str
    monitor: str
    until: datetime
    why: str
    actor: str
    created_at: datetime

    def covers(self, endpoint: str, monitor: str) -> bool:
        return self.endpoint == endpoint and self.monitor in ("", monitor)


@dataclass(frozen=True)
class Alerts:
    store: Store

    def open(self, endpoint: str | None = None) -> list[Alert]:
        """Return the alerts that are firing or changed, oldest first."""
        query = select(AlertRow).where(AlertRow.state.in_(OPEN))
        query = query.filter_by(**given(endpoint=endpoint)).order_by(AlertRow.id)
        return self.store.read(query, Alert)

    def firing(self, endpoint: str | None = None) -> list[Alert]:
        return [alert for alert in self.open(endpoint) if alert.state == FIRING]

    def recent(self) -> list[Alert]:
        """Return the alerts that are firing or changed within the last 7 days, oldest
        first.
        """
        since = self.store.now() - _REMEMBERED
        query = (
            select(AlertRow)
            .where(or_(AlertRow.state == FIRING, AlertRow.last_at > since))
            .order_by(AlertRow.id)
        )
        return self.store.read(query, Alert)

    def between(self, endpoint: str, start: datetime, end: datetime) -> list[Alert]:
        """Return the alerts of the endpoint that were observed within the half-open
        interval, oldest first.
        """
        query = select(AlertRow).where(AlertRow.first_at < end, AlertRow.last_at >= start)
        query = query.filter_by(endpoint=endpoint).order_by(AlertRow.id)
        return self.store.read(query, Alert)

    def change(
        self,
        fingerprint: str,
        change: "Callable[[Alert | None], Alert | None]",
    ) -> Alert | None:
        """Write the alert that `change` makes of the firing or changed alert (or of
        None), unless `change` returns None.
        """
        stored = storable_text(fingerprint, 255)
        query = select(AlertRow).filter_by(fingerprint=stored).where(AlertRow.state.in_(OPEN))
        newest = query.order_by(AlertRow.id.desc()).limit(1).with_for_update()
        with self.store.transaction(alone_with=f"alert/{stored}") as session:
            row = session.scalars(newest).one_or_none()
            alert = None if row is None else from_row(row, Alert)
            return _write(session, row, change(alert))

    def add_once(self, alert: Alert) -> Alert | None:
        """Write the alert. Return None if the store already has an alert with this
        fingerprint, in any state.
        """
        stored = storable_text(alert.fingerprint, 255)
        query = select(AlertRow.id).where(AlertRow.fingerprint == stored).limit(1)
        with self.store.transaction(alone_with=f"alert/{stored}") as session:
            if session.scalars(query).first() is not None:
                return None
            return _write(session, None, alert)

    def change_by_id(self, number: int, change: "Callable[[Alert], Alert | None]") -> Alert | None:
        """Write the result of `change` for the alert with this id, in any state. Return
        None if it does not exist.
        """
        with self.store.transaction() as session:
            row = session.get(AlertRow, number, with_for_update=True)
            if row is None:
                return None
            return _write(session, row, change(from_row(row, Alert)))


@dataclass(frozen=True)
class Silences:
    store: Store

    def add(
        self,
        endpoint: str,
        monitor: str,
        length: timedelta,
        why: str = "",
        actor: str | None = None,
    ) -> Silence:
        """Silence a monitor, or all monitors of the endpoint, from now on. The audit
        event contains the user's reason, `why`.
        """
        now = self.store.now()
        by = actor or self.store.user
        row = SilenceRow(endpoint=endpoint, monitor=monitor, until=now + length, created_at=now)
        row.why = storable_text(why, None)
        row.actor = storable_text(by, 255)
        with self.store.transaction() as session:
            session.add(row)
            session.flush()
            detail = {"monitor": monitor, "until": row.until.isoformat(), "silence": row.id}
            self.store.write_event(
                session, "silence", by, endpoint=endpoint, why=why, detail=detail
            )
            return from_row(row, Silence)

    def active(self, endpoint: str | None = None) -> list[Silence]:
        """Return the silences that are active now, oldest first."""
        query = (
            select(SilenceRow).where(SilenceRow.until > self.store.now()).order_by(SilenceRow.id)
        )
        query = query.filter_by(**given(endpoint=endpoint))
        return self.store.read(query, Silence)

    def end(self, number: int, why: str = "") -> Silence | None:
        """End the silence now with an audit event. Return None if no active silence has
        this id.
        """
        now = self.store.now()
        active = select(SilenceRow).where(SilenceRow.id == number, SilenceRow.until > now)
        with self.store.transaction() as session:
            row = session.scalars(active.with_for_update()).one_or_none()
            if row is None:
                return None
            row.until = now
            detail = {"monitor": row.monitor, "silence": row.id}
            self.store.write_event(
                session, "silence.end", endpoint=row.endpoint, why=why, detail=detail
            )
            return save_row(session, row, Silence)


def _write(
    session: Session,
    row: AlertRow | None,
    alert: Alert | None,
) -> Alert | None:
    """Write the alert into its row, or into a new row, and return the stored alert.

    Return None, without a write, if there is no alert.
    """
    if alert is None:
        return None
    if row is None:
        row = AlertRow(
            fingerprint=storable_text(alert.fingerprint, 255),
            endpoint=alert.endpoint,
            monitor=alert.monitor,
        )
    write_fields(row, alert, "state", "count", "detail", "first_at", "last_at", "told_at")
    return save_row(session, row, Alert)
