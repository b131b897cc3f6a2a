"""Monitors in the store: their state, and their windows with the results."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Literal

from sqlalchemy import Row, Select, and_, delete, func, null, or_, select, tuple_
from sqlalchemy.orm import Session

from mlflow_deploy_plugin.core.spec.types import EPOCH
from mlflow_deploy_plugin.core.store.audit import save_row
from mlflow_deploy_plugin.core.store.leases import Lease, held_row
from mlflow_deploy_plugin.core.store.store import Store
from mlflow_deploy_plugin.core.store.tables import (
    AlertRow,
    EndpointRow,
    MonitorRow,
    MonitorWindowRow,
    RetrainingRow,
    from_row,
    given,
    read_rows,
    storable_text,
    write_fields,
)

WindowState = Literal["pending", "running", "judged", "failed"]
MonitorKey = tuple[str, str]
"""The names of an endpoint and of one of its monitors."""
NoteKind = Literal["", "left_out", "cannot_run", "late_data_failed"]
"""left_out: windows were skipped; cannot_run: the monitor failed; late_data_failed: the
search for late data failed.
"""

_NEWEST_FIRST = (
    MonitorWindowRow.start.desc(),
    MonitorWindowRow.revision.desc(),
    MonitorWindowRow.id.desc(),
)
_PAST = timedelta(days=2 * 365)
_MOST_PAST = 1_000
_WRITTEN = (
    "state",
    "verdict",
    "reason",
    "rows",
    "log_rows",
    "log_digest",
    "attempts",
    "not_before",
)


@dataclass(frozen=True)
class MonitorWindow:
    """A revision of a window. (endpoint, monitor, start, revision) is unique.

    Attributes:
        start / end: the window contains event times t with start <= t < end.
        revision: from 1; each new judgement of the window adds a revision.
        by_hand: True if a user requested the window, even if a scheduled window has the
            same times.
        state: `failed` means that the window is not retried.
        verdict: the state of the result; empty until the window is judged.
        reason: the reason for the verdict or for the last failure.
        rows: the number of judged rows.
        log_rows / log_digest: the rows in the log when the window was judged, and a
            digest of its hours' files.
        attempts: the number of failed attempts.
        evidence: the signed figures and the alarms of the window, as in
            `watch/sequential/evidence.py`.
    """

    id: int
    endpoint: str
    monitor: str
    start: datetime
    end: datetime
    revision: int
    by_hand: bool
    state: WindowState
    created_at: datetime
    updated_at: datetime
    verdict: str = ""
    reason: str = ""
    rows: int = 0
    log_rows: int = 0
    log_digest: str = ""
    attempts: int = 0
    not_before: datetime | None = None
    run_id: str = ""
    run_url: str = ""
    figures: Mapping[str, Any] = field(default_factory=dict)
    evidence: Mapping[str, Any] = field(default_factory=dict)

    @property
    def outcome(self) -> str:
        """The verdict, or `accepted` if a user has accepted all alarms of the
        window.
        """
        alarms = {*self.evidence.get("alarms", ())}
        if alarms and alarms <= {*self.accepted}:
            return "accepted"
        return self.verdict

    @property
    def accepted(self) -> tuple[str, ...]:
        """The alarms of the window that a user has accepted."""
        return tuple(self.evidence.get("accepted", ()))


@dataclass(frozen=True)
class MonitorState:
    """The state of a monitor.

    Each window that ends by `made_up_to` (None before the first window) is stored or
    skipped. `consecutive` is the number of consecutive alarms up to the newest window.
    `note` is a message for users about `note_kind`. `baseline` maps each column whose
    alarm a user has accepted to the start of its new baseline, in ISO 8601.
    """

    endpoint: str
    monitor: str
    paused: bool = False
    paused_by: str = ""
    made_up_to: datetime | None = None
    consecutive: int = 0
    note: str = ""
    note_kind: NoteKind = ""
    baseline: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Monitors:
    store: Store

    def state(self, endpoint: str, monitor: str) -> MonitorState:
        with self.store.reading() as session:
            row = session.get(MonitorRow, (endpoint, monitor))
            if row is None:
                return MonitorState(endpoint, monitor)
            return from_row(row, MonitorState)

    def states(self, endpoint: str | None = None) -> list[MonitorState]:
        query = select(MonitorRow).filter_by(**given(endpoint=endpoint))
        query = query.order_by(MonitorRow.endpoint, MonitorRow.monitor)
        return self.store.read(query, MonitorState)

    def pause(
        self,
        endpoint: str,
        monitor: str,
        paused: bool = True,
        actor: str | None = None,
        why: str = "",
    ) -> bool:
        """Pause or resume the monitor with an audit event. Return False if the monitor
        already is in this state.
        """
        by = actor or self.store.user
        with self._row(endpoint, monitor) as (session, row):
            if row.paused == paused:
                return False
            row.paused = paused
            row.paused_by = storable_text(by, 255) if paused else ""
            action = "monitor.pause" if paused else "monitor.resume"
            detail = {"monitor": monitor}
            self.store.write_event(session, action, by, endpoint=endpoint, why=why, detail=detail)
            return True

    def update_state(
        self,
        endpoint: str,
        monitor: str,
        *,
        made_up_to: datetime | None = None,
        consecutive: int | None = None,
        note: str | None = None,
        note_kind: NoteKind = "",
    ) -> None:
        """Write the specified fields. An empty note removes the note."""
        with self._row(endpoint, monitor) as (_, row):
            if made_up_to is not None:
                row.made_up_to = made_up_to
            if consecutive is not None:
                row.consecutive = consecutive
            if note is not None:
                row.note = storable_text(note, None)
                row.note_kind = note_kind

    def go_back(self, endpoint: str, monitor: str, to: datetime) -> None:
        """Continue the schedule at `to`, and delete scheduled windows after `to`,
        created while a clock was ahead.
        """
        with self._row(endpoint, monitor) as (session, row):
            row.made_up_to = to
            row.note = ""
            row.note_kind = ""
            scheduled = delete(MonitorWindowRow).filter_by(
                endpoint=endpoint,
                monitor=monitor,
                by_hand=False,
            )
            session.execute(scheduled.where(MonitorWindowRow.start >= to))

    def forget(self, endpoint: str, monitor: str) -> None:
        with self.store.transaction() as session:
            session.execute(delete(MonitorRow).filter_by(endpoint=endpoint, monitor=monitor))

    def add(
        self,
        endpoint: str,
        monitor: str,
        start: datetime,
        end: datetime,
        *,
        by_hand: bool = False,
    ) -> MonitorWindow:
        """Add a pending window as the next revision."""
        now = self.store.now()
        of_start = {"endpoint": endpoint, "monitor": monitor, "start": start}
        with self.store.transaction(alone_with=f"monitor/{endpoint}/{monitor}") as session:
            revisions = select(MonitorWindowRow).filter_by(**of_start)
            last = session.scalar(revisions.with_only_columns(func.max(MonitorWindowRow.revision)))
            written = {
                "end": end,
                "created_at": now,
                "updated_at": now,
                "by_hand": by_hand,
                "state": "pending",
            }
            return save_row(
                session,
                MonitorWindowRow(**of_start, **written, revision=(last or 0) + 1),
                MonitorWindow,
            )

    def revisions(
        self,
        endpoint: str,
        monitor: str,
        start: datetime,
        end: datetime,
    ) -> list[MonitorWindow]:
        same = {"endpoint": endpoint, "monitor": monitor, "start": start, "end": end}
        query = (
            select(MonitorWindowRow)
            .filter_by(**same)
            .order_by(MonitorWindowRow.revision, MonitorWindowRow.id)
        )
        return self.store.read(query, MonitorWindow)

    def update(self, window: MonitorWindow, lease: Lease | None = None) -> MonitorWindow | None:
        """Write the mutable fields of a window. Return None if the lease is lost or the
        window is already judged.
        """
        with self.store.transaction() as session:
            if lease is not None and held_row(session, lease) is None:
                return None
            row = session.get(MonitorWindowRow, window.id, with_for_update=True)
            if row is None or row.state == "judged":
                return None
            write_fields(row, window, *_WRITTEN, "run_id", "run_url")
            row.figures = dict(window.figures)
            for name, value in window.figures.items():
                if isinstance(value, float) and not math.isfinite(value):
                    row.figures[name] = None  # PostgreSQL rejects NaN and infinity in JSON.
            row.evidence = dict(window.evidence)
            row.updated_at = self.store.now()
            return save_row(session, row, MonitorWindow)

    def close(self, window: MonitorWindow, reason: str) -> None:
        """Set the window's state to failed, unless it was judged in the meantime."""
        self.update(replace(window, state="failed", reason=reason))

    def set_log_digest(self, window: MonitorWindow, digest: str) -> None:
        with self.store.transaction() as session:
            if (row := session.get(MonitorWindowRow, window.id)) is not None:
                row.log_digest = digest

    def windows(
        self,
        endpoint: str | None = None,
        monitor: str | None = None,
        *,
        states: Sequence[WindowState] = (),
        since: datetime | None = None,
        by_hand: bool | None = None,
        limit: int | None = None,
    ) -> list[MonitorWindow]:
        """Return windows, oldest first, with their revisions in order. `limit` selects
        the newest windows.

        The default is all states, both scheduled and by hand. `since` selects windows
        that end after this time.
        """
        of = given(endpoint=endpoint, monitor=monitor, by_hand=by_hand)
        query = select(MonitorWindowRow)
        query = query.order_by(*_NEWEST_FIRST).limit(limit)
        if states:
            query = query.where(MonitorWindowRow.state.in_(states))
        # `coalesce` forces the index on `state`: few rows match.
        if states and "judged" not in states:
            for key, value in of.items():
                query = query.where(func.coalesce(getattr(MonitorWindowRow, key), null()) == value)
        else:
            query = query.filter_by(**of)
        if since is not None:
            query = query.where(MonitorWindowRow.end > since)
        return self.store.read(query, MonitorWindow)[::-1]

    def judged_windows(
        self,
        key: MonitorKey,
        length: timedelta,
        *columns: str,
        until: datetime | None = None,
        aligned_to: datetime = EPOCH,
    ) -> "list[Row[Any]]":
        """Return the start and these columns of the last revision of each judged
        window, oldest first.

        The windows have this length, and their starts differ from `aligned_to` by
        multiples of the length. The default is the schedule. `until` selects windows of
        the two years before this time. At most 1,000 windows are read: with 40 columns,
        their evidence takes about 40 MB.
        """
        row = MonitorWindowRow
        of = {"endpoint": key[0], "monitor": key[1], "state": "judged"}
        last = select(func.max(row.id)).filter_by(**of)
        if until is not None:
            last = last.where(row.start > until - _PAST, row.end <= until)
        query = select(row.start, *(getattr(row, column) for column in columns), row.end)
        query = query.where(row.id.in_(last.group_by(row.start, row.end))).order_by(*_NEWEST_FIRST)
        with self.store.reading() as session:
            windows = session.execute(query.limit(_MOST_PAST)).all()[::-1]
        return [
            row
            for row in windows
            if row.end - row.start == length and not (row.start - aligned_to) % length
        ]

    def accept(
        self,
        endpoint: str,
        monitor: str,
        baseline: Mapping[str, str],
        why: str = "",
        window: tuple[datetime, datetime] | None = None,
    ) -> str:
        """Set the start of the baseline of these columns, and keep other columns. Write
        an event; return its actor.

        The last revision of the judged `window` (start and end) records that its alarms
        of these columns are accepted. If all its alarms are, no alarm is consecutive.
        """
        detail = {
            "monitor": monitor,
            "baseline": ", ".join(f"{key} since {since}" for key, since in baseline.items()),
        }
        with self._row(endpoint, monitor) as (session, row):
            row.baseline = {**row.baseline, **baseline}
            if window is not None:
                start, end = window
                newest_revision = (
                    select(MonitorWindowRow)
                    .filter_by(
                        endpoint=endpoint, monitor=monitor, start=start, end=end, state="judged"
                    )
                    .order_by(MonitorWindowRow.id.desc())
                    .limit(1)
                )
                judged = session.scalars(newest_revision).one()
                accepted = dict.fromkeys([*judged.evidence.get("accepted", ()), *baseline])
                judged.evidence = {**judged.evidence, "accepted": [*accepted]}
                if {*judged.evidence["alarms"]} <= {*accepted}:
                    row.consecutive = 0
            self.store.write_event(
                session, "monitor.accept", endpoint=endpoint, why=why, detail=detail
            )
        return self.store.user

    def windows_by_id(self, ids: Sequence[int]) -> dict[int, MonitorWindow]:
        query = select(MonitorWindowRow).where(MonitorWindowRow.id.in_(ids))
        return {window.id: window for window in self.store.read(query, MonitorWindow)}

    def newest(self, endpoint: str, monitor: str, limit: int) -> "Sequence[Row[int, bool, str]]":
        """Return `id`, `by_hand` and `state` of the newest windows, oldest first. All
        fields would take more memory.
        """
        query = (
            select(MonitorWindowRow.id, MonitorWindowRow.by_hand, MonitorWindowRow.state)
            .filter_by(endpoint=endpoint, monitor=monitor)
            .order_by(*_NEWEST_FIRST)
            .limit(limit)
        )
        with self.store.reading() as session:
            return session.execute(query).all()[::-1]

    def with_windows(self, by_hand: bool) -> Iterator[MonitorKey]:
        """Yield the monitors that have windows. Each step is an index lookup;
        `DISTINCT` would read the full index.
        """
        row = MonitorWindowRow
        last = ("", "")
        query = (
            select(row.endpoint, row.monitor)
            .filter_by(by_hand=by_hand)
            .order_by(row.endpoint, row.monitor)
        )
        while True:
            with self.store.reading() as session:
                next_key = session.execute(
                    query.where(tuple_(row.endpoint, row.monitor) > last).limit(1),
                ).one_or_none()
            if next_key is None:
                return
            last = (next_key.endpoint, next_key.monitor)
            yield last

    def newest_of_each(
        self,
        endpoint: str,
        monitors: Iterable[str],
        limit: int,
    ) -> list[MonitorWindow]:
        """Return each monitor's newest `limit` windows with their revisions, oldest
        first.
        """
        row = MonitorWindowRow
        windows: list[MonitorWindow] = []
        with self.store.reading() as session:
            for monitor in monitors:
                of = {"endpoint": endpoint, "monitor": monitor}
                starts = (
                    select(row.start)
                    .filter_by(**of)
                    .distinct()
                    .order_by(row.start.desc())
                    .limit(limit)
                    .subquery()
                )
                since = select(func.min(starts.c.start)).scalar_subquery()
                query = (
                    select(row).filter_by(**of).where(row.start >= since).order_by(*_NEWEST_FIRST)
                )
                windows += read_rows(session, query, MonitorWindow)
        return windows[::-1]

    @contextmanager
    def _row(self, endpoint: str, monitor: str) -> Iterator[tuple[Session, MonitorRow]]:
        """Yield a transaction and the locked row of a monitor in it, which is created
        if it is missing.
        """
        with self.store.transaction(alone_with=f"monitor/{endpoint}/{monitor}") as session:
            row = session.get(MonitorRow, (endpoint, monitor), with_for_update=True)
            if row is None:
                row = MonitorRow(endpoint=endpoint, monitor=monitor)
                session.add(row)
                session.flush()
            yield session, row


