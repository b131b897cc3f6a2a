"""Endpoints, audit events and rollouts in the store: small transactions that return
frozen dataclasses.
"""

from collections.abc import Callable, Collection, Container, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any

from sqlalchemy import delete, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from mlflow_deploy_plugin.core.errors import (
    AlreadyExists,
    InvalidConfig,
    NotFound,
)
from mlflow_deploy_plugin.core.messages import did_you_mean, join_names
from mlflow_deploy_plugin.core.spec.document import dump_spec, load_stored_specs
from mlflow_deploy_plugin.core.spec.parts import EndpointSpec
from mlflow_deploy_plugin.core.store.audit import (
    EVENT_FIELDS,
    FAILED,
    INTEND,
    AuditEvent,
    describe_change,
    describe_traffic,
    is_of_registry,
    save_row,
    settle,
    write_event,
)
from mlflow_deploy_plugin.core.store.audit_verify import BROKEN, counted_events
from mlflow_deploy_plugin.core.store.checkpoints import Checkpoint
from mlflow_deploy_plugin.core.store.leases import Lease, Leases, held_row
from mlflow_deploy_plugin.core.store.tables import (
    IS_DELETED,
    AlertRow,
    AuditRow,
    EndpointRow,
    InboxRow,
    Json,
    MonitorRow,
    MonitorWindowRow,
    RegistryChangeRow,
    RolloutRow,
    SilenceRow,
    from_row,
    given,
    read_rows,
    write_fields,
)

HOLD = "hold"
RELEASE = "release"
_ABANDONED = "abandoned"
_DELETED = "the endpoint was deleted"
_EVENTS_AT_ONCE = 1000
_RECENT = timedelta(minutes=1)
"""The age up to which changes are read again. A transaction may be committed long after
its `changed_at`.
"""


@dataclass(frozen=True)
class Endpoint:
    """An endpoint with its deployment target and its spec.

    Rows captured under the endpoint's name before `rows_since` belong to a deleted
    endpoint. If there was no earlier endpoint of this name, `rows_since` is None.
    `unapproved` has the models that answer without the approvals that they require
    (`ship/deployments/unapproved.py`).
    """

    name: str
    target: str
    spec: EndpointSpec
    created_at: datetime
    updated_at: datetime
    rows_since: datetime | None = None
    unapproved: Sequence[Json] = ()


@dataclass(frozen=True)
class UnreadableEndpoint:
    """An endpoint whose spec (`text`) cannot be read, because another version of
    onnxserve or a user wrote it.
    """

    name: str
    target: str
    text: str
    reason: str


@dataclass(frozen=True)
class Rollout:
    """A rollout of an endpoint. An endpoint has at most one live rollout.

    Attributes:
        spec: the plan (`promote/rollouts/plan.py`); never changed.
        state: a state of `promote/rollouts/state_machine.py`.
        step: the index of the current step in the steps of `spec`.
        step_at: the start of the current step; only for display.
        revision: incremented by every write; a write with an older revision is
            rejected.
        ended_at: None while the rollout is live.
    """

    id: int
    endpoint: str
    spec: Json
    state: str
    step: int
    step_at: datetime
    figures: Json
    reason: str
    created_at: datetime
    updated_at: datetime
    ended_at: datetime | None = None
    revision: int = 0

    @property
    def is_live(self) -> bool:
        return self.ended_at is None


