"""Reads and writes of the store: small transactions, frozen dataclasses out."""

import getpass
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import Engine, select
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.orm import Session

from mlflow_deploy_plugin.errors import AlreadyExists, NotFound
from mlflow_deploy_plugin.spec import EndpointSpec, dump_spec, load_specs
from mlflow_deploy_plugin.store.failures import unavailable
from mlflow_deploy_plugin.store.tables import AuditRow, EndpointRow


@dataclass(frozen=True)
class Endpoint:
    """An endpoint that was asked for: where, and as what."""

    name: str
    target: str
    spec: EndpointSpec
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True)
class AuditEvent:
    """One change: `actor` is user@machine, `detail` what belongs to the action (the spec it led to)."""

    at: datetime
    actor: str
    action: str
    endpoint: str
    detail: dict[str, Any] = field(default_factory=dict)


class Store:
    """The endpoints and the audit events of one database; made by `open_store`.

    Every change is one transaction together with its audit event.
    """

    def __init__(self, engine: Engine, clock: Callable[[], datetime]) -> None:
        self._engine = engine
        self._clock = clock

    def add_endpoint(self, target: str, spec: EndpointSpec) -> Endpoint:
        """Takes the name of `spec` for it. Of two that ask at the same time one gets it.

        Raises:
            AlreadyExists: the name is taken.
        """
        now = self._clock()
        row = EndpointRow(name=spec.name, target=target, spec=dump_spec(spec), created_at=now, updated_at=now)
        try:
            with self._transaction() as session:
                session.add(row)
                self._audit(session, "create", spec.name, {"spec": row.spec})
                session.flush()
                return _endpoint(row)
        except IntegrityError:
            raise AlreadyExists(f"the endpoint {spec.name!r} exists already: update or delete it") from None

    def replace_spec(self, spec: EndpointSpec) -> Endpoint:
        """Keeps `spec` as what is wanted of the endpoint of its name.

        Raises:
            NotFound: there is no such endpoint.
        """
        with self._transaction() as session:
            row = session.get(EndpointRow, spec.name)
            if row is None:
                raise NotFound(f"there is no endpoint {spec.name!r}")
            row.spec, row.updated_at = dump_spec(spec), self._clock()
            self._audit(session, "update", spec.name, {"spec": row.spec})
            session.flush()
            return _endpoint(row)

    def remove_endpoint(self, name: str) -> bool:
        """Forgets the endpoint; False where there was none."""
        with self._transaction() as session:
            row = session.get(EndpointRow, name)
            if row is None:
                return False
            session.delete(row)
            self._audit(session, "delete", name, {})
            return True

    def record(self, action: str, endpoint: str) -> None:
        """Writes down what was done to an endpoint without changing what is wanted of it (start, stop)."""
        with self._transaction() as session:
            self._audit(session, action, endpoint, {})

    def endpoint(self, name: str) -> Endpoint | None:
        with self._transaction() as session:
            row = session.get(EndpointRow, name)
            return None if row is None else _endpoint(row)

    def endpoints(self) -> list[Endpoint]:
        """All, in the order of their names."""
        with self._transaction() as session:
            return [_endpoint(row) for row in session.scalars(select(EndpointRow).order_by(EndpointRow.name))]

    def events(self, endpoint: str) -> list[AuditEvent]:
        """What happened to `endpoint`, oldest first, also if it exists no more."""
        query = select(AuditRow).where(AuditRow.endpoint == endpoint).order_by(AuditRow.id)
        with self._transaction() as session:
            return [AuditEvent(r.at, r.actor, r.action, r.endpoint, r.detail) for r in session.scalars(query)]

    def close(self) -> None:
        self._engine.dispose()

    @contextmanager
    def _transaction(self) -> Iterator[Session]:
        try:
            with Session(self._engine) as session, session.begin():
                yield session
        except IntegrityError:
            raise
        except DBAPIError as error:
            raise unavailable(self._engine.url, error) from None

    def _audit(self, session: Session, action: str, endpoint: str, detail: dict[str, Any]) -> None:
        session.add(AuditRow(at=self._clock(), actor=_actor(), action=action, endpoint=endpoint, detail=detail))


def _actor() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user id without a name
        user = "unknown"
    return f"{user}@{socket.gethostname()}"


def _endpoint(row: EndpointRow) -> Endpoint:
    (spec,) = load_specs(row.spec)
    return Endpoint(row.name, row.target, spec, row.created_at, row.updated_at)