@dataclass(frozen=True)
class StoreCounts:
    """The counts of a store for Prometheus. Windows by hand are not counted.

    Attributes:
        judged / newest: monitor → its newest judged window, and its newest window in
            any state.
        figures: monitor → the requested figure, from the newest judged window that has
            this figure.
        judged_windows: endpoint, monitor and verdict → number of judged windows,
            including expired windows.
        failures: monitor → number of failed attempts, including attempts at expired
            windows.
        last_judged: monitor → the time of its last verdict.
        retrainings: endpoint, monitor and state → number of retrainings since the
            endpoint was created.
    """

    judged: Mapping[MonitorKey, MonitorWindow]
    newest: Mapping[MonitorKey, MonitorWindow]
    figures: Mapping[MonitorKey, float]
    judged_windows: Mapping[tuple[str, str, str], int]
    failures: Mapping[MonitorKey, int]
    last_judged: Mapping[MonitorKey, datetime]
    firing: Mapping[MonitorKey, int]
    retrainings: Mapping[tuple[str, str, str], int]


def read_counts(
    store: Store,
    monitors: Iterable[MonitorKey],
    figure: str,
    looked_back: int,
) -> StoreCounts:
    """Return the counts of these monitors and of the complete store, in one
    transaction.

    `figure` is the name of the figure that is searched in the newest `looked_back`
    judged windows of each monitor.
    """
    judged: dict[MonitorKey, MonitorWindow] = {}
    newest: dict[MonitorKey, MonitorWindow] = {}
    figures: dict[MonitorKey, float] = {}
    with store.reading() as session:
        for key in monitors:
            scheduled = (
                select(MonitorWindowRow)
                .filter_by(endpoint=key[0], monitor=key[1], by_hand=False)
                .order_by(*_NEWEST_FIRST)
            )
            of_judged = scheduled.where(MonitorWindowRow.state == "judged")
            window = _first(session, scheduled)
            if window is None:
                continue
            newest[key] = window
            if window.state != "judged":
                window = _first(session, of_judged)
                if window is None:
                    continue
            judged[key] = window
            value = window.figures.get(figure)
            if value is None:
                # A window without rows lacks the figure.
                column = MonitorWindowRow.figures[figure].as_float()
                earlier = of_judged.limit(looked_back).with_only_columns(column)
                values = session.scalars(earlier).all()
                value = next((number for number in values if number is not None), None)
            if value is not None:
                figures[key] = value
        counted = (
            select(AlertRow.endpoint, AlertRow.monitor, func.count().label("firing"))
            .filter_by(state="firing")
            .group_by(AlertRow.endpoint, AlertRow.monitor)
        )
        firing = {(row.endpoint, row.monitor): row.firing for row in session.execute(counted)}
        return StoreCounts(
            judged,
            newest,
            figures,
            *_count_windows(session),
            firing=firing,
            retrainings=_count_retrainings(session),
        )