class Store(Leases):
    """The endpoints, audit events and rollouts of a database; created by `open_store`.

    An endpoint and its audit event are written in one transaction. By default, `actor`
    is the `user` of this process.
    """

    def add_endpoint(
        self,
        target: str,
        spec: EndpointSpec,
        *,
        why: str = "",
        unapproved: Sequence[Json] = (),
    ) -> Endpoint:
        """Add an endpoint under the name of `spec`. Raises AlreadyExists, even if two
        processes add it at once.
        """
        now = self._clock()
        row = EndpointRow(
            name=spec.name,
            target=target,
            spec=dump_spec(spec),
            created_at=now,
            updated_at=now,
        )
        row.unapproved = [*unapproved]
        try:
            with self.transaction() as session:
                session.add(row)
                # Windows may exist, judged by hand earlier.
                _delete_monitors(session, spec.name, now)
                self.write_event(
                    session,
                    "create",
                    endpoint=spec.name,
                    after=describe_traffic(spec),
                    why=why,
                    detail={"spec": row.spec, **_unapproved_detail(unapproved)},
                )
                session.flush()
                return _to_endpoint(row, _deleted_names(session, spec.name))
        except IntegrityError:
            raise AlreadyExists(
                f"endpoint {spec.name!r} already exists: update or delete it",
            ) from None

    def replace_spec(
        self,
        spec: EndpointSpec,
        *,
        action: str = "update",
        why: str = "",
        detail: Json | None = None,
        actor: str | None = None,
        unapproved: Sequence[Json] = (),
    ) -> Endpoint:
        """Replace the spec of the endpoint, with an audit event. Raises NotFound.

        Args:
            why: the user's reason.
            detail: is added to the event.
            actor: the user who asked for the change; None for the store's user.
            unapproved: the versions that the endpoint serves without approval.
        """
        with self.transaction() as session:
            row = session.get(EndpointRow, spec.name)
            if row is None:
                raise NotFound(f"there is no endpoint {spec.name!r}")
            before = _to_endpoint(row, ()).spec
            row.spec = dump_spec(spec)
            row.updated_at = self._clock()
            row.unapproved = [*unapproved]
            was, became = describe_change(before, spec)
            self.write_event(
                session,
                action,
                actor,
                endpoint=spec.name,
                before=was,
                after=became,
                why=why,
                detail={"spec": row.spec, **(detail or {}), **_unapproved_detail(unapproved)},
            )
            session.flush()
            return _to_endpoint(row, _deleted_names(session, spec.name))

    def remove_endpoint(self, name: str, *, why: str = "") -> bool:
        """Delete the endpoint and its monitors' windows, and end its rollout. MLflow
        runs and audit events are kept. Return False if the endpoint does not exist.
        Raises InvalidConfig if the endpoint is on hold.
        """
        self.require_not_held(name)
        with self.transaction() as session:
            row = session.get(EndpointRow, name)
            if row is None:
                return False
            before = ""
            now = self._clock()
            with suppress(InvalidConfig):
                before = describe_traffic(_to_endpoint(row, ()).spec)
            session.delete(row)
            _delete_monitors(session, name, now)
            live = select(RolloutRow).filter_by(endpoint=name, ended_at=None)
            for rollout in session.scalars(live.order_by(RolloutRow.id).with_for_update()):
                rollout.state = _ABANDONED
                rollout.reason = _DELETED
                rollout.revision = rollout.revision + 1
                rollout.updated_at = now
                rollout.ended_at = now
                end = {"rollout": rollout.id, "state": _ABANDONED}
                self.write_event(session, "rollout.end", endpoint=name, why=_DELETED, detail=end)
            self.write_event(session, "delete", endpoint=name, before=before, why=why)
            return True

    def require_not_held(self, endpoint: str) -> None:
        """Raise InvalidConfig if the data of the endpoint is on hold (`holds.py`)."""
        events = self.events(endpoint, actions=(HOLD, RELEASE), newest_first=True)
        event = next(events, None)
        if event is not None and event.action == HOLD:
            raise InvalidConfig(
                f"the data of endpoint {endpoint!r} is on hold by {event.actor} ({event.why}); "
                f"`onnxserve endpoint hold {endpoint} --release --why REASON` releases it"
            )

    def clear_if_deleted(self, name: str) -> None:
        """Delete rows that other processes wrote for the endpoint's monitors after the
        endpoint was deleted.
        """
        with self.transaction() as session:
            if session.get(EndpointRow, name) is None:
                _delete_monitors(session, name, self._clock())

    def endpoint(self, name: str) -> Endpoint | None:
        """Return the endpoint; None if there is no such endpoint. Raises InvalidConfig
        if the spec cannot be read.
        """
        with self.reading() as session:
            row = session.get(EndpointRow, name)
            if row is None:
                return None
            return _to_endpoint(row, _deleted_names(session, name))

    def require_endpoint(self, name: str) -> Endpoint:
        """Return the endpoint. Raises NotFound if there is none, and InvalidConfig if
        its spec cannot be read.
        """
        if (endpoint := self.endpoint(name)) is None:
            raise unknown_endpoint(name, self.names())
        return endpoint

    def names(self, *, deleted: bool = False) -> list[str]:
        """Return the sorted names of all endpoints, readable or not; with `deleted`,
        also of deleted endpoints.
        """
        with self.reading() as session:
            names = set(session.scalars(select(EndpointRow.name)))
            if deleted:
                names.update(_deleted_names(session))
            return sorted(names)

    def endpoints(self) -> list[Endpoint]:
        return [item for item in self._read_endpoints() if isinstance(item, Endpoint)]

    def unreadable(self) -> list[UnreadableEndpoint]:
        return [item for item in self._read_endpoints() if isinstance(item, UnreadableEndpoint)]

    def record(self, action: str, *, actor: str | None = None, **fields: Any) -> None:
        """Write an audit event of a change outside the store, such as a start, a
        promotion or a rollout step.
        """
        with self.transaction() as session:
            self.write_event(session, action, actor, **fields)

    def record_event(self, event: AuditEvent) -> None:
        with self.transaction() as session:
            write_event(session, event)

    def count_change(self, model: str, event: AuditEvent | None = None) -> None:
        """Count a change of a model, its versions, aliases, stages or tags, for the
        workers of MLflow's servers. Write the event of the change, if it has one.
        """
        with self.transaction(f"changes of {model}", must_record=False) as session:
            if event is not None:
                write_event(session, event)
            row = session.get(RegistryChangeRow, model, with_for_update=True)
            if row is None:
                row = RegistryChangeRow(model=model, count=0)
            row.count = row.count + 1
            row.changed_at = self.shared_now()
            session.add(row)

    def recent_changes(self) -> dict[str, int]:
        """Return the counters of all models that have changed within the last
        minute.
        """
        with self.reading() as session:
            is_recent = RegistryChangeRow.changed_at > self.shared_now() - _RECENT
            recent = select(RegistryChangeRow.model, RegistryChangeRow.count).where(is_recent)
            return dict(session.execute(recent).all())

    def record_unless_repeated(self, event: AuditEvent) -> None:
        """Write the event unless the last event with this endpoint, monitor and kind of
        action had the same reason.
        """
        kind = event.action.partition(".")[0]
        monitor = event.detail["monitor"]
        earlier = select(AuditRow).where(
            AuditRow.endpoint == event.endpoint,
            AuditRow.detail["monitor"].as_string() == monitor,
            AuditRow.action.startswith(f"{kind}."),
        )
        with self.transaction(alone_with=f"events/{event.endpoint}/{monitor}") as session:
            last = session.scalars(earlier.order_by(AuditRow.id.desc()).limit(1)).first()
            if last is None or (last.action, last.why) != (event.action, event.why):
                write_event(session, event)

    def record_next(
        self,
        model: str,
        actions: Collection[str],
        decide: Callable[[list[AuditEvent]], AuditEvent | None],
    ) -> bool:
        """Write the event that `decide` derives from the model's events with one of the
        `actions`, oldest first.

        Return False if there is no such event. The events are read and written in one
        transaction.
        """
        recorded = self._recorded(model)
        with self.transaction(alone_with=f"events of {model}") as session:
            event = decide(self._counted_events(session, model, actions, recorded))
            if event is not None:
                write_event(session, event)
        return event is not None

    def counted_events(self, model: str, actions: Collection[str]) -> list[AuditEvent]:
        """Return the events of a model with one of the `actions`, oldest first, that
        may decide something.

        On MLflow's server, these are its own events
        (`audit_verify.counted_events`) and those that it could not store yet. Other
        processes return all events. Intentions are settled (`audit.settle`). Events of
        a model of the same name in another registry are left out.
        """
        recorded = self._recorded(model)
        with self.reading() as session:
            return self._counted_events(session, model, actions, recorded)

    def _recorded(self, model: str) -> tuple[Checkpoint | None, list[AuditEvent]]:
        """Return the recorded checkpoint, and the events of a model that are not stored
        yet. Read them before the transaction, which may see an earlier state of the
        store than the record.
        """
        if self.trail_record is None:
            return None, []
        newest = self.trail_record.newest()
        return newest.checkpoint if newest else None, self.trail_record.spooled(model)

    def _counted_events(
        self,
        session: Session,
        model: str,
        actions: Collection[str],
        recorded: tuple[Checkpoint | None, list[AuditEvent]],
    ) -> list[AuditEvent]:
        if self.keys is None:
            chosen = AuditRow.action.in_((*actions, INTEND, FAILED))
            query = select(AuditRow).where(AuditRow.model == model, chosen)
            events = read_rows(session, query.order_by(AuditRow.id), AuditEvent)
        else:
            checkpoint, spooled = recorded
            view = self.trail_view
            events = counted_events(view, session, model, self.keys, checkpoint) + spooled
        return [
            event
            for event in settle(events)
            if event.action in (*actions, BROKEN) and is_of_registry(event, self.login.registry)
        ]

    def events(
        self,
        endpoint: str | None = None,
        model: str | None = None,
        *,
        actions: Collection[str] = (),
        actor: str = "",
        newest_first: bool = False,
    ) -> Iterator[AuditEvent]:
        """Yield the audit events of the endpoint and model (None: of all) with one of
        the `actions` (empty: all), by actors whose names contain `actor`.

        Events are read oldest first, in pages of 1,000, because the trail may not fit
        in memory. New events may be included.
        """
        columns = (getattr(AuditRow, name) for name in EVENT_FIELDS)
        query = select(AuditRow.id, *columns)
        query = query.filter_by(**given(endpoint=endpoint, model=model)).limit(_EVENTS_AT_ONCE)
        if actions:
            query = query.where(AuditRow.action.in_(actions))
        if actor:
            query = query.where(AuditRow.actor.icontains(actor, autoescape=True))
        query = query.order_by(AuditRow.id.desc() if newest_first else AuditRow.id)
        page = query
        while True:
            with self.reading() as session:
                rows = session.execute(page).all()
            yield from (AuditEvent(*values) for _, *values in rows)
            if len(rows) < _EVENTS_AT_ONCE:
                return
            last = rows[-1].id
            follows = AuditRow.id < last if newest_first else AuditRow.id > last
            page = query.where(follows)

    def add_rollout(
        self,
        endpoint: str,
        spec: Json,
        state: str,
        event: AuditEvent | None = None,
    ) -> Rollout:
        """Add a rollout, together with its event. Raises AlreadyExists if the endpoint
        has a live rollout.
        """
        now = self._clock()
        row = RolloutRow(
            endpoint=endpoint,
            spec=spec,
            state=state,
            step_at=now,
            created_at=now,
            updated_at=now,
        )
        try:
            with self.transaction() as session:
                return save_row(session, row, Rollout, event)
        except IntegrityError:
            raise _rollout_exists(endpoint) from None

    def require_no_rollout(self, endpoint: str) -> None:
        if self.rollouts(endpoint, live=True):
            raise _rollout_exists(endpoint)

    def rollouts(
        self,
        endpoint: str | None = None,
        live: bool = False,
        limit: int | None = None,
    ) -> list[Rollout]:
        """Return rollouts, oldest first: only live rollouts if `live` is True, and the
        newest if `limit` is set.
        """
        query = (
            select(RolloutRow)
            .filter_by(**given(endpoint=endpoint))
            .order_by(RolloutRow.id.desc())
            .limit(limit)
        )
        if live:
            query = query.filter_by(ended_at=None)
        return self.read(query, Rollout)[::-1]

    def rollout(self, number: int) -> Rollout | None:
        with self.reading() as session:
            row = session.get(RolloutRow, number)
            return None if row is None else from_row(row, Rollout)

    def update_rollout(
        self,
        rollout: Rollout,
        lease: Lease | None,
        event: AuditEvent | None = None,
    ) -> Rollout | None:
        """Write the mutable fields of `rollout` and the event. Return the rollout with
        its new revision.

        Return None if the lease was lost, or if the rollout has ended or was changed
        since it was read.
        """
        with self.transaction() as session:
            if lease is not None and held_row(session, lease) is None:
                return None
            row = session.get(RolloutRow, rollout.id, with_for_update=True)
            if row is None or row.revision != rollout.revision or row.ended_at is not None:
                return None
            write_fields(row, rollout, "state", "step", "step_at", "figures", "reason", "ended_at")
            row.updated_at = self._clock()
            row.revision = row.revision + 1
            return save_row(session, row, Rollout, event)

    def _read_endpoints(self) -> Iterator[Endpoint | UnreadableEndpoint]:
        """Yield all endpoints by name, with the reason for each unreadable spec."""
        with self.reading() as session:
            deleted = _deleted_names(session)
            for row in session.scalars(select(EndpointRow).order_by(EndpointRow.name)):
                try:
                    yield _to_endpoint(row, deleted)
                except InvalidConfig as error:
                    yield UnreadableEndpoint(row.name, row.target, row.spec, error.message)


