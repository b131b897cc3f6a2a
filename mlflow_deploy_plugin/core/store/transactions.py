"""The transactions of the store, which write audit events at their ends, and the errors
of the database.
"""

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from functools import cached_property
from typing import Any

from sqlalchemy import URL, ColumnElement, Engine, Select, func
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session

from mlflow_deploy_plugin.core.errors import StoreUnavailable
from mlflow_deploy_plugin.core.messages import one_line
from mlflow_deploy_plugin.core.store import audit
from mlflow_deploy_plugin.core.store.audit import AuditEvent, Login
from mlflow_deploy_plugin.core.store.audit_keys import Keys
from mlflow_deploy_plugin.core.store.audit_record import TrailRecord
from mlflow_deploy_plugin.core.store.audit_tree import append_events, take_lock
from mlflow_deploy_plugin.core.store.audit_verify import TrailView
from mlflow_deploy_plugin.core.store.tables import READS_ONLY, RowT, ValueT, read_rows

LOCK_SECONDS = 30
"""The maximum time that a transaction waits for the lock of another transaction."""
_NOT_WRITABLE = (sqlite3.SQLITE_PERM, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN)


class Transactions:
    """The transactions of a database. `keys` sign the checkpoints of the events, and
    `record` has the newest one; only MLflow's server has them.
    """

    def __init__(
        self,
        engine: Engine,
        clock: Callable[[], datetime],
        monotonic: Callable[[], float] = time.monotonic,
        find_login: Callable[[], Login] = Login,
        keys: Keys | None = None,
        record: TrailRecord | None = None,
        lock_seconds: int = LOCK_SECONDS,
    ) -> None:
        self.keys = keys
        self.trail_record = record
        self.trail_view = TrailView()
        self._engine = engine
        self._reading = engine.execution_options(**{READS_ONLY: True})
        self._clock = clock
        self._monotonic = monotonic
        self._find_login = find_login
        self._lock_seconds = lock_seconds

    @cached_property
    def login(self) -> Login:
        """The login of this process, which is asked for once."""
        return self._find_login()

    @property
    def user(self) -> str:
        """The user of this process: the name of the user's login if there is one,
        otherwise user@machine.
        """
        return self.login.user or audit.current_actor()

    def close(self) -> None:
        self._engine.dispose()

    def now(self) -> datetime:
        return self._clock()

    def shared_now(self) -> ColumnElement[datetime] | datetime:
        """Return the time of a shared clock: PostgreSQL's clock (an SQL function),
        otherwise this machine's clock.
        """
        if self._engine.dialect.name == "postgresql":
            return func.now()
        return self._clock()

    @contextmanager
    def transaction(self, alone_with: str = "", *, must_record: bool = True) -> Iterator[Session]:
        """Open a transaction, which is committed completely or not at all. For the
        modules of this package.

        Args:
            alone_with: transactions with the same name exclude each other, because a
                row that does not exist yet cannot be locked. SQLite always excludes
                concurrent writing transactions.
            must_record: False for events of what has happened already, which are stored
                even if their checkpoint cannot be recorded.

        Raises IntegrityError if a unique value already exists, and StoreUnavailable if
        the database does not answer, the checkpoint cannot be recorded, or the trail is
        not the recorded one.
        """
        # The login is asked for before the transaction, which has locks.
        info = {audit.LOGIN: self.login, audit.LOCK: self._lock_seconds}
        with (
            self._errors(),
            Session(self._engine, info=info) as session,
            ExitStack() as recording,
            session.begin(),
        ):
            if alone_with:
                take_lock(session, alone_with)
            yield session
            session.flush()
            events = session.info.pop(audit.PENDING, ())
            try:
                head = append_events(session, events, self.keys, self.trail_record)
            except IntegrityError as error:  # Somebody has written by hand.
                raise store_unavailable(self._engine.url, error) from None
            if head and self.trail_record is not None:
                recording.enter_context(self.trail_record.recording(head, must_record))

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """Open a transaction that only reads. On SQLite, other processes can write at
        the same time. Raises StoreUnavailable.
        """
        with self._errors(), Session(self._reading) as session, session.begin():
            yield session

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except IntegrityError:
            raise
        except (DBAPIError, PoolTimeout) as error:
            raise store_unavailable(self._engine.url, error) from None

    def write_event(
        self, session: Session, action: str, actor: str | None = None, **fields: Any
    ) -> None:
        """Write an audit event of now in a transaction. The default of `actor` is the
        `user` of this process.
        """
        event = AuditEvent(self._clock(), actor or self.user, action, **fields)
        audit.write_event(session, event)

    def read(self, query: Select[RowT], kind: type[ValueT]) -> list[ValueT]:
        """Return the rows of a query as frozen dataclasses. For the modules of this
        package.
        """
        with self.reading() as session:
            return read_rows(session, query, kind)


def redacted_url(url: URL) -> str:
    """Return the URL for messages, without the password and the query, which may
    contain a password too.
    """
    return url.set(query={}).render_as_string(hide_password=True)


def store_unavailable(url: URL, error: Exception) -> StoreUnavailable:
    """Return the error for a database that cannot be used, as one line without the
    database's password.
    """
    cause = getattr(error, "orig", None) or error
    text = str(cause)
    for secret in (url.password, url.query.get("password")):
        if secret:
            text = text.replace(str(secret), "***")
    hint = ""
    sqlite_code = getattr(cause, "sqlite_errorcode", 0) & 0xFF
    if isinstance(cause, OSError) or sqlite_code in _NOT_WRITABLE:
        hint = "; set ONNXSERVE_HOME or ONNXSERVE_STORE_URI to another location"
    return StoreUnavailable(
        f"the store at {redacted_url(url)} cannot be used: {one_line(text)}{hint}",
    )