def _first(session: Session, windows: Select[MonitorWindowRow]) -> MonitorWindow | None:
    rows = read_rows(session, windows.limit(1), MonitorWindow)
    return rows[0] if rows else None


def _count_windows(
    session: Session,
) -> tuple[Counter[tuple[str, str, str]], Counter[MonitorKey], dict[MonitorKey, datetime]]:
    """Return `judged_windows`, `failures` and `last_judged` of `StoreCounts`."""
    row = MonitorWindowRow
    groups = row.endpoint, row.monitor, row.state, row.verdict
    counted = (
        select(
            *groups,
            func.count().label("windows"),
            func.sum(row.attempts).label("attempts"),
            func.max(row.updated_at).label("updated_at"),
        )
        .where(~row.by_hand)
        .group_by(*groups)
        .subquery()
    )
    # Use one statement: a window that expires between two statements would be counted
    # twice or not at all.
    with_expired = select(counted, MonitorRow.expired, MonitorRow.expired_failures).outerjoin(
        MonitorRow,
        and_(
            counted.c.endpoint == MonitorRow.endpoint,
            counted.c.monitor == MonitorRow.monitor,
        ),
    )
    judged: Counter[tuple[str, str, str]] = Counter()
    failures: Counter[MonitorKey] = Counter()
    last: dict[MonitorKey, datetime] = {}
    for group in session.execute(with_expired):
        key = group.endpoint, group.monitor
        if key not in failures:
            failures[key] = group.expired_failures or 0
            for verdict, windows in (group.expired or {}).items():
                judged[*key, verdict] += windows
        failures[key] += int(group.attempts)
        if group.state == "judged":
            judged[*key, group.verdict] += group.windows
            last[key] = max(last.get(key, group.updated_at), group.updated_at)
    return judged, failures, last


def _count_retrainings(session: Session) -> dict[tuple[str, str, str], int]:
    row = RetrainingRow
    groups = row.endpoint, row.monitor, row.state
    begun = (
        select(*groups, func.count())
        .outerjoin(EndpointRow, EndpointRow.name == row.endpoint)
        .where(
            or_(
                EndpointRow.created_at.is_(None),
                row.created_at >= EndpointRow.created_at,
            )
        )
        .group_by(*groups)
    )
    return {
        (endpoint, monitor, state): count
        for endpoint, monitor, state, count in session.execute(begun)
    }