def _deleted_names(session: Session, name: str | None = None) -> set[str]:
    """Return all names of deleted endpoints, or only `name` if it was deleted. New
    endpoints may have these names.
    """
    query = select(AuditRow.endpoint).where(IS_DELETED, AuditRow.endpoint != "").distinct()
    return set(session.scalars(query.filter_by(**given(endpoint=name))))


def _unapproved_detail(unapproved: Sequence[Json]) -> Json:
    return {"unapproved": [*unapproved]} if unapproved else {}


def _to_endpoint(row: EndpointRow, deleted: Container[str]) -> Endpoint:
    """Return the row's endpoint. `deleted` has deleted names. Raises InvalidConfig if
    the spec is malformed.
    """
    try:
        return Endpoint(
            row.name,
            row.target,
            _read_spec(row.spec),
            row.created_at,
            row.updated_at,
            rows_since=row.created_at if row.name in deleted else None,
            unapproved=tuple(row.unapproved),
        )
    except InvalidConfig as error:
        raise InvalidConfig(
            f"the spec of endpoint {row.name!r} in the store cannot be read: {error.message}; use "
            "the version of onnxserve that wrote it, or delete the endpoint with `onnxserve "
            f"endpoint delete {row.name}`",
        ) from None


@lru_cache(maxsize=16_384)
def _read_spec(text: str) -> EndpointSpec:
    """Return the spec from a cache, because the controller reads every endpoint every
    few seconds. Specs are frozen.

    Without the cache, reading 10,000 endpoints takes 2.4 s instead of 0.2 s.
    """
    (spec,) = load_stored_specs(text)
    return spec


