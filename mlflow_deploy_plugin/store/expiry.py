"""Deletes what monitors have left in the store long ago: judged windows, and alerts that are over.

Both come by the clock, and would fill the store for as long as it stands. What people do and what models go through
stays: endpoints, the audit trail, rollouts, retrainings, keys.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, and_, delete, func, or_, select, tuple_
from sqlalchemy.orm import Session

from mlflow_deploy_plugin.store.alerts import FIRING
from mlflow_deploy_plugin.store.monitors import MonitorKey
from mlflow_deploy_plugin.store.store import Store
from mlflow_deploy_plugin.store.tables import AlertRow, MonitorRow, MonitorWindowRow

MIN_DAYS = 7
"""The shortest retention: late labels add revisions to a window, and alerts are sent again, for so long."""
KEPT_WINDOWS = 200
"""The newest judged windows of each monitor that stay, however old: alarms in a row are counted over so many."""
_AT_ONCE = 1000
_Row = MonitorWindowRow | AlertRow


@dataclass(frozen=True)
class Expired:
    """The numbers of rows that were deleted."""

    windows: int = 0
    alerts: int = 0


def expire(
    store: Store, keep: timedelta, *, only_count: bool = False, goes_on: Callable[[], bool] = lambda: True
) -> Expired:
    """Delete the windows and the alerts that have last changed longer ago than `keep`, and return their numbers.

    Of each monitor its newest window and its newest `KEPT_WINDOWS` judged ones stay, the scheduled ones and those by
    hand for themselves; so does what waits to be judged, or fires. Each transaction deletes at most a thousand rows,
    and others get as much time between two of them as one takes.

    Args:
        goes_on: is asked before each transaction; what was deleted so far stays deleted.
    """
    try:
        before = store.now() - keep
    except OverflowError:  # nothing is older than the calendar
        return Expired()
    windows = sum(
        _delete(store, MonitorWindowRow, old, only_count, goes_on)
        for key in _monitors(store, before)
        for by_hand in (False, True)
        if (old := _old_windows(store, key, by_hand, before)) is not None
    )
    over = and_(AlertRow.state != FIRING, AlertRow.last_at < before)
    return Expired(windows, _delete(store, AlertRow, over, only_count, goes_on))


def _monitors(store: Store, before: datetime) -> Iterator[MonitorKey]:
    """Yield the monitors that have old windows; each is a look into the index, as `DISTINCT` would read all of it."""
    row, last = MonitorWindowRow, ("", "")
    columns = row.endpoint, row.monitor, row.start
    while True:
        query = select(*columns).order_by(*columns).limit(1)
        with store.transaction(is_read_only=True) as session:
            found = session.execute(query.where(tuple_(row.endpoint, row.monitor) > last)).one_or_none()
        if found is None:
            return
        last = found.endpoint, found.monitor
        if found.start < before:
            yield last


def _old_windows(store: Store, key: MonitorKey, by_hand: bool, before: datetime) -> ColumnElement[bool] | None:
    """Return the condition of the windows that go; None if there are none of this monitor."""
    row = MonitorWindowRow
    of_monitor = and_(row.endpoint == key[0], row.monitor == key[1], row.by_hand == by_hand)
    newest = select(row.start).where(of_monitor).order_by(row.start.desc())
    with store.transaction(is_read_only=True) as session:
        last = session.scalar(newest.limit(1))
        oldest_kept = session.scalar(newest.where(row.state == "judged").limit(1).offset(KEPT_WINDOWS - 1))
    if last is None:
        return None
    is_done = row.state == "failed"
    if oldest_kept is not None:
        is_done = or_(is_done, and_(row.state == "judged", row.start < oldest_kept))
    return and_(of_monitor, row.start < min(last, before), is_done, row.updated_at < before)


def _delete(
    store: Store, table: type[_Row], old: ColumnElement[bool], only_count: bool, goes_on: Callable[[], bool]
) -> int:
    if only_count:
        with store.transaction(is_read_only=True) as session:
            return session.scalar(select(func.count()).select_from(table).where(old)) or 0
    deleted = 0
    while goes_on():
        begun = time.monotonic()
        with store.transaction() as session:
            some = select(table.id).where(old).limit(_AT_ONCE).with_for_update(skip_locked=True)
            numbers = session.scalars(some).all()
            if table is MonitorWindowRow:
                _keep_counts(session, numbers)
            session.execute(delete(table).where(table.id.in_(numbers)))
        deleted += len(numbers)
        if len(numbers) < _AT_ONCE:
            break
        time.sleep(time.monotonic() - begun)
    return deleted


def _keep_counts(session: Session, numbers: Sequence[int]) -> None:
    """Add the scheduled windows of these numbers to those that have expired of their monitors."""
    row = MonitorWindowRow
    groups = row.endpoint, row.monitor, row.state, row.verdict
    counts = select(*groups, func.count(), func.sum(row.attempts)).group_by(*groups)
    for endpoint, monitor, state, verdict, count, attempts in session.execute(
        counts.where(row.id.in_(numbers), ~row.by_hand)
    ).all():
        kept = session.get(MonitorRow, (endpoint, monitor), with_for_update=True)
        if kept is not None:  # else the monitor was removed, and is not counted on
            kept.expired_failures += attempts
            if state == "judged":
                kept.expired = {**kept.expired, verdict: kept.expired.get(verdict, 0) + count}
