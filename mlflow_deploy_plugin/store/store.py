"""Reads and writes of the store: small transactions, frozen dataclasses out."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from sqlalchemy import URL, Engine, delete, select, update
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.orm import Session

from mlflow_deploy_plugin.errors import AlreadyExists, NotFound, StoreUnavailable
from mlflow_deploy_plugin.spec import EndpointSpec, dump_spec
from mlflow_deploy_plugin.store import leases, rollouts
from mlflow_deploy_plugin.store.audit import (
    AuditEvent,
    current_actor,
    deleted_endpoints,
    describe_change,
    describe_traffic,
    read_events,
    write_event,
)
from mlflow_deploy_plugin.store.endpoints import (
    Endpoint,
    UnreadableEndpoint,
    endpoint_from_row,
    read_endpoints,
    unknown_endpoint,
)
from mlflow_deploy_plugin.store.leases import Lease, LeaseView, Sighting
from mlflow_deploy_plugin.store.rollouts import Rollout
from mlflow_deploy_plugin.store.tables import AlertRow, AuditRow, EndpointRow, MonitorRow, MonitorWindowRow

_ABANDONED, _DELETED = "abandoned", "the endpoint was deleted"


class Store:
    """Endpoints, audit events, rollouts and leases of one database; made by `open_store`.

    Every change of an endpoint is one transaction together with its audit event. If `actor` is None, it is the user of
    this process.
    """

    def __init__(
        self, engine: Engine, clock: Callable[[], datetime], monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._monotonic = monotonic
        self._sightings: dict[str, Sighting] = {}

    def add_endpoint(self, target: str, spec: EndpointSpec, *, why: str = "", actor: str | None = None) -> Endpoint:
        """Add an endpoint under the name of `spec`. If two processes do so at the same time, one of them succeeds.

        Raises:
            AlreadyExists: the name is taken.
        """
        now = self._clock()
        row = EndpointRow(name=spec.name, target=target, spec=dump_spec(spec), created_at=now, updated_at=now)
        try:
            with self.transaction() as session:
                session.add(row)
                _delete_monitors(session, spec.name)  # also of what was judged by hand while nobody had the name
                event = {"after": describe_traffic(spec), "why": why, "detail": {"spec": row.spec}}
                self._audit(session, "create", actor, endpoint=spec.name, **event)
                session.flush()
                return endpoint_from_row(row, deleted_endpoints(session, spec.name))
        except IntegrityError:
            raise AlreadyExists(f"the endpoint {spec.name!r} exists already: update or delete it") from None

    def replace_spec(
        self,
        spec: EndpointSpec,
        *,
        action: str = "update",
        why: str = "",
        detail: dict[str, Any] | None = None,
        actor: str | None = None,
    ) -> Endpoint:
        """Replace the spec of the endpoint of its name; `detail` goes into the audit event with it.

        Raises:
            NotFound: there is no such endpoint.
        """
        with self.transaction() as session:
            row = session.get(EndpointRow, spec.name)
            if row is None:
                raise NotFound(f"there is no endpoint {spec.name!r}")
            before = endpoint_from_row(row, ()).spec
            row.spec, row.updated_at = dump_spec(spec), self._clock()
            was, became = describe_change(before, spec)
            event = {"before": was, "after": became, "why": why, "detail": {"spec": row.spec, **(detail or {})}}
            self._audit(session, action, actor, endpoint=spec.name, **event)
            session.flush()
            return endpoint_from_row(row, deleted_endpoints(session, spec.name))

    def remove_endpoint(self, name: str, *, why: str = "", actor: str | None = None) -> bool:
        """Delete the endpoint with its monitors' windows, and end its rollout. Return False if there was none.

        The monitors' runs stay in MLflow, and the audit events in the store.
        """
        with self.transaction() as session:
            row = session.get(EndpointRow, name)
            if row is None:
                return False
            readable, _ = read_endpoints([row])
            session.delete(row)
            _delete_monitors(session, name)
            for rollout in rollouts.end(session, name, _ABANDONED, _DELETED, self._clock()):
                detail = {"rollout": rollout.id, "state": _ABANDONED}
                self._audit(session, "rollout.end", actor, endpoint=name, why=_DELETED, detail=detail)
            before = ", ".join(describe_traffic(one.spec) for one in readable)
            self._audit(session, "delete", actor, endpoint=name, before=before, why=why)
            return True

    def endpoint(self, name: str) -> Endpoint | None:
        """Return the endpoint; None if there is none. Raises InvalidConfig if its spec cannot be read."""
        with self.transaction() as session:
            row = session.get(EndpointRow, name)
            return None if row is None else endpoint_from_row(row, deleted_endpoints(session, name))

    def require_endpoint(self, name: str) -> Endpoint:
        """Return the endpoint. Raises NotFound with a message that names those there are, and as `endpoint`."""
        found = self.endpoint(name)
        if found is None:
            raise unknown_endpoint(name, self.names())
        return found

    def names(self) -> list[str]:
        """Return the names of all endpoints in their order, also of those that cannot be read."""
        with self.transaction() as session:
            return list(session.scalars(select(EndpointRow.name).order_by(EndpointRow.name)))

    def endpoints(self) -> list[Endpoint]:
        """Return the endpoints that can be read, in the order of their names."""
        return self._read_endpoints()[0]

    def unreadable(self) -> list[UnreadableEndpoint]:
        """Return the endpoints that cannot be read, in the order of their names."""
        return self._read_endpoints()[1]

    def record(
        self,
        action: str,
        *,
        endpoint: str = "",
        model: str = "",
        version: str = "",
        before: str = "",
        after: str = "",
        why: str = "",
        detail: dict[str, Any] | None = None,
        actor: str | None = None,
    ) -> None:
        """Write an audit event of a change outside of the store: a start, a promotion, a step of a rollout."""
        texts = {"endpoint": endpoint, "model": model, "version": version, "before": before, "after": after, "why": why}
        with self.transaction() as session:
            self._audit(session, action, actor, **texts, detail=detail or {})

    def record_unless_repeated(self, event: AuditEvent) -> None:
        """Write the event, unless the last one of its endpoint, monitor and kind of action had the same reason."""
        kind = event.action.partition(".")[0]
        of_monitor = AuditRow.detail["monitor"].as_string() == event.detail["monitor"]
        earlier = select(AuditRow).where(AuditRow.endpoint == event.endpoint, of_monitor).order_by(AuditRow.id.desc())
        with self.transaction() as session:
            last = session.scalars(earlier.where(AuditRow.action.startswith(f"{kind}.")).limit(1)).first()
            if last is None or (last.action, last.why) != (event.action, event.why):
                write_event(session, event)

    def events(
        self, endpoint: str | None = None, model: str | None = None, limit: int | None = None
    ) -> list[AuditEvent]:
        """Return the audit events of this endpoint and model (None: of any), oldest first; with `limit` the newest.

        Events outlive their endpoint and model.
        """
        with self.transaction() as session:
            return read_events(session, endpoint, model, limit)

    def add_rollout(self, endpoint: str, spec: dict[str, Any], state: str, event: AuditEvent | None = None) -> Rollout:
        """Add a rollout, together with its event.

        Raises:
            AlreadyExists: the endpoint has one that is live.
        """
        try:
            with self.transaction() as session:
                added = rollouts.add(session, endpoint, spec, state, self._clock())
                if event is not None:
                    write_event(session, event)
                return added
        except IntegrityError:
            raise AlreadyExists(
                f"endpoint {endpoint!r} has a rollout already: wait for its end, or abort it with "
                f"`onnxserve rollout {endpoint} --abort`"
            ) from None

    def rollouts(self, endpoint: str | None = None, live: bool = False) -> list[Rollout]:
        """Return rollouts, oldest first; with `live` only those that have not ended."""
        with self.transaction() as session:
            return rollouts.find(session, endpoint, live)

    def update_rollout(self, rollout: Rollout, lease: Lease | None, event: AuditEvent | None = None) -> Rollout | None:
        """Write the fields of `rollout` that may change, and its event, and return it with its new revision.

        Args:
            lease: the write happens only while it is held; None: a person writes, without a lease.

        Returns:
            None if it was not written: the lease is somebody else's, or the rollout was changed since it was read, or
            it has ended.
        """
        with self.transaction() as session:
            if lease is not None and not leases.is_held(session, lease):
                return None
            updated = rollouts.update(session, rollout, self._clock())
            if updated is not None and event is not None:
                write_event(session, event)
            return updated

    def acquire_lease(self, name: str, holder: str, seconds: float) -> Lease | None:
        """Return the lease of this name, or None while somebody has it.

        If its holder was killed, it is free once this store has seen it unrenewed for its length: call this again.
        """
        monotonic = self._monotonic()
        try:
            with self.transaction() as session:
                found = leases.acquire(
                    session, name, holder, seconds, self._sightings.get(name), self._clock(), monotonic
                )
        except IntegrityError:  # another made the row at the same time
            return None
        if isinstance(found, Sighting):
            self._sightings[name] = found
            return None
        self._sightings.pop(name, None)
        return found

    def renew_lease(self, lease: Lease) -> Lease | None:
        """Return the lease, renewed for its length from now; None if it is lost."""
        monotonic = self._monotonic()
        with self.transaction() as session:
            return leases.renew(session, lease, self._clock(), monotonic)

    def release_lease(self, lease: Lease) -> None:
        """Release the lease, so that the next one has it at once. It may be lost already."""
        with self.transaction() as session:
            leases.release(session, lease)

    def lease(self, name: str) -> LeaseView | None:
        """Return the lease of this name as others see it; None if nobody holds it."""
        with self.transaction() as session:
            return leases.view(session, name)

    def close(self) -> None:
        self._engine.dispose()

    def now(self) -> datetime:
        """Return the time by this store's clock, in UTC."""
        return self._clock()

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """Open one transaction: everything that is written in it stands, or nothing. For the modules of this package.

        Raises:
            IntegrityError: a unique value is there already.
            StoreUnavailable: the database does not answer.
        """
        try:
            with Session(self._engine) as session, session.begin():
                yield session
        except IntegrityError:
            raise
        except DBAPIError as error:
            raise store_unavailable(self._engine.url, error) from None

    def _read_endpoints(self) -> tuple[list[Endpoint], list[UnreadableEndpoint]]:
        with self.transaction() as session:
            rows = session.scalars(select(EndpointRow).order_by(EndpointRow.name))
            return read_endpoints(rows, deleted_endpoints(session))

    def _audit(self, session: Session, action: str, actor: str | None, **fields: Any) -> None:
        write_event(session, AuditEvent(self._clock(), actor or current_actor(), action, **fields))


def _delete_monitors(session: Session, endpoint: str) -> None:
    """Delete states and windows, and resolve the alerts, so that a later endpoint of the name alerts anew."""
    firing = (AlertRow.endpoint == endpoint, AlertRow.state == "firing")
    session.execute(update(AlertRow).where(*firing).values(state="resolved"))
    for table in (MonitorRow, MonitorWindowRow):
        session.execute(delete(table).where(table.endpoint == endpoint))


def redacted_url(url: URL) -> str:
    """Return the URL for people: without password, and without query, which may hold one too."""
    return url.set(query={}).render_as_string(hide_password=True)


def store_unavailable(url: URL, error: Exception) -> StoreUnavailable:
    """Return the error for a database that cannot be used, in one line and without its password."""
    text = str(getattr(error, "orig", None) or error)
    for secret in (url.password, url.query.get("password")):
        if secret:
            text = text.replace(str(secret), "***")
    return StoreUnavailable(f"the store at {redacted_url(url)} cannot be used: {' '.join(text.split())}")