def unknown_endpoint(
    name: str,
    endpoints: Iterable[str],
    otherwise: str = "",
) -> NotFound:
    """Return the error that `endpoints` lacks the name, with a similar name.
    `otherwise` ends the message.
    """
    names = sorted({*endpoints} - {""})
    if names:
        available = f"there are {join_names(names, name)}"
    else:
        available = "there are no endpoints yet"
    return NotFound(
        f"there is no endpoint {name!r}{did_you_mean(name, names, available)}{otherwise}"
    )


def _delete_monitors(session: Session, endpoint: str, now: datetime) -> None:
    """Delete states, windows and pushed events, resolve alerts and end silences, so
    that they do not affect a new endpoint.
    """
    alerts = (AlertRow.endpoint == endpoint, AlertRow.state.in_(("firing", "changed")))
    session.execute(update(AlertRow).where(*alerts).values(state="resolved"))
    silences = update(SilenceRow).where(SilenceRow.endpoint == endpoint, SilenceRow.until > now)
    session.execute(silences.values(until=now))
    # `expire` locks the tables in this order too, so that the two transactions do not
    # deadlock.
    for table in (MonitorWindowRow, MonitorRow, InboxRow):
        session.execute(delete(table).where(table.endpoint == endpoint))


def _rollout_exists(endpoint: str) -> AlreadyExists:
    return AlreadyExists(
        f"endpoint {endpoint!r} already has a rollout: wait for its end, or abort it with "
        f"`onnxserve rollout abort {endpoint}`",
    )
