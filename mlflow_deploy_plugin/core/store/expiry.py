"""Deletes old judged windows and resolved alerts, which monitors create continuously.
All other rows are kept.
"""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, and_, delete, func, or_, select
from sqlalchemy.orm import load_only

from mlflow_deploy_plugin.core.store.alerts import FIRING
from mlflow_deploy_plugin.core.store.holds import held_endpoints
from mlflow_deploy_plugin.core.store.monitor_tables import MonitorKey, Monitors
from mlflow_deploy_plugin.core.store.store import Store
from mlflow_deploy_plugin.core.store.tables import AlertRow, MonitorRow, MonitorWindowRow

MIN_DAYS = 7
"""The shortest retention: late labels add revisions to windows, and alerts are sent
again, for up to this time.
"""
KEPT_WINDOWS = 200
"""The number of judged windows that are kept per monitor. Consecutive alarms are
counted over these newest windows.
"""
_AT_ONCE = 1000
_COUNTED = tuple(
    getattr(MonitorWindowRow, name)
    for name in ("by_hand", "endpoint", "monitor", "state", "verdict", "attempts")
)
_Row = MonitorWindowRow | AlertRow


@dataclass(frozen=True)
class Expired:
    windows: int = 0
    alerts: int = 0


def expire(
    store: Store,
    keep: timedelta,
    *,
    only_count: bool = False,
    goes_on: Callable[[], bool] = lambda: True,
) -> Expired:
    """Delete the windows and alerts that last changed longer ago than `keep`, and
    return their numbers.

    For each monitor, the newest window and the newest `KEPT_WINDOWS` judged windows are
    kept, separately for scheduled windows and windows requested by hand. Pending
    windows, firing alerts and everything of endpoints on hold are also kept. Each
    transaction deletes at most 1,000 rows
    and is followed by a pause of the same duration. The deletion stops when `goes_on`
    returns False.
    """
    try:
        before = store.now() - keep
    except OverflowError:  # `keep` reaches back before the year 1, so no row is old.
        return Expired()
    windows = 0
    held = held_endpoints(store)
    for by_hand in (False, True):
        for key in Monitors(store).with_windows(by_hand):
            if key[0] in held:
                continue
            old = _old_windows(store, key, by_hand, before)
            if old is not None:
                windows += _delete(store, MonitorWindowRow, old, only_count, goes_on)
    over = and_(
        AlertRow.state != FIRING,
        AlertRow.last_at < before,
        AlertRow.endpoint.not_in(held),
    )
    return Expired(windows, _delete(store, AlertRow, over, only_count, goes_on))


def _old_windows(
    store: Store,
    key: MonitorKey,
    by_hand: bool,
    before: datetime,
) -> ColumnElement[bool] | None:
    """Return the condition for the windows of a monitor that may be deleted; None if no
    window is that old.

    The newest window and the last `KEPT_WINDOWS` judged windows are kept.

    Args:
        key: the endpoint and the monitor.
        by_hand: selects windows that a user has judged by hand, or all other windows.
        before: only older windows may be deleted.
    """
    row = MonitorWindowRow
    of_monitor = and_(
        row.endpoint == key[0],
        row.monitor == key[1],
        row.by_hand == by_hand,
    )
    starts = select(row.start).where(of_monitor).limit(1)
    newest = starts.order_by(row.start.desc())
    with store.reading() as session:
        first = session.scalar(starts.order_by(row.start))
        # Usually no window is old. Return without the following queries.
        if first is None or first >= before:
            return None
        last = session.scalars(newest).one()
        oldest_kept = session.scalar(newest.where(row.state == "judged").offset(KEPT_WINDOWS - 1))
    is_done = row.state == "failed"
    if oldest_kept is not None:
        is_done = or_(is_done, and_(row.state == "judged", row.start < oldest_kept))
    return and_(
        of_monitor,
        row.start < min(last, before),
        is_done,
        row.updated_at < before,
    )


def _delete(
    store: Store,
    table: type[_Row],
    old: ColumnElement[bool],
    only_count: bool,
    goes_on: Callable[[], bool],
) -> int:
    """Delete the old rows of a table in short transactions, and return their number.

    Args:
        old: the condition for the rows.
        only_count: count the rows instead of deleting them.
        goes_on: asked before each transaction; False ends the deletion.
    """
    if only_count:
        with store.reading() as session:
            return session.scalar(select(func.count()).select_from(table).where(old)) or 0
    some = select(table).where(old).limit(_AT_ONCE).with_for_update(skip_locked=True)
    if table is MonitorWindowRow:
        some = some.options(load_only(*_COUNTED))
    deleted = 0
    while goes_on():
        begun = time.monotonic()
        with store.transaction() as session:
            rows: Sequence[Any] = session.scalars(some).all()
            windows = [row for row in rows if isinstance(row, MonitorWindowRow) and not row.by_hand]
            if windows:
                key = (windows[0].endpoint, windows[0].monitor)
                monitor = session.get(MonitorRow, key, with_for_update=True)
                # A monitor that was removed has no counts.
                if monitor is not None:
                    monitor.expired_failures += sum(window.attempts for window in windows)
                    verdicts = Counter(
                        window.verdict for window in windows if window.state == "judged"
                    )
                    monitor.expired = dict(verdicts + Counter(monitor.expired))
            session.execute(delete(table).where(table.id.in_([row.id for row in rows])))
        deleted += len(rows)
        if len(rows) < _AT_ONCE:
            break
        time.sleep(time.monotonic() - begun)
    return deleted
